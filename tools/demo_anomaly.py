#!/usr/bin/env python
"""Demo of road anomalies on synthetic data: python tools/demo_anomaly.py."""

from _command import run

if __name__ == '__main__':
    run('demo_anomaly')

#!/usr/bin/env python
"""AP, FPR95 and more on all sets that are there: python tools/test_anomaly.py CONFIG CHECKPOINT --data-root DIR…."""

from _command import run

if __name__ == '__main__':
    run('test_anomaly')

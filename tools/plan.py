#!/usr/bin/env python
"""Memory of a run, predicted: python tools/plan.py CONFIG [--gpu-memory GB]."""

from _command import run

if __name__ == '__main__':
    run('plan')

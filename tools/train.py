#!/usr/bin/env python
"""Train: python tools/train.py CONFIG [--resume] [--amp] [--work-dir DIR] [--cfg-options KEY=VALUE …]."""

from _toolbox import run_script

if __name__ == '__main__':
    run_script('train.py')

#!/usr/bin/env python
"""Evaluate: python tools/test.py CONFIG CHECKPOINT [--out DIR] [--show-dir DIR] [--tta] [--cfg-options KEY=VALUE …]."""

from _toolbox import run_script

if __name__ == '__main__':
    run_script('test.py')

#!/usr/bin/env python
"""Evaluate: python tools/test.py CONFIG CHECKPOINT [--out DIR] [--show-dir DIR] [--tta] [--cfg-options KEY=VALUE …]."""

from _command import run

if __name__ == '__main__':
    run('test')

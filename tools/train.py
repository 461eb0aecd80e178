#!/usr/bin/env python
"""Train: python tools/train.py CONFIG [--resume] [--amp] [--work-dir DIR] [--cfg-options KEY=VALUE …]."""

from _command import run

if __name__ == '__main__':
    run('train')

#!/usr/bin/env python
"""mIoU in other domains and on corrupted images: python tools/robustness.py CONFIG CHECKPOINT --out DIR."""

from _command import run

if __name__ == '__main__':
    run('robustness')

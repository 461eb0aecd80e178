#!/usr/bin/env python
"""Label maps and overlays of images, folders and videos: python tools/predict.py CONFIG CHECKPOINT INPUT…."""

from _command import run

if __name__ == '__main__':
    run('predict')

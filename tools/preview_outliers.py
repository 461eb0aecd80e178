#!/usr/bin/env python
"""Look at pasted outliers before training: python tools/preview_outliers.py CONFIG."""

from _command import run

if __name__ == '__main__':
    run('preview_outliers')

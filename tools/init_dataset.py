#!/usr/bin/env python
"""A config for your own images and masks: python tools/init_dataset.py IMAGES MASKS."""

from _command import run

if __name__ == '__main__':
    run('init_dataset')

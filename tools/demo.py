#!/usr/bin/env python
"""End-to-end demo on synthetic data: python tools/demo.py."""

from _command import run

if __name__ == '__main__':
    run('demo')

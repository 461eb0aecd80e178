#!/usr/bin/env python
"""What the queries do on one image: python tools/show_queries.py CONFIG CHECKPOINT IMAGE."""

from _command import run

if __name__ == '__main__':
    run('show_queries')

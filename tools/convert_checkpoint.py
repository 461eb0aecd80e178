#!/usr/bin/env python
"""Convert a whole EoMT from any known format to another: python tools/convert_checkpoint.py --help."""

from _command import run

if __name__ == '__main__':
    run('convert_checkpoint')

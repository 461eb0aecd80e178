#!/usr/bin/env python
"""Run a script of the installed MMSegmentation: python tools/toolbox.py SCRIPT [its arguments …]."""

from _command import run

if __name__ == '__main__':
    run('toolbox')

#!/usr/bin/env python
"""Write a small synthetic street-scene dataset: python tools/make_street_scenes.py OUT."""

from _command import run

if __name__ == '__main__':
    run('make_street_scenes')

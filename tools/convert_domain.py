#!/usr/bin/env python
"""Labels of GTA5, SYNTHIA, Mapillary or Cityscapes as 19 train ids: python tools/convert_domain.py NAME ROOT."""

from _command import run

if __name__ == '__main__':
    run('convert_domain')

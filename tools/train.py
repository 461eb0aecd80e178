#!/usr/bin/env python
"""Train: python tools/train.py CONFIG [--resume] [--amp] [--work-dir DIR] [--cfg-options KEY=VALUE …]."""

import sys

from _toolbox import run_script

if __name__ == '__main__':
    if any(argument.startswith('resume=') for argument in sys.argv):
        sys.exit('train: resume=… has no effect here, since --resume alone sets it: use --resume, or leave it out.')
    run_script('train.py')

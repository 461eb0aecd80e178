#!/usr/bin/env python
"""Inspect, export, merge and compare LoRA checkpoints: python tools/adapter.py --help."""

from _command import run

if __name__ == '__main__':
    run('adapter')

#!/usr/bin/env python
"""Export a model to ONNX, OpenVINO or torch.export: python tools/export.py CONFIG CHECKPOINT OUT."""

from _command import run

if __name__ == '__main__':
    run('export')

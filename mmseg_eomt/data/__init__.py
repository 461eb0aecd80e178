"""Transforms of the data pipeline."""

from mmseg_eomt.data.color_jitter import EoMTColorJitter

__all__ = ['EoMTColorJitter']

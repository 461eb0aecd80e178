"""EoMT's backbone and decode head, and what they are made of."""

from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT

__all__ = ['EoMTHead', 'EoMTViT']

"""EoMT's backbone, decode head and segmentor, and what they are made of."""

from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.models.rein import ReinHead, ReinViT
from mmseg_eomt.models.segmentor import EoMTSegmentor

__all__ = ['EoMTHead', 'EoMTSegmentor', 'EoMTViT', 'ReinHead', 'ReinViT']

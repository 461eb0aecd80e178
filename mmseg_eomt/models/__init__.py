"""EoMT's backbone, decode head and segmentor, PMT's backbone and decode head, and what they are made of."""

from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.models.lateral_vit import LateralViT
from mmseg_eomt.models.pmt_head import PMTHead
from mmseg_eomt.models.rein import ReinHead, ReinViT
from mmseg_eomt.models.segmentor import EoMTSegmentor

__all__ = ['EoMTHead', 'EoMTSegmentor', 'EoMTViT', 'LateralViT', 'PMTHead', 'ReinHead', 'ReinViT']

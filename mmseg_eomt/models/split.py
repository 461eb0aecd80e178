"""The one thing that backbone and head must agree on and neither can see alone."""

from torch import nn

from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT


def check_split(model: nn.Module) -> None:
    """Make sure that backbone and head together are one whole ViT.

    Raises:
        ValueError: If a model with an :class:`EoMTViT` and an :class:`EoMTHead` would leave out blocks or run some twice, if
            the two are of different size, or take their weights from different files.
    """
    vits = [module for module in model.modules() if isinstance(module, EoMTViT)]
    heads = [module for module in model.modules() if isinstance(module, EoMTHead)]
    for head in heads:
        for vit in vits:
            for name in ('num_joint_blocks', 'arch', 'patch_size', 'init_cfg'):
                given = getattr(vit, name), getattr(head, name)
                if given[0] != given[1]:
                    raise ValueError(
                        f'{name} of backbone and decode_head must be equal, since they are parts of one ViT: '
                        f'got {given[0]} and {given[1]}.'
                    )

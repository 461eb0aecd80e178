"""Learning rates that fall from the ViT's last block to its first."""

import re
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmseg.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from mmseg_eomt.adapters.names import plain_name
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.weights.loading import first_block

PRETRAINED, NEW = 'pretrained', 'new'


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class EoMTOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Give each block of the ViT its own rate, and tell the pretrained from the new parts.

    Block i of L trains with ``lr · layer_decay ** (L - 1 - i)``, wherever it is: those in :class:`EoMTHead` are the ViT's
    last. Patch embedding, positions and prefix tokens have the first block's rate; the final norm, the head's new parts and
    everything else ``lr``. An adapter has the rate of its layer. Parameters of one rate and part share a group, whose
    ``part`` is ``'pretrained'`` (a backbone, and the blocks and norm of EoMTHead) or ``'new'``, for
    :class:`~mmseg_eomt.engine.two_warmups.TwoWarmupsPolyLR`. Frozen parameters are left out.

    Args:
        optim_wrapper_cfg: The config's ``optim_wrapper``; its ``optimizer`` needs an ``lr``.
        paramwise_cfg: A dict with

            - ``layer_decay``: Factor from a block to the one before it. Default: 0.8.
            - ``decay_joint_blocks``: Whether the joint blocks' rates fall too; else they have ``lr``, and the blocks before
              them the same rates as with it. Default: True.
            - ``custom_keys``: ``{part of a name: dict(lr_mult=…, decay_mult=…)}``: factors for those parameters' rate and
              weight decay, as the toolbox's constructors take them. Default: none.

    Raises:
        ValueError: If ``paramwise_cfg`` has other keys, ``lr`` is missing, or nothing is trainable.

    Source: public implementation ``training/lightning_module.py``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        options = dict(layer_decay=0.8, decay_joint_blocks=True, custom_keys={})
        unknown = set(paramwise_cfg or {}) - set(options)
        if unknown:
            raise ValueError(f'paramwise_cfg of {type(self).__name__} takes {list(options)}, got {sorted(unknown)}.')
        options.update(paramwise_cfg or {})
        strange = {key for custom in options['custom_keys'].values() for key in custom} - {'lr_mult', 'decay_mult'}
        if strange or not options['layer_decay'] > 0:
            raise ValueError(
                f'layer_decay must be above 0, and custom_keys take lr_mult and decay_mult; got '
                f'{options["layer_decay"]} and {sorted(strange)}.'
            )
        super().__init__(optim_wrapper_cfg, options)
        if self.base_lr is None:
            raise ValueError('optim_wrapper.optimizer needs an lr, from which the rates of the blocks are computed.')

    def add_params(self, params: list[dict], module: nn.Module, **_: object) -> None:
        """Append the groups of all trainable parameters of the model."""
        vits = {name: part for name, part in module.named_modules() if isinstance(part, (EoMTViT, EoMTHead))}
        groups: dict[tuple, dict[str, Any]] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            plain = plain_name(name)
            part, scale = self._place(plain, vits)
            options = dict(part=part, lr=self.base_lr * scale)
            if self.base_wd is not None:
                options['weight_decay'] = self.base_wd
            custom = self.paramwise_cfg['custom_keys']
            for key in sorted(custom, key=len, reverse=True):
                if key in plain:
                    options['lr'] *= custom[key].get('lr_mult', 1.0)
                    if self.base_wd is not None:
                        options['weight_decay'] *= custom[key].get('decay_mult', 1.0)
                    break
            group = groups.setdefault(tuple(options.values()), dict(options, params=[]))
            group['params'].append(parameter)
        if not groups:
            raise ValueError('The model has no trainable parameter.')
        params.extend(groups.values())

    def _place(self, name: str, vits: dict[str, nn.Module]) -> tuple[str, float]:
        """Part of a parameter, and its rate as a share of ``lr``."""
        for prefix, vit in vits.items():
            if not name.startswith(f'{prefix}.'):
                continue
            rest = name.removeprefix(f'{prefix}.')
            if rest.startswith('norm.'):
                return PRETRAINED, 1.0
            block = re.match(r'blocks\.(\d+)\.', rest)
            if isinstance(vit, EoMTHead) and not block:
                return NEW, 1.0
            index = int(block[1]) + first_block(vit) if block else 0
            if isinstance(vit, EoMTHead) and not self.paramwise_cfg['decay_joint_blocks']:
                return PRETRAINED, 1.0
            return PRETRAINED, self.paramwise_cfg['layer_decay'] ** (vit.arch.num_layers - 1 - index)
        return (PRETRAINED if name.startswith('backbone.') else NEW), 1.0

"""Fused layers of queries, keys and values as three layers each, which plain PEFT adapts apart."""

import torch
from mmseg.models.backbones.beit import BEiTAttention
from torch import Tensor, nn

from mmseg_eomt.adapters.names import tuner_layers
from mmseg_eomt.models.layers import KeyBiasFreeLinear

ROWS = ('q_proj', 'k_proj', 'v_proj')  # names of the three layers, in the order of the fused one's rows


class SeparateQKV(nn.Module):
    """The three layers of a fused one, whose outputs are put together again.

    Args:
        fused: A linear layer (d to 3d), whose rows are those of queries, keys and values. It is copied.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        biases = (None,) * 3 if fused.bias is None else fused.bias.detach().chunk(3)
        weights = fused.weight.detach().chunk(3)
        for name, weight, bias in zip(ROWS, weights, biases, strict=True):
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device='meta')
            layer.weight = nn.Parameter(weight.clone(), fused.weight.requires_grad)
            if bias is not None and not (name == 'k_proj' and isinstance(fused, KeyBiasFreeLinear)):
                layer.bias = nn.Parameter(bias.clone(), fused.weight.requires_grad)
            self.add_module(name, layer)
        self.train(fused.training)

    def forward(self, x: Tensor) -> Tensor:
        """(…, d) to (…, 3d)."""
        return torch.cat([self.get_submodule(name)(x) for name in ROWS], dim=-1)


def separate_qkv(model: nn.Module) -> nn.Module:
    """Take the fused ``qkv`` layers of a model apart, in place, for PEFT without this package.

    ``peft.PeftModel.from_pretrained(separate_qkv(segmentor), folder)`` takes a folder of adapters that were trained with
    ``split_qkv``, and a folder that PEFT writes of such a model is read as one of those. The model computes what it has
    computed before, and its checkpoints are other ones: ``attn.qkv.weight`` becomes ``attn.qkv.q_proj.weight`` and so on.

    Args:
        model: Any module without adapters, its weights in.

    Returns:
        The same module.

    Raises:
        ValueError: If it has adapters or no such layer, or reads the weight of one without calling it.
    """
    if tuner_layers(model):
        raise ValueError('The model has adapters, which are of its fused layers: separate a plain one, or merge them first.')
    readers = [name for name, module in model.named_modules() if isinstance(module, BEiTAttention)]
    if readers:
        raise ValueError(f'{readers[0]} reads the weight of its qkv layer, which cannot be separated.')
    fused = [
        (name, module)
        for name, module in model.named_modules()
        if name.rpartition('.')[2] == 'qkv'
        and isinstance(module, nn.Linear)
        and module.out_features == 3 * module.in_features
    ]
    if not fused:
        raise ValueError('The model has no linear layer called qkv that makes queries, keys and values.')
    for name, layer in fused:
        parent, _, child = name.rpartition('.')
        setattr(model.get_submodule(parent), child, SeparateQKV(layer))
    return model


def is_separate(model: nn.Module) -> bool:
    """Whether a model has the layers of a separated one."""
    return any(name.split('.')[-2:] == ['qkv', ROWS[0]] for name, _ in model.named_modules())

"""LoRA in weights that a model reads without calling their layer, which PEFT's own layers do not see to."""

from typing import Any, cast

from mmseg.models.backbones.beit import BEiTAttention
from peft.tuners.lora import Linear, ParamWrapper
from torch import Tensor, nn
from torch.func import functional_call

from mmseg_eomt.adapters.split_qkv import SplitLinear


class _ReadWeight(Linear):
    @property
    def weight(self) -> Tensor:
        """The base's weight plus the active adapters' change, unless that is merged or disabled."""
        return _with_adapters(self, cast(Tensor, self.get_base_layer().weight))


class ReadLinear(_ReadWeight):
    """PEFT's adapted linear layer with the adapters in its ``weight`` too; there is no dropout in front of them there."""


class ReadSplitLinear(_ReadWeight, SplitLinear):
    """The same with an adapter each for queries, keys and values."""


class AdaptedAttention(ParamWrapper):
    """PEFT's adapted weight of PyTorch's attention, with a forward pass that leaves the parameters where they are.

    PEFT's own takes no keywords, and puts the weight behind the bias, where an EMA copy would be mixed up with it. What
    others read of an attention, as PyTorch's transformer layers do, it has too: the weight with the adapters in it.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As PyTorch's attention: a tensor (…, C) and None or the attention weights."""
        weight = {self.parameter_name: _with_adapters(self, self.get_param())}
        return functional_call(self.get_base_layer(), weight, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == self.__dict__.get('parameter_name'):
                return _with_adapters(self, self.get_param())
            return getattr(super().__getattr__('base_layer'), name)


def _with_adapters(layer: Linear | ParamWrapper, weight: Tensor) -> Tensor:
    """A layer's weight plus the active adapters' change, unless that is merged or disabled."""
    if layer.merged or layer.disable_adapters:
        return weight
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if any(layer.use_dora.get(name) for name in active):
        raise ValueError('DoRA is not applied to a weight that the model reads without calling its layer: leave it out.')
    return weight + sum(layer.get_delta_weight(name) for name in active)


def adapt_weight_reads(model: nn.Module) -> None:
    """Let PyTorch's attention, and the toolbox's BEiT, which reads ``qkv.weight``, use LoRA's adapters.

    Other methods are left as they are; :class:`~mmseg_eomt.engine.lora_hook.LoRAHook` refuses adapters that stay unused.
    """
    for module in model.modules():
        if isinstance(module, BEiTAttention) and module.bias == 'qv_bias':
            reading: dict[Any, type] = {Linear: ReadLinear, SplitLinear: ReadSplitLinear}
            if type(module.qkv) in reading and not any(module.qkv.use_dora.values()):
                module.qkv.__class__ = reading[type(module.qkv)]
        elif type(module) is ParamWrapper and isinstance(module.get_base_layer(), nn.MultiheadAttention):
            module.__class__ = AdaptedAttention

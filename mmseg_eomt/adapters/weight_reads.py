"""LoRA in weights that a model reads without calling their layer, which PEFT's own layers do not see to."""

from typing import Any

from mmseg.models.backbones.beit import BEiTAttention
from peft.tuners.lora import Linear, ParamWrapper
from torch import Tensor, nn
from torch.func import functional_call


class ReadLinear(Linear):
    """PEFT's adapted linear layer with the adapters in its ``weight`` too; there is no dropout in front of them there."""

    @property
    def weight(self) -> Tensor:
        """The base's weight plus the active adapters' change, unless that is merged or disabled."""
        weight = self.get_base_layer().weight
        if self.merged or self.disable_adapters:
            return weight
        return weight + sum(self.get_delta_weight(name) for name in self.active_adapters if name in self.lora_A)


class AdaptedAttention(ParamWrapper):
    """PEFT's adapted weight of PyTorch's attention, with a forward pass that leaves the parameters where they are.

    PEFT's own takes no keywords, and puts the weight behind the bias, where an EMA copy would be mixed up with it.
    """

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """As PyTorch's attention."""
        attention, weight = self.get_base_layer(), self.get_param()
        if not (self.merged or self.disable_adapters):
            weight = weight + sum(self.get_delta_weight(name) for name in self.active_adapters if name in self.lora_A)
        return functional_call(attention, {self.parameter_name: weight}, args, kwargs)


def adapt_weight_reads(model: nn.Module) -> None:
    """Let PyTorch's attention, and the toolbox's BEiT, which reads ``qkv.weight``, use LoRA's adapters.

    Other methods are left as they are; :class:`~mmseg_eomt.engine.lora_hook.LoRAHook` refuses adapters that stay unused.
    """
    for module in model.modules():
        if isinstance(module, BEiTAttention) and module.bias == 'qv_bias':
            if type(module.qkv) is Linear and not any(module.qkv.use_dora.values()):
                module.qkv.__class__ = ReadLinear
        elif type(module) is ParamWrapper and isinstance(module.get_base_layer(), nn.MultiheadAttention):
            module.__class__ = AdaptedAttention

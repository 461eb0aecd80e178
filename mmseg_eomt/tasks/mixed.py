"""A batch whose images have different adapters, in one pass of the blocks: PEFT's mixed batch."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mmseg_eomt.adapters.names import tuner_layers
from mmseg_eomt.models.eomt_vit import EoMTViT, Tokens
from mmseg_eomt.tasks.sharing import contents

ADAPTER = 'default'  # what a checkpoint's adapters are called


class MixedTrunk:
    """The blocks of several tasks' encoders, each with the LoRA adapters of all, over the weights that they share.

    A layer multiplies the whole batch with its base weight at once, and adds each image's own adapter. Blocks in which a
    task has adapters of another method than LoRA without variants, or has trained other weights, are not mixed.

    Args:
        vits: Encoders by task, with the same parts before the blocks.
    """

    def __init__(self, vits: Mapping[str, EoMTViT]) -> None:
        self._names: list[str] = []  # the adapter of each image of the batch that runs
        first = next(iter(vits.values()))
        depth = max(len(vit.blocks) for vit in vits.values())
        self.blocks = [self._joined({t: v.blocks[i] for t, v in vits.items() if i < len(v.blocks)}) for i in range(depth)]
        self._vit = copy.copy(first)
        self._vit._modules = dict(first._modules, blocks=nn.ModuleList(block or nn.Identity() for block in self.blocks))
        self._vit.out_indices = ()

    def mixes(self, index: int) -> bool:
        """Whether the tasks' blocks ``index`` are one."""
        return self.blocks[index] is not None

    def run_block(self, index: int, tokens: Tokens, names: Sequence[str]) -> Tokens:
        """Run a block.

        Args:
            index: Of the block.
            tokens: Of a batch.
            names: The task of each image in it.
        """
        self._names[:] = names
        return self._vit.run_blocks(tokens, index, index + 1)[0]

    def _joined(self, blocks: Mapping[str, nn.Module]) -> nn.Module | None:
        """One block with the adapters of several; None if they have more than LoRA apart."""
        layers = {task: tuner_layers(block) for task, block in blocks.items()}
        plain = all(_is_lora(layer) for found in layers.values() for layer in found.values())
        if not plain or len({contents(block, base=True) for block in blocks.values()}) > 1:
            return None
        joint = _with_same_weights(next(iter(blocks.values())))
        for name in dict.fromkeys(name for found in layers.values() for name in found):
            own = {task: found[name] for task, found in layers.items() if name in found}
            parent, _, child = name.rpartition('.')
            setattr(joint.get_submodule(parent), child, self._layer(own))
        return joint

    def _layer(self, own: Mapping[str, Any]) -> nn.Module:
        """A layer of PEFT's with the adapters of several tasks, called as these are."""
        layer: Any = _with_same_weights(next(iter(own.values())))
        for field in (*layer.adapter_layer_names, *layer.other_param_names):
            kept = type(getattr(layer, field))()
            for task, given in own.items():
                if ADAPTER in getattr(given, field):
                    kept[task] = getattr(given, field)[ADAPTER]
            setattr(layer, field, kept)
        layer.register_forward_pre_hook(self._add_names, with_kwargs=True)
        return layer

    def _add_names(self, _layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, dict(kwargs, adapter_names=self._names)


def _is_lora(layer: Any) -> bool:
    from peft.tuners.lora import Linear

    return isinstance(layer, Linear) and not layer.lora_variant and not layer.merged and list(layer.lora_A) == [ADAPTER]


def _with_same_weights(module: nn.Module) -> nn.Module:
    """A copy of a module and its parts, whose weights are the same objects."""
    return copy.deepcopy(module, {id(value): value for value in (*module.parameters(), *module.buffers())})

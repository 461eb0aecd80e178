"""Whether a checkpoint's ViT is of the model's arch: by what its file notes, and by what its weights show."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch

from mmseg_eomt.models.arch import ARCHS, ViTArch
from mmseg_eomt.weights.checkpoint import ViTWeights
from mmseg_eomt.weights.key_mapping import UNUSED, StateDict, is_gated

ARCH_NOTE = 'eomt_arch'  # in a checkpoint's meta
TRAINING_ONLY = ('layer_scale_init', 'rope_rescale')  # fields of an arch that a trained model does not depend on
NUMBER = 'a number'  # for values that cannot be inferred from weights


def noted_arch(checkpoint: object) -> object:
    """The fields of the arch that a checkpoint of ours notes, as they stand there; None if it notes none."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    return meta.get(ARCH_NOTE) if isinstance(meta, Mapping) else None


def check_noted(noted: object, arch: ViTArch | None, source: str) -> None:
    """Compare the arch that a checkpoint notes with a model's: weights tell neither heads nor activation, epsilon or base.

    Args:
        noted: As :func:`noted_arch` returned; None passes.
        arch: The model's; None for one without a ViT, of which nothing is asked.
        source: Path or URL of the file, for the message.

    Raises:
        ValueError: If they differ, with the fields and both values, or if the note is none.
    """
    if noted is None or arch is None:
        return
    if not isinstance(noted, Mapping):
        raise ValueError(f'{source} notes {noted!r} as its arch, and not the fields of one: it is damaged, take another.')
    names = [field.name for field in fields(ViTArch) if field.name in noted and field.name not in TRAINING_ONLY]
    _refuse(source, {name: noted[name] for name in names}, {name: getattr(arch, name) for name in names}, getattr)


def _refuse(source: str, has: Mapping[str, Any], asked: Mapping[str, Any], value: Callable[[ViTArch, str], Any]) -> None:
    """Raise an error where fields differ, with the named arch that fits; ``value`` reads a field as ``has`` holds it."""
    differing = [name for name in has if has[name] != asked[name]]
    if differing:
        fitting = [name for name, arch in ARCHS.items() if all(value(arch, field) == has[field] for field in has)]
        cure = f"arch='{fitting[0]}' fits" if fitting else 'set arch as it was in training, or use another checkpoint'
        given, wanted = (', '.join(f'{name}={_shown(part[name])}' for name in differing) for part in (has, asked))
        raise ValueError(f'{source} has {given}, but arch asks for {wanted}: {cure}.')


def _shown(value: object) -> str:
    return NUMBER if value == NUMBER else repr(value)


def check_arch(found: ViTWeights, arch: ViTArch, tensors: StateDict) -> None:
    """Compare what can be inferred of a ViT from its weights with the arch of the model.

    Args:
        found: The ViT.
        arch: The model's.
        tensors: The model's, under the names of a whole ViT; its register tokens are compared where it embeds patches.

    Raises:
        ValueError: If they differ, with the field and, where there is one, the arch that fits.
    """
    given = infer_arch(found)
    _refuse(found.source, given, {name: arch_field(arch, name) for name in given}, arch_field)
    periods = found.weights.get(f'{UNUSED}rope_embed.periods')
    if periods is not None and arch.rope_theta is not None:
        number = arch.head_dims // 4
        expected = arch.rope_theta ** (torch.arange(number) / number)
        if len(periods) != number or not torch.allclose(periods.float().cpu(), expected, rtol=1e-2):
            raise ValueError(
                f'{found.source} has {len(periods)} rotary periods from {periods.min():.3g} to {periods.max():.3g}, but '
                f'num_heads={arch.num_heads} and rope_theta={arch.rope_theta} of arch give {number}, from 1 to '
                f'{expected.max():.3g}.'
            )
    registers = found.weights['reg_token'].shape[1] if 'reg_token' in found.weights else 0
    if 'patch_embed.proj.weight' in tensors:
        wanted = tensors['reg_token'].shape[1] if 'reg_token' in tensors else 0
        if registers != wanted:
            raise ValueError(
                f'{found.source} has {registers} register tokens, but num_register_tokens is {wanted}: set it to '
                f'{registers}, or use a checkpoint with {wanted}.'
            )


def infer_arch(found: ViTWeights) -> dict[str, object]:
    """What can be inferred of a ViT from its weights, under the names of :class:`ViTArch`; not the number of heads."""
    weights = found.weights
    return dict(
        embed_dims=weights['patch_embed.proj.weight'].shape[0],
        num_layers=found.num_layers,
        mlp='swiglu' if is_gated(weights) else 'gelu',
        mlp_hidden_dims=weights['blocks.0.mlp.fc2.weight'].shape[1],
        rope_theta=None if 'pos_embed' in weights else NUMBER,
        layer_scale_init=NUMBER if 'blocks.0.ls1.gamma' in weights else None,
        class_token='cls_token' in weights,
        pre_norm='norm_pre.weight' in weights,
    )


def arch_field(arch: ViTArch, name: str) -> object:
    """What :func:`infer_arch` would tell of a checkpoint of an arch."""
    if name == 'mlp':
        return 'swiglu' if arch.mlp == 'swiglu' else 'gelu'  # other activations have the same weights
    value = getattr(arch, name)
    return NUMBER if name in ('rope_theta', 'layer_scale_init') and value is not None else value

"""From ``init_cfg=dict(type='Pretrained', checkpoint=...)`` to the parts of a ViT, or a clear error."""

from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from mmengine.runner import CheckpointLoader
from torch import Tensor

from mmseg_eomt.models.arch import ViTArch
from mmseg_eomt.weights.dinov2 import from_dinov2, is_dinov2, sizes
from mmseg_eomt.weights.resize import resize_patch_embed, resize_pos_embed


def pretrained_checkpoint(init_cfg: dict | list[dict] | None) -> str | None:
    """The checkpoint that ``init_cfg`` names; None if it asks for no pretrained weights.

    Raises:
        ValueError: If it does in a form that cannot be fitted to a ViT.
    """
    parts = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
    if not any(part.get('type') in ('Pretrained', PretrainedInit) for part in parts):
        return None
    if len(parts) > 1 or set(parts[0]) != {'type', 'checkpoint'}:
        raise ValueError(
            "init_cfg takes type='Pretrained' and checkpoint='<DINOv2 release file or URL>' and nothing else, got "
            f'{init_cfg}. For the checkpoint of a whole segmentor use load_from.'
        )
    return parts[0]['checkpoint']


def load_vit_weights(module: BaseModule, checkpoint: str, arch: ViTArch, first_block: int) -> None:
    """Load the part of a ViT checkpoint that ``module`` holds.

    Args:
        module: An :class:`EoMTViT` or :class:`EoMTHead`. What it has under the checkpoint's names is loaded whole; blocks
            are taken from ``first_block`` on.
        checkpoint: Path or URL of a DINOv2 release file, read with ``weights_only``.
        arch: Size of the whole ViT.
        first_block: The checkpoint's block that is ``module.blocks.0``.

    Raises:
        ValueError: If the file is not a DINOv2 release file, or of another size or number of register tokens.
    """
    state_dict = _read_dinov2(checkpoint, arch)
    own = module.state_dict()
    if 'pos_embed' in own:
        _fit_to_image(state_dict, module, checkpoint)
    num_blocks = len(module.blocks)
    part = {}
    for name, value in state_dict.items():
        if name.startswith('blocks.'):
            _, index, rest = name.split('.', 2)
            index = int(index) - first_block
            if 0 <= index < num_blocks:
                part[f'blocks.{index}.{rest}'] = value
        elif name in own:
            part[name] = value

    missing, unexpected = module.load_state_dict(part, strict=False)
    from_file = {name.split('.')[0] for name in part}
    absent = [name for name in missing if name.split('.')[0] in from_file] + list(unexpected)
    if absent:
        raise ValueError(f'{checkpoint} does not fit {type(module).__name__}: missing or unknown are {absent}.')
    parameters = dict(module.named_parameters())
    new = sorted({name.split('.')[0] for name in missing if name in parameters})
    print_log(
        f'{type(module).__name__}: loaded {len(part)} tensors of {checkpoint}, blocks {first_block} to '
        f'{first_block + num_blocks - 1}{"; newly made: " + ", ".join(new) if new else ""}',
        logger='current',
    )


def _read_dinov2(checkpoint: str, arch: ViTArch) -> dict[str, Tensor]:
    """A release file under timm's names, its size checked against ``arch``."""
    state_dict = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    if not is_dinov2(state_dict):
        found = list(state_dict)[:5] if isinstance(state_dict, dict) else type(state_dict).__name__
        raise ValueError(
            f'{checkpoint} is not a DINOv2 release file (dinov2_vit*14*_pretrain.pth): its first entries are {found}. '
            f'For the checkpoint of a whole segmentor use load_from.'
        )
    for field, given in sizes(state_dict).items():
        if given != getattr(arch, field):
            raise ValueError(
                f'{checkpoint} has {field}={given}, but arch asks for {getattr(arch, field)}: set arch or checkpoint.'
            )
    return from_dinov2(state_dict)


def _fit_to_image(state_dict: dict[str, Tensor], module: BaseModule, checkpoint: str) -> None:
    """Resize what depends on patch size and grid, in place."""
    given, wanted = (d['reg_token'].shape[1] if 'reg_token' in d else 0 for d in (state_dict, module.state_dict()))
    if given != wanted:
        raise ValueError(
            f'{checkpoint} has {given} register tokens, but num_register_tokens is {wanted}: '
            f'set it to {given} or use the other release file (with or without "reg4").'
        )
    side = round(state_dict['pos_embed'].shape[1] ** 0.5)
    state_dict['pos_embed'] = resize_pos_embed(state_dict['pos_embed'], (side, side), module.grid_size)
    patches = 'patch_embed.proj.weight'
    state_dict[patches] = resize_patch_embed(state_dict[patches], module.patch_size)

"""From ``init_cfg=dict(type='Pretrained', checkpoint=...)`` to the parts of a ViT, or a clear error."""

from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from mmengine.runner import CheckpointLoader

from mmseg_eomt.models.arch import check_noted, noted_arch
from mmseg_eomt.weights.adapt import Target, fit
from mmseg_eomt.weights.read import understand
from mmseg_eomt.weights.rules import StateDict


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
            "init_cfg takes type='Pretrained' and checkpoint='<path, URL or hf://owner/repo>' and nothing else, got "
            f'{init_cfg}.'
        )
    return parts[0]['checkpoint']


def load_pretrained(module: BaseModule, checkpoint: str) -> None:
    """Load the part of a public ViT or EoMT that ``module`` holds, fitted to it.

    Args:
        module: An :class:`EoMTViT` or :class:`EoMTHead`.
        checkpoint: Path, URL or ``hf://owner/repo``, in any of the formats of :mod:`~mmseg_eomt.weights.read`.

    Raises:
        OSError: If it cannot be found.
        ValueError: If it is in no known format, or does not fit.
    """
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    check_noted(noted_arch(loaded), module.arch, checkpoint)
    found = understand(loaded, checkpoint)
    tensors = part_of_vit(module)
    target = Target(type(module).__name__, module.arch, tensors, getattr(module, 'grid_size', None), module.num_joint_blocks)
    filled, report = fit(found, target, training=True)
    first = first_block(module)
    module.load_state_dict({_shifted(name, -first): value for name, value in filled.items()}, strict=False)
    print_log(str(report), logger='current')


def part_of_vit(module: BaseModule) -> StateDict:
    """What an :class:`EoMTViT` or :class:`EoMTHead` has to get from a checkpoint, under the names of a whole ViT's."""
    first = first_block(module)
    return {_shifted(name, first): value for name, value in module.state_dict().items() if name != 'pos_grid'}


def first_block(module: BaseModule) -> int:
    """The number in the ViT of what is ``blocks.0`` in a module: a head holds the last blocks."""
    return module.arch.num_layers - len(module.blocks) if hasattr(module, 'query_embed') else 0


def _shifted(name: str, by: int) -> str:
    if not name.startswith('blocks.'):
        return name
    _, index, rest = name.split('.', 2)
    return f'blocks.{int(index) + by}.{rest}'

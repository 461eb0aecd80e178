"""Whether a checkpoint fills the EoMT parts of a model; mmengine would go on without what is missing."""

from torch import Tensor, nn

from mmseg_eomt.adapters.names import adapter_names, plain_name
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT


def check_parts(model: nn.Module, state_dict: dict[str, Tensor], new_classes: bool = False) -> None:
    """Make sure that every weight of an EoMT backbone or head inside a model is there; adapters are checked elsewhere.

    Args:
        model: A segmentor, plain or adapted.
        state_dict: What it is to load.
        new_classes: Whether the class head may be missing or of another number of classes, and starts anew.

    Raises:
        ValueError: If weights are missing or of another shape, with some of their names.
    """
    given = {name.removeprefix('module.'): value for name, value in state_dict.items() if isinstance(value, Tensor)}
    parts = tuple(f'{name}.' for name, m in model.named_modules() if name and isinstance(m, (EoMTViT, EoMTHead)))
    absent, adapters = [], set(adapter_names(model))
    for name, parameter in model.named_parameters():
        plain = plain_name(name)
        if not name.startswith(parts) or name in adapters or name.endswith('.pos_embed'):
            continue
        if '.class_head.' in name and new_classes:
            continue
        value = given.get(name, given.get(plain))
        if value is None or value.shape != parameter.shape:
            found = 'absent' if value is None else tuple(value.shape)
            absent.append(f'{plain}: checkpoint {found}, model {tuple(parameter.shape)}')
    if absent:
        raise ValueError(
            f'The checkpoint does not fit the model in {len(absent)} weights: {"; ".join(absent[:3])}'
            f'{"; …" if len(absent) > 3 else ""}. Set arch and num_classes as they were in training; a DINOv2 file goes '
            f'into init_cfg of backbone and decode_head, not into load_from.'
        )

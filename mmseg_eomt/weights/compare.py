"""The one comparison of a state dict with a model, and its message."""

from collections.abc import Collection, Mapping

from torch import Tensor

ABSENT = 'absent'


def compare(
    given: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    needed: Collection[str] | None = None,
    known: Collection[str] | None = None,
) -> dict[str, tuple[object, object]]:
    """The names in which a checkpoint's state dict differs from a model's, with the shape in each, or :data:`ABSENT`.

    Args:
        given: The checkpoint's.
        own: The model's.
        needed: Names of the model that have to be given. Default: all.
        known: Names in the checkpoint that the model has to have. Default: all.

    Returns:
        Empty if they fit. A position embedding may be of another length: :class:`EoMTViT` resizes it.
    """
    needed = own.keys() if needed is None else needed
    known = given.keys() if known is None else known
    both = given.keys() & own.keys()
    other = {name for name in both if given[name].shape != own[name].shape and not name.endswith('pos_embed')}
    names = (set(needed) - given.keys()) | (set(known) - own.keys()) | other
    return {name: (_shape(given.get(name)), _shape(own.get(name))) for name in sorted(names)}


def refuse(source: str, differing: dict[str, tuple[object, object]], cure: str, error: type[Exception] = ValueError) -> None:
    """Raise an error that lists what :func:`compare` found; none if that is nothing."""
    if not differing:
        return
    lines = [f'{name}: checkpoint {given}, model {own}' for name, (given, own) in differing.items()]
    missing, unknown = (sum(pair[i] == ABSENT for pair in differing.values()) for i in (0, 1))
    counts = {'missing': missing, 'not in the model': unknown, 'of another shape': len(lines) - missing - unknown}
    told = ', '.join(f'{count} {kind}' for kind, count in counts.items() if count)
    raise error(f'{source} does not fit the model in {len(lines)} weights ({told}): {cure}.\n  ' + '\n  '.join(lines))


def _shape(value: Tensor | None) -> object:
    return ABSENT if value is None else tuple(value.shape)

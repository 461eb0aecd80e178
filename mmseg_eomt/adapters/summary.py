"""What trains and what is frozen, as a table."""

from collections import Counter

from torch import nn

from mmseg_eomt.adapters.guard import is_adapter


def summarise(model: nn.Module, matches: dict[str, list[str]]) -> str:
    """Describe an adapted model.

    Args:
        model: The model after :func:`~mmseg_eomt.adapters.inject.inject`.
        matches: What it returned.

    Returns:
        Lines with every trainable group and its number of parameters, the totals, the share that is trained, and the number
        of layers that each target matched.
    """
    groups: Counter[str] = Counter()
    frozen = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            frozen += parameter.numel()
            continue
        parts = name.split('.')
        groups[f'{parts[0]} adapters' if is_adapter(name) else '.'.join(parts[:2])] += parameter.numel()
    trained = sum(groups.values())
    width = max(len(group) for group in [*groups, 'trainable'])
    lines = ['Adapted model: parameters that train']
    lines += [f'  {group:<{width}}  {count:>13,}' for group, count in groups.items()]
    lines += [
        f'  {"trainable":<{width}}  {trained:>13,}',
        f'  {"frozen":<{width}}  {frozen:>13,}',
        f'  {trained / (trained + frozen):.2%} of all parameters train',
        '  layers a target matched: ' + (', '.join(f'{t} {len(names)}' for t, names in matches.items()) or 'no targets'),
    ]
    return '\n'.join(lines)

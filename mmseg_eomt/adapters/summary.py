"""What trains and what is frozen, as a table."""

from collections import Counter

from torch import nn

from mmseg_eomt.adapters.names import adapter_names

ADAM_STATES = 2  # running means of the gradient and of its square, one number each for each parameter


def summarise(
    model: nn.Module,
    matches: dict[str, list[str]],
    left_out: set[str] | None = None,
    optimizer_states: int = ADAM_STATES,
    full: bool = False,
) -> str:
    """Describe an adapted model.

    Args:
        model: The model after :func:`~mmseg_eomt.adapters.inject.inject`.
        matches: What it returned.
        left_out: Names of the weights that checkpoints do not hold. Default: none.
        optimizer_states: Numbers that the optimizer keeps for each trained parameter. Default: 2, as AdamW does.
        full: Whether every trained parameter and every adapted layer is listed. Default: False.

    Returns:
        Lines with every trainable group and its number of parameters, the totals, the trainable fraction, the estimated
        sizes of adapters, optimizer state and checkpoint, and the number of layers that each target matched.
    """
    adapters = set(adapter_names(model))
    groups: Counter[str] = Counter()
    frozen = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            frozen += parameter.numel()
            continue
        parts = name.split('.')
        groups[f'{parts[0]} adapters' if name in adapters else '.'.join(parts[:2])] += parameter.numel()
    trained = sum(groups.values())
    width = max(len(group) for group in [*groups, 'trainable'])
    lines = ['Adapted model: trainable parameters']
    lines += [f'  {group:<{width}}  {count:>13,}' for group, count in groups.items()]
    lines += [
        f'  {"trainable":<{width}}  {trained:>13,}',
        f'  {"frozen":<{width}}  {frozen:>13,}',
        f'  {trained / (trained + frozen):.2%} of all parameters train',
        _sizes(model, adapters, left_out or set(), optimizer_states),
        '  matched layers per target: ' + (', '.join(f'{t} {len(names)}' for t, names in matches.items()) or 'no targets'),
    ]
    if full:
        lines += ['', 'Trained parameters']
        lines += [f'  {n}  {tuple(p.shape)}' for n, p in model.named_parameters() if p.requires_grad]
        for target, names in matches.items():
            lines += ['', f'Layers that {target} matched', *[f'  {name}' for name in names]]
        lines += ['', 'Frozen parameters']
        lines += [f'  {n}  {tuple(p.shape)}' for n, p in model.named_parameters() if not p.requires_grad]
    return '\n'.join(lines)


def _sizes(model: nn.Module, adapters: set[str], left_out: set[str], optimizer_states: int) -> str:
    parameters = dict(model.named_parameters())
    optimizer = sum(p.numel() * p.element_size() for p in parameters.values() if p.requires_grad) * optimizer_states
    weights = sum(v.numel() * v.element_size() for name, v in model.state_dict().items() if name not in left_out)
    adapter = sum(parameters[name].numel() * parameters[name].element_size() for name in adapters)
    return (
        f'  estimated sizes: adapters {_megabytes(adapter)}, optimizer state {_megabytes(optimizer)}, '
        f'checkpoint {_megabytes(weights + optimizer)} of which weights {_megabytes(weights)}'
    )


def _megabytes(size: int) -> str:
    return f'{size / 1e6:,.1f} MB' if size >= 1e5 else f'{size / 1e3:,.1f} kB'

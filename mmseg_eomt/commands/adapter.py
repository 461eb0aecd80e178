"""Inspect, export, merge and compare what a LoRA run has trained.

python tools/adapter.py info CHECKPOINT                     what it is, was trained on, and how large it is
python tools/adapter.py export CONFIG CHECKPOINT FOLDER     write it in PEFT's own format
python tools/adapter.py merge CONFIG CHECKPOINT OUT.pth     write a plain checkpoint that needs no PEFT
python tools/adapter.py merge CONFIG FOLDER=0.5 FOLDER=0.5 OUT.pth    the same of several adapters of one base
python tools/adapter.py diff CHECKPOINT CHECKPOINT          what differs between two

CHECKPOINT is a file of a LoRA run or a folder in PEFT's format; CONFIG is the one that it was trained with.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import CheckpointLoader
from mmseg.apis import init_model
from mmseg.models import BaseSegmentor

from mmseg_eomt.adapters import merge as merge_adapters
from mmseg_eomt.adapters import save_adapter
from mmseg_eomt.adapters.checkpoint import KEY, note_of, weights_of
from mmseg_eomt.adapters.combine import METHODS, check_method
from mmseg_eomt.adapters.config import as_values, from_values
from mmseg_eomt.adapters.names import is_adapter, tuner_layers
from mmseg_eomt.commands import errors_in_a_sentence
from mmseg_eomt.commands.adapter_mix import mix, read_factors
from mmseg_eomt.weights.arch import ARCH_NOTE
from mmseg_eomt.whole import whole_file


def info(checkpoint: str) -> None:
    """Print what a checkpoint holds."""
    loaded, note = read(checkpoint)
    weights = weights_of(loaded)
    adapters = {name: value for name, value in weights.items() if is_adapter(name)}
    print(f'{checkpoint}: {kind(loaded, note)}')
    for name in ('iter', 'epoch', 'experiment_name', 'time'):
        if name in loaded.get('meta', {}):
            print(f'  {name:<18}{loaded["meta"][name]}')
    print(f'  {"weights":<18}{sizes(weights)}')
    if note is None:
        return
    print(f'  {"adapters":<18}{sizes(adapters)}')
    for name, value in chosen(note['peft'] or {}).items():
        print(f'  {name:<18}{value}')
    print(f'  {"fully trained":<18}{", ".join(note["trainable_modules"]) or "nothing"}')
    base = note['base']
    for module, source in base['init_cfg'].items():
        print(f'  {"base":<18}{source["checkpoint"]} (init_cfg of {module or "the model"})')
    if base['load_from']:
        print(f'  {"base":<18}{base["load_from"]} (load_from)')
    print(f'  {"fingerprints":<18}{len(base["fingerprints"])} weights of the base')


def export(config: str, checkpoint: str, folder: str) -> None:
    """Write an adapter in PEFT's format."""
    model, loaded, note = build(config, checkpoint)
    meta = loaded.get('meta', {})
    known = {name: meta[name] for name in ('iter', 'epoch', 'dataset_meta', ARCH_NOTE) if name in meta}
    save_adapter(model, folder, base=note['base'], meta=known)
    size = sum(path.stat().st_size for path in Path(folder).glob('adapter_*'))
    print(f'{folder}: adapter_config.json and adapter_model.safetensors, {size / 1e6:,.1f} MB')


def merge(config: str, checkpoint: list[str], out: str, **options: Any) -> None:
    """Write a plain checkpoint."""
    if Path(out).exists():
        raise ValueError(f'{out} is there already: name another file, or delete it.')
    check_method(options['method'], options['density'])
    factors = read_factors(checkpoint)
    if factors:
        model, meta = mix(config, factors, **options)
    elif options['method'] != 'linear':
        raise ValueError('--method combines several adapters: name each as FOLDER=FACTOR.')
    else:
        model, loaded, _ = build(config, checkpoint[0])
        if tuner_layers(model):  # without any, the trained modules are in the model already
            merge_adapters(model)
        meta = {name: value for name, value in loaded.get('meta', {}).items() if name != KEY}
        meta.setdefault('dataset_meta', model.dataset_meta)
    with whole_file(out) as new:
        torch.save(dict(meta=dict(meta, merged=True), state_dict=model.state_dict()), new)
    print(f'{out}: plain checkpoint, {Path(out).stat().st_size / 1e6:,.1f} MB')


def diff(first: str, second: str) -> None:
    """Print what differs between two checkpoints."""
    (one, one_note), (two, two_note) = read(first), read(second)
    print(f'a  {first}: {kind(one, one_note)}\nb  {second}: {kind(two, two_note)}')
    options, others = ((note or {}).get('peft') or {} for note in (one_note, two_note))
    for name in sorted(options.keys() | others.keys()):
        if options.get(name) != others.get(name):
            print(f'  {name}: a {options.get(name)}, b {others.get(name)}')
    if one_note and two_note:
        bases = [note['base']['fingerprints'] for note in (one_note, two_note)]
        changed = [name for name in bases[0].keys() & bases[1].keys() if bases[0][name] != bases[1][name]]
        print(f'  base: {"the same" if not changed else f"{len(changed)} weights differ, such as {sorted(changed)[0]}"}')
    weights = [{unprefixed(name): v for name, v in weights_of(loaded).items()} for loaded in (one, two)]
    for label, names in (('a', weights[0].keys() - weights[1].keys()), ('b', weights[1].keys() - weights[0].keys())):
        if names:
            print(f'  only in {label}: {len(names)} tensors, such as {sorted(names)[0]}')
    compare(*weights)


def compare(one: dict, two: dict) -> None:
    """Print, for each part of the model, how far the tensors that both have lie apart."""
    equal = 0
    apart: dict[str, list[tuple[str, float]]] = {}
    for name in sorted(one.keys() & two.keys()):
        if one[name].shape != two[name].shape:
            apart.setdefault(part(name), []).append((name, float('inf')))
        elif torch.equal(one[name], two[name]):
            equal += 1
        else:
            change = (one[name].float() - two[name].float()).norm() / one[name].float().norm().clamp_min(1e-12)
            apart.setdefault(part(name), []).append((name, float(change)))
    print(f'  equal: {equal} tensors')
    for group, found in apart.items():
        name, change = max(found, key=lambda item: item[1])
        print(f'  {group}: {len(found)} tensors differ, at most by {change:.2g} of their norm ({name})')


def read(checkpoint: str) -> tuple[dict, dict | None]:
    """A checkpoint and its note of adapters."""
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu', logger='silent')
    return loaded, note_of(loaded)


def build(config: str, checkpoint: str) -> tuple[BaseSegmentor, dict, dict]:
    """The adapted model of a checkpoint, what was loaded, and its note of adapters."""
    loaded, note = read(checkpoint)
    if note is None:
        raise ValueError(f'{checkpoint} has no adapters.')
    return init_model(config, checkpoint, device='cpu'), loaded, note


def kind(loaded: dict, note: dict | None) -> str:
    """What sort of checkpoint it is, in words."""
    if note is None:
        return 'plain checkpoint' + (', merged' if loaded.get('meta', {}).get('merged') else '')
    method = (note['peft'] or {}).get('peft_type', 'no adapters, fully trained modules')
    return f'{method}, {"with" if note["complete"] else "without"} the base weights'


def sizes(weights: dict) -> str:
    """Number of parameters and bytes of a state dict, by type."""
    types = Counter(str(value.dtype).removeprefix('torch.') for value in weights.values())
    size = sum(value.numel() * value.element_size() for value in weights.values())
    count = sum(value.numel() for value in weights.values())
    return f'{count:,} numbers in {len(weights)} tensors ({", ".join(types)}), {size:,} bytes'


def chosen(values: dict) -> dict:
    """The fields of a described config that are not as PEFT sets them."""
    try:
        usual = as_values(from_values(dict(peft_type=values['peft_type']))) if values else {}
    except (TypeError, ValueError):  # a later version's method, or one that cannot be without settings
        usual = {}
    shown = ('peft_type', 'r', 'lora_alpha', 'target_modules')
    hidden = ('inference_mode', 'peft_version', 'exclude_modules', 'auto_mapping')
    return {n: v for n, v in values.items() if n in shown or (v != usual.get(n) and n not in hidden)}


def unprefixed(name: str) -> str:
    """A name in PEFT's format or ours, alike."""
    return name.removeprefix('base_model.model.').replace('.default', '').replace('.base_layer', '')


def part(name: str) -> str:
    """The part of the model that a name is in."""
    parts = name.split('.')
    return f'{parts[0]} adapters' if is_adapter(name) else '.'.join(parts[:2])


def _add_merge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('checkpoint', nargs='+', help='a checkpoint, or FOLDER=FACTOR for each of several adapters')
    parser.add_argument('out', help='the checkpoint to write')
    parser.add_argument('--method', choices=METHODS, default='linear', help='how several adapters are combined')
    parser.add_argument('--density', type=float, help='fraction of values that the methods other than linear keep')
    parser.add_argument('--seed', type=int, default=0, help='of the random values that dare_linear and dare_ties keep')


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar='{info,export,merge,diff}')
    for command, names in (
        (info, ['checkpoint']),
        (export, ['config', 'checkpoint', 'folder']),
        (merge, ['config']),
        (diff, ['first', 'second']),
    ):
        sub = commands.add_parser(command.__name__, description=command.__doc__, help=command.__doc__)
        for name in names:
            sub.add_argument(name)
        if command is merge:
            _add_merge_arguments(sub)
        sub.set_defaults(command=command)
    args = vars(parser.parse_args(argv))
    command = args.pop('command')
    with errors_in_a_sentence('adapter'):
        command(**args)

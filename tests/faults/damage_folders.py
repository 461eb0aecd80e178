"""Damage to a folder of adapters, or of weights in several files."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from faults import damage_bytes, damage_content

Kind = Callable[[Path, random.Random], None]
CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
TEXTS = (
    b'',
    b'[]',
    b'null',
    b'"text"',
    b'5',
    b'{}',
    b'{"r": ',
    b'[' * 100_000,
    b'\xff\xfe{\x00}\x00',
    b'{"r": NaN}',
    b'\x00' * 50,
)


def config_text(folder: Path, draw: random.Random) -> None:
    """A config that is no JSON, or no dict."""
    (folder / CONFIG).write_bytes(draw.choice(TEXTS))


def config_field(folder: Path, draw: random.Random) -> None:
    """A field of the config is of another type."""
    values = json.loads((folder / CONFIG).read_text())
    name = draw.choice(['r', 'lora_alpha', 'target_modules', 'peft_type', 'modules_to_save', 'exclude_modules', *values])
    silly = damage_content.other_type(values[name], draw)
    values[name] = 'text' if isinstance(silly, (bytes, torch.Tensor)) else silly
    (folder / CONFIG).write_text(json.dumps(values))


def config_unknown(folder: Path, draw: random.Random) -> None:
    """A method that there is not, or the config of another one."""
    values = json.loads((folder / CONFIG).read_text())
    values['peft_type'] = draw.choice(['NOPE', 'LOHA', 'PREFIX_TUNING', 'lora '])
    (folder / CONFIG).write_text(json.dumps(values))


def _rewritten(folder: Path, change: Callable[[dict[str, Any], dict[str, str]], None]) -> None:
    path = folder / WEIGHTS
    with safe_open(path, 'pt') as file:
        weights, header = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    change(weights, header)
    save_file({name: value.contiguous() for name, value in weights.items()}, path, metadata=header)


def tensors(folder: Path, draw: random.Random) -> None:
    """Weights that are missing, renamed, of another shape or type, or no numbers; digests as they were."""
    kinds = [*damage_content.TENSORS[:5], *damage_content.TENSORS[11:15], *damage_content.STRUCTURE[:3]]
    _rewritten(folder, lambda weights, header: draw.choice(kinds)(weights, draw))


def without_lora_b(folder: Path, draw: random.Random) -> None:
    """Half of each adapter is not there."""
    part = draw.choice(['lora_B', 'lora_A'])

    def change(weights: dict[str, Any], header: dict[str, str]) -> None:
        for name in [name for name in weights if part in name]:
            del weights[name]

    _rewritten(folder, change)


def foreign_tensors(folder: Path, draw: random.Random) -> None:
    """As :func:`tensors` and :func:`without_lora_b`, in a file without our header, as PEFT writes it."""

    def change(weights: dict[str, Any], header: dict[str, str]) -> None:
        header.clear()
        header['format'] = 'pt'

    _rewritten(folder, change)
    draw.choice([tensors, without_lora_b])(folder, draw)


def header(folder: Path, draw: random.Random) -> None:
    """Our note in the file's header is something else."""
    texts = (
        '',
        '[]',
        'null',
        '5',
        '{}',
        '{"base": 5}',
        '{"base": {}}',
        '{"base": {"fingerprints": 3}}',
        '{',
        '"x"',
        '[' * 50_000,
    )

    def change(weights: dict[str, Any], header: dict[str, str]) -> None:
        header['mmseg_eomt'] = draw.choice(texts)

    _rewritten(folder, change)


def as_bin(folder: Path, draw: random.Random) -> None:
    """Weights as an older PEFT writes them, and damaged."""
    with safe_open(folder / WEIGHTS, 'pt') as file:
        torch.save({name: file.get_tensor(name) for name in file.keys()}, folder / 'adapter_model.bin')  # noqa: SIM118
    (folder / WEIGHTS).unlink()
    draw.choice([*damage_bytes.WITHIN, *damage_bytes.LOST])(folder / 'adapter_model.bin', draw)


def code(folder: Path, draw: random.Random, canary: Path) -> None:
    """Weights as an older PEFT writes them, which ask for code."""
    content: dict[str, Any] = dict(a=torch.ones(2))
    damage_content.code(content, draw, canary)
    torch.save(content, folder / 'adapter_model.bin')
    (folder / WEIGHTS).unlink()


def bytes_of_a_file(folder: Path, draw: random.Random) -> None:
    """Damage to one of the files."""
    path = draw.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    draw.choice([*damage_bytes.WITHIN, *damage_bytes.LOST])(path, draw)


def mixed(folder: Path, draw: random.Random) -> None:
    """The config of another run of the same shapes."""
    values = json.loads((folder / CONFIG).read_text())
    values.update(lora_alpha=4 * values['lora_alpha'])
    (folder / CONFIG).write_text(json.dumps(values))


def reformatted(folder: Path, draw: random.Random) -> None:
    """Harmless: the same config in another form."""
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(dict(reversed(values.items())), indent=draw.choice([None, 4])) + '\n')


def further_file(folder: Path, draw: random.Random) -> None:
    """Harmless: a page beside the files."""
    (folder / 'README.md').write_text('# Adapters\n')


def lost_file(folder: Path, draw: random.Random) -> None:
    """One of several files is lost."""
    draw.choice(damage_bytes.LOST)(draw.choice(sorted(folder.iterdir())), draw)


def index(folder: Path, draw: random.Random) -> None:
    """An index that names other files, or is none."""
    path = folder / 'model.safetensors.index.json'
    values = json.loads(path.read_text())
    some = draw.choice(list(values['weight_map']))
    values['weight_map'][some] = draw.choice(['../vit.pth', 'nowhere.safetensors', '/etc/passwd', 5, None, ['x'], ''])
    texts = [json.dumps(values), *(text.decode('latin-1') for text in TEXTS), '{"weight_map": []}', '{"weight_map": {}}']
    path.write_text(draw.choice([texts[0], *texts]))


ADAPTERS: tuple[Kind, ...] = (
    config_text,
    config_field,
    config_field,
    config_unknown,
    tensors,
    tensors,
    without_lora_b,
    foreign_tensors,
    header,
    as_bin,
    bytes_of_a_file,
    bytes_of_a_file,
    bytes_of_a_file,
    mixed,
)
SHARDS: tuple[Kind, ...] = (lost_file, index)
HARMLESS: tuple[Kind, ...] = (reformatted, further_file)

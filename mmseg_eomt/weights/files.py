"""Checkpoint files: weights are read from them, and nothing in them is executed."""

import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

NAMES = ('model.safetensors', 'pytorch_model.bin', 'model.safetensors.index.json', 'pytorch_model.bin.index.json')
LFS = b'version https://git-lfs'


def read_file(path: Path, map_location: Any = None) -> Any:
    """Read a checkpoint: PyTorch's (``.pth``, ``.pt``, ``.bin``, ``.ckpt``), safetensors, or an index of several files.

    Raises:
        FileNotFoundError: If a file of an index is missing.
        ValueError: If it is cut short, no checkpoint, or asks for code to be run.
    """
    if path.name.endswith('.index.json'):
        return _read_shards(path, map_location)
    if _starts_as_safetensors(path) or (path.suffix == '.safetensors' and not zipfile.is_zipfile(path)):
        return _read_safetensors(path, map_location)
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except (
        pickle.UnpicklingError,
        LookupError,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:  # bytes may ask for anything
        raise ValueError(_refusal(path, str(error))) from error
    except (RuntimeError, EOFError, OSError) as error:
        if is_whole(path) or isinstance(error, PermissionError):
            raise
        raise _cut_short(path, error) from error


def is_whole(path: Path) -> bool:
    """Whether a checkpoint was written to its end, where the table of contents of PyTorch's zip files stands."""
    return zipfile.is_zipfile(path)


def find_in_folder(folder: Path) -> Path | None:
    """The checkpoint in a folder as Hugging Face writes it; None if there is none."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def shards_of(index: Path) -> list[str]:
    """The files that an index of Hugging Face's names."""
    try:
        return sorted(set(json.loads(index.read_text(encoding='utf-8'))['weight_map'].values()))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{index} is no index of a checkpoint in several files: copy it again. ({error!r})') from error


def _read_shards(index: Path, map_location: Any) -> dict[str, torch.Tensor]:
    weights = {}
    for name in shards_of(index):
        if Path(name).name != name:
            raise ValueError(f'{index} names a file outside its folder, {name}: refused.')
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f'{index.parent / name} is not there, and {index.name} names it: copy all of the files.')
        weights.update(read_file(index.parent / name, map_location))
    return weights


def _starts_as_safetensors(path: Path) -> bool:
    with path.open('rb') as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b'{' and int.from_bytes(head[:8], 'little') < path.stat().st_size


def _read_safetensors(path: Path, map_location: Any) -> dict[str, torch.Tensor]:
    try:
        return load_file(path, device=str(map_location) if isinstance(map_location, (str, torch.device)) else 'cpu')
    except SafetensorError as error:
        if _head(path) == LFS:
            raise ValueError(_refusal(path, '')) from error
        raise _cut_short(path, error) from error


def _head(path: Path) -> bytes:
    with path.open('rb') as file:
        return file.read(len(LFS))


def _cut_short(path: Path, error: Exception) -> ValueError:
    told = str(error).splitlines()[0] if str(error) else 'empty'
    return ValueError(
        f'{path} ({path.stat().st_size:,} bytes) is no whole checkpoint: was writing or copying it cut short? '
        f'Use an earlier one, or copy it again. ({told})'
    )


def _refusal(path: Path, message: str) -> str:
    head = _head(path)
    if head == LFS:
        return f'{path} is a pointer of Git LFS, not the file: run git lfs pull where it comes from.'
    asked = re.search(r'(?:GLOBAL|global) ([\w.]+\.[\w.]+)', message)
    if asked is None:
        return f'{path} is no checkpoint: it begins with {head[:12]!r}.'
    return (
        f'{path} asks for {asked.group(1)}, which is code and no weights: refused, nothing was run. If the file is yours, '
        f'save its state dict alone: torch.save(dict(state_dict=model.state_dict()), path).'
    )

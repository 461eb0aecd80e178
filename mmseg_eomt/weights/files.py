"""Checkpoint files: weights are read from them, and nothing in them is executed."""

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmseg_eomt.whole import whole_file

NAMES = ('model.safetensors', 'pytorch_model.bin', 'model.safetensors.index.json', 'pytorch_model.bin.index.json')
LFS = b'version https://git-lfs'
DIGESTS = 'mmseg_eomt_digests'  # in the metadata of our safetensors: JSON of a digest by name; '' is the other metadata
DOS_FOLDER = 0x10  # PyTorch reads nothing from a zip entry that is marked so


def read_file(path: Path, map_location: Any = None) -> Any:
    """Read a checkpoint: PyTorch's (``.pth``, ``.pt``, ``.bin``, ``.ckpt``), safetensors, or an index of several files.

    Raises:
        FileNotFoundError: If a file of an index is missing.
        ValueError: If it is cut short, damaged, no checkpoint, or asks for code to be run.
    """
    if path.name.endswith('.index.json'):
        return _read_shards(path, map_location)
    if _starts_as_safetensors(path) or (path.suffix == '.safetensors' and not zipped(path)):
        return read_safetensors(path, map_location)[0]
    if zipped(path) and not is_whole(path):
        raise _broken(path, 'its entries differ from their checksums, or it is no zip file of PyTorch')
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # bytes may ask for anything
        if isinstance(error, OSError) and error.errno is not None:  # such as a lack of permission
            raise
        raise _refusal(path, error) from error


@contextmanager
def naming(source: object) -> Iterator[None]:
    """Put the name of a file before an error of ours about its content that lacks it."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if type(error) not in (ValueError, RuntimeError) or str(source) in str(error):
            raise
        raise type(error)(f'{source}: {error}') from error


def zipped(path: Path) -> bool:
    """Whether a file begins as PyTorch's zip files do; older ones are pickles, without checksums."""
    return _head(path).startswith(b'PK\x03\x04')


def is_whole(path: str | Path) -> bool:
    """Whether a checkpoint in PyTorch's zip format is complete and undamaged.

    Every entry of a zip file has a checksum, which PyTorch writes and does not compare; comparing takes less time than
    reading the file does. Python's ``zipfile`` passes some damage of the table of contents that makes PyTorch read other
    bytes: these fields are compared too.
    """
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            names = {entry.filename for entry in entries}
            stored = [entry for entry in entries if entry.compress_type == zipfile.ZIP_STORED]
            if (
                len(names) < len(entries)
                or any(entry.compress_size != entry.file_size for entry in stored)
                or any(entry.external_attr & DOS_FOLDER for entry in entries)
                or file.testzip() is not None
            ):
                return False
        torch._C.PyTorchFileReader(str(path))  # opens the table of contents as torch.load does
    except Exception:  # damaged bytes may ask zipfile and its decompressors for anything
        return False
    return True


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file as a whole, with a digest of each tensor and of the metadata.

    Args:
        path: Where to; an existing file is replaced.
        tensors: By name; they must not share memory.
        metadata: For the header, beside ``format`` and the digests.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {'format': 'pt', **(metadata or {})}
    header[DIGESTS] = json.dumps(_digests(tensors, header))
    with whole_file(path) as new:
        save_file(tensors, new, metadata=header)


def read_safetensors(path: str | Path, map_location: Any = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors, and the metadata of its header.

    Raises:
        ValueError: If it is cut short or no safetensors, or if it was written with digests and is damaged.
    """
    path = Path(path)
    try:
        with safe_open(path, 'pt') as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise (_refusal if _head(path) == LFS else _broken)(path, error) from error
    noted = metadata.pop(DIGESTS, None)
    if noted is not None:
        _compare(path, noted, _digests(tensors, metadata))
    if isinstance(map_location, (str, torch.device)):
        tensors = {name: value.to(map_location) for name, value in tensors.items()}
    return tensors, metadata


def _digests(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    digests = {'': _digest(json.dumps(sorted(metadata.items())).encode())}
    for name, value in tensors.items():
        kind = f'{value.dtype}{tuple(value.shape)}'.encode()
        digests[name] = _digest(kind, value.reshape(-1).view(torch.uint8).numpy())
    return digests


def _digest(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _compare(path: Path, noted: str, found: dict[str, str]) -> None:
    try:
        expected = dict(json.loads(noted))
    except (ValueError, TypeError):
        expected = {}
    damaged = [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]
    if damaged:
        told = ', '.join(sorted(filter(None, damaged))[:3]) or 'metadata'
        raise ValueError(
            f'{path} is damaged: {told} (of {len(damaged)} entries) is not what was written. Copy it again, or use another.'
        )


def find_in_folder(folder: Path) -> Path | None:
    """The checkpoint in a folder as Hugging Face writes it; None if there is none."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def shards_of(index: Path) -> dict[str, list[str]]:
    """The files that an index of Hugging Face's names, with the names of the tensors in each.

    Raises:
        ValueError: If it is no index, or names a file outside its folder.
    """
    shards: dict[str, list[str]] = {}
    try:
        for tensor, file in json.loads(index.read_text(encoding='utf-8'))['weight_map'].items():
            shards.setdefault(file, []).append(tensor)
        outside = [file for file in shards if Path(file).name != file or file.endswith('.index.json')]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f'{index} is no index of a checkpoint in several files: copy it again. ({error!r})') from error
    if outside:
        raise ValueError(f'{index} names a file outside its folder, or another index, {outside[0]}: refused.')
    return shards


def _read_shards(index: Path, map_location: Any) -> dict[str, Tensor]:
    weights = {}
    for file, names in sorted(shards_of(index).items()):
        path = index.parent / file
        if not path.is_file():
            raise FileNotFoundError(f'{path} is not there, and {index.name} names it: copy all of the files.')
        part = read_file(path, map_location)
        absent = [name for name in names if name not in part] if isinstance(part, dict) else names
        if absent:
            raise ValueError(f'{path} lacks {absent[0]}, which {index.name} says is in it: copy all of the files again.')
        weights.update(part)
    return weights


def _starts_as_safetensors(path: Path) -> bool:
    with path.open('rb') as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b'{' and int.from_bytes(head[:8], 'little') < path.stat().st_size


def _head(path: Path) -> bytes:
    with path.open('rb') as file:
        return file.read(len(LFS))


def _broken(path: Path, error: object) -> ValueError:
    told = str(error).splitlines()[0] if str(error) else 'empty'
    told = 'it has no form that is read' if 'weights_only' in told else told  # PyTorch advises to run what is in a file
    return ValueError(
        f'{path} ({path.stat().st_size:,} bytes) is no whole checkpoint: was it cut short or damaged in writing or '
        f'copying? Use an earlier one, or copy it again. ({told})'
    )


def _refusal(path: Path, error: Exception) -> ValueError:
    head, message = _head(path), str(error)
    if head == LFS:
        return ValueError(f'{path} is a pointer of Git LFS, not the file: run git lfs pull where it comes from.')
    asked = re.search(r'(?:GLOBAL|global) ([\w.]+)', message)
    if asked is not None:
        return ValueError(
            f'{path} asks for {asked.group(1)}, which is code and no weights: refused, nothing was run. If the file is '
            f'yours, save its state dict alone: torch.save(dict(state_dict=model.state_dict()), path).'
        )
    if zipped(path):  # and undamaged: it was written so
        told = re.split(r'\.\s|\n', message.rpartition('WeightsUnpickler error:')[2].strip())[0] or type(error).__name__
        return ValueError(f'{path} holds what is not read from a checkpoint: {told}. Save tensors and plain values alone.')
    if isinstance(error, (RuntimeError, EOFError, OSError)):
        return _broken(path, error)
    return ValueError(f'{path} is no checkpoint: it begins with {head[:12]!r}.')

"""Checkpoint files: read without executing anything, refused where they are damaged or hold no numbers, written whole."""

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
from torch import Tensor, nn

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


STATE_DICTS = ('state_dict', 'ema_state_dict', 'model')
EXTRA = '_extra_state'  # what PyTorch's modules may put beside their tensors
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # those of 8 bits come with scales of their own
MOMENTS = ('exp_avg', 'max_exp_avg')  # of Adam and its kin; other optimizers also keep numbers and lists


def check_checkpoint(loaded: Any, source: object) -> None:
    """Make sure that what was read from a file has the form of a checkpoint: state dicts, and ``meta`` beside them.

    The optimizer's state is looked at where it is used (:func:`check_optimizer`).

    Raises:
        ValueError: If it has not, or as :func:`check_values`.
    """
    if not isinstance(loaded, dict):
        raise ValueError(f'{source} holds a {type(loaded).__name__}, not weights by name: save a state dict.')
    if not all(isinstance(name, str) for name in loaded):
        raise ValueError(
            f'{source} holds {next(n for n in loaded if not isinstance(n, str))!r}, and names of weights are text.'
        )
    for part in ('state_dict', 'meta'):
        if not isinstance(loaded.get(part, {}), Mapping):
            raise ValueError(f'{source}: {part} is a {type(loaded[part]).__name__}, and values by name belong there.')
    wrapped = {part: loaded[part] for part in STATE_DICTS if isinstance(loaded.get(part), Mapping)}
    for part, weights in wrapped.items():
        check_values(weights, source, '' if part == 'state_dict' else f'{part}.')
    if not wrapped and any(isinstance(value, Tensor) for value in loaded.values()):
        check_values(loaded, source)


def check_values(weights: Mapping[str, Any], source: object, part: str = '') -> None:
    """Make sure that a state dict holds tensors, and these numbers.

    Args:
        weights: A state dict, as it was read.
        source: Its file, for messages.
        part: What comes before the names in messages, such as ``'ema_state_dict.'``.

    Raises:
        ValueError: If a value is no tensor, if a tensor is sparse, quantized or without data, or if it holds NaN or Inf,
            with its name.
    """
    for name, value in weights.items():
        if not isinstance(name, str):
            raise ValueError(f'{source}: {part}{name!r} is a {type(name).__name__}, and names of weights are text.')
        if not name.endswith(EXTRA):
            _check_value(f'{part}{name}', value, source)


def check_kinds(model: nn.Module, weights: Mapping[str, Tensor], source: object) -> None:
    """Make sure that a model gets floating-point numbers where it has some: loading would convert others silently.

    Raises:
        ValueError: If a tensor is of integers, booleans or complex numbers instead, with its name.
    """
    own = model.state_dict()
    for name, value in weights.items():
        kept = own.get(name, own.get(name.removeprefix('module.')))
        if isinstance(kept, Tensor) and isinstance(value, Tensor):
            check_kind(name, value, kept.dtype, source)


def check_kind(name: str, value: Tensor, wanted: torch.dtype, source: object) -> None:
    """As :func:`check_kinds`, for one tensor."""
    if value.is_complex() > wanted.is_complex or (wanted.is_floating_point and not value.is_floating_point()):
        raise ValueError(f'{source}: {name} is of {_told(value.dtype)}, and {_told(wanted)} belongs there.')


def check_optimizer(state: Any, source: object) -> None:
    """Make sure that what an optimizer is to go on from are numbers: the state of one, or of several by name.

    Raises:
        ValueError: If it has another form, or as :func:`check_values`.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"{source}: optimizer is a {type(state).__name__}, and an optimizer's state dict belongs there.")
    for path, values in _parameter_states(state, 'optimizer'):
        if not isinstance(values, Mapping):
            raise ValueError(f'{source}: {path} is a {type(values).__name__}, and values by name belong there.')
        for name, value in values.items():
            place, is_number = f'{path}.{name}', isinstance(value, (int, float)) and not isinstance(value, bool)
            value = torch.tensor(value) if is_number else value
            if str(name).startswith((*MOMENTS, 'step')) or isinstance(value, (str, Tensor)):
                _check_value(place, value, source)
            if str(name).startswith(MOMENTS) or (name == 'step' and (value.dtype == torch.bool or value.is_complex())):
                check_kind(place, value, torch.float32, source)


def _parameter_states(state: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """The states of single parameters, with their places."""
    for key, value in state.items():
        if key == 'state':
            known = isinstance(value, Mapping)
            yield from ((f'{path}.state.{i}', part) for i, part in value.items()) if known else [(f'{path}.state', value)]
        elif isinstance(value, Mapping) and 'state' in value:  # one of several optimizers
            yield from _parameter_states(value, f'{path}.{key}')


def _check_value(name: str, value: Any, source: object) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f'{source}: {name} is a {type(value).__name__}, and a tensor belongs there.')
    kinds = dict(quantized=value.is_quantized, nested=value.is_nested, meta=value.is_meta)
    kind = next((kind for kind, is_so in kinds.items() if is_so), _told(value.layout))
    if kind != 'strided':
        raise ValueError(f'{source}: {name} is a {kind} tensor, and a dense one belongs there: save it as such.')
    if value.is_floating_point() and value.dtype not in FLOATS:
        raise ValueError(f'{source}: {name} is of {_told(value.dtype)}, whose scales are elsewhere: save it as float16.')
    if not _is_finite(value):
        numbers = value if value.is_complex() else value.float()
        raise ValueError(
            f'{source}: {name} holds {numbers.isnan().sum()} NaN and {numbers.isinf().sum()} Inf among {value.numel()} '
            f'numbers: use a checkpoint from before training diverged, or copy the file again.'
        )


def _is_finite(value: Tensor) -> bool:
    """Whether all numbers are finite, or are a mask of attention, which is 0 and -Inf.

    A sum is one fast look at all of them: it is finite only if they are. Where it is not, each is looked at.
    """
    if not (value.is_floating_point() or value.is_complex()):
        return True
    value = value.detach()
    kind = torch.promote_types(value.dtype, torch.float32)
    if torch.isfinite(value.sum(dtype=kind)) or torch.isfinite(value).all():
        return True
    square = value.dim() >= 2 and value.shape[-1] == value.shape[-2]
    return square and value.is_floating_point() and bool((value.isneginf() | (value == 0)).all())


def _told(kind: object) -> str:
    return str(kind).removeprefix('torch.')

"""Where checkpoints are read from, through mmengine's ``CheckpointLoader``, so that every tool and config reads the same."""

import hashlib
import http.client
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import torch
from mmengine.dist import barrier
from mmengine.runner import CheckpointLoader

from mmseg_eomt.adapters.files import is_folder, read_folder
from mmseg_eomt.adapters.loading import tagged
from mmseg_eomt.adapters.names import is_adapter
from mmseg_eomt.weights import hub
from mmseg_eomt.weights.files import find_in_folder, read_file
from mmseg_eomt.weights.read import add_base, is_own, recognise, tensors_of, understand, understand_delta
from mmseg_eomt.weights.values import check_checkpoint
from mmseg_eomt.whole import whole_file


def register_sources() -> None:
    """Replace mmengine's loaders of local files and of URLs, and add that of ``hf://``; a second call changes nothing."""
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), loader=load_from_http, force=True)
    CheckpointLoader.register_scheme(prefixes=hub.SCHEME, loader=load_from_hf, force=True)


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Read a checkpoint, a folder of Hugging Face's, or a folder with an adapter in PEFT's format.

    A path may be written as ``file:///path``. As with the other sources, ``<delta>+<base>`` names an EoMT that was published
    as differences to a ViT, and that ViT.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If the file is cut short, no checkpoint, or asks for code to be run.
    """
    return _load(filename, map_location, _local_file)


def load_from_http(filename: str, map_location: Any = None) -> Any:
    """Download once a machine, into torch's cache under the host and path of the URL; see :func:`load_from_local`.

    An address of a file on the Hugging Face Hub is read as ``hf://``: through its cache, with its token.

    Raises:
        OSError: If it cannot be downloaded, with what to set for a copy.
    """
    return _load(filename, map_location, lambda url: _once_a_machine(_download, url))


def load_from_hf(filename: str, map_location: Any = None) -> Any:
    """Read ``hf://owner/repo[/file][@revision]`` through the Hub's cache (:func:`~.hub.download`); see also the others.

    Raises:
        OSError: If it cannot be had, with what to do.
    """
    return _load(filename, map_location, lambda name: _once_a_machine(hub.download, name))


def split_sum(name: str) -> tuple[str, str | None]:
    """The two sides of ``<delta>+<base>``; a name without a base, or of a file that is there, stays whole."""
    whole = local_path(name).exists()
    for place in [match.start() for match in re.finditer(r'\+', name)]:
        delta, base = name[:place], name[place + 1 :]
        both = base and not whole and local_path(delta).exists() and local_path(base).exists()
        if both or re.match(r'(hf|https?|file)://', base) or delta.startswith(hub.SCHEME):
            return delta, base
    return name, None


def local_path(name: str) -> Path:
    """The path that a name without another scheme stands for: itself, or what is behind ``file://``."""
    address = re.fullmatch(r'file://(?:localhost)?(/.*)', name)
    return Path(os.path.expanduser(unquote(address.group(1)) if address else name))  # Path's raises for unknown users


def _load(name: str, map_location: Any, find: Callable[[str], Path]) -> Any:
    delta, base = split_sum(name)
    if base is None:
        path = find(delta)
        return _as_checkpoint(read_folder(path) if path.is_dir() else _checked(path, map_location, name), name)
    loaded = CheckpointLoader.load_checkpoint(base, map_location, logger='silent')
    given = _checked(find(delta), map_location, delta)
    total = add_base(understand_delta(given, delta), understand(loaded, base))
    return tagged(dict(state_dict=total, meta={}), name)


def _checked(path: Path, map_location: Any, name: str) -> dict[str, Any]:
    loaded = read_file(path, map_location)
    check_checkpoint(loaded, name)
    return loaded


def _as_checkpoint(loaded: dict[str, Any], name: str) -> dict[str, Any]:
    """A file as the toolbox expects it: public ViTs and EoMTs are bare state dicts, or come without ``meta``."""
    if 'state_dict' in loaded:
        loaded.setdefault('meta', {})
    else:
        weights = tensors_of(loaded)
        adapted = any(is_adapter(weight) for weight in weights)
        if not adapted and (is_own(weights) or recognise(weights) is not None):
            loaded = dict(state_dict=weights, meta={})
    return tagged(loaded, name)


def _local_file(name: str) -> Path:
    path = local_path(name)
    if path.is_dir() and is_folder(path):
        return path
    path = (find_in_folder(path) or path) if path.is_dir() else path
    if not path.is_file():
        on_hub = re.fullmatch(r'(?:hf:/*)?([\w.-]+/[\w.-]+)/?', name, re.I)
        hint = f' A repository of the Hugging Face Hub is named hf://{on_hub.group(1)}.' if on_hub else ''
        raise FileNotFoundError(
            f'{name} is not there, or is neither a checkpoint nor a folder with one or with an adapter.{hint}'
        )
    return path


def _download(url: str) -> Path:
    """The file of a URL in the cache; it is there only if it was read once."""
    name = hub.as_hub_name(url)
    if name is not None:
        return hub.download(name)
    path = _place_in_cache(url)
    if path.is_file():
        return path
    with whole_file(path) as fetched:
        try:
            torch.hub.download_url_to_file(url, str(fetched), progress=os.isatty(2))
        except (OSError, http.client.HTTPException) as error:
            raise OSError(
                f'{url} could not be downloaded ({getattr(error, "reason", error)}): get the file elsewhere and give its '
                f'path; for a ViT as checkpoint of both model.backbone.init_cfg and model.decode_head.init_cfg.'
            ) from error
        try:
            read_file(fetched)
        except ValueError as error:
            raise ValueError(f'What {url} gave was not kept: {str(error).replace(str(fetched), "it")}') from error
    return path


def _place_in_cache(url: str) -> Path:
    """Below torch's cache: host and path of the URL, and a digest of what stands behind a question mark."""
    parts = urlparse(url)
    path = Path(torch.hub.get_dir()) / 'checkpoints' / parts.netloc.replace(':', '_') / unquote(parts.path).lstrip('/')
    if '..' in path.parts or not parts.path.strip('/'):
        raise ValueError(f'{url} names no file.')
    if parts.query:
        path = path.with_name(f'{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}-{path.name}')
    return path


def _once_a_machine(download: Callable[[str], Path], name: str) -> Path:
    """Let the first process of each machine download, and the others find it in the cache."""
    if os.environ.get('LOCAL_RANK', '0') == '0':
        path = download(name)
        barrier()
        return path
    barrier()
    return download(name)

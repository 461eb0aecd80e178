"""Where checkpoints are read from, through mmengine's ``CheckpointLoader``, so that every tool and config reads the same."""

import os
import re
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import torch
from mmengine.dist import barrier
from mmengine.runner import CheckpointLoader

from mmseg_eomt.adapters.files import is_folder, read_folder
from mmseg_eomt.adapters.loading import tagged
from mmseg_eomt.weights import hub
from mmseg_eomt.weights.files import find_in_folder, read_file
from mmseg_eomt.weights.read import add_base, recognise, tensors_of, understand, understand_delta


def register_sources() -> None:
    """Replace mmengine's loaders of local files and of URLs, and add that of ``hf://``; a second call changes nothing."""
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), loader=load_from_http, force=True)
    CheckpointLoader.register_scheme(prefixes=hub.SCHEME, loader=load_from_hf, force=True)


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Read a checkpoint, a folder of Hugging Face's, or a folder with an adapter in PEFT's format.

    As with the other sources, ``<delta>+<base>`` names an EoMT that was published as differences to a ViT, and that ViT.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If the file is cut short, no checkpoint, or asks for code to be run.
    """
    return _load(filename, map_location, _local_file)


def load_from_http(filename: str, map_location: Any = None, model_dir: str | None = None) -> Any:
    """Download once a machine, into torch's cache under the host and path of the URL; see :func:`load_from_local`.

    An address of a file on the Hugging Face Hub is read as ``hf://``: through its cache, with its token.

    Raises:
        OSError: If it cannot be downloaded, with what to set for a copy.
    """
    return _load(filename, map_location, lambda url: _downloaded(url, model_dir))


def load_from_hf(filename: str, map_location: Any = None) -> Any:
    """Read ``hf://owner/repo[/file][@revision]`` through the Hub's cache (:func:`~.hub.download`); see also the others.

    Raises:
        OSError: If it cannot be had, with what to do.
    """
    return _load(filename, map_location, lambda name: _once_a_machine(hub.download, name))


def split_sum(name: str) -> tuple[str, str | None]:
    """The two sides of ``<delta>+<base>``; a name without a base, or of a file that is there, stays whole."""
    whole = Path(name).expanduser().exists()
    for place in [match.start() for match in re.finditer(r'\+', name)]:
        base = name[place + 1 :]
        if re.match(r'(hf|https?)://', base) or (not whole and Path(base).expanduser().exists()):
            return name[:place], base
    return name, None


def _load(name: str, map_location: Any, find: Callable[[str], Path]) -> Any:
    delta, base = split_sum(name)
    if base is None:
        path = find(delta)
        return _as_checkpoint(read_folder(path) if path.is_dir() else read_file(path, map_location), name)
    loaded = CheckpointLoader.load_checkpoint(base, map_location, logger='silent')
    given = read_file(find(delta), map_location)
    total = add_base(understand_delta(given, delta), understand(loaded, base))
    return tagged(dict(state_dict=total, meta={}), name)


def _as_checkpoint(loaded: Any, name: str) -> Any:
    """A file as the toolbox expects it: public ViTs and EoMTs are bare state dicts, or come without ``meta``."""
    if isinstance(loaded, dict) and 'state_dict' in loaded:
        loaded.setdefault('meta', {})
    elif isinstance(loaded, dict) and recognise(tensors_of(loaded)) is not None:
        loaded = dict(state_dict=tensors_of(loaded), meta={})
    return tagged(loaded, name)


def _local_file(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir() and is_folder(path):
        return path
    path = (find_in_folder(path) or path) if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f'{name} is not there, or is neither a checkpoint nor a folder with one or with an adapter.')
    return path


def _downloaded(url: str, model_dir: str | None) -> Path:
    name = hub.as_hub_name(url)
    if name is not None:
        return _once_a_machine(hub.download, name)
    parts = urlparse(url)
    cache = Path(model_dir or Path(torch.hub.get_dir()) / 'checkpoints')
    path = cache / parts.netloc.replace(':', '_') / unquote(parts.path).lstrip('/')
    if '..' in path.parts:
        raise ValueError(f'{url} leads out of the cache: refused.')

    def download(_: str) -> Path:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(url, str(path), progress=os.isatty(2))
            except urllib.error.URLError as error:
                raise OSError(
                    f'{url} could not be downloaded ({error.reason}): get the file elsewhere, and give its path '
                    f'as checkpoint of both model.backbone.init_cfg and model.decode_head.init_cfg.'
                ) from error
        return path

    return _once_a_machine(download, url)


def _once_a_machine(download: Callable[[str], Path], name: str) -> Path:
    """Let the first process of each machine download, and the others find it in the cache."""
    if os.environ.get('LOCAL_RANK', '0') == '0':
        path = download(name)
        barrier()
        return path
    barrier()
    return download(name)

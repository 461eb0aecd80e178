"""Where checkpoints are read from, through mmengine's ``CheckpointLoader``, so that every tool and config reads the same."""

import contextlib
import hashlib
import http.client
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import torch
from huggingface_hub import errors, hf_hub_download
from mmengine.dist import barrier
from mmengine.model import PretrainedInit, update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import CheckpointLoader, checkpoint
from torch import nn

from mmseg_eomt.weights.checkpoint import Checkpoint, add_base, parse_checkpoint, parse_delta, tensors_of
from mmseg_eomt.weights.checkpoint_io import NAMES, check_checkpoint, find_in_folder, naming, read_file, shards_of
from mmseg_eomt.whole import whole_file

HUB_SCHEME = 'hf://'
_URL = re.compile(r'https://huggingface\.co/([\w.-]+/[\w.-]+)/(?:resolve|blob)/([^/]+)/([^?]+)(?:\?.*)?')
_PAGE = re.compile(r'https://huggingface\.co/([\w.-]+/[\w.-]+)(?:/tree/([^/?]+))?/?')


def as_hub_name(url: str) -> str | None:
    """The ``hf://`` name of a file that a web address on the Hub names; None for other addresses."""
    page = _PAGE.fullmatch(url)
    if page:
        return f'{HUB_SCHEME}{page.group(1)}' + (f'@{unquote(page.group(2))}' if page.group(2) else '')
    found = _URL.fullmatch(url)
    return f'{HUB_SCHEME}{found.group(1)}/{unquote(found.group(3))}@{unquote(found.group(2))}' if found else None


def parse_hub_name(name: str) -> tuple[str, str | None, str | None]:
    """Repository, file and revision of an ``hf://`` name.

    Raises:
        ValueError: If it is of another form.
    """
    found = re.fullmatch(r'hf://([\w.-]+/[\w.-]+)(?:/([^@]+))?/?(?:@(.+))?', name)
    if found is None:
        raise ValueError(f'{name} is not of the form hf://owner/repo, hf://owner/repo/file or either with @revision behind.')
    repo, file, revision = found.groups()
    return repo, file, revision


def download_from_hub(name: str) -> Path:
    """Bring a checkpoint into the Hub's cache, where it is not there yet.

    The token, the place of the cache and offline mode are those of ``huggingface_hub`` (``hf auth login``, ``HF_TOKEN``,
    ``HF_HOME``, ``HF_HUB_OFFLINE``). Without a file in the name, the first of :data:`~.checkpoint_io.NAMES` that the
    repository has is taken.

    Returns:
        The file in the cache; of a checkpoint in several files the index, with the others beside it.

    Raises:
        OSError: If it cannot be had, with what to do.
        ValueError: If the name is of another form, or the file is not the one that the Hub names.
    """
    repo, file, revision = parse_hub_name(name)
    local_only = False
    for candidate in (file,) if file else NAMES:
        try:
            return _fetch_whole(repo, candidate, revision, local_only)
        except errors.LocalEntryNotFoundError:
            local_only = True  # no network: what else is in the cache?
        except errors.GatedRepoError:
            raise PermissionError(
                f'{name}: {repo} is a gated repository. Accept its licence on https://huggingface.co/{repo}, then log '
                f'in with "hf auth login", or set HF_TOKEN.'
            ) from None
        except errors.RepositoryNotFoundError:
            raise FileNotFoundError(
                f'{name}: the Hub has no repository {repo}, or it is private: check the name, or run "hf auth login".'
            ) from None
        except errors.RevisionNotFoundError:
            raise FileNotFoundError(f'{name}: {repo} has no revision {revision}.') from None
        except errors.EntryNotFoundError:
            continue
        except errors.HfHubHTTPError as error:
            raise OSError(f'{name} could not be downloaded: {str(error).splitlines()[0]}') from None
    wanted = file or f'any of {", ".join(NAMES)}'
    if local_only:
        raise FileNotFoundError(
            f'{name} is not in the cache, and the Hub cannot be reached (or HF_HUB_OFFLINE is set): download it where there '
            f'is a network, with "hf download {repo}{f" {file}" if file else ""}", and copy the cache or give the path.'
        )
    raise FileNotFoundError(f'{name}: {repo} has no {wanted}; name the file, as hf://{repo}/<file>.')


def _fetch_whole(repo: str, file: str, revision: str | None, local_only: bool) -> Path:
    """A file of a repository and, if it is an index, the files that it names."""
    path = _fetch(repo, file, revision, local_only)
    if file.endswith('.index.json'):
        for shard in shards_of(path):
            _fetch(repo, shard, revision, local_only)
    return path


def _fetch(repo: str, file: str, revision: str | None, local_only: bool) -> Path:
    path = Path(hf_hub_download(repo, file, revision=revision, local_files_only=local_only))
    check_hub_hash(path)
    return path


def check_hub_hash(path: Path) -> None:
    """Compare a file in the Hub's cache with the hash that the Hub names: the cache calls the file so, and links to it.

    It is done once for each file, and once more after each change of it: what was compared is noted below torch's cache,
    where that can be written. A cache without links, as on some file systems, has no hashes to compare with.

    Raises:
        ValueError: If the file is another one, with what to do.
    """
    blob = path.resolve()
    if not re.fullmatch('[0-9a-f]{40}|[0-9a-f]{64}', blob.name):
        return
    state = f'{blob.stat().st_size} {blob.stat().st_mtime_ns}'
    note = Path(torch.hub.get_dir()) / 'checkpoints' / 'compared_with_the_hub' / blob.name
    if note.is_file() and note.read_bytes() == state.encode():
        return
    # large files are known by SHA-256, others as Git knows them
    head = f'blob {blob.stat().st_size}\0'.encode()
    digest = hashlib.sha256() if len(blob.name) == 64 else hashlib.sha1(head, usedforsecurity=False)
    with blob.open('rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    if digest.hexdigest() != blob.name:
        raise ValueError(
            f'{path} is damaged: its {digest.name} is {digest.hexdigest()}, and the Hub names {blob.name}. Delete {blob}, '
            f'and it is downloaded again.'
        )
    with contextlib.suppress(OSError), whole_file(note) as new:  # a cache that cannot be written is compared each time
        new.write_text(state)


_folders: dict[Callable[[Path], bool], Callable[[Path], dict[str, Any]]] = {}  # kinds of folders and their readers


def register_folders(is_kind: Callable[[Path], bool], read: Callable[[Path], dict[str, Any]]) -> None:
    """Let a local path be a folder of another kind than Hugging Face's, which ``read`` reads as a checkpoint."""
    _folders[is_kind] = read


def register_sources() -> None:
    """Replace mmengine's loaders of local files and of URLs, and add that of ``hf://``; a second call changes nothing."""
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), loader=load_from_http, force=True)
    CheckpointLoader.register_scheme(prefixes=HUB_SCHEME, loader=load_from_hf, force=True)
    WEIGHT_INITIALIZERS.register_module(name='Pretrained', module=FittedPretrainedInit, force=True)


class FittedPretrainedInit(PretrainedInit):
    """mmengine's ``init_cfg=dict(type='Pretrained', checkpoint=…, prefix=…)``, whose weights start a training."""

    def __call__(self, module: nn.Module) -> None:
        """Load the checkpoint into a model or a part of one.

        Raises:
            OSError: If it cannot be found.
            ValueError: If it does not fit, or has no weights that begin with the prefix.
        """
        with naming(self.checkpoint):
            loaded = CheckpointLoader.load_checkpoint(self.checkpoint, self.map_location)
            given = loaded.get('state_dict', loaded)
            weights = {name.removeprefix('module.'): value for name, value in given.items()}
            if self.prefix is not None:
                start = f'{self.prefix.removesuffix(".")}.'
                weights = {name.removeprefix(start): v for name, v in weights.items() if name.startswith(start)}
                if not weights:
                    raise ValueError(f'No weights begin with {self.prefix!r}, which prefix of init_cfg asks for.')
            state_dict = replace(Checkpoint.of(given), source=self.checkpoint, purpose='init').attach(weights)
            checkpoint.load_state_dict(module, state_dict, strict=False, logger='current')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())


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
    """Read ``hf://owner/repo[/file][@revision]`` through the Hub's cache (:func:`~.download_from_hub`); see also the others.

    Raises:
        OSError: If it cannot be had, with what to do.
    """
    return _load(filename, map_location, lambda name: _once_a_machine(download_from_hub, name))


def split_sum(name: str) -> tuple[str, str | None]:
    """The two sides of ``<delta>+<base>``; a name without a base, or of a file that is there, stays whole."""
    whole = local_path(name).exists()
    for place in [match.start() for match in re.finditer(r'\+', name)]:
        delta, base = name[:place], name[place + 1 :]
        both = base and not whole and local_path(delta).exists() and local_path(base).exists()
        if both or re.match(r'(hf|https?|file)://', base) or delta.startswith(HUB_SCHEME):
            return delta, base
    return name, None


def checkpoint_digest(name: str) -> str:
    """SHA-256 of the file that a checkpoint is read from; of several files, in their order, one after the other.

    Raises:
        OSError: If it is not there, and cannot be had.
    """
    digest = hashlib.sha256()
    for part in filter(None, split_sum(name)):
        if part.startswith(HUB_SCHEME):
            path = download_from_hub(part)
        else:
            path = _download(part) if re.match('https?://', part) else _local_file(part)
        files = sorted(filter(Path.is_file, path.rglob('*'))) if path.is_dir() else [path]
        if path.name.endswith('.index.json'):
            files += [path.with_name(shard) for shard in shards_of(path)]
        for file in files:
            with file.open('rb') as content:
                while block := content.read(2**20):
                    digest.update(block)
    return digest.hexdigest()


def local_path(name: str) -> Path:
    """The path that a name without another scheme stands for: itself, or what is behind ``file://``."""
    address = re.fullmatch(r'file://(?:localhost)?(/.*)', name)
    return Path(os.path.expanduser(unquote(address.group(1)) if address else name))  # Path's raises for unknown users


def _load(name: str, map_location: Any, find: Callable[[str], Path]) -> Any:
    delta, base = split_sum(name)
    if base is None:
        path = find(delta)
        read = _folder_reader(path)
        return _as_checkpoint(read(path) if read else _checked(path, map_location, name), name)
    loaded = CheckpointLoader.load_checkpoint(base, map_location, logger='silent')
    given = _checked(find(delta), map_location, delta)
    total = add_base(parse_delta(given, delta), parse_checkpoint(loaded, base))
    return dict(state_dict=Checkpoint(name).attach(total), meta={})


def _folder_reader(path: Path) -> Callable[[Path], dict[str, Any]] | None:
    return next((read for is_kind, read in _folders.items() if path.is_dir() and is_kind(path)), None)


def _checked(path: Path, map_location: Any, name: str) -> dict[str, Any]:
    loaded = read_file(path, map_location)
    check_checkpoint(loaded, name)
    return loaded


def _as_checkpoint(loaded: dict[str, Any], name: str) -> dict[str, Any]:
    """A file as the toolbox expects it: public ViTs and EoMTs are bare state dicts, or come without ``meta``."""
    if 'state_dict' not in loaded:
        weights = tensors_of(loaded)
        checkpoint = Checkpoint(name)
        recognised = checkpoint.recognise(weights)
        if recognised.is_own or (recognised.format and not recognised.rest):
            return dict(state_dict=checkpoint.attach(weights), meta={})
        return checkpoint.attach(loaded)
    loaded.setdefault('meta', {})
    return {**loaded, 'state_dict': Checkpoint(name, loaded['meta']).attach(loaded['state_dict'])}


def _local_file(name: str) -> Path:
    path = local_path(name)
    if _folder_reader(path):
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
    name = as_hub_name(url)
    if name is not None:
        return download_from_hub(name)
    path = _place_in_cache(url)
    if path.is_file():
        return path
    with whole_file(path) as fetched:
        try:
            torch.hub.download_url_to_file(url, str(fetched), progress=os.isatty(2))
        except (OSError, http.client.HTTPException) as error:
            raise OSError(
                f'{url} could not be downloaded ({getattr(error, "reason", error)}): get the file elsewhere and give its '
                f'path, for a ViT as model.vit.pretrained.'
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

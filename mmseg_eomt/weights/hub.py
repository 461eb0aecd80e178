"""``hf://owner/repo[/file][@revision]``: checkpoints of the Hugging Face Hub, through its own library and cache."""

import contextlib
import hashlib
import re
from pathlib import Path
from urllib.parse import unquote

import torch
from huggingface_hub import errors, hf_hub_download

from mmseg_eomt.weights.files import NAMES, shards_of
from mmseg_eomt.whole import whole_file

SCHEME = 'hf://'
_URL = re.compile(r'https://huggingface\.co/([\w.-]+/[\w.-]+)/(?:resolve|blob)/([^/]+)/([^?]+)(?:\?.*)?')
_PAGE = re.compile(r'https://huggingface\.co/([\w.-]+/[\w.-]+)(?:/tree/([^/?]+))?/?')


def as_hub_name(url: str) -> str | None:
    """The ``hf://`` name of a file that a web address on the Hub names; None for other addresses."""
    page = _PAGE.fullmatch(url)
    if page:
        return f'{SCHEME}{page.group(1)}' + (f'@{unquote(page.group(2))}' if page.group(2) else '')
    found = _URL.fullmatch(url)
    return f'{SCHEME}{found.group(1)}/{unquote(found.group(3))}@{unquote(found.group(2))}' if found else None


def parse(name: str) -> tuple[str, str | None, str | None]:
    """Repository, file and revision of an ``hf://`` name.

    Raises:
        ValueError: If it is of another form.
    """
    found = re.fullmatch(r'hf://([\w.-]+/[\w.-]+)(?:/([^@]+))?/?(?:@(.+))?', name)
    if found is None:
        raise ValueError(f'{name} is not of the form hf://owner/repo, hf://owner/repo/file or either with @revision behind.')
    return found.groups()


def download(name: str) -> Path:
    """Bring a checkpoint into the Hub's cache, where it is not there yet.

    The token, the place of the cache and offline mode are those of ``huggingface_hub`` (``hf auth login``, ``HF_TOKEN``,
    ``HF_HOME``, ``HF_HUB_OFFLINE``). Without a file in the name, the first of :data:`~.files.NAMES` that the repository has
    is taken.

    Returns:
        The file in the cache; of a checkpoint in several files the index, with the others beside it.

    Raises:
        OSError: If it cannot be had, with what to do.
        ValueError: If the name is of another form, or the file is not the one that the Hub names.
    """
    repo, file, revision = parse(name)
    local_only = False
    for candidate in (file,) if file else NAMES:
        try:
            path = _fetch(repo, candidate, revision, local_only)
            if candidate.endswith('.index.json'):
                for shard in shards_of(path):
                    _fetch(repo, shard, revision, local_only)
            return path
        except errors.LocalEntryNotFoundError:
            local_only = True  # no network: what else is in the cache?
        except errors.GatedRepoError:
            raise PermissionError(
                f'{name}: the owner of {repo} asks for an agreement. Accept it on https://huggingface.co/{repo}, then log '
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


def _fetch(repo: str, file: str, revision: str | None, local_only: bool) -> Path:
    path = Path(hf_hub_download(repo, file, revision=revision, local_files_only=local_only))
    check_hash(path)
    return path


def check_hash(path: Path) -> None:
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

"""Where checkpoints are read from, through mmengine's ``CheckpointLoader``: only weights, and nothing is executed."""

import os
import urllib.error
import zipfile
from pathlib import Path

import torch
from mmengine.dist import barrier
from mmengine.runner import CheckpointLoader

from mmseg_eomt.adapters.files import is_folder, read_folder
from mmseg_eomt.adapters.loading import tagged


def register_sources() -> None:
    """Replace mmengine's loaders of local files and of URLs; a second call changes nothing."""
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), loader=load_from_http, force=True)


def load_from_local(filename: str, map_location=None):
    """Read a checkpoint, or a folder with an adapter in PEFT's format.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If the file is cut short.
    """
    path = Path(filename).expanduser()
    if path.is_dir() and is_folder(path):
        return tagged(read_folder(path))
    if not path.is_file():
        raise FileNotFoundError(f'{filename} is not there, or is neither a checkpoint nor a folder with an adapter.')
    try:
        return tagged(torch.load(path, map_location=map_location, weights_only=True))
    except (RuntimeError, EOFError) as error:
        if is_whole(path):
            raise
        raise ValueError(
            f'{filename} ({path.stat().st_size:,} bytes) is no whole checkpoint: was writing or copying it cut short? '
            f'Use an earlier one, or copy it again. ({str(error).splitlines()[0] if str(error) else "empty"})'
        ) from error


def is_whole(path: Path) -> bool:
    """Whether a checkpoint was written to its end, where the table of contents of PyTorch's zip files stands."""
    return zipfile.is_zipfile(path)


def load_from_http(filename: str, map_location=None, model_dir: str | None = None):
    """Download once a machine, keep in torch's cache, and read only weights.

    mmengine downloads through ``torch.hub.load_state_dict_from_url``, whose default executes what a pickle asks for. Goes
    when that default changes.

    Raises:
        OSError: If it cannot be downloaded, with what to set for a copy.
    """

    def load():
        try:
            return torch.hub.load_state_dict_from_url(
                filename, model_dir, map_location, progress=os.isatty(2), weights_only=True
            )
        except urllib.error.URLError as error:
            raise OSError(
                f'{filename} could not be downloaded ({error.reason}): get the file elsewhere, and give its path '
                f'as checkpoint of both model.backbone.init_cfg and model.decode_head.init_cfg.'
            ) from error

    downloads = os.environ.get('LOCAL_RANK', '0') == '0'
    if downloads:
        checkpoint = load()
    barrier()
    return tagged(checkpoint if downloads else load())

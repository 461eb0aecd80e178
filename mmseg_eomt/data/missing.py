"""Which folders and lists of a dataset are missing or empty: the reason why it finds no files."""

import inspect
from collections.abc import Iterator
from pathlib import Path

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from mmseg_eomt.data.images import files_in

BASE_SUFFIX = inspect.signature(BaseSegDataset.__init__).parameters['img_suffix'].default


def explain_missing_data(dataloader: object, error: Exception) -> None:
    """Raise a FileNotFoundError from ``error`` if a dataloader's config names what the disk does not have; else return."""
    found = [line for config in _leaves(dataloader) for line in _absent(config)]
    if found:
        raise FileNotFoundError('No data to load: ' + '; '.join(found) + '.') from error


def _leaves(config: object) -> Iterator[dict]:
    """Configs of datasets inside a dataloader, concatenations, repetitions and domains."""
    if not isinstance(config, dict):
        return
    inner = [config.get('dataset'), *(config.get('datasets') or ()), *(config.get('domains') or {}).values()]
    if any(inner):
        for part in filter(None, inner):
            yield from _leaves(part)
    else:
        yield config


def _absent(config: dict) -> list[str]:
    """What a dataset's config asks for and the disk does not have."""
    kind = DATASETS.get(config['type']) if isinstance(config.get('type'), str) else config.get('type')
    if not (inspect.isclass(kind) and issubclass(kind, BaseSegDataset)) or config.get('backend_args'):
        return []
    if getattr(kind, 'explains_missing_data', False):
        return []
    options = {name: value.default for name, value in inspect.signature(kind.__init__).parameters.items()}
    options.update(config)
    root, prefixes = Path(options.get('data_root') or ''), options.get('data_prefix') or {}
    folders = {name: root / (prefixes.get(name) or '') for name in ('img_path', 'seg_map_path')}
    lines = [f'{folder} ({name} of {kind.__name__}) is no folder' for name, folder in folders.items() if not folder.is_dir()]
    if lines:
        return lines
    images, ann_file, suffix = folders['img_path'], options.get('ann_file'), options.get('img_suffix', BASE_SUFFIX)
    if isinstance(ann_file, str) and ann_file:
        listed = root / ann_file
        if listed.is_file() and listed.read_bytes().strip():
            return []
        return [f'{listed} (ann_file of {kind.__name__}) {"lists no image" if listed.is_file() else "is missing"}']
    if any(file.name.endswith(suffix) for file in files_in(images)):
        return []
    return [f'{images} (img_path of {kind.__name__}) holds no file that ends in {suffix!r}: check img_suffix']

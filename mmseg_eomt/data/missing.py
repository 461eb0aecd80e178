"""A dataset that finds no files says where it looked."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.runner import Runner
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from mmseg_eomt.data.images import files_in
from mmseg_eomt.patches import patch

BASE_SUFFIX = inspect.signature(BaseSegDataset.__init__).parameters['img_suffix'].default


def explain_empty_datasets() -> None:
    """Let Runners say which folder is missing or empty, where a dataset would only fail; a second call changes nothing."""
    patch(Runner, 'build_dataloader', _explained)


def _explained(build: Callable) -> Callable:
    def build_dataloader(dataloader, *args, **kwargs):
        try:
            return build(dataloader, *args, **kwargs)
        except (AssertionError, ValueError, FileNotFoundError) as error:
            explain_missing_data([dataloader], error)
            raise

    return build_dataloader


@contextmanager
def missing_data_explained(runner: Runner, *splits: str) -> Iterator[None]:
    """The same around ``Runner.train`` (``'train', 'val'``), ``val`` or ``test``, without a patch of how loaders are built.

    Errors that come after the loops of these splits are built are not looked into.
    """
    try:
        yield
    except (AssertionError, ValueError, FileNotFoundError) as error:
        not_built = [split for split in splits if isinstance(getattr(runner, f'_{split}_loop'), dict)]
        explain_missing_data([getattr(runner, f'_{split}_dataloader') for split in not_built], error)
        raise


def explain_missing_data(dataloaders: Iterable[object], error: Exception) -> None:
    """Raise a FileNotFoundError from ``error`` if configs of dataloaders name what the disk does not have; else return."""
    found = [line for dataloader in dataloaders for config in _leaves(dataloader) for line in _absent(config)]
    if found:
        raise FileNotFoundError('No data to load: ' + '; '.join(found) + '.') from error


def _leaves(config: object) -> Iterator[dict]:
    """Configs of datasets inside a dataloader, concatenations and repetitions."""
    if not isinstance(config, dict):
        return
    inner = [config.get('dataset'), *(config.get('datasets') or ())]
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

"""A dataset that finds no files says where it looked."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

from mmengine.runner import Runner
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from mmseg_eomt.data.scan import files_in
from mmseg_eomt.patches import patch

BASE_SUFFIX = inspect.signature(BaseSegDataset.__init__).parameters['img_suffix'].default


def explain_empty_datasets() -> None:
    """Let Runners say which folder is missing or empty, where a dataset would fail without a word of it.

    A second call changes nothing.
    """
    patch(Runner, 'build_dataloader', _explained)


def _explained(build: Callable) -> Callable:
    def build_dataloader(dataloader, *args, **kwargs):
        try:
            return build(dataloader, *args, **kwargs)
        except (AssertionError, ValueError, FileNotFoundError) as error:
            found = [line for config in _leaves(dataloader) for line in _absent(config)]
            if not found:
                raise
            raise FileNotFoundError('No data to load: ' + '; '.join(found) + '.') from error

    return build_dataloader


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
    root = Path(options.get('data_root') or '')
    prefixes = options.get('data_prefix') or {}
    lines = []
    for name in ('img_path', 'seg_map_path'):
        folder = root / (prefixes.get(name) or '')
        if not folder.is_dir():
            lines.append(f'{folder} ({name} of {kind.__name__}) is no folder')
    ann_file, suffix = options.get('ann_file'), options.get('img_suffix', BASE_SUFFIX)
    if lines:
        return lines
    if isinstance(ann_file, str) and ann_file:
        listed = root / ann_file
        if not listed.is_file():
            lines.append(f'{listed} (ann_file of {kind.__name__}) is missing')
        elif not listed.read_bytes().strip():
            lines.append(f'{listed} (ann_file of {kind.__name__}) lists no image')
    else:
        folder = root / (prefixes.get('img_path') or '')
        if not any(file.name.endswith(suffix) for file in files_in(folder)):
            lines.append(f'{folder} (img_path of {kind.__name__}) holds no file that ends in {suffix!r}: check img_suffix')
    return lines

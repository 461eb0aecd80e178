"""Load a trained model to predict with, and the names and colours of its classes."""

import copy
import warnings
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmseg.apis import init_model
from mmseg.models import BaseSegmentor
from mmseg.registry import DATASETS
from mmseg.utils import register_all_modules

from mmseg_eomt.adapters.merge import merge
from mmseg_eomt.adapters.names import tuner_layers
from mmseg_eomt.visualization import make_palette


def load_model(
    config: str | Config, checkpoint: str, device: str | None = None, options: dict[str, Any] | None = None
) -> BaseSegmentor:
    """Build a model from a config, load a checkpoint of any kind, and merge its adapters.

    Images go through the pipeline that the config evaluates with, ``test_dataloader.dataset.pipeline``, so that predictions
    are those of the evaluation.

    Args:
        config: Path of the config, ``mmseg_eomt::NAME``, or a config, which is not changed.
        checkpoint: Path or address of the checkpoint.
        device: Such as ``'cuda:1'``. Default: a GPU if there is one.
        options: Settings of the config to change, ``{'a.b': value}``. Default: none.

    Returns:
        The segmentor in evaluation mode, with ``cfg`` and, in ``dataset_meta``, names and colours of the classes: those of
        the config's test data, or of the checkpoint where the config names none.

    Raises:
        ValueError, RuntimeError: If the checkpoint does not fit, or classes and their names differ in number.
    """
    register_all_modules()
    settings = copy.deepcopy(config) if isinstance(config, Config) else Config.fromfile(config)
    settings.merge_from_dict(options or {})
    dataset = settings.test_dataloader.dataset
    while 'pipeline' not in dataset:  # concatenated or repeated
        dataset = dataset['datasets'][0] if 'datasets' in dataset else dataset['dataset']
    settings.test_pipeline = for_prediction(dataset['pipeline'])
    model = init_model(settings, checkpoint, device=device or get_device())
    model.dataset_meta = _class_meta(model, dataset, checkpoint)
    if tuner_layers(model):
        try:
            merge(model)
        except ValueError as error:
            print_log(f'Adapters were not merged: {error}', logger='current')
    return model


def for_prediction(pipeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A copy of a test pipeline that keeps no decoded images: those to predict are read once, or come as arrays."""
    pipeline = copy.deepcopy(list(pipeline))
    for step in pipeline:
        if step['type'] == 'LoadImageFromFile':
            step.pop('cache_dir', None)
            step.pop('cache_size', None)
    return pipeline


def _class_meta(model: BaseSegmentor, dataset: dict[str, Any], checkpoint: str) -> dict[str, list]:
    """Names and colours of a model's classes: of its test data, else of its checkpoint."""
    noted, num_classes = model.dataset_meta, model.decode_head.num_classes
    if not isinstance(noted, dict):
        raise ValueError(
            f'{checkpoint} cannot be used: its dataset_meta is a {type(noted).__name__}, and the names of the classes by '
            f'name belong there.'
        )
    trained = {'classes': [], **names_and_colours(noted)}
    meta = class_names(dataset) or trained
    names = meta['classes']
    if 'palette' in trained and trained['classes'] != names:
        warnings.warn(
            f"The names of the classes are the config's, {names}; the checkpoint was trained with {trained['classes']}.",
            stacklevel=3,
        )
    if len(names) != num_classes:
        raise ValueError(f'The model has {num_classes} classes, but the names of its data are {len(names)}: {names}.')
    if len(meta.setdefault('palette', make_palette(num_classes))) != num_classes:
        raise ValueError(f'{num_classes} classes need as many colours, but palette has {len(meta["palette"])}.')
    return meta


def is_rgb(model: BaseSegmentor) -> bool:
    """Whether a segmentor's images are RGB: the toolbox reads them as BGR, and the data preprocessor turns them or not."""
    processor = model.data_preprocessor
    # the first name is the toolbox's, the second the forks'
    return bool(getattr(processor, 'channel_conversion', False) or getattr(processor, '_channel_conversion', False))


def class_names(dataset: dict[str, Any]) -> dict[str, list] | None:
    """Names and colours of the classes that a dataset's config speaks of, or None if it names none."""
    kind = dataset['type']
    known = names_and_colours(getattr(DATASETS.get(kind) if isinstance(kind, str) else kind, 'METAINFO', {}))
    given = names_and_colours(dataset.get('metainfo') or {})
    classes = given.get('classes') or known.get('classes')
    if not classes:
        return None
    colours = dict(zip(known.get('classes', ()), known.get('palette', ())))
    palette = given.get('palette') or [colours.get(name) for name in classes]  # of some of the dataset's classes, too
    if None in palette:
        palette = make_palette(len(classes))
    return dict(classes=classes, palette=palette)


def names_and_colours(metainfo: dict[str, Any]) -> dict[str, list]:
    """Classes and palette of a dataset's metainfo as plain lists of strings and of tuples, whatever arrays they are."""
    found: dict[str, list] = {}
    if metainfo.get('classes') is not None:
        found['classes'] = list(map(str, metainfo['classes']))
    if metainfo.get('palette') is not None:
        found['palette'] = [tuple(map(int, colour)) for colour in metainfo['palette']]
    return found

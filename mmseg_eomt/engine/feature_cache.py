"""Train on the features of a frozen backbone that were computed once."""

import hashlib
import json
import os
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import barrier, broadcast_object_list, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from mmseg_eomt.data.fixed_views import FixedViews, own_random_numbers
from mmseg_eomt.data.sizes import bytes_of, gigabytes
from mmseg_eomt.engine.feature_store import (
    DTYPES,
    CachedViews,
    Entry,
    FeatureStore,
    check_room,
    folder_size,
    size_of,
)
from mmseg_eomt.engine.frozen_part import Features, FrozenPart
from mmseg_eomt.engine.runner_state import segmentor_of, train_on_views
from mmseg_eomt.whole import whole_file

FORMAT = 1  # of the files
KEY = 'key.json'


@HOOKS.register_module()
class FeatureCacheHook(Hook):
    """Compute the features of the backbone's frozen blocks once, keep them on disk, and train on them.

    Each image gets ``views`` augmented views, drawn once from ``seed`` by the pipeline of ``train_dataloader`` and kept with
    their labels. Then they repeat: in epoch e an image's view is e modulo ``views``. So training sees fewer different crops
    than without a cache, and neither reads images nor runs the frozen blocks. Evaluation does both, as ever.

    Before training it computes what is not there yet. What a cache depends on is noted in it: frozen weights, data files
    with their sizes and times, pipeline, sizes, views, seed, types. A cache that differs in any of it is left alone and said
    to be there, and another is made beside it. A run that is resumed, killed while it computes, or started with other
    settings of the head goes on with the cache that it finds.

    The frozen blocks compute as in evaluation. So rotary positions are not rescaled at random as they are without a cache,
    in the trained blocks neither.

    Args:
        dir: Folder for caches, on a disk that all processes see.
        views: Views of each image. Default: 4.
        seed: What the views are drawn from. Default: 0.
        dtype: ``'float16'``, which rounds features by up to 0.05 %, or ``'float32'``, which is exact and twice as large.
            Default: ``'float16'``.
        max_size: The most that ``dir`` may hold, in MB, GB or TB. Default: ``'50GB'``.

    Raises:
        ValueError: If an argument is out of range, the backbone does not begin with frozen blocks, the cache would not fit,
            or images have different sizes.
    """

    priority = 'LOW'

    def __init__(self, dir: str, views: int = 4, seed: int = 0, dtype: str = 'float16', max_size: str = '50GB') -> None:
        if dtype not in DTYPES:
            raise ValueError(f'dtype is one of {list(DTYPES)}, got {dtype!r}.')
        if views < 1:
            raise ValueError(f'views must be at least 1, got {views}.')
        bytes_of(max_size)
        self.dir = Path(dir)
        self.views = views
        self.seed = seed
        self.dtype = dtype
        self.max_size = max_size
        self._given: list[tuple[nn.Module, dict[str, Any]]] = []

    def before_train(self, runner: Runner) -> None:
        """Complete the cache, and let the run train on it."""
        model = segmentor_of(runner)
        part = FrozenPart(model.backbone)
        images = self._images_of(runner)
        key = self._key(runner, part, images)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        store = FeatureStore(self.dir / digest, len(images), self.views, self.dtype)
        with own_random_numbers(self.seed):  # a run that finds its cache draws the numbers of one that makes it
            self._complete(runner, part, store, FixedViews(images, self.views, self.seed), key)
            train_on_views(runner, CachedViews(store, images.metainfo))
        self._given = accept_features(model, part, store)
        runner.logger.info(self._policy(part, store))

    def after_train(self, runner: Runner) -> None:
        """Let the model take images alone again."""
        for module, forward in self._given:
            module.__dict__.pop('forward')
            module.__dict__.update(forward)
        self._given = []

    def _images_of(self, runner: Runner) -> Any:
        dataset = runner.train_dataloader.dataset
        if not runner.cfg.get('train_dataloader') or isinstance(dataset, FixedViews):
            raise ValueError(
                'FeatureCacheHook makes fixed views of a train_dataloader of the config: set one, and leave out FixedViews.'
            )
        return dataset

    def _key(self, runner: Runner, part: FrozenPart, images: Any) -> dict[str, Any]:
        """All that features and labels depend on."""
        preprocessor = segmentor_of(runner).data_preprocessor
        wrapper = runner.cfg.optim_wrapper
        key = dict(
            part.describe(),
            format=FORMAT,
            data=_without_image_cache(runner.cfg.train_dataloader.dataset),
            files=_digest_of_files(images),
            preprocessor={
                **{name: repr(value) for name, value in vars(preprocessor).items() if not name.startswith('_')},
                **{name: value.flatten().tolist() for name, value in preprocessor.named_buffers()},
            },
            views=self.views,
            seed=self.seed,
            dtype=self.dtype,
            autocast=[str(wrapper.get(name)) for name in ('type', 'dtype')],
        )
        key['preprocessor'].pop('training', None)
        return json.loads(json.dumps(key, default=str))

    def _complete(
        self, runner: Runner, part: FrozenPart, store: FeatureStore, views: FixedViews, key: dict[str, Any]
    ) -> None:
        """Compute what is not there: each process its files."""
        self._mention_others(runner, store, key)
        decided = [store.missing()]
        broadcast_object_list(decided)
        missing = decided[0]
        if missing:
            encode = self._encoder(runner, part)
            entry = next(encode(DataLoader(views, 1, sampler=[(0, 0)], collate_fn=pseudo_collate)))[0]
            number = sum(len(store.images_of(images)) for _, images in missing)
            check_room(self.dir, number * size_of(entry, self.dtype), self.max_size)
            barrier()  # what others write is not in the way
            if is_main_process():
                with whole_file(store.folder / KEY) as new:
                    new.write_text(json.dumps(key, indent=1), encoding='utf-8')
            _fill(store, missing[get_rank() :: get_world_size()], views, runner.train_dataloader, encode)
            barrier()
        if store.missing():
            raise ValueError(f'{store.folder} lacks files that other processes wrote: give a dir that all of them see.')
        store.check()

    def _encoder(self, runner: Runner, part: FrozenPart) -> Callable[[DataLoader], Iterator[tuple[Entry, Features]]]:
        """What takes batches of images through preprocessing and the frozen part, in the types of training."""
        model = segmentor_of(runner)

        def encode(loader: DataLoader) -> Iterator[tuple[Entry, Features]]:
            for batch in loader:
                with runner.optim_wrapper.optim_context(model):
                    data = model.data_preprocessor(batch, True)
                    features = part.encode(data['inputs'])
                for i, sample in enumerate(data['data_samples']):
                    yield Entry([tensor[i].cpu() for tensor in features.tensors], features.grid, sample.cpu()), features

        return encode

    def _mention_others(self, runner: Runner, store: FeatureStore, key: dict[str, Any]) -> None:
        for file in sorted(self.dir.glob(f'*/{KEY}')):
            if file.parent == store.folder:
                continue
            other = json.loads(file.read_text(encoding='utf-8'))
            names = [name for name in key if key[name] != other.get(name)]
            runner.logger.warning(
                f'{file.parent} holds features of other {", ".join(names)} ({gigabytes(folder_size(file.parent))}) and is '
                f'not used: delete it if no run needs it.'
            )

    def _policy(self, part: FrozenPart, store: FeatureStore) -> str:
        size = gigabytes(folder_size(store.folder))
        rotary = part.vit.arch.rope_theta is not None and part.vit.arch.rope_rescale is not None
        return (
            f'Training reads cached features of {part.num_blocks} of {len(part.vit.blocks)} blocks of the backbone from '
            f'{store.folder} ({size}, {self.dtype}). Each of {store.num_images} images has {self.views} augmented views, '
            f'drawn once from the seed {self.seed}; they repeat, and epoch e trains on view e modulo {self.views}.'
            f'{" Rotary positions are not rescaled at random." if rotary else ""} Evaluation does not use the cache.'
        )


def _without_image_cache(config: Any) -> Any:
    """A dataset's config without where decoded images are kept, which changes no pixel."""
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if key not in ('cache_dir', 'cache_size')}
        return {key: _without_image_cache(value) for key, value in kept.items()}
    return [_without_image_cache(one) for one in config] if isinstance(config, list | tuple) else config


def _digest_of_files(images: Any) -> str:
    """Changes with the name, size or time of an image or a mask."""
    digest = hashlib.sha256()
    for index in range(len(images)):
        info = images.get_data_info(index)
        for name in ('img_path', 'seg_map_path'):
            path = info.get(name)
            state = os.stat(path) if path and os.path.isfile(path) else None
            digest.update(repr((path, state and (state.st_size, state.st_mtime_ns))).encode())
    return digest.hexdigest()


def _fill(
    store: FeatureStore,
    files: Sequence[tuple[int, int]],
    views: FixedViews,
    given: DataLoader,
    encode: Callable[[DataLoader], Iterator[tuple[Entry, Features]]],
) -> None:
    """Compute and write files, with the batches and workers of a given loader."""
    items = [(index, view) for view, part in files for index in store.images_of(part)]
    loader = DataLoader(
        views, given.batch_size or 1, sampler=items, num_workers=given.num_workers, collate_fn=pseudo_collate
    )
    encoded = encode(loader)
    with tqdm(total=len(items), desc='Features', unit='view', disable=not is_main_process()) as bar:
        for view, part in files:
            entries = []
            for _ in store.images_of(part):
                entry, features = next(encoded)
                entries.append(entry)
                bar.update()
            store.write(view, part, entries, features.layout)


def accept_features(model: nn.Module, part: FrozenPart, store: FeatureStore) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Let a segmentor take batches of features in place of images.

    The functions are bound to the modules, so that a copy of the model computes with its own.

    Args:
        model: The segmentor.
        part: The frozen part of its backbone.
        store: Where the features come from.

    Returns:
        The modules that have got a ``forward`` of their own, and that which they had.
    """
    content = store.content(0, 0)
    preprocessor: Any = model.data_preprocessor

    def stack(preprocess: Callable) -> Callable:
        def stack_features(self: Any, data: dict[str, Any], training: bool = False) -> Any:
            if 'features' not in data:
                return preprocess(self, data, training)
            data = self.cast_data(data)
            tensors = [torch.stack(list(column)).to(dtype) for column, dtype in zip(data['features'], content['dtypes'])]
            return dict(inputs=Features(tensors, content['layout'], content['grid']), data_samples=data['data_samples'])

        return stack_features

    def finish(encode: Callable) -> Callable:
        def finish_features(self: Any, inputs: Any) -> Any:
            return part.finish(self, inputs) if isinstance(inputs, Features) else encode(self, inputs)

        return finish_features

    return [_replace_forward(preprocessor, stack), _replace_forward(part.vit, finish)]


def _replace_forward(module: nn.Module, make: Callable[[Callable], Callable]) -> tuple[nn.Module, dict[str, Any]]:
    given = module.forward
    own = {name: value for name, value in vars(module).items() if name == 'forward'}  # of a compiled backbone
    plain = getattr(given, '__func__', None) or (lambda _, *args, **kwargs: given(*args, **kwargs))
    module.forward = types.MethodType(make(plain), module)
    return module, own

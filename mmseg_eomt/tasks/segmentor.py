"""A segmentor of many tasks: one trunk, and each task's own blocks, head and classes."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from mmengine.config import ConfigDict
from mmseg.models import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import OptSampleList, SampleList
from torch import Tensor, nn

from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.models.segmentor import EoMTSegmentor
from mmseg_eomt.tasks.loading import checked_tasks, entry_of, load_task, shared_settings
from mmseg_eomt.tasks.mixed import MixedTrunk
from mmseg_eomt.tasks.sharing import check_one_encoder, paths_of, share_weights
from mmseg_eomt.tasks.trunk import Places, shared_features

CHOSEN = 'tasks'  # of an image, in the metas that go to the windows


@MODELS.register_module()
class MultiTaskSegmentor(EoMTSegmentor):
    """Several heads and adapters on one encoder, whose common blocks run once for all tasks.

    For example::

        model = dict(
            type='MultiTaskSegmentor',
            tasks=dict(
                day='work_dirs/eomt_demo/iter_600.pth',
                dusk='work_dirs/eomt_lora_demo/adapter',
                signs=dict(checkpoint='work_dirs/signs/iter_600.pth', config='work_dirs/signs/signs.py'),
            ),
        )

    A task is a checkpoint of a model on this encoder: its own head of any kind, adapters, or both; its own classes. Up to
    the first block in which tasks differ, the encoder runs once; from there on once for each distinct adapter. What a task
    predicts is what its model predicts alone, to the last bit. In a batch whose images have tasks of their own, LoRA
    adapters run together (:class:`.MixedTrunk`), and numbers may be rounded otherwise, as in any batch of another size.

    Equal weights are kept once. Nothing is trained or merged here: each task is trained on its own.

    Args:
        tasks: Checkpoints by task: see :func:`.load_task`. They are loaded when the model is built, and the first one's
            predictions are the samples' own.
        task: The only one to load, such as for its evaluation. Default: None, for all.
        model: As of :class:`EoMTSegmentor`: the shared model, of which tasks without a config are made. Its
            ``data_preprocessor`` and ``test_cfg`` are those of all tasks.

    Attributes:
        tasks: Segmentors by task, with ``dataset_meta``.
        chosen: Names of the tasks that are predicted where nothing else is said: all.

    Raises:
        ValueError: If the tasks' encoders or normalisations differ, or as :func:`.load_task`.
    """

    tasks: Any
    out_channels: int

    def __init__(self, tasks: Mapping[str, Any], task: str | None = None, **model: Any) -> None:
        settings = shared_settings({name: value for name, value in model.items() if name != 'pretrained'})
        BaseSegmentor.__init__(self, settings.get('data_preprocessor'))  # no backbone and head besides the tasks'
        self.test_cfg, self.train_cfg = ConfigDict(settings['test_cfg']), None
        entries = dict(checked_tasks(tasks)) if task is None else {task: entry_of(checked_tasks(tasks), task)}
        loaded = {name: load_task(name, entry, settings) for name, entry in entries.items()}
        check_one_encoder({name: base for name, (_, base) in loaded.items()})
        segmentors = {name: segmentor for name, (segmentor, _) in loaded.items()}
        for name, segmentor in segmentors.items():
            _check_same_inputs(name, segmentor, self.data_preprocessor)
        share_weights(list(segmentors.values()))
        self.paths = paths_of(segmentors)
        self.tasks = nn.ModuleDict(segmentors)
        self.chosen = tuple(segmentors)
        self._made: dict[int, MixedTrunk] | None = None  # of the tasks' own weights, and no part of the model
        self.dataset_meta = self.tasks[self.chosen[0]].dataset_meta

    @property
    def backbone(self) -> nn.Module:
        """The first chosen task's."""
        return self.tasks[self.chosen[0]].backbone

    @property
    def decode_head(self) -> nn.Module:
        """The first chosen task's."""
        return self.tasks[self.chosen[0]].decode_head

    def predict(
        self,
        inputs: Tensor,
        data_samples: OptSampleList = None,
        tasks: str | Sequence[str | Sequence[str]] | None = None,
    ) -> SampleList:
        """Predict the tasks of each image.

        Args:
            inputs: Images (B, 3, H, W), normalised.
            data_samples: Their samples. Default: none, for results in the inputs' size.
            tasks: A task for all images; or for each image one, or a list of several. Default: ``chosen`` for all.

        Returns:
            Samples with the predictions of the image's first task, and in ``tasks`` a sample for each of its tasks.

        Raises:
            ValueError: If there is no such task, or not one entry per image.
        """
        chosen = self._choose(tasks, len(inputs))
        if data_samples is None:
            size = inputs.shape[2:]
            known = [dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0, 0, 0, 0])] * len(inputs)
        else:
            known = [sample.metainfo for sample in data_samples]
        scores = self.inference(inputs, [{**meta, CHOSEN: names} for meta, names in zip(known, chosen)])
        samples = data_samples or [SegDataSample() for _ in known]
        for i, (sample, names) in enumerate(zip(samples, chosen)):
            found = {}
            for name, part in self._channels(names).items():
                own = None if data_samples is None else [SegDataSample(metainfo=sample.metainfo)]
                found[name] = self.tasks[name].postprocess_result(scores[i : i + 1, part], own)[0]
            sample.set_data(dict(found[names[0]].items(), tasks={name: found[name] for name in names}))
        return samples

    def _choose(self, tasks: str | Sequence[str | Sequence[str]] | None, number: int) -> list[tuple[str, ...]]:
        """Names of each image's tasks."""
        given = [tasks or self.chosen] * number if tasks is None or isinstance(tasks, str) else list(tasks)
        if len(given) != number:
            raise ValueError(f'tasks needs an entry for each of {number} images, got {len(given)}: {given}.')
        chosen = [(names,) if isinstance(names, str) else tuple(names) for names in given]
        for name in {name for names in chosen for name in names}:
            entry_of(self.tasks, name)
        if not all(chosen):
            raise ValueError(f'Each image needs a task, got {given}.')
        return chosen

    def _channels(self, names: Sequence[str]) -> dict[str, slice]:
        """Where the scores of an image's tasks are among its channels."""
        found, start = {}, 0
        for name, task in self.tasks.items():
            if name in names:
                found[name] = slice(start, start + task.out_channels)
                start += task.out_channels
        return found

    def inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Scores of all tasks' classes (B, C, H, W) of images (B, 3, H, W), in the mode of ``test_cfg``."""
        widths = [max(part.stop for part in self._channels(names).values()) for names in self._chosen_of(batch_img_metas)]
        self.out_channels = max(widths)  # of the windows' sums
        return super().inference(inputs, batch_img_metas)

    def _chosen_of(self, batch_img_metas: list[dict]) -> list[tuple[str, ...]]:
        return [meta.get(CHOSEN, self.chosen) for meta in batch_img_metas]

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Scores (B, C, H, W) of images or windows: those of an image's tasks, one after the other, then zeros."""
        chosen = self._chosen_of(batch_img_metas)
        rows = self._rows(chosen)
        scores = {}
        for name, feats in self._features(inputs, rows).items():
            metas = _metas_of(batch_img_metas, rows[name])
            scores[name] = self.tasks[name].decode_head.predict(feats, metas, self.test_cfg)
        ordered = [scores[name] for name in rows]
        if all(places is None for places in rows.values()):
            return torch.cat(ordered, 1) if len(ordered) > 1 else ordered[0]
        mixed = ordered[0].new_zeros((len(inputs), self.out_channels, *ordered[0].shape[2:]))
        for name, places in rows.items():
            for row, value in zip(places or (), scores[name]):
                mixed[row, self._channels(chosen[row])[name]] = value
        return mixed

    def extract_feat(self, inputs: Tensor) -> dict[str, Any]:
        """Each chosen task's features of images (B, 3, H, W), what tasks have in common computed once."""
        return self._features(inputs, self._rows([self.chosen]))

    def _rows(self, chosen: Sequence[Sequence[str]]) -> dict[str, Places]:
        """The images of each task that is asked for, in the order of the model's tasks."""
        rows = {name: [i for i, names in enumerate(chosen) if name in names] for name in self.tasks}
        same = len({frozenset(names) for names in chosen}) == 1
        return {name: None if same else places for name, places in rows.items() if places}

    def _features(self, inputs: Tensor, rows: dict[str, Places]) -> dict[str, Any]:
        backbones = {name: self.tasks[name].backbone for name in rows}
        mixed = any(places is not None for places in rows.values())
        found = shared_features(backbones, self.paths, rows, inputs, self._mixers() if mixed else None)
        return {name: self.tasks[name].neck(f) if self.tasks[name].with_neck else f for name, f in found.items()}

    def _mixers(self) -> dict[int, MixedTrunk]:
        """What runs batches of different adapters, made with the first of them."""
        if self._made is None:
            stems: dict[int, dict[str, EoMTViT]] = {}
            for name, task in self.tasks.items():
                if isinstance(task.backbone, EoMTViT):
                    stems.setdefault(self.paths[name][0], {})[name] = task.backbone
            self._made = {stem: MixedTrunk(vits) for stem, vits in stems.items() if len(vits) > 1}
        return self._made

    def loss(self, *_: Any, **__: Any) -> NoReturn:
        """Refused.

        Raises:
            ValueError: Always.
        """
        raise ValueError('MultiTaskSegmentor predicts: train each task on its own, with its own config.')

    def _forward(self, inputs: Tensor, data_samples: OptSampleList = None) -> dict[str, Any]:
        return {name: self.tasks[name].decode_head(feats) for name, feats in self.extract_feat(inputs).items()}


def _metas_of(batch_img_metas: list[dict], places: Places) -> list[dict]:
    """Metas of some images. The size of a window is in the first image's alone, as the toolbox has it."""
    if places is None:
        return batch_img_metas
    window = batch_img_metas[0].get('img_shape')
    size = dict(img_shape=window) if isinstance(window, torch.Size) else {}
    return [{**batch_img_metas[row], **size} for row in places]


def _check_same_inputs(name: str, segmentor: BaseSegmentor, processor: nn.Module) -> None:
    """Raise ValueError if a task's images are normalised otherwise."""
    own = segmentor.data_preprocessor
    for field in ('mean', 'std', 'channel_conversion', '_channel_conversion'):
        given, expected = (getattr(part, field, None) for part in (own, processor))
        same = (
            torch.equal(given, expected) if isinstance(given, Tensor) and isinstance(expected, Tensor) else given == expected
        )
        if not same:
            raise ValueError(
                f'Task {name!r} has another data_preprocessor than the shared model, {field} differs: all tasks see '
                f'the same image.'
            )

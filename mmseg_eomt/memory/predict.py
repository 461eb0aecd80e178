"""The peak of a training step and of evaluation, from a config, without running it."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch._subclasses.fake_tensor import FakeTensorMode

from mmseg_eomt.memory.faked import GpuFunctions, assumed_matches, attribute, batch_of, build, fill
from mmseg_eomt.memory.ledger import PARTS, Ledger
from mmseg_eomt.models.device import assumed_device
from mmseg_eomt.models.query_head import QueryHead

CLASSES_IN_IMAGE = 20  # taken to be present in each image, if the head has as many


@dataclass(frozen=True)
class Prediction:
    """Bytes at the moment of the peak, by part; see :data:`~mmseg_eomt.memory.ledger.PARTS`."""

    training: Mapping[str, int]
    evaluation: Mapping[str, int]

    @property
    def peak(self) -> int:
        """Bytes of the higher of the two."""
        return max(sum(self.training.values()), sum(self.evaluation.values()))


def predict(
    config: Config,
    device: str = 'cuda',
    classes_in_image: int = CLASSES_IN_IMAGE,
    image: tuple[int, int] | None = None,
    evaluate: bool = True,
) -> Prediction:
    """Predict the peaks of a config's run on one device.

    The model runs on fake tensors, which have shapes and no memory: a step of the optimizer, then forward, losses and
    backward, with the optimizer's states and, where they accumulate, the gradients. Every block of an EoMT has its masks, as
    in the first part of a run. The random generators stay as they are.

    Args:
        config: As ``tools/train.py`` takes it. A crop's size is ``crop_size`` of the training pipeline, or
            ``size`` of the data preprocessor.
        device: ``'cuda'`` or ``'cpu'``, whose code differs.
        classes_in_image: Classes, and so masks to learn, in each image.
        image: Rows and columns of an image to evaluate. Default: a crop's rows and twice its columns.
        evaluate: Whether evaluation is predicted too. Default: True.

    Raises:
        ValueError: If the config has no model, no optimizer, or no crop size.
    """
    if not isinstance(config.get('model'), Mapping):
        raise ValueError('The config has no model: give one that tools/train.py takes.')
    crop = crop_size(config)
    if not isinstance(config.get('optim_wrapper'), Mapping):
        raise ValueError('The config has no optim_wrapper: give one that tools/train.py takes.')
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmseg')):
        return _predict(config, device, classes_in_image, crop, image or (crop[0], 2 * crop[1]), evaluate)


def _predict(
    config: Config, device: str, classes_in_image: int, crop: tuple[int, int], image: tuple[int, int], evaluate: bool
) -> Prediction:
    model = build(config)
    heads = [module for module in model.modules() if isinstance(module, QueryHead)]
    matches = min([classes_in_image, *(head.num_classes for head in heads)])
    ledger = Ledger({head.num_queries: min(matches, head.num_queries) for head in heads})
    with _fake(device), assumed_matches(matches):
        fill(model)
        attribute(model, ledger)
        for tensor in (*model.parameters(), *model.buffers()):
            ledger.count(tensor, 'weights')
        copies = sum(hook.get('type') == 'EMAHook' for hook in config.get('custom_hooks') or ())
        averages = [torch.empty_like(tensor) for tensor in model.parameters() for _ in range(copies)]
        for tensor in averages:
            ledger.count(tensor, 'weights')
        with ledger:
            training = _train(model, config, ledger, crop, device)
            evaluation = _evaluate(model, config, ledger, image) if evaluate else {}
    return Prediction(training, evaluation)


@contextlib.contextmanager
def _fake(device: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(assumed_device(device))
        if device != 'cpu':
            stack.enter_context(GpuFunctions())
        yield


def _train(model: Any, config: Config, ledger: Ledger, size: tuple[int, int], device: str) -> dict[str, int]:
    """A step of the optimizer, then forward, losses and backward: the order of a run from its second iteration on."""
    settings = config.optim_wrapper
    wrapper = build_optim_wrapper(model, {**plain_wrapper(settings), 'optimizer': _optimizer(settings, device)})
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
            ledger.count(parameter.grad, 'gradients')
            parameter.register_post_accumulate_grad_hook(lambda p: ledger.count(p.grad, 'gradients'))
    with ledger.running('optimizer'):
        wrapper.optimizer.step()
    if settings.get('accumulative_counts', 1) == 1:
        wrapper.optimizer.zero_grad()
    with ledger.running('images and labels'):
        images, samples = batch_of(config.train_dataloader.batch_size, *size)
    with _autocast(settings):
        losses = model.loss(images, samples)
    with ledger.running('losses'):
        loss = sum(_mean(value) for name, value in losses.items() if 'loss' in name)
    del losses
    loss.backward()
    model.zero_grad()
    return _shown(ledger.peak)


def _shown(peak: Mapping[str, int]) -> dict[str, int]:
    return {part: peak[part] for part in PARTS if peak.get(part)}


def plain_wrapper(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an ``optim_wrapper`` without mixed precision, which mmengine builds on a GPU alone."""
    return {**{k: v for k, v in settings.items() if k not in ('dtype', 'loss_scale')}, 'type': 'OptimWrapper'}


def _mean(value: Any) -> Any:
    return sum(v.mean() for v in value) if isinstance(value, list) else value.mean()


def _optimizer(settings: Mapping[str, Any], device: str) -> dict[str, Any]:
    optimizer = dict(settings['optimizer'])
    if device != 'cpu' and optimizer['type'] in ('AdamW', 'Adam', 'SGD'):
        optimizer.setdefault('foreach', True)  # what PyTorch chooses there
    return optimizer


def _autocast(settings: Mapping[str, Any]) -> contextlib.AbstractContextManager:
    if settings.get('type') != 'AmpOptimWrapper':
        return contextlib.nullcontext()
    dtype = settings.get('dtype') or 'float16'
    return torch.autocast('cpu', getattr(torch, dtype) if isinstance(dtype, str) else dtype)


def _evaluate(model: Any, config: Config, ledger: Ledger, size: tuple[int, int]) -> dict[str, int]:
    for module in model.modules():
        if isinstance(module, QueryHead):
            module.query_tolerance = 0.0  # which queries it would skip depends on the image
    model.eval()
    with ledger.running('images and labels'):
        images, samples = batch_of(config.val_dataloader.batch_size, *size)
    ledger.forget_peak()
    with torch.no_grad(), ledger.running('backbone'):
        model.predict(images, samples)
    return _shown(ledger.peak)


def crop_size(config: Config) -> tuple[int, int]:
    """Rows and columns of a training image.

    Raises:
        ValueError: If the config says none.
    """
    for step in reversed(config.get('train_pipeline') or config.train_dataloader.dataset.get('pipeline') or []):
        if step.get('crop_size'):
            return _sides(step['crop_size'])
    size = (config.model.get('data_preprocessor') or {}).get('size') or (config.model.get('vit') or {}).get('img_size')
    if not size:
        raise ValueError(
            'The config does not say how large training images are: its pipeline has no step with crop_size, and '
            'model.data_preprocessor no size.'
        )
    return _sides(size)


def _sides(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

"""Against other implementations that a user has: the public one, from a checkout of tue-mps/eomt, and LightlyTrain."""

import importlib
import importlib.util
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import EomtConfig, EomtForUniversalSegmentation

from benchmarks.candidates import (
    CLASSES,
    JOINT,
    QUERIES,
    Candidate,
    Ours,
    binary_masks,
    check_losses,
    check_scores,
    example,
    scores_as_written,
    step,
)
from benchmarks.meter import Meter
from benchmarks.report import row
from mmseg_eomt.weights.checkpoint import FORMATS, from_segmentor
from mmseg_eomt.weights.formats import EOMT

LIGHTLY = 'lightly_train'
LETTERS = dict(small='s', base='b', large='l')


class Other(Candidate):
    """Another implementation's network, with the scores as they are written and transformers' losses, which are the same."""

    def __init__(self) -> None:
        super().__init__()
        model = EomtForUniversalSegmentation(
            EomtConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_blocks=1, num_labels=CLASSES)
        )
        self.criterion, self.weights = model.criterion, model.weight_dict

    def layers(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Mask logits (B, Q, h, w) and class logits (B, Q, K + 1) of each prediction."""
        raise NotImplementedError

    def scores(self, image: Tensor) -> Tensor:
        with self.precision(image):
            masks, classes = self.layers(image)
            return scores_as_written(masks[-1], classes[-1], image.shape[-2:])

    def loss(self, image: Tensor, labels: Tensor) -> Tensor:
        masks, classes = binary_masks(labels)
        with self.precision(image):
            layers = [self.criterion(*layer, masks, classes) for layer in zip(*self.layers(image))]
        return sum(self.weights[name] * loss for layer in layers for name, loss in layer.items())


class Public(Other):
    """The authors' network, with their modules imported from a checkout."""

    def __init__(self, checkout: Path, arch: str, side: int) -> None:
        super().__init__()
        sys.path.insert(0, str(checkout))
        vit, eomt = (importlib.import_module(f'models.{name}') for name in ('vit', 'eomt'))
        backbone = f'vit_{arch}_patch14_reg4_dinov2'
        encoder = vit.ViT((side, side), 16, backbone, ckpt_path='')  # the weights are given, none are downloaded
        self.network = eomt.EoMT(encoder, CLASSES, QUERIES, JOINT)
        encoder.pixel_mean.zero_()
        encoder.pixel_std.fill_(1)

    def take(self, weights: dict[str, Tensor]) -> None:
        _load(self, {name: value for name, value in EOMT.write(weights).items() if name.startswith('network.')})

    def mask(self, on: bool) -> None:
        self.network.masked_attn_enabled = on

    def layers(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return self.network(image)


class LightlyTrain(Other):
    """LightlyTrain's EoMT on a DINOv3."""

    def __init__(self, arch: str, side: int) -> None:
        super().__init__()
        module = importlib.import_module(f'{LIGHTLY}._task_models.dinov3_eomt_semantic_segmentation.task_model')
        self.network = module.DINOv3EoMTSemanticSegmentation(
            model_name=f'dinov3/vit{LETTERS[arch]}16-eomt',
            classes={index: str(index) for index in range(CLASSES)},
            class_ignore_index=None,
            image_size=(side, side),
            image_normalize=dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
            num_queries=QUERIES,
            num_joint_blocks=JOINT,
            load_weights=False,
        )

    def take(self, weights: dict[str, Tensor]) -> None:
        release = next(known for known in FORMATS if known.name == 'DINOv3 release')
        parts = ('class_head', 'mask_head', 'upscale', 'query_embed', 'attn_mask_probs')
        vit = {name: value for name, value in weights.items() if not name.startswith(parts)}
        named = {f'backbone.{name}': value for name, value in release.write(vit).items()}
        heads = {name: value for name, value in weights.items() if name.startswith(parts[:3])}
        _load(self.network, {**named, **heads, 'queries.weight': weights['query_embed.weight']})

    def layers(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return self.network.forward_train(image, return_logits_per_layer=self.training)


def _load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load weights, all of which the model has to have; what it has beside them takes no part in it."""
    missing, unexpected = model.load_state_dict(weights, strict=False)
    trained = [name for name in missing if name in dict(model.named_parameters()) and 'mask_token' not in name]
    if trained or unexpected:
        sys.exit(f'The other model has other weights than ours: {trained} have none, {unexpected} have no place.')


def other_and_ours(name: str, arch: str, side: int) -> tuple[Ours, Other] | None:
    """Both with the same weights; None, with a word, where the other one is not installed."""
    torch.manual_seed(0)
    if name == LIGHTLY:
        if importlib.util.find_spec(LIGHTLY) is None:
            print('LightlyTrain is not installed and is skipped: pip install lightly-train.')
            return None
        ours, other = Ours(f'dinov3_{arch}', side), LightlyTrain(arch, side)
    else:
        missing = [part for part in ('models/eomt.py', 'models/vit.py') if not (Path(name) / part).is_file()]
        if missing or importlib.util.find_spec('timm') is None:
            what = f'{name} has no {missing[0]}' if missing else 'timm is not installed'
            print(
                f'{what}, and the public implementation is skipped: give a checkout of tue-mps/eomt, with its requirements.'
            )
            return None
        ours, other = Ours(arch, side), Public(Path(name).resolve(), arch, side)
    other.take(from_segmentor(ours.state_dict()))
    return ours, other


def against(meter: Meter, name: str, arch: str, device: str, side: int = 512, batch: int = 2) -> list[dict]:
    """Inference and a step of all parameters against one other implementation."""
    found = other_and_ours(name, arch, side)
    if found is None:
        return []
    ours, other = (model.to(device) for model in found)
    ours.low = other.low = device == 'cuda'
    image, labels = example(side, batch, device)
    error = check_scores(ours, other, image)
    check_losses(ours, other, image, labels)
    rows, title = [], 'LightlyTrain' if name == LIGHTLY else 'tue-mps/eomt'
    for kind, training in (('inference', False), ('step, all parameters', True)):
        other.mask(training)
        candidates = dict(ours=ours.train(training), other=other.train(training))
        with torch.set_grad_enabled(training):
            taken = meter(
                {
                    key: partial(step, model, image, labels) if training else partial(model.scores, image)
                    for key, model in candidates.items()
                }
            )
        rows.append(row(f'{title}, {arch} {side} batch {batch}: {kind}', **taken, error=error))
    return rows

"""EoMT here and in Hugging Face's transformers, with equal weights, for benchmarks/speed.py."""

import contextlib
import copy
import sys

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import EomtConfig, EomtForUniversalSegmentation

from mmseg_eomt.adapters.config import lora_config
from mmseg_eomt.adapters.inject import inject
from mmseg_eomt.models.arch import get_arch
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.weights.checkpoint import from_segmentor, recognise

Arch = str | dict
CLASSES, QUERIES, JOINT = 19, 100, 4
POINTS = 12544  # at which a mask is compared
NEW_PARTS = [f'decode_head.{part}' for part in ('query_embed', 'class_head', 'mask_head', 'upscale')]


class Candidate(nn.Module):
    """What is measured: ``scores`` of an image (B, K, H, W), and the ``loss`` of a training step."""

    low = False  # autocast to bf16

    def precision(self, image: Tensor) -> contextlib.AbstractContextManager:
        return torch.autocast(image.device.type, torch.bfloat16) if self.low else contextlib.nullcontext()

    def mask(self, on: bool) -> None:
        """Whether queries are masked where the mode does not say so; ours are in training alone."""

    def scores(self, image: Tensor) -> Tensor:
        raise NotImplementedError

    def loss(self, image: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError


class Ours(Candidate):
    """Backbone and head, as the stock EncoderDecoder holds them."""

    def __init__(self, arch: Arch, side: int, num_classes: int = CLASSES, num_queries: int | None = None) -> None:
        super().__init__()
        self.backbone = EoMTViT(arch, side, num_joint_blocks=JOINT)
        self.decode_head = EoMTHead(
            num_classes, arch, num_joint_blocks=JOINT, num_queries=num_queries or QUERIES, num_points=POINTS
        )
        for parameter in self.parameters():  # LayerScale begins near 0, where no block would count
            parameter.data.add_(0.02 * torch.randn_like(parameter))

    def scores(self, image: Tensor) -> Tensor:
        with self.precision(image):
            return self.decode_head.predict(self.backbone(image), [dict(img_shape=tuple(image.shape[-2:]))], {})

    def loss(self, image: Tensor, labels: Tensor) -> Tensor:
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
        with self.precision(image):
            losses = self.decode_head.loss(self.backbone(image), samples, {})
            return sum(value for name, value in losses.items() if 'loss' in name)

    def recompute(self, again: bool) -> None:
        self.backbone.with_cp = self.decode_head.with_cp = again


class Theirs(Candidate):
    """Hugging Face's model, and the per-pixel scores by the formula as it is written."""

    def __init__(self, arch: Arch, side: int) -> None:
        super().__init__()
        size = get_arch(arch)
        self.model = EomtForUniversalSegmentation(
            EomtConfig(
                hidden_size=size.embed_dims,
                num_hidden_layers=size.num_layers,
                num_attention_heads=size.num_heads,
                num_blocks=JOINT,
                num_labels=CLASSES,
                num_queries=QUERIES,
                train_num_points=POINTS,
                image_size=side,
                attn_implementation='sdpa',
            )
        )

    def mask(self, on: bool) -> None:
        self.model.attn_mask_probs.fill_(float(on))

    def scores(self, image: Tensor) -> Tensor:
        with self.precision(image):
            out = self.model(image)
            return scores_as_written(out.masks_queries_logits, out.class_queries_logits, image.shape[-2:])

    def loss(self, image: Tensor, labels: Tensor) -> Tensor:
        masks, classes = binary_masks(labels)
        with self.precision(image):
            return self.model(image, mask_labels=masks, class_labels=classes).loss


def binary_masks(labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Each image's masks (n, H, W) and their classes (n,)."""
    classes = [label.unique() for label in labels]
    return [torch.stack([(label[0] == c).float() for c in present]) for label, present in zip(labels, classes)], classes


def scores_as_written(masks: Tensor, classes: Tensor, size: tuple[int, int]) -> Tensor:
    return weighted_as_written(masks, classes.softmax(-1)[..., :-1], size)


def weighted_as_written(masks: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
    masks = F.interpolate(masks, size=size, mode='bilinear')
    return torch.einsum('bqc,bqhw->bchw', weights, masks.sigmoid())


def models(arch: Arch, side: int, device: str, low: bool | None = None) -> tuple[Ours, Theirs]:
    """Both with the same weights, in training, with every query masked in every joint block; on a GPU in bf16."""
    torch.manual_seed(0)
    ours, theirs = Ours(arch, side), Theirs(arch, side)
    ours.low = theirs.low = device == 'cuda' if low is None else low
    weights = recognise(theirs.model.state_dict()).write(from_segmentor(ours.state_dict()))
    weights['attn_mask_probs'].fill_(1)
    missing, unexpected = theirs.model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (['criterion.empty_weight'], []), (missing, unexpected)
    return ours.to(device).train(), theirs.to(device).train()


def example(side: int, batch: int, device: str, num_classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Images (B, 3, side, side) and labels (B, 1, side, side) in 8×8 blocks."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, num_classes, (batch, 1, 8, 8), generator=generator).float()
    labels = F.interpolate(labels, (side, side)).long()
    return torch.randn(batch, 3, side, side, generator=generator).to(device), labels.to(device)


def with_lora(ours: Ours, theirs: Theirs) -> tuple[Ours, Theirs]:
    """Copies with adapters of rank 16 in the attention layers and the new parts trained, the rest frozen."""
    ours, theirs = copy.deepcopy(ours), copy.deepcopy(theirs)
    config = dict(r=16, lora_alpha=32, lora_dropout=0.05)
    inject(ours, lora_config(**config, target_modules=('qkv', 'proj'), exclude_modules=('patch_embed.proj',)), NEW_PARTS)
    inject_adapter_in_model(LoraConfig(**config, target_modules=['q_proj', 'k_proj', 'v_proj', 'out_proj']), theirs.model)
    for name, parameter in theirs.model.named_parameters():
        if name.startswith(('query.', 'upscale_block.', 'mask_head.', 'class_predictor.')):
            parameter.requires_grad_(True)
    return ours, theirs


def step(model: Candidate, image: Tensor, labels: Tensor) -> None:
    """Forward, losses of all layers, backward; the gradients are let go, so that each step's memory includes its own."""
    model.loss(image, labels).backward()
    model.zero_grad(set_to_none=True)


def check_scores(ours: Ours, theirs: Candidate, image: Tensor) -> float:
    """Largest difference of the class scores over the largest score, without masks; ends the run where they differ."""
    theirs.mask(False)
    with torch.no_grad():
        expected = theirs.eval().scores(image)
        error = float((ours.eval().scores(image) - expected).abs().max() / expected.abs().max())
    theirs.mask(True)
    limit = 5e-2 if ours.low else 1e-4
    if not error < limit:
        sys.exit(f'The class scores differ by {error:.1e} of the largest: there is nothing to time.')
    return error


def check_losses(ours: Ours, theirs: Candidate, image: Tensor, labels: Tensor) -> float:
    """Relative difference of the losses of a masked training step, each at random points of its own."""
    with torch.no_grad():
        expected = float(theirs.train().loss(image, labels))
        error = abs(float(ours.train().loss(image, labels)) / expected - 1)
    if not error < 0.02:
        sys.exit(f'The losses differ by {error:.1%}: there is nothing to time.')
    return error

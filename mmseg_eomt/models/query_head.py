"""What EoMT's and PMT's decode heads share: queries that run with tokens through blocks, and what is predicted from them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmseg.utils import ConfigType, SampleList
from torch import Tensor, nn

from mmseg_eomt.models.arch import ViTArch
from mmseg_eomt.models.layers import for_all_tokens, recomputed
from mmseg_eomt.models.losses import MaskClassificationLoss, SemanticTargets
from mmseg_eomt.models.mask_module import Upscale, mask_head
from mmseg_eomt.models.semantic_inference import pixel_scores

Features = Sequence[Tensor | Sequence[Tensor]]


class QueryHead(BaseModule):
    """Queries in front of an image's tokens, blocks on both, and a class and a mask predicted from each query.

    In training, a prediction is made before each block and after the last, and all are supervised; a block's queries attend
    only to the patches inside their predicted mask, with a probability that
    :class:`~mmseg_eomt.engine.schedules.MaskAnnealingHook` lowers. In evaluation there are no masks, unless
    ``test_cfg.masked_attention`` of the segmentor is true, and only the last prediction is made.

    A subclass makes the tokens: :meth:`tokens`.

    Args:
        num_classes: K, without "no object".
        arch: Of the ViT; its ``embed_dims`` is the queries' width.
        front: Modules that come before the blocks, by name.
        blocks: The blocks.
        norm_eps: Epsilon of the norm before each prediction.
        in_index: Which of the backbone's outputs are used.
        num_queries: Queries Q. Default: 100.
        patch_size: Pixels of the image per position of the map: the backbone's patch size, or its stride at
            ``in_index``. Default: 16.
        num_points: Points at which a mask is compared in matching and losses. Default: 12,544.
        oversample_ratio: Candidates drawn for each point of the mask losses. Default: 3.0.
        importance_sample_ratio: Fraction of points taken where the prediction is least certain. Default: 0.75.
        class_weight: Weight of the class loss and cost. Default: 2.0.
        mask_weight: Weight of the mask cross entropy and cost. Default: 5.0.
        dice_weight: Weight of the dice loss and cost. Default: 5.0.
        no_object_weight: Weight of "no object" in the class loss. Default: 0.1.
        ignore_index: Label id that is not trained on. Default: 255.
        query_tolerance: In evaluation, queries whose best class has a lower probability are skipped in the class scores,
            which changes none by more than Q · ``query_tolerance``: :func:`.semantic_inference.pixel_scores`. Default: 0.
        with_cp: Whether blocks and predictions use activation checkpointing in training. Default: False.
        masks_with_cp: The same for the predictions alone, whose mask module keeps the most. Default: False.
        align_corners: Of the resizing that the segmentor does to the image's first size. Default: False.
        init_cfg: As of mmengine. Default: None.

    Raises:
        ValueError: If a size or the backbone's map does not fit; the message says what was given and expected.

    Source: EoMT (Kerssies et al., CVPR 2025), section 3; public implementation ``models/eomt.py``.
    """

    attn_mask_probs: Tensor
    blocks: nn.ModuleList

    def __init__(
        self,
        num_classes: int,
        arch: ViTArch,
        front: Mapping[str, nn.Module],
        blocks: nn.ModuleList,
        norm_eps: float,
        in_index: int | tuple[int, ...],
        num_queries: int = 100,
        patch_size: int = 16,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        ignore_index: int = 255,
        query_tolerance: float = 0.0,
        with_cp: bool = False,
        masks_with_cp: bool = False,
        align_corners: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_classes < 2 or num_queries < 1:
            raise ValueError(
                f'num_classes must be at least 2 (background is a class) and num_queries at least 1, got {num_classes} and '
                f'{num_queries}.'
            )
        self.arch = arch
        dims, num_blocks = arch.embed_dims, len(blocks)
        self.num_classes = self.out_channels = num_classes
        self.in_index = in_index
        self.num_queries = num_queries
        self.patch_size = patch_size
        self.ignore_index = ignore_index
        self.query_tolerance = query_tolerance
        self.with_cp = with_cp
        self.masks_with_cp = masks_with_cp
        self.align_corners = align_corners

        for name, module in front.items():
            self.add_module(name, module)
        self.blocks = blocks
        self.norm = nn.LayerNorm(dims, eps=norm_eps)
        self.query_embed = nn.Embedding(num_queries, dims)
        self.class_head: nn.Module = nn.Linear(dims, num_classes + 1)
        self.mask_head = mask_head(dims)
        self.upscale = Upscale(dims, patch_size)
        self.criterion = MaskClassificationLoss(
            num_classes,
            num_points,
            oversample_ratio,
            importance_sample_ratio,
            class_weight,
            mask_weight,
            dice_weight,
            no_object_weight,
        )
        self.register_buffer('attn_mask_probs', torch.ones(num_blocks))
        self.register_load_state_dict_post_hook(QueryHead._read_mask_probs)
        self.mask_probs = (1.0,) * num_blocks
        self.masked_blocks = (True,) * num_blocks

    def tokens(self, feats: Features) -> tuple[list[Tensor], tuple[int, int], Tensor | None]:
        """An image's tokens.

        Args:
            feats: The backbone's outputs.

        Returns:
            Tensors (B, n, C) of prefix tokens, if there are any, and patches, in this order; the patches' rows h and columns
            w; and their rotary position embedding (2, h · w, d), or None.
        """
        raise NotImplementedError

    def set_mask_probs(self, probs: Sequence[float], first: bool = False) -> None:
        """Set the probability with which each block masks a query's attention in training.

        A compiled graph reads the numbers at each step, and keeps a mask in every block that has had one in its run: it is
        compiled once for all of them.

        Args:
            probs: One number from 0 (never) to 1 (always) for each block, first to last.
            first: Whether a run begins with them: a compiled graph has no mask in blocks that begin with 0. Default: False.

        Raises:
            ValueError: If there are more or fewer than blocks.
        """
        if len(probs) != len(self.blocks):
            raise ValueError(f'{len(self.blocks)} blocks need as many mask probabilities, got {len(probs)}.')
        self.mask_probs = tuple(float(prob) for prob in probs)
        self.attn_mask_probs.copy_(torch.tensor(self.mask_probs))
        earlier = (False,) * len(probs) if first else self.masked_blocks
        self.masked_blocks = tuple(prob > 0 or masked for prob, masked in zip(probs, earlier))

    def _read_mask_probs(self, *_: Any) -> None:
        # plain numbers beside the buffer, so that a training step does not wait for the device to read them
        self.mask_probs = tuple(self.attn_mask_probs.tolist())
        self.masked_blocks = tuple(prob > 0 for prob in self.mask_probs)

    def forward(self, feats: Features, every_layer: bool = False, masked: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """Predict masks and classes.

        Args:
            feats: The backbone's outputs.
            every_layer: Whether evaluation predicts before each block too, as training does. Default: False.
            masked: Whether evaluation masks attention too, where its probability is above 0, as training does; which
                queries are masked is drawn at random. Default: False.

        Returns:
            Mask logits (B, Q, s·h, s·w), s = 4 for patch size 16, and class logits (B, Q, K + 1): lists of J + 1 layers for
            J blocks in training and with ``every_layer``, else of the last one alone.
        """
        parts, grid, rope = self.tokens(feats)
        queries = self.queries(feats).expand(parts[0].shape[0], -1, -1)
        x = torch.cat((queries, *parts), dim=1)  # (B, Q + P + h·w, C)
        rope = None if rope is None else for_all_tokens(rope, x.shape[1])

        predictions = []
        probs = self._probs_of_masks() if self.training or masked else (None,) * len(self.blocks)
        for index, prob in enumerate(probs):
            query_mask = None
            if self.training or every_layer or prob is not None:
                prediction = recomputed(self.with_cp or self.masks_with_cp, self._predict_layer, x, grid)
                if self.training or every_layer:
                    predictions.append(prediction)
                if prob is not None:
                    query_mask = self._query_mask(prediction[0].detach(), x.shape[1], grid, prob)
            x = self.run_block(index, x, query_mask, rope, grid)
        predictions.append(recomputed(self.with_cp or self.masks_with_cp, self._predict_layer, x, grid))
        masks, classes = zip(*predictions)
        return list(masks), list(classes)

    def queries(self, feats: Features) -> Tensor:
        """Queries (Q, C) that enter the first block."""
        return self.query_embed.weight

    def run_block(
        self, index: int, x: Tensor, query_mask: Tensor | None, rope: Tensor | None, grid: tuple[int, int]
    ) -> Tensor:
        """Tokens (B, Q + P + h·w, C) through one block; ``grid`` is h and w, and ``rope`` is for all tokens."""
        return recomputed(self.with_cp, self.blocks[index], x, query_mask, rope)

    def _probs_of_masks(self) -> list[float | Tensor | None]:
        """Each block's mask probability in a training step; None where it has no mask."""
        if torch.compiler.is_compiling():  # plain numbers would be constants of the graph
            return [prob if masked else None for prob, masked in zip(self.attn_mask_probs.unbind(), self.masked_blocks)]
        return [prob if prob > 0 else None for prob in self.mask_probs]

    def _predict_layer(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        # one norm before every layer's prediction (EoMT: the ViT's final one), as in the public implementation
        x = self.norm(x)
        queries = x[:, : self.num_queries]  # (B, Q, C)
        patches = x[:, -grid[0] * grid[1] :].unflatten(1, grid)  # (B, h, w, C)
        return self.upscale(self.mask_head(queries), patches), self.class_head(queries)

    @torch.no_grad()
    def _query_mask(self, masks: Tensor, num_tokens: int, grid: tuple[int, int], prob: float | Tensor) -> Tensor:
        """True where a query may attend, (B, Q, N): to all queries and prefix tokens, and to patches inside its mask."""
        inside = F.interpolate(masks, grid, mode='bilinear').flatten(2) > 0
        # one draw per query, as the public implementation does
        inside |= (torch.rand(inside.shape[:2], device=inside.device) >= prob)[..., None]
        return F.pad(inside, (num_tokens - inside.shape[-1], 0), value=True)

    def loss(self, feats: Features, batch_data_samples: SampleList, train_cfg: ConfigType) -> dict[str, Tensor]:
        """Losses of a batch, called by the segmentor.

        Args:
            feats: The backbone's outputs.
            batch_data_samples: Samples with ``gt_sem_seg`` (1, H, W), all of the input's size.
            train_cfg: Not used; part of the toolbox's interface.

        Returns:
            ``loss_cls``, ``loss_mask`` and ``loss_dice`` of the last layer, and the same of layer i as ``d{i}.loss_…``; and
            ``matched_queries``, for the log alone: the mean number of queries per image that have a mask to learn.

        Raises:
            ValueError: If a label map has several channels, or an id that is neither a class nor ``ignore_index``, or if
                ``patch_size`` is not the stride of the map.
        """
        label_maps = [sample.gt_sem_seg.data for sample in batch_data_samples]
        for sample, label in zip(batch_data_samples, label_maps):
            if label.ndim != 3 or label.shape[0] != 1:
                raise ValueError(
                    f'A label map must be an image of one channel with a class id per pixel; that of '
                    f'{sample.metainfo.get("seg_map_path", "a sample")} gave a tensor of shape {tuple(label.shape)}.'
                )
        self._check_stride(label_maps[0].shape[-2:], self._map_size(feats))
        masks, classes = self(feats)
        labels = torch.cat(label_maps)
        grid = self._map_size(feats)
        height, width = self._size_on_grid(labels.shape[-2:], grid)
        extent = (labels.shape[-1] / width, labels.shape[-2] / height)
        try:
            layers = self.layer_losses(masks, classes, labels, extent)
        except ValueError as error:
            bad = ((labels < 0) | (labels >= self.num_classes)) & ~self.is_no_class(labels)
            files = [sample.metainfo.get('seg_map_path') for sample, some in zip(batch_data_samples, bad) if some.any()]
            if not files:
                raise
            raise ValueError(f'{error} They are in {", ".join(map(str, files))}.') from error
        losses = layers.pop()
        for i, layer in enumerate(layers):
            losses.update({f'd{i}.{name}': value for name, value in layer.items()})
        return losses

    def layer_losses(
        self, mask_logits: list[Tensor], class_logits: list[Tensor], labels: Tensor, extent: tuple[float, float]
    ) -> list[dict[str, Tensor]]:
        """Losses of each layer, first to last.

        Args:
            mask_logits: (B, Q, h, w) per layer.
            class_logits: (B, Q, K + 1) per layer.
            labels: (B, H, W).
            extent: Fraction of the masks' width and height that the labels cover.

        Returns:
            As :class:`.MaskClassificationLoss`.
        """
        targets = SemanticTargets.from_label_maps(labels, self.criterion.num_classes, self.ignore_index)
        return self.criterion(mask_logits, class_logits, targets, extent)

    def is_no_class(self, labels: Tensor) -> Tensor:
        """Where label maps hold an id that may be there and is no class."""
        return labels == self.ignore_index

    def query_weights(self, class_logits: Tensor) -> Tensor:
        """Weights (B, Q, C) of the queries' masks in each channel of a prediction: their classes' probabilities."""
        return class_logits.softmax(-1)[..., :-1]

    def predict(self, feats: Features, batch_img_metas: list[dict], test_cfg: ConfigType) -> Tensor:
        """Class scores per pixel, called by the segmentor in ``whole`` and ``slide`` mode.

        A class's score is the sum over queries of mask probability times class probability.

        Args:
            feats: The backbone's outputs.
            batch_img_metas: Metas of the images; the input's size is read from them as the toolbox's other heads do.
            test_cfg: Of the segmentor. Where ``masked_attention`` in it is true, attention is masked as in training. The
                rest is not used.

        Returns:
            Scores (B, K, H, W).
        """
        masked = bool((test_cfg or {}).get('masked_attention', False))
        masks, classes = (layers[-1] for layers in self(feats, masked=masked))
        meta = batch_img_metas[0]
        size = meta['img_shape']
        if not isinstance(size, torch.Size):  # a torch.Size is a sliding window's
            size = meta.get('pad_shape', size)[:2]
        padded = self._size_on_grid(size, self._map_size(feats))
        return pixel_scores(masks, self.query_weights(classes), padded, size, self.query_tolerance)

    def _check_stride(self, size: Sequence[int], grid: tuple[int, int]) -> None:
        sides = [(side // self.patch_size, -(-side // self.patch_size)) for side in size]  # with and without padding
        if any(side not in fitting for side, fitting in zip(grid, sides)):
            raise ValueError(
                f'The map at in_index={self.in_index} has {grid[0]}×{grid[1]} positions for {size[0]}×{size[1]} pixels, '
                f'which does not fit patch_size={self.patch_size}: set it to the stride of this map, '
                f'{round(size[0] / grid[0])}.'
            )

    def _map_size(self, feats: Features) -> tuple[int, int]:
        output = feats[self.in_index if isinstance(self.in_index, int) else self.in_index[-1]]
        feature = output if isinstance(output, Tensor) else output[0]
        return feature.shape[-2], feature.shape[-1]

    def _size_on_grid(self, size: Sequence[int], grid: tuple[int, int]) -> tuple[int, int]:
        """Pixels that the map covers: the image padded to whole patches, or its own size for a map of another stride."""
        height, width = (-(-side // self.patch_size) * self.patch_size for side in size)
        return (height, width) if (height, width) == tuple(side * self.patch_size for side in grid) else (size[0], size[1])

"""The segmentor: one ViT for backbone and head, and the windows of the published evaluation."""

import math
from collections.abc import Mapping
from typing import Any

from mmengine.config import ConfigDict
from mmseg.models import EncoderDecoder, SegDataPreProcessor
from mmseg.registry import MODELS
from mmseg.utils import ConfigType, OptConfigType
from torch import Tensor, nn

from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.models.lateral_vit import LateralViT
from mmseg_eomt.models.pmt_head import PMTHead
from mmseg_eomt.models.query_head import QueryHead

MODES = ('slide_evenly', 'slide', 'whole')
BOTH = ('arch', 'patch_size', 'with_cp')
OF_VIT = ('img_size', 'num_register_tokens', 'init_cfg')
# what of vit goes to which part; the first kind that a part is of counts
FIELDS = dict(
    backbone={LateralViT: (*BOTH, *OF_VIT), EoMTViT: (*BOTH, *OF_VIT, 'num_joint_blocks')},
    decode_head={PMTHead: BOTH, EoMTHead: (*BOTH, 'num_joint_blocks', 'init_cfg')},
)
KNOWN = {*BOTH, *OF_VIT, 'num_joint_blocks', 'pretrained'} - {'init_cfg'}
COMPLETE = dict(arch='embed_dims', init_cfg='type')  # a dict with this key replaces the whole of vit's


@MODELS.register_module()
class EoMTSegmentor(EncoderDecoder):
    """``EncoderDecoder`` whose ViT is said once, and with one more test mode.

    ``vit`` goes to an :class:`EoMTViT` as backbone and an :class:`EoMTHead` as decode head, which are parts of one ViT, or
    to a :class:`LateralViT` and a :class:`PMTHead`; any other backbone or head is left as it is::

        model = dict(
            type='EoMTSegmentor',
            vit=dict(arch='large', num_joint_blocks=4, img_size=(640, 640), pretrained='hf://…'),
            backbone=dict(type='EoMTViT'),
            decode_head=dict(type='EoMTHead', num_classes=19),
            test_cfg=dict(mode='slide_evenly'),
        )

    With ``mode='slide_evenly'``, windows of ``crop_size`` are spread evenly over the image, as few as cover it; where they
    overlap, the scores are averaged. ``'slide'`` and ``'whole'`` are the toolbox's: its windows follow each other at
    ``stride``, and the last one is flush with the edge. The two differ from three windows a side on.

    Args:
        backbone: As of ``EncoderDecoder``. What it says itself goes before ``vit``, here and in ``decode_head``.
        decode_head: As of ``EncoderDecoder``.
        vit: ``arch``, ``patch_size``, ``num_joint_blocks`` and ``with_cp`` of both, ``img_size`` and ``num_register_tokens``
            of the backbone, and ``pretrained``: path, URL or ``hf://owner/repo`` of a public ViT or EoMT, which is read once
            for both. With :class:`PMTHead`, ``pretrained`` is the backbone's, and there are no joint blocks. ``img_size`` is
            also ``size`` of ``data_preprocessor``, and ``crop_size`` and ``stride`` of ``test_cfg``, where they are not
            given. Default: None, for parts that say everything themselves.
        kwargs: As of ``EncoderDecoder``. A Pretrained ``init_cfg`` of the segmentor is read in place of ``pretrained``.

    Raises:
        ValueError: If ``vit`` has other fields, if the two parts do not make one ViT (:func:`check_split`), if the mode is
            none of the three, or if ``crop_size`` is not two sides in pixels.

    Source: public implementation ``training/lightning_module.py``.
    """

    init_cfg: dict | list[dict] | None

    def __init__(
        self, backbone: ConfigType, decode_head: ConfigType, *args: Any, vit: OptConfigType = None, **kwargs: Any
    ) -> None:
        settings = share_vit(dict(backbone=backbone, decode_head=decode_head, vit=vit, **kwargs))
        super().__init__(settings.pop('backbone'), settings.pop('decode_head'), *args, **settings)
        check_split(self)
        test_cfg = self.test_cfg or {}
        if test_cfg.get('mode', 'whole') not in MODES:
            raise ValueError(f'test_cfg.mode is one of {", ".join(MODES)}, got {test_cfg["mode"]!r}.')
        if test_cfg.get('mode') == 'slide_evenly':
            crop = test_cfg.get('crop_size')
            if not isinstance(crop, (tuple, list)) or [type(side) for side in crop] != [int, int] or min(crop) < 1:
                raise ValueError(
                    f"test_cfg.mode='slide_evenly' needs crop_size=(rows, columns), two numbers of pixels, got {crop!r}."
                )

    def init_weights(self) -> None:
        """As ``EncoderDecoder``, but a file that backbone and head both name is read once, for the whole model."""
        parts = (self.backbone, self.decode_head)
        files = [part.init_cfg for part in parts if isinstance(part, (EoMTViT, EoMTHead))]
        if self.init_cfg is not None or len(files) < 2 or files[0] != files[1] or not _is_pretrained(files[0]):
            super().init_weights()
            return
        self.init_cfg, self.backbone.init_cfg, self.decode_head.init_cfg = files[0], None, None
        try:
            super().init_weights()
        finally:  # adapters note which part is read from where
            self.init_cfg = None
            self.backbone.init_cfg, self.decode_head.init_cfg = files

    def inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Scores (B, K, H, W) of images (B, 3, H, W), in the mode of ``test_cfg``."""
        if self.test_cfg.get('mode') == 'slide_evenly':
            return self.slide_evenly_inference(inputs, batch_img_metas)
        return super().inference(inputs, batch_img_metas)

    def slide_evenly_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Mean scores (B, K, H, W) of evenly spread windows, one after the other."""
        batch_size, _, *sides = inputs.shape
        rows, columns = map(window_spans, sides, self.test_cfg.crop_size)
        sums = inputs.new_zeros((batch_size, self.out_channels, *sides))
        counts = inputs.new_zeros(sides)
        for row in rows:
            for column in columns:
                window = inputs[..., row, column]
                # a torch.Size, as the toolbox's own windows have it: it tells the head that this is no whole image
                metas = [dict(meta, img_shape=window.shape[2:]) for meta in batch_img_metas]
                sums[..., row, column] += self.encode_decode(window, metas)
                counts[row, column] += 1
        return sums / counts


def window_spans(length: int, window: int) -> list[slice]:
    """The fewest windows that cover a side, spread evenly.

    Args:
        length: Of the side, in pixels.
        window: Of a window; a shorter side is one window by itself.

    Returns:
        Pixels of each window, first to last.
    """
    if length <= window:
        return [slice(0, length)]
    number = math.ceil(length / window)
    step = window - (number * window - length) / (number - 1)
    # floating point rounded down, as published; but there the last window can end a pixel before the edge
    starts = [*(int(i * step) for i in range(number - 1)), length - window]
    return [slice(start, start + window) for start in starts]


def share_vit(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an :class:`EoMTSegmentor` as those of an ``EncoderDecoder``: ``vit`` in the parts that it is for.

    Args:
        model: ``model`` of a config, which stays as it is.

    Returns:
        The same with full ``backbone`` and ``decode_head`` and without ``vit``.

    Raises:
        ValueError: If ``vit`` has other fields.
    """
    model = dict(model)
    vit = dict(model.pop('vit', None) or {})
    if not vit.keys() <= KNOWN:
        raise ValueError(f'vit takes {sorted(KNOWN)}, got {sorted(vit.keys() - KNOWN)} too.')
    pretrained = vit.pop('pretrained', None)
    if pretrained is not None and not _is_pretrained(model.get('init_cfg')):
        vit['init_cfg'] = dict(type='Pretrained', checkpoint=pretrained)
    for name, kinds in FIELDS.items():
        fields = next((taken for kind, taken in kinds.items() if _is_a(model.get(name), kind)), None)
        if fields is not None:
            model[name] = _complete(model[name], {k: v for k, v in vit.items() if k in fields})
    if vit.get('img_size') is not None:
        _set_sizes(model, vit['img_size'])
    return model


def _is_a(part: object, kind: type) -> bool:
    """Whether the settings of a part are those of a class."""
    found = part.get('type') if isinstance(part, Mapping) else None
    found = MODELS.get(found) if isinstance(found, str) else found
    return isinstance(found, type) and issubclass(found, kind)


def _is_pretrained(init_cfg: object) -> bool:
    return isinstance(init_cfg, Mapping) and init_cfg.get('type') == 'Pretrained'


def _complete(part: Mapping[str, Any], vit: Mapping[str, Any]) -> dict[str, Any]:
    """A part with what ``vit`` says and it does not; ``model.backbone.arch.norm_eps=1e-5`` changes a single value."""
    part = dict(part)
    for field, key in COMPLETE.items():
        own, given = part.get(field), vit.get(field)
        if isinstance(own, Mapping):
            # a config that inherits from one which said the field in the part deletes what is not there any more
            own = {name: value for name, value in own.items() if name != '_delete_'}
            part[field] = {**given, **own} if key not in own and isinstance(given, Mapping) else own
    return {**vit, **part}


def _set_sizes(model: dict[str, Any], img_size: int | tuple[int, int]) -> None:
    """Set what pads and cuts to the size of the training images, where the settings do not say it."""
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    processor, test_cfg = model.get('data_preprocessor') or {}, model.get('test_cfg')
    if _is_a(processor, SegDataPreProcessor) and processor.get('size_divisor') is None:
        model['data_preprocessor'] = {'size': size, **processor}
    if test_cfg and test_cfg.get('mode') in ('slide', 'slide_evenly'):
        model['test_cfg'] = ConfigDict({'crop_size': size, **test_cfg})
        model['test_cfg'].setdefault('stride', model['test_cfg'].crop_size)


def check_split(model: nn.Module) -> None:
    """Make sure that backbone and head together are one whole ViT, or a whole one and a decoder of its size.

    Raises:
        ValueError: If a model with an :class:`EoMTViT` and an :class:`EoMTHead` would leave out blocks or run some twice, if
            the two are of different size, or take their weights from different files; or if a :class:`PMTHead` is on a ViT
            with joint blocks, or on one of another size.
    """
    vits, heads = ([m for m in model.modules() if isinstance(m, kind)] for kind in (EoMTViT, QueryHead))
    for vit, head in zip(vits, heads):
        is_eomt = isinstance(head, EoMTHead)
        if not is_eomt and vit.num_joint_blocks:
            raise ValueError(
                f'{type(head).__name__} takes a whole ViT, and the backbone leaves its last {vit.num_joint_blocks} blocks '
                f"to an EoMTHead: set backbone.type='LateralViT', or num_joint_blocks=0."
            )
        for name in ('num_joint_blocks', 'arch', 'patch_size', 'init_cfg') if is_eomt else ('arch', 'patch_size'):
            given = getattr(vit, name), getattr(head, name)
            if given[0] != given[1]:
                raise ValueError(
                    f'{name} of backbone and decode_head must be equal, since they are parts of one ViT: '
                    f'got {given[0]} and {given[1]}. Set it once, in vit of an EoMTSegmentor.'
                )

"""The toolbox's segmentor with the windows of the published evaluation."""

import math

from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS
from torch import Tensor

MODES = ('slide_evenly', 'slide', 'whole')


@MODELS.register_module()
class EoMTSegmentor(EncoderDecoder):
    """``EncoderDecoder`` with one more test mode: ``test_cfg=dict(mode='slide_evenly', crop_size=(512, 512))``.

    Windows of ``crop_size`` are spread evenly over the image, as few as cover it; where they overlap, the scores are
    averaged. ``'slide'`` and ``'whole'`` are the toolbox's: its windows follow each other at ``stride``, and the last one is
    flush with the edge. The two differ from three windows a side on.

    All arguments are those of ``EncoderDecoder``.

    Raises:
        ValueError: If the mode is none of the three, or ``crop_size`` is not two sides in pixels.

    Source: public implementation ``training/lightning_module.py``.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        test_cfg = self.test_cfg or {}
        if test_cfg.get('mode', 'whole') not in MODES:
            raise ValueError(f'test_cfg.mode is one of {", ".join(MODES)}, got {test_cfg["mode"]!r}.')
        if test_cfg.get('mode') == 'slide_evenly':
            crop = test_cfg.get('crop_size')
            if not isinstance(crop, (tuple, list)) or [type(side) for side in crop] != [int, int] or min(crop) < 1:
                raise ValueError(
                    f"test_cfg.mode='slide_evenly' needs crop_size=(rows, columns), two numbers of pixels, got {crop!r}."
                )

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

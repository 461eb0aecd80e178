"""The images of Fishyscapes Static, which is published as overlays of Cityscapes."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from mmseg_eomt.data.check import in_threads
from mmseg_eomt.whole import whole_file


def make_static_images(data_root: str | Path, cityscapes: str | Path) -> int:
    """Add the overlays of Fishyscapes Static to the images of Cityscapes' validation split.

    The images of ``fs_val_v3`` in ``data_root`` go to ``fs_static_images_v3`` beside it, and those of the earlier versions
    accordingly: the preset ``'fishyscapes_static'`` reads them there.

    Args:
        data_root: Holds the unpacked downloads, with ``####_<frame>_rgb.npz`` and ``####_<frame>_labels.png``.
        cityscapes: Holds ``leftImg8bit/val``.

    Returns:
        Number of images written.

    Raises:
        ValueError: If there are no overlays, an image of Cityscapes is missing, or an overlay has another size.

    Source: hermannsblum/bdl-benchmark, ``bdlb/fishyscapes/fishyscapes_tfds.py``: image + overlay, cut to 0 … 255.
    """
    overlays = sorted(Path(data_root).glob('fs_val_v[123]/[0-9]*_rgb.npz'))
    if not overlays:
        raise ValueError(f'{data_root} holds no fs_val_v3/####_<frame>_rgb.npz: unpack the validation set there.')
    in_threads(lambda path: _add(path, Path(cityscapes)), overlays, 'Fishyscapes Static', 'images')
    return len(overlays)


def _add(overlay: Path, cityscapes: Path) -> None:
    """Write the image of an overlay."""
    frame = re.sub(r'^\d+_|_rgb$', '', overlay.stem)
    base = cityscapes / 'leftImg8bit' / 'val' / frame.split('_')[0] / f'{frame}_leftImg8bit.png'
    if not base.is_file():
        raise ValueError(f'{overlay} is an overlay of {base}, which is missing: cityscapes holds leftImg8bit/val.')
    pixels = np.array(Image.open(base).convert('RGB')).astype(int)
    with np.load(overlay, allow_pickle=False) as arrays:
        added = arrays['rgb'].astype(int)
    if added.shape != pixels.shape:
        raise ValueError(f'{overlay} has the shape {added.shape}, and its image {base} {pixels.shape}.')
    out = overlay.parents[1] / overlay.parent.name.replace('fs_val', 'fs_static_images') / f'{overlay.stem}.png'
    with whole_file(out) as new:
        Image.fromarray((pixels + added).clip(0, 255).astype(np.uint8)).save(new, 'PNG')

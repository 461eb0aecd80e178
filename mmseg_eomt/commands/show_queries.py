"""What the queries of an EoMT do on one image, as a sheet.

    python tools/show_queries.py CONFIG CHECKPOINT IMAGE [--out SHEET.png]

A row for each active query, largest mask first: its class and that class's probability, the mask over the image, and the
mask before each joint block and after the last, with the fraction of its pixels that are undecided (a probability between
0.1 and 0.9). A query is active if its most probable class is not "no object"; the 16 largest are shown. Where the model is
evaluated with a sliding window, the sheet shows the window in the middle of the image.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from mmseg.apis.inference import _preprare_data
from mmseg.models import BaseSegmentor

from mmseg_eomt.commands import errors_in_a_sentence
from mmseg_eomt.data.images import inspect_image
from mmseg_eomt.inference import is_rgb, load_model
from mmseg_eomt.models.query_head import QueryHead
from mmseg_eomt.whole import check_writable, whole_file

UNDECIDED = 0.1, 0.9  # probabilities
MAX_ROWS = 16


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the model')
    parser.add_argument('checkpoint', help='its checkpoint; one of LoRA adapters too')
    parser.add_argument('image', type=Path)
    parser.add_argument('--out', type=Path, help='the sheet, .png or .pdf (queries_<IMAGE>.png)')
    parser.add_argument('--device', help='such as cuda:1 or cpu (a GPU if there is one)')
    args = parser.parse_args(argv)
    out = args.out or Path(f'queries_{args.image.stem}.png')
    if out.suffix[1:].lower() not in FigureCanvasBase.filetypes:
        parser.error(f'--out is a picture, such as .png or .pdf, got {out}')
    with errors_in_a_sentence('show_queries'):
        check_writable(out.parent)
        show_queries(args, out)
    print(f'Wrote {out}')


@torch.no_grad()
def show_queries(args: argparse.Namespace, out: Path) -> None:
    """Predict and draw."""
    inspect_image(args.image)
    model = load_model(args.config, args.checkpoint, args.device)
    if not isinstance(model.decode_head, QueryHead):
        raise ValueError(
            f'{args.config} has a {type(model.decode_head).__name__}, which has no queries: name an EoMTHead or PMTHead.'
        )
    image = network_input(model, args.image)
    head, feats = model.decode_head, model.extract_feat(image)
    masks, classes = head(feats, every_layer=True)
    height, width = image.shape[-2:]
    padded = head._size_on_grid((height, width), head._map_size(feats))  # masks cover whole patches
    masks = [F.interpolate(m, padded, mode='bilinear')[0, :, :height, :width].sigmoid().cpu() for m in masks]
    scores, best = classes[-1][0].softmax(-1).cpu().max(-1)
    active = (best < model.decode_head.num_classes).nonzero()[:, 0]
    active = active[(masks[-1][active] > 0.5).flatten(1).sum(1).argsort(descending=True)]
    names = model.dataset_meta['classes']
    rows = [
        (f'query {i}\n{names[best[i]]}\n{scores[i]:.0%}', model.dataset_meta['palette'][best[i]], [m[i] for m in masks])
        for i in active[:MAX_ROWS].tolist()
    ]
    title = f'{args.image.name}: {len(active)} of {len(best)} queries are active'
    draw(shown(model, image), rows, title + (f', the {len(rows)} largest are shown' if len(rows) < len(active) else ''), out)


def network_input(model: BaseSegmentor, path: Path) -> torch.Tensor:
    """The image (1, 3, H, W) as the model gets it; the middle window of a model that slides."""
    data, _ = _preprare_data(str(path), model)
    image = model.data_preprocessor(data, False)['inputs']
    test_cfg = model.test_cfg
    if test_cfg.get('mode', 'whole') == 'whole':
        return image
    window = [min(side, crop) for side, crop in zip(image.shape[-2:], test_cfg.crop_size)]
    top, left = ((side - part) // 2 for side, part in zip(image.shape[-2:], window))
    return image[..., top : top + window[0], left : left + window[1]]


def shown(model: BaseSegmentor, image: torch.Tensor) -> np.ndarray:
    """A network's input as an RGB picture (H, W, 3) from 0 to 1."""
    preprocessor = model.data_preprocessor
    picture = (image[0] * preprocessor.std + preprocessor.mean).cpu() / 255
    rgb = picture if is_rgb(model) else picture.flip(0)
    return rgb.clamp(0, 1).permute(1, 2, 0).numpy()


def draw(picture: np.ndarray, rows: list[tuple[str, tuple, list[torch.Tensor]]], title: str, out: Path) -> None:
    """Draw a row per query: its text, its last mask over the picture, its masks of all layers."""
    num_layers = len(rows[0][2]) if rows else 1
    width = 2.4
    height = width * picture.shape[0] / picture.shape[1] + 0.25
    size = width * (num_layers + 2), height * max(1, len(rows)) + 0.6
    figure = Figure(size, layout='constrained')  # without pyplot, which would open a display
    axes = figure.subplots(max(1, len(rows)), num_layers + 2, squeeze=False)
    figure.suptitle(title)
    for axis in axes.flat:
        axis.axis('off')
    if not rows:
        axes[0, 0].imshow(picture)
    for row, (text, colour, masks) in zip(axes, rows):
        row[0].text(0.5, 0.5, text, ha='center', va='center', transform=row[0].transAxes)
        weight = 0.7 * masks[-1].numpy()[..., None]
        row[1].imshow((picture * (1 - weight) + np.array(colour) / 255 * weight).clip(0, 1))
        for layer, (axis, mask) in enumerate(zip(row[2:], masks)):
            axis.imshow(mask, cmap='gray', vmin=0, vmax=1)
            undecided = ((mask > UNDECIDED[0]) & (mask < UNDECIDED[1])).float().mean()
            place = 'after the last' if layer == num_layers - 1 else f'before joint block {layer + 1}'
            axis.set_title(f'{place}: {undecided:.0%} undecided', fontsize=7)
    with whole_file(out) as new:
        figure.savefig(new, dpi=110)

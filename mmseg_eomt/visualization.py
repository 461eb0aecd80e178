"""Label maps and anomaly scores as pictures: colours, overlays, heat maps, legends and sheets of them."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = Sequence[int]
MARGIN = 8
UNKNOWN = (0, 255, 255)  # of what no class names; no colour of the usual palettes is near it


def make_palette(num_colours: int) -> list[tuple[int, int, int]]:
    """Colours that are easy to tell apart: hues by the golden angle, two strengths in turn."""
    hues = np.arange(num_colours) * 0.618034 % 1
    channels = np.abs(hues[:, None] * 6 - np.array([3, 2, 4])) * np.array([1, -1, -1]) + np.array([-1, 2, 2])
    strength = np.where(np.arange(num_colours) % 4 < 2, 230, 150)[:, None]
    colours = ((0.15 + 0.85 * channels.clip(0, 1)) * strength).astype(int)
    return [(red, green, blue) for red, green, blue in colours.tolist()]


def overlay(image: np.ndarray, labels: np.ndarray, palette: Sequence[Colour], opacity: float = 0.5) -> np.ndarray:
    """Colours of the classes over an image.

    Args:
        image: RGB (H, W, 3), uint8.
        labels: Class ids (H, W); what is no class, such as 255, is left as it is.
        palette: A colour (r, g, b) for each class.
        opacity: Weight of the colours, from 0 to 1. Default: 0.5.

    Returns:
        RGB (H, W, 3), uint8.
    """
    colours = np.asarray(palette, np.float32)[np.minimum(labels, len(palette) - 1)]
    mixed = image + opacity * (colours - image)
    return np.where((labels < len(palette))[..., None], mixed.round(), image).astype(np.uint8)


def with_legend(
    picture: np.ndarray, classes: Sequence[str], palette: Sequence[Colour], present: Sequence[int]
) -> np.ndarray:
    """A picture with the names and colours of some classes beside it, in as many columns as it takes.

    Args:
        picture: RGB (H, W, 3), uint8.
        classes: All classes' names.
        palette: A colour (r, g, b) for each.
        present: Ids of the classes to name.

    Returns:
        RGB (H, wider, 3); higher only where a picture is lower than a line.
    """
    height = max(len(picture), 24)
    size = int(np.clip(height / 28, 12, 26))
    line = round(1.5 * size)
    rows = max(1, (height - MARGIN) // line)
    columns = [present[i : i + rows] for i in range(0, len(present), rows)]
    text = font(size)
    widths = [round(line + MARGIN + max(text.getlength(classes[i]) for i in column) + MARGIN) for column in columns]
    sheet = Image.new('RGB', (picture.shape[1] + sum(widths), height), 'white')
    sheet.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(sheet)
    left = picture.shape[1]
    for column, width in zip(columns, widths):
        for row, i in enumerate(column):
            top = MARGIN // 2 + row * line
            draw.rectangle((left + MARGIN, top + 2, left + line - 2, top + line - 4), tuple(palette[i]), 'black')
            draw.text((left + line + MARGIN // 2, top + line // 2), classes[i], 'black', text, anchor='lm')
        left += width
    return np.array(sheet)


def sheet(pictures: Sequence[np.ndarray], titles: Sequence[str], columns: int = 3, width: int = 640) -> np.ndarray:
    """Pictures of any size in rows, each brought to a width in pixels and with a title above it."""
    text = font(14)
    cells = []
    for picture, title in zip(pictures, titles):
        shown = Image.fromarray(picture)
        shown = shown.resize((width, max(1, round(shown.height * width / shown.width))))
        cell = Image.new('RGB', (width, shown.height + 24), 'white')
        cell.paste(shown, (0, 24))
        ImageDraw.Draw(cell).text((MARGIN, 12), title, 'black', text, anchor='lm')
        cells.append(cell)
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    whole = Image.new('RGB', (max(map(len, rows)) * (width + MARGIN), sum(heights)), 'white')
    for row, top in zip(rows, np.cumsum([0, *heights])):
        for i, cell in enumerate(row):
            whole.paste(cell, (i * (width + MARGIN), int(top)))
    return np.array(whole)


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """A font that Matplotlib brings: Latin, Greek, Cyrillic and more."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / 'DejaVuSans.ttf'), size)


def heat_map(image: np.ndarray, values: np.ndarray, low: float, high: float, opacity: float = 0.7) -> np.ndarray:
    """Values as colours over a grey image: the higher, the brighter and the more opaque.

    Args:
        image: RGB (H, W, 3), uint8.
        values: (H, W).
        low: This value and lower ones are darkest, with 0.35 times ``opacity``.
        high: This value and higher ones are brightest.
        opacity: Weight of the colour of ``high``, from 0 to 1. Default: 0.7.

    Returns:
        RGB (H, W, 3), uint8.
    """
    share = ((values - low) / (high - low)).clip(0, 1)[..., None]
    grey = image @ np.array([0.299, 0.587, 0.114])
    weight = opacity * (0.35 + 0.65 * share)
    return ((1 - weight) * grey[..., None] + weight * _heat(share[..., 0])).round().clip(0, 255).astype(np.uint8)


def _heat(share: np.ndarray) -> np.ndarray:
    """Colours (…, 3) from 0 to 255 of values from 0 to 1."""
    return matplotlib.colormaps['inferno'](share)[..., :3] * 255


def with_colour_bar(
    picture: np.ndarray, low: float, high: float, title: str, ends: tuple[str, str] = ('', ''), mark: float | None = None
) -> np.ndarray:
    """A picture with the colours of a :func:`heat_map` and their values beside it.

    Args:
        picture: RGB (H, W, 3), uint8.
        low: Value at the lower end.
        high: Value at the upper end.
        title: Stands above.
        ends: Words for the lower and the upper end. Default: none.
        mark: A value that is marked with a line, such as a threshold. Default: None.

    Returns:
        RGB (H, wider, 3); higher only where a picture is lower than six lines.
    """
    size = int(np.clip(len(picture) / 28, 12, 26))
    line = round(1.5 * size)
    height = max(len(picture), 6 * line)
    text = font(size)
    ticks = [low + i * (high - low) / 4 for i in range(5)]
    numbers = [f'{value:.2f}' for value in ticks]
    marked = '' if mark is None else f'≥ {mark:.3g}'
    words = [title, *ends, marked]
    width = (
        round(max([line + size + max(map(text.getlength, [*numbers, marked])), *map(text.getlength, words)])) + 3 * MARGIN
    )
    sheet = Image.new('RGB', (picture.shape[1] + width, height), 'white')
    sheet.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(sheet)
    left, top, bottom = picture.shape[1] + MARGIN, round(2.2 * line), height - round(1.4 * line)
    draw.text((left, line // 2), title, 'black', text, anchor='lm')
    draw.text((left, round(1.5 * line)), ends[1], 'black', text, anchor='lm')
    draw.text((left, height - line // 2), ends[0], 'black', text, anchor='lm')
    bar = _heat(np.linspace(1, 0, bottom - top))[:, None].repeat(line, 1)
    sheet.paste(Image.fromarray(bar.astype(np.uint8)), (left, top))
    draw.rectangle((left - 1, top - 1, left + line, bottom), outline='black')

    def row(value: float) -> int:
        return round(bottom - 1 - (bottom - 1 - top) * float(np.clip((value - low) / (high - low), 0, 1)))

    for value, number in zip(ticks, numbers):
        if mark is None or abs(row(value) - row(mark)) > line:
            draw.line((left + line, row(value), left + line + size // 2, row(value)), 'black')
            draw.text((left + line + size, row(value)), number, 'black', text, anchor='lm')
    if mark is not None:
        draw.line((left - 1, row(mark), left + line + size // 2, row(mark)), UNKNOWN, max(2, size // 6))
        draw.text((left + line + size, row(mark)), marked, 'black', text, anchor='lm')
    return np.array(sheet)


def outlined(picture: np.ndarray, mask: np.ndarray, colour: Colour) -> np.ndarray:
    """A picture with lines around the regions of a mask (H, W)."""
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    drawn = np.ascontiguousarray(picture)
    width = max(1, round(len(picture) / 400))
    for shade, thickness in (((0, 0, 0), width + 2), (tuple(colour), width)):
        cv2.drawContours(drawn, lines, -1, shade, thickness)
    return drawn

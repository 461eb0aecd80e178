"""Label maps as pictures: colours of classes, overlays, legends and sheets of them."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = Sequence[int]
MARGIN = 8


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

"""Contact sheets: many pictures in one PNG, with optional captions."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP, INK, PAPER = 4, (30, 30, 30), (250, 250, 250)


def grid(images: np.ndarray, *, columns: int, scale: int = 1, captions: Sequence[str] | None = None) -> np.ndarray:
    """Arranges pictures in rows.

    Args:
      images: uint8 [N, H, W, 3].
      columns: pictures per row.
      scale: integer enlargement, nearest neighbour.
      captions: one line under each picture, cut to its width.

    Returns:
      uint8 [rows, cols, 3].
    """
    n, h, w, _ = images.shape
    if captions is not None and len(captions) != n:
        raise ValueError(f'{n} pictures but {len(captions)} captions')
    h, w, line = h * scale, w * scale, 14 if captions else 0
    rows = -(-n // columns)
    sheet = Image.new('RGB', (columns * (w + GAP) + GAP, rows * (h + line + GAP) + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, picture in enumerate(images):
        x, y = GAP + (i % columns) * (w + GAP), GAP + (i // columns) * (h + line + GAP)
        sheet.paste(Image.fromarray(picture).resize((w, h), Image.NEAREST), (x, y))
        if captions:
            text = captions[i]
            while text and draw.textlength(text, font=font) > w:
                text = text[:-1]
            draw.text((x, y + h + 1), text, fill=INK, font=font)
    return np.asarray(sheet)


def save_grid(path: pathlib.Path, images: np.ndarray, **options) -> pathlib.Path:
    """Writes `grid(images, **options)` as PNG, folders made as needed; returns the path."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid(images, **options)).save(path)
    return path

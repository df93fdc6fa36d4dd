"""Contact sheets: many images in one PNG, with optional captions."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngImageFile, PngInfo

from densegrpo_jax.runtime.files import replacing

GAP, LINE, INK, PAPER = 4, 13, (30, 30, 30), (250, 250, 250)
MAX_LINES = 3  # of a caption
MAKER = 'Software'  # the key of a PNG's text that says what made it


def grid(
    images: np.ndarray, *, columns: int, scale: int = 1, captions: Sequence[str] | None = None
) -> np.ndarray:
    """Arranges images in rows.

    Args:
      images: uint8 [N, H, W, 3].
      columns: images per row.
      scale: integer enlargement, nearest neighbour.
      captions: text under each image, see `wrap`.

    Returns:
      uint8 [rows, cols, 3].
    """
    n, h, w, _ = images.shape
    if captions is not None and len(captions) != n:
        raise ValueError(f'{n} images but {len(captions)} captions')
    h, w, font = h * scale, w * scale, _font(11, captions or ())
    texts = [wrap(caption, w, font) for caption in captions or ()]
    text_height = LINE * max(map(len, texts)) + 1 if texts else 0
    rows = -(-n // columns)
    sheet = Image.new(
        'RGB', (columns * (w + GAP) + GAP, rows * (h + text_height + GAP) + GAP), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(images):
        x, y = GAP + (i % columns) * (w + GAP), GAP + (i // columns) * (h + text_height + GAP)
        sheet.paste(Image.fromarray(picture).resize((w, h), Image.NEAREST), (x, y))
        for j, line in enumerate(texts[i] if texts else ()):
            draw.text((x, y + h + 1 + j * LINE), line, fill=INK, font=font)
    return np.asarray(sheet)


def comparison(
    images: np.ndarray,
    *,
    titles: Sequence[str],
    captions: Sequence[Sequence[str]],
    rows: Sequence[str],
    scale: int = 1,
):
    """Images side by side: a column per title, a row per text, with the text above the row.

    Args:
      images: uint8 [R, C, H, W, 3].
      titles: C. captions: R x C, under each image. rows: R.
      scale: integer enlargement, nearest neighbour.

    Returns:
      uint8 [rows, cols, 3].
    """
    _, c, h, w, _ = images.shape
    h, w, every = h * scale, w * scale, [*titles, *rows, *itertools.chain(*captions)]
    font, bold = _font(11, every), _font(13, every)
    width = c * (w + GAP) + GAP
    texts = [wrap(row, width - 2 * GAP, font) for row in rows]
    heads = [wrap(title, w, bold) for title in titles]
    unders = [[wrap(caption, w, font) for caption in row] for row in captions]
    tops = [LINE * len(text) + 2 for text in texts]
    bottoms = [LINE * max(map(len, row)) + 2 for row in unders]
    head = GAP + 16 * max(map(len, heads)) + GAP
    sheet = Image.new(
        'RGB', (width, head + sum(tops) + sum(bottoms) + len(images) * (h + 2 * GAP)), PAPER
    )
    draw = ImageDraw.Draw(sheet)

    def write(lines, x, y, font=font, line=LINE):
        for j, text in enumerate(lines):
            draw.text((x, y + j * line), text, fill=INK, font=font)

    left = [GAP + j * (w + GAP) for j in range(c)]
    for x, lines in zip(left, heads):
        write(lines, x, GAP, bold, 16)
    y = head
    for row, text, under, top, bottom in zip(images, texts, unders, tops, bottoms):
        write(text, GAP, y)
        for x, picture, lines in zip(left, row, under):
            sheet.paste(Image.fromarray(picture).resize((w, h), Image.NEAREST), (x, y + top))
            write(lines, x, y + top + h + 1)
        y += top + h + bottom + 2 * GAP
    return np.asarray(sheet)


def _font(size: int, texts: Sequence[str]):
    """Pillow's own font, or matplotlib's, which has more than ASCII (Latin, Greek, Cyrillic, no
    Chinese)."""
    if all(map(str.isascii, texts)):
        return ImageFont.load_default(size)
    from matplotlib import get_data_path

    return ImageFont.truetype(f'{get_data_path()}/fonts/ttf/DejaVuSans.ttf', size)


def wrap(text: str, width: int, font) -> list[str]:
    """Lines of at most `width` pixels, broken between words, or inside a word that is too long; the
    text beyond MAX_LINES becomes '…'.
    """
    fits = lambda line: font.getlength(line) <= width
    lines = ['']
    for word in text.split():
        joined = f'{lines[-1]} {word}' if lines[-1] else word
        if fits(joined):
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append('')
        while word and not fits(word):
            count = max((k for k in range(1, len(word)) if fits(word[:k])), default=1)
            lines[-1], word = word[:count], word[count:]
            lines.append('')
        lines[-1] = word
    lines = [line for line in lines if line] or ['']
    if len(lines) > MAX_LINES:
        last = lines[MAX_LINES - 1] + '…'
        while len(last) > 1 and not fits(last):
            last = last[:-2] + '…'
        lines = [*lines[: MAX_LINES - 1], last]
    return lines


def save(path: pathlib.Path, sheet: np.ndarray, maker: str = '') -> pathlib.Path:
    """Writes uint8 [rows, cols, 3] as PNG, whole or not at all; creates folders as needed. Returns
    the path.

    maker: what makes it, for `made_by`.
    """
    path, text = pathlib.Path(path), PngInfo()
    if maker:
        text.add_text(MAKER, maker)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        Image.fromarray(sheet).save(file, format='PNG', pnginfo=text)
    return path


def made_by(path: pathlib.Path) -> str:
    """What has made a PNG, as it says itself; '' if it does not, or is no PNG."""
    try:
        with PngImageFile(path) as image:  # Image.open refuses a large sheet for its size
            return str(image.info.get(MAKER, ''))
    except (OSError, ValueError, SyntaxError):
        return ''


def save_grid(
    path: pathlib.Path, images: np.ndarray, *, maker: str = '', **options
) -> pathlib.Path:
    """Writes `grid(images, **options)` as PNG, see `save`. Returns the path."""
    return save(path, grid(images, **options), maker)

"""Rendered words, the training data of the miniature: crisp two-colour signs of 32 x 96 pixels, one
look per scene.
"""

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from densegrpo_jax.data.prompts import SCENES, scene_prompt
from densegrpo_jax.data.words import train_word

Colour = tuple[int, int, int]

# Upright and slanted faces that stay legible at 32 x 96 px. They come with matplotlib (DejaVu and
# STIX licences).
FONTS = (
    'DejaVuSans',
    'DejaVuSans-Bold',
    'DejaVuSans-Oblique',
    'DejaVuSans-BoldOblique',
    'DejaVuSansMono',
    'DejaVuSansMono-Bold',
    'DejaVuSansMono-Oblique',
    'DejaVuSansMono-BoldOblique',
    'DejaVuSerif',
    'DejaVuSerif-Bold',
    'DejaVuSerif-Italic',
    'DejaVuSerif-BoldItalic',
    'STIXGeneral',
    'STIXGeneralBol',
    'STIXGeneralItalic',
    'STIXGeneralBolIta',
)
SIZES = (20, 24)  # pixels, inclusive; shrunk where the word would not fit
MIN_SIZE = 8
BRIGHTNESS_JITTER, HUE_JITTER = 10, 4  # added to all channels alike, and to each, of 255


@dataclass(frozen=True)
class Palette:
    """Colours that go together: any background with any ink is readable."""

    backgrounds: tuple[Colour, ...]
    inks: tuple[Colour, ...]


@dataclass(frozen=True)
class Look:
    """How a scene is drawn. border: None, 'line' (1 px, the ink's colour, inset) or 'frame' (2 px
    at the edge).
    """

    palettes: tuple[Palette, ...]
    border: str | None = None
    frames: tuple[Colour, ...] = ()


LOOKS: dict[str, Look] = {
    'neon': Look(
        (
            Palette(
                ((14, 10, 30), (10, 14, 24), (28, 8, 34), (10, 10, 12)),
                (
                    (255, 70, 170),
                    (60, 235, 255),
                    (120, 255, 120),
                    (255, 225, 80),
                    (255, 130, 60),
                    (200, 140, 255),
                ),
            ),
        ),
        border='line',
    ),
    'chalkboard': Look(
        (
            Palette(
                ((34, 66, 52), (26, 56, 46), (44, 74, 58)),
                ((242, 242, 234), (250, 240, 190), (250, 212, 218), (206, 230, 242)),
            ),
        ),
        border='frame',
        frames=((150, 105, 62), (116, 78, 44)),
    ),
    'wood': Look(
        (
            Palette(
                ((198, 152, 102), (186, 136, 84), (212, 172, 124)),
                ((48, 26, 12), (70, 20, 14), (24, 30, 22)),
            ),
            Palette(
                ((112, 68, 38), (92, 54, 30), (126, 80, 48)),
                ((252, 238, 208), (255, 220, 140), (240, 240, 236)),
            ),
        )
    ),
    'taxi': Look(
        (Palette(((252, 204, 22), (255, 216, 44), (246, 190, 12)), ((18, 18, 18), (44, 28, 16))),),
        border='line',
    ),
    'road': Look(
        (
            Palette(((0, 100, 66), (10, 116, 80)), ((250, 250, 250),)),
            Palette(((0, 70, 150), (16, 88, 176)), ((250, 250, 250),)),
        ),
        border='line',
    ),
    'paper': Look(
        (
            Palette(
                ((250, 244, 226), (244, 234, 206), (252, 250, 242)),
                ((20, 22, 30), (24, 44, 110), (130, 22, 30), (20, 78, 50)),
            ),
        )
    ),
    'poster': Look(
        (
            Palette(
                ((190, 28, 40), (160, 18, 34), (202, 42, 38)),
                ((255, 250, 238), (255, 226, 110), (255, 236, 200)),
            ),
        ),
        border='line',
    ),
    'screen': Look(
        (
            Palette(
                ((12, 18, 22), (10, 22, 42), (24, 26, 30)),
                ((90, 255, 130), (255, 194, 70), (124, 220, 255), (236, 238, 240)),
            ),
        ),
        border='frame',
        frames=((120, 126, 134), (176, 180, 186)),
    ),
}


@functools.cache
def font_folder() -> Path:
    """The folder of TrueType files inside the installed matplotlib package (which is not
    imported).
    """
    spec = importlib.util.find_spec('matplotlib')
    if spec is None:
        raise FileNotFoundError(
            'rendering words needs the fonts that come with matplotlib: pip install matplotlib'
        )
    return Path(spec.origin).parent / 'mpl-data' / 'fonts' / 'ttf'


def check_fonts(names: Sequence[str], where: str) -> None:
    """Raises ValueError or FileNotFoundError if a font is not one of `FONTS`, or cannot be opened.

    where: what names them, for messages.
    """
    if isinstance(names, str) or not names:
        raise ValueError(f'{where}={names!r}: expected one or more of {", ".join(FONTS)}')
    for name in names:
        if name not in FONTS:
            raise ValueError(f'{where}: {name!r} is not known; choose from {", ".join(FONTS)}')
        _font(name, MIN_SIZE)


@functools.cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    path = font_folder() / f'{name}.ttf'
    try:
        return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        found = f'is no font ({error})' if path.is_file() else 'does not exist'
        raise FileNotFoundError(
            f'font file {path} {found}; pip install --force-reinstall matplotlib'
        ) from None


def glyph_mask(word: str, font: str, size: int, width: int, height: int) -> np.ndarray:
    """Ink coverage of `word`, cropped to its ink: uint8 [h, w], h <= height, w <= width, 255 = ink.

    The largest size <= `size` that fits is taken. Raises ValueError if `MIN_SIZE` does not fit.
    """
    for s in range(size, MIN_SIZE - 1, -1):
        left, top, right, bottom = _font(font, s).getbbox(word)
        if right - left <= width and bottom - top <= height:
            mask = Image.new('L', (right - left, bottom - top))
            ImageDraw.Draw(mask).text((-left, -top), word, fill=255, font=_font(font, s))
            return np.asarray(mask)
    raise ValueError(
        f'{word!r} does not fit {height} x {width} pixels in {font} at size {MIN_SIZE}'
    )


def _colour(colours: tuple[Colour, ...], rng: np.random.Generator) -> np.ndarray:
    colour = np.array(colours[rng.integers(len(colours))])
    shift = rng.integers(-BRIGHTNESS_JITTER, BRIGHTNESS_JITTER + 1) + rng.integers(
        -HUE_JITTER, HUE_JITTER + 1, size=3
    )
    return np.clip(colour + shift, 0, 255).astype(np.uint8)


def render(
    word: str,
    scene: str,
    rng: np.random.Generator,
    height: int = 32,
    width: int = 96,
    *,
    font: str | None = None,
) -> np.ndarray:
    """Draws `word` in the look of `scene`: random colours of its palette, font, size (20 to 24 px)
    and position.

    Args:
      word: printable text; the miniature uses 3 to 5 letters A-Z.
      scene: a key of `LOOKS`.
      rng: every random choice is drawn from it.
      height, width: pixels.
      font: one of `FONTS`; None draws one.

    Returns:
      uint8 [height, width, 3].
    """
    if scene not in LOOKS:
        raise ValueError(f'unknown scene {scene!r}; known scenes: {", ".join(LOOKS)}')
    look = LOOKS[scene]
    palette = look.palettes[rng.integers(len(look.palettes))]
    background, ink = _colour(palette.backgrounds, rng), _colour(palette.inks, rng)
    font = font or FONTS[rng.integers(len(FONTS))]

    image = np.empty((height, width, 3), np.uint8)
    image[:] = background
    margin = 3
    if look.border == 'frame':
        frame = _colour(look.frames, rng)
        image[:2] = image[-2:] = frame
        image[:, :2] = image[:, -2:] = frame
        margin = 5
    elif look.border == 'line':
        image[1, 1:-1] = image[-2, 1:-1] = ink
        image[1:-1, 1] = image[1:-1, -2] = ink
        margin = 5

    room_h, room_w = height - 2 * margin, width - 2 * margin
    mask = glyph_mask(word, font, int(rng.integers(SIZES[0], SIZES[1] + 1)), room_w, room_h)
    h, w = mask.shape
    y = margin + _jitter(room_h - h, 2, rng)
    x = margin + _jitter(room_w - w, 4, rng)
    alpha = mask[:, :, None].astype(np.uint16)
    patch = image[y : y + h, x : x + w]
    patch[:] = (ink * alpha + background * (255 - alpha) + 127) // 255
    return image


def _jitter(free: int, most: int, rng: np.random.Generator) -> int:
    """A random offset in [0, free], at most `most` pixels from the centre."""
    centre = free // 2
    reach = min(centre, most)
    return centre + int(rng.integers(-reach, reach + 1))


def training_batch(
    seed: int,
    step: int,
    batch_size: int,
    *,
    height: int = 32,
    width: int = 96,
    fonts: tuple[str, ...] = FONTS,
) -> tuple[np.ndarray, list[str], list[str]]:
    """Batch `step` of the miniature's endless training data, a pure function of (seed, step).

    Half of the targets are training words, half random strings; no held-out word ever occurs. Each
    image draws one of `fonts`.

    Returns:
      images uint8 [batch_size, height, width, 3], prompts, targets (upper case).
    """
    rng = np.random.default_rng([seed, step])
    scenes = tuple(SCENES)
    images = np.empty((batch_size, height, width, 3), np.uint8)
    prompts, targets = [], []
    for i in range(batch_size):
        scene, word = scenes[rng.integers(len(scenes))], train_word(rng)
        images[i] = render(word, scene, rng, height, width, font=fonts[rng.integers(len(fonts))])
        prompts.append(scene_prompt(scene, word).text)
        targets.append(word)
    return images, prompts, targets


def render_scene(
    text: str, rng: np.random.Generator, *, extra: str = '', side: int = 512
) -> np.ndarray:
    """An image of known text for judging readers: a cluttered background and a sign, on one line
    or two; `extra` on a second sign below.

    Backgrounds are gradients, grain or coloured shapes; letters are in one of `FONTS`, 1/14 to 1/7
    of the side high (smaller where they would not fit), in any readable pair of colours of `LOOKS`,
    on a panel or bare with an outline.

    Returns:
      uint8 [side, side, 3].

    Raises:
      ValueError: a text is too long for two lines of letters 1/20 of the side high.
    """
    image = Image.fromarray(_background(rng, side))
    half = side // 2 if extra else side
    _sign(image, text, rng, 0, half)
    if extra:
        _sign(image, extra, rng, half, side)
    return np.asarray(image)


def _background(rng: np.random.Generator, side: int) -> np.ndarray:
    low, high = rng.integers(0, 256, (2, 3))
    kind = rng.integers(3)
    if kind == 0:  # gradient
        angle = rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[:side, :side] / side - 0.5
        share = np.clip(0.5 + x * np.cos(angle) + y * np.sin(angle), 0, 1)[..., None]
        return np.uint8(low + share * (high - low))
    if kind == 1:  # grain
        coarse = Image.fromarray(
            rng.integers(0, 256, (side // 16, side // 16, 3), np.uint8)
        ).resize((side, side), Image.Resampling.BICUBIC)
        return np.uint8(0.6 * low + 0.4 * np.asarray(coarse))
    image = Image.new('RGB', (side, side), tuple(map(int, low)))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        corner, size = rng.integers(-side // 8, side, 2), rng.integers(side // 16, side // 3, 2)
        box = (*map(int, corner), *map(int, corner + size))
        getattr(draw, ('rectangle', 'ellipse')[rng.integers(2)])(
            box, fill=tuple(map(int, rng.integers(0, 256, 3)))
        )
    return np.asarray(image)


def _sign(image: Image.Image, text: str, rng: np.random.Generator, top: int, bottom: int) -> None:
    """Draws `text` somewhere between two rows, on as many lines as fit, at most two."""
    side, words = image.width, text.split()
    looks = list(LOOKS.values())
    palettes = looks[rng.integers(len(looks))].palettes
    palette = palettes[rng.integers(len(palettes))]
    ground, ink = (
        tuple(map(int, _colour(colours, rng))) for colours in (palette.backgrounds, palette.inks)
    )
    name = FONTS[rng.integers(len(FONTS))]
    size, split = int(rng.integers(side // 14, side // 7 + 1)), (len(words) + 1) // 2
    lines = text
    while True:
        font, stroke = _font(name, size), size // 16 + 1
        left, upper, right, lower = ImageDraw.Draw(image).multiline_textbbox(
            (0, 0), lines, font=font, stroke_width=stroke
        )
        margin = size // 3
        width, height = int(right - left) + 2 * margin, int(lower - upper) + 2 * margin
        if width <= side - 8 and height <= bottom - top - 8:
            break
        if '\n' not in lines and len(words) > 1:
            lines = ' '.join(words[:split]) + '\n' + ' '.join(words[split:])
        elif size > side // 20:
            size -= 2
        else:
            raise ValueError(f'{text!r} does not fit a sign of {bottom - top} x {side} pixels')
    x, y = int(rng.integers(4, side - width - 3)), int(rng.integers(top + 4, bottom - height - 3))
    draw = ImageDraw.Draw(image)
    panel = rng.integers(3) > 0
    if panel:
        draw.rectangle((x, y, x + width, y + height), fill=ground, outline=ink, width=3)
    draw.multiline_text(
        (x + margin - left, y + margin - upper),
        lines,
        font=font,
        fill=ink,
        stroke_width=0 if panel else stroke,
        stroke_fill=ground,
    )

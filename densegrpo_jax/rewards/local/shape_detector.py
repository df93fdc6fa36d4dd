"""Finds coloured shapes in images with OpenCV: colour segmentation, then comparison with drawn
shapes. No learned model.

1. The background is the median colour. Each pixel is a mixture bg + a (c - bg) of the background
   and the colour c of data/shapes.py whose mixture comes closest. It belongs to an object if
   a > 1/2, so antialiased and blurred edges fall where the edge was.
2. Connected pixels of one colour are an object.
3. The object's coverage a, moved and scaled to a standard place and area (`signature`), is compared
   with those of shapes drawn at several sizes, sharp and slightly blurred, and measured in the same
   way. The nearest shape names the object.
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np

from densegrpo_jax.data.shapes import COLOURS, SHAPES, SIZE, Object, draw
from densegrpo_jax.rewards.local.geneval_rule import Detection

MIN_AREA = 14  # pixels; the smallest star that is drawn has 40
FINE = 4  # outlines are this much finer than pixels
# a signature has GRID x GRID values over a square whose side is SPAN times the root of the object's
# area
GRID, SPAN = 16, 2.6
SPREAD = 0.035  # deviation of a shape's distance from its example, for the confidence
# at this distance a piece is as likely to be no shape; different shapes are at least 0.14 apart
STRANGER = 0.2
# pixels
EXAMPLES = tuple((radius, blur) for radius in (5.0, 6.0, 8.0, 13.0) for blur in (0.0, 0.7))
# tilt, offset in pixels
TRIALS = ((0.0, 0.0, 0.0), (5.0, 0.4, 0.6), (-3.0, 0.7, 0.2), (-5.0, 0.2, 0.1))


class Segment(NamedTuple):
    """A connected piece of one colour. coverage: float32 [H, W] in [0, 1], 0 outside of it."""

    colour: str
    coverage: np.ndarray


def detect(image: np.ndarray) -> list[Detection]:
    """The shapes in an image, uint8 [H, W, 3], most confident first.

    Confidence is the posterior of the shape among all five and "something else", with equal priors
    and normally distributed distances: near 1 for a clean shape, 1/2 if two shapes explain it
    equally well, near 0 for a blot.
    """
    found = []
    for segment in segments(image):
        name, score = classify(distances(segment.coverage))
        found.append(Detection(name, box(segment.coverage), score, segment.colour))
    return sorted(found, key=lambda d: -d.score)


def segments(image: np.ndarray) -> list[Segment]:
    """Every connected piece of one colour that has at least MIN_AREA pixels and an outline
    (`outline_mask`).
    """
    smooth = cv2.GaussianBlur(image, (3, 3), 0.6).astype(np.float32)
    background = np.median(smooth.reshape(-1, 3), axis=0)
    palette = np.array(list(COLOURS.values()), np.float32) - background  # [C, 3]
    squares = np.square(palette).sum(1)
    # The floor is for a background that is itself a colour of the palette: no pixel is a mixture
    # with that colour, and the floor avoids 0/0.
    # [H, W, C]
    amount = np.clip((smooth - background) @ palette.T / np.maximum(squares, 1e-6), 0, 1)
    # |pixel - bg - a (c - bg)|^2 at a clipped optimum, up to what no colour changes.
    error = amount * (amount * squares - 2 * ((smooth - background) @ palette.T))
    nearest = error.argmin(-1)
    inside = np.take_along_axis(amount, nearest[..., None], -1)[..., 0] > 0.5
    found = []
    for c in np.unique(nearest[inside]):
        mask = ((nearest == c) & inside).astype(np.uint8)
        count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        for i in range(1, count):
            if stats[i, cv2.CC_STAT_AREA] >= MIN_AREA:
                # Includes the half-covered pixels around it, but none of another piece.
                near = cv2.dilate((pieces == i).astype(np.uint8), np.ones((3, 3), np.uint8)) & (
                    (pieces == i) | (mask == 0)
                )
                coverage = amount[..., c] * near
                # a faint line one pixel wide has no outline, hence no box and no mean colour
                if outline_mask(coverage).any():
                    found.append(Segment(tuple(COLOURS)[c], coverage))
    return found


def outline_mask(coverage: np.ndarray) -> np.ndarray:
    """Where a segment's coverage is more than 1/2, on a grid FINE times as fine: bool [FINE H, FINE
    W].
    """
    height, width = coverage.shape
    return cv2.resize(coverage, (width * FINE, height * FINE), interpolation=cv2.INTER_LINEAR) > 0.5


def box(coverage: np.ndarray) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of a segment in pixels, to a fraction of one."""
    x, y, w, h = cv2.boundingRect(outline_mask(coverage).astype(np.uint8))
    return x / FINE, y / FINE, (x + w) / FINE, (y + h) / FINE


def signature(coverage: np.ndarray) -> np.ndarray:
    """A segment's coverage, centred at its centre of mass and scaled to a standard area, float32
    [GRID^2] of norm 1.
    """
    m = cv2.moments(coverage)
    scale = np.sqrt(m['m00']) * SPAN / GRID  # pixels per cell
    corner = np.array([m['m10'], m['m01']]) / m['m00'] - scale * (GRID - 1) / 2
    affine = np.array([[scale, 0, corner[0]], [0, scale, corner[1]]])
    patch = cv2.warpAffine(
        coverage, affine, (GRID, GRID), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    ).ravel()
    return patch / max(np.linalg.norm(patch), 1e-6)


@functools.cache
def examples() -> np.ndarray:
    """Signatures of every shape as in EXAMPLES, in every one of TRIALS: [shapes, examples,
    GRID^2].
    """

    def measure(
        shape: str, radius: float, blur: float, tilt: float, dx: float, dy: float
    ) -> np.ndarray:
        image = draw(
            [Object(shape, 'black', SIZE / 2 + dx, SIZE / 2 + dy, radius, tilt)], (255, 255, 255)
        )
        image = cv2.GaussianBlur(image, (0, 0), blur) if blur else image
        return signature(segments(image)[0].coverage)

    return np.array(
        [
            [measure(shape, *example, *trial) for example in EXAMPLES for trial in TRIALS]
            for shape in SHAPES
        ]
    )


def distances(coverage: np.ndarray) -> np.ndarray:
    """Distance of a segment's signature to the nearest example of every shape, [shapes]: about 0.05
    to its own, 0.14 to 0.4 to others.
    """
    return np.linalg.norm(examples() - signature(coverage), axis=-1).min(-1)


def classify(distance: np.ndarray) -> tuple[str, float]:
    """Name and confidence of the shape at these distances, [shapes]."""
    # likelihood of each shape relative to "something else"
    likely = np.exp((STRANGER**2 - np.square(distance)) / (2 * SPREAD**2))
    best = int(likely.argmax())
    return SHAPES[best], float(likely[best] / (likely.sum() + 1))

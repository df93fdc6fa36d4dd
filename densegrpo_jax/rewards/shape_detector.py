"""Finds coloured shapes in pictures with OpenCV: colour segmentation, then the outline's proportions. No learned model.

1. The background is the median colour. A pixel is a mixture bg + a (c - bg) of it and one of the colours c of data/shapes.py: the colour
   whose mixture comes closest; it belongs to an object where a > 1/2, so antialiased and blurred edges fall where the edge was.
2. Connected pixels of one colour are an object. Its coverage a is enlarged, and cut at 1/2, for an outline finer than a pixel.
3. The shape is the nearest in the space of three proportions that do not depend on size, place and tilt (`proportions`), among those of
   shapes drawn at several sizes and measured in the same way.
"""

import functools

import cv2
import numpy as np

from densegrpo_jax.data.shapes import COLOURS, SHAPES, SIZE, Object, draw
from densegrpo_jax.rewards.geneval_rule import Detection

MIN_AREA = 14.0  # pixels; the smallest star that is drawn has 35
FINE = 4  # outlines are this much finer than pixels
SPREAD = 0.06  # deviation of proportions within a class, for the confidence
STRANGER = 0.30  # an outline this far from every shape is as likely to be none
SIZES = (5.0, 6.5, 9.0, 14.0)  # radii of the drawn examples


def detect(image: np.ndarray) -> list[Detection]:
    """The shapes in a picture, uint8 [H, W, 3], most confident first.

    Confidence is the posterior of the shape among all five and "something else", with equal priors and the distance of proportions
    normally distributed: near 1 for a clean shape, 1/2 where two explain it equally well, near 0 for a blot.
    """
    found = []
    for colour, coverage in segments(image):
        outline = largest_outline(coverage)
        if outline is None:
            continue
        x, y, w, h = cv2.boundingRect(outline)
        name, score = classify(proportions(outline))
        box = tuple(float(v) / FINE for v in (x, y, x + w, y + h))
        found.append(Detection(name, box, score, colour))
    return sorted(found, key=lambda d: -d.score)


def segments(image: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Colour and coverage (float32 [H, W] in [0, 1], 0 away from it) of every connected piece of one colour."""
    smooth = cv2.GaussianBlur(image, (3, 3), 0.6).astype(np.float32)
    background = np.median(smooth.reshape(-1, 3), axis=0)
    palette = np.array(list(COLOURS.values()), np.float32) - background  # [C, 3]
    squares = np.square(palette).sum(1)
    amount = np.clip((smooth - background) @ palette.T / squares, 0, 1)  # [H, W, C]
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
                near = cv2.dilate((pieces == i).astype(np.uint8), np.ones((3, 3), np.uint8)) & ((pieces == i) | (mask == 0))
                found.append((tuple(COLOURS)[c], amount[..., c] * near))
    return found


def largest_outline(coverage: np.ndarray) -> np.ndarray | None:
    """The longest outer contour at coverage 1/2, in units of 1/FINE pixels."""
    height, width = coverage.shape
    fine = cv2.resize(coverage, (width * FINE, height * FINE), interpolation=cv2.INTER_LINEAR)
    outlines, _ = cv2.findContours((fine > 0.5).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outlines = [o for o in outlines if cv2.contourArea(o) >= MIN_AREA * FINE**2 / 2]
    return max(outlines, key=cv2.contourArea) if outlines else None


def proportions(outline: np.ndarray) -> np.ndarray:
    """Three ratios of areas, float64 [3]: solidity (shape to its convex hull), how rectangular the hull is (hull to the smallest rectangle
    around it) and how round (hull to the smallest circle around it).

    About: circle 1, 0.79, 1; square 1, 1, 0.67; triangle 1, 0.55, 0.45; star 0.63, 0.71, 0.76; cross 0.76, 0.91, 0.86.
    """
    hull = cv2.convexHull(outline)
    area, _, radius = cv2.contourArea(hull), *cv2.minEnclosingCircle(hull)
    w, h = cv2.minAreaRect(hull)[1]
    return np.array([cv2.contourArea(outline), area, area]) / np.maximum([area, w * h, np.pi * radius**2], 1e-6)


@functools.cache
def examples() -> np.ndarray:
    """Proportions of every shape drawn at SIZES, upright and tilted: [shapes, examples, 3]."""
    rows = []
    for shape in SHAPES:
        drawn = [draw([Object(shape, 'black', *place, r, tilt)], (255, 255, 255)) for r in SIZES for tilt, place in TRIALS]
        rows.append([proportions(largest_outline(segments(image)[0][1])) for image in drawn])
    return np.array(rows)


TRIALS = ((0.0, (SIZE / 2, SIZE / 2)), (7.0, (SIZE / 2 + 0.4, SIZE / 2 + 0.6)), (-4.0, (SIZE / 2 + 0.7, SIZE / 2 + 0.2)))


def classify(measured: np.ndarray) -> tuple[str, float]:
    """Name and confidence of the shape with these proportions."""
    distance = np.linalg.norm(examples() - measured, axis=-1).min(-1)
    likely = np.exp(-0.5 * np.square(distance / SPREAD))
    best = int(likely.argmax())
    return SHAPES[best], float(likely[best] / (likely.sum() + np.exp(-0.5 * np.square(STRANGER / SPREAD / 2))))

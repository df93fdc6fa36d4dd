"""Preference reward: a smooth score of an image of shapes, the miniature's stand-in for a learned
preference model such as PickScore.

Like PickScore it depends on the prompt and on looks, changes with every small change of an image,
and has a scale without a meaning of its own. Unlike PickScore it is hand-made and costs
milliseconds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from densegrpo_jax.data.shapes import COLOURS, SHAPES
from densegrpo_jax.rewards.base import Scores, check_batch
from densegrpo_jax.rewards.local.shape_detector import FINE, distances, outline_mask, segments
from densegrpo_jax.rewards.local.shapes import check_rows

SHAPE_SPREAD = 0.12  # distance of signatures, and ...
COLOUR_SPREAD = 60.0  # ... of colours in RGB, at which a similarity has fallen to exp(-1/2)
# pixels; blots of this size count as less than an object, and the smallest star has twice as many
FULL_AREA = 20.0
DECIBELS = 20.0  # per unit of clarity
DIRECTIONS = {'left of': (-1, 0), 'right of': (1, 0), 'above': (0, -1), 'below': (0, 1)}


class Found(NamedTuple):
    """A piece of one colour. shapes: its distance to every shape. colour: its mean, RGB. weight:
    below 1 if it is small.
    """

    shapes: np.ndarray
    colour: np.ndarray
    centre: np.ndarray
    weight: float


class PreferenceReward:
    """preference = match * (clarity + contrast), all three also returned.

    match in [0, 1]: pairs objects of the prompt and of the image so that the sum of their
    similarities, exp(-d^2/2) in shape and colour, is largest. The sum is divided by the number of
    objects asked for plus the number of surplus objects. A relation multiplies it by the mean over
    its pairs of (1 + cos)/2, with the angle between the direction asked for and the direction
    found. clarity: how well flat shapes with sharp edges on a flat ground explain the image, PSNR /
    20 dB, at most 2.4. contrast in [0, 1]: mean distance of the objects' colours from the ground,
    over that of black from white.
    """

    name = 'preference'
    names = ('preference', 'preference_match', 'preference_clarity', 'preference_contrast')
    range = (0.0, 1.0 + 10 * float(np.log10(255.0**2)) / DECIBELS)

    def check(self, prompts: Sequence[str], metadata: Sequence[dict]) -> None:
        """Raises ValueError, naming the prompt, if its metadata is no GenEval row about shapes."""
        check_rows(self.name, prompts, metadata)

    def __call__(
        self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[dict]
    ) -> Scores:
        """Implements `Reward`. Raises ValueError as `check` does."""
        check_batch(images, prompts, metadata)
        self.check(prompts, metadata)
        rows = []
        for image, row in zip(images, metadata):
            found, clarity, contrast = look(image)
            match = match_of(found, row['include'])
            rows.append((match * (clarity + contrast), match, clarity, contrast))
        columns = np.array(rows, np.float32).reshape(-1, len(self.names)).T
        return Scores(dict(zip(self.names, columns)), np.ones(len(images), bool))


def look(image: np.ndarray) -> tuple[list[Found], float, float]:
    """What is in an image, uint8 [H, W, 3], its clarity and its contrast."""
    pixels = image.astype(np.float64)
    ground = np.median(pixels.reshape(-1, 3), axis=0)
    flat, found = np.broadcast_to(ground, pixels.shape).copy(), []
    for _, coverage in segments(image):
        height, width = coverage.shape
        # edges as sharp as pixels allow
        sharp = outline_mask(coverage).reshape(height, FINE, width, FINE).mean((1, 3))
        colour = (pixels * sharp[..., None]).sum((0, 1)) / sharp.sum()
        flat += sharp[..., None] * (colour - flat)
        ys, xs = np.indices(sharp.shape)
        centre = np.array([(xs * sharp).sum(), (ys * sharp).sum()]) / sharp.sum()
        found.append(
            Found(
                distances(coverage),
                colour,
                centre,
                float(1 - np.exp(-np.square(sharp.sum() / FULL_AREA))),
            )
        )
    # One squared grey level is about the error of rounding; it also keeps a perfect image's PSNR
    # finite.
    clarity = 10 * np.log10(255.0**2 / (1 + np.square(pixels - flat).mean())) / DECIBELS
    contrast = (
        np.mean([np.linalg.norm(f.colour - ground) for f in found]) / np.linalg.norm([255.0] * 3)
        if found
        else 0.0
    )
    return found, float(clarity), float(contrast)


def match_of(found: list[Found], include: list[dict]) -> float:
    """How well the pieces found fit the objects that a GenEval row includes, in [0, 1]; see
    `PreferenceReward`.
    """
    wanted = [(i, clause) for i, clause in enumerate(include) for _ in range(clause['count'])]
    similarity = np.array([[similar(f, clause) for f in found] for _, clause in wanted]).reshape(
        len(wanted), len(found)
    )
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    spare = sum(f.weight for j, f in enumerate(found) if j not in columns)
    match = similarity[rows, columns].sum() / (len(wanted) + spare)
    centres: dict[int, list[np.ndarray]] = {}
    for row, column in zip(rows, columns):
        centres.setdefault(wanted[row][0], []).append(found[column].centre)
    for i, clause in enumerate(include):
        if 'position' in clause:
            relation, target = clause['position']
            offsets = [a - b for a in centres.get(i, []) for b in centres.get(target, [])]
            cosines = [o @ DIRECTIONS[relation] / max(np.linalg.norm(o), 1e-6) for o in offsets]
            match *= np.mean([(1 + c) / 2 for c in cosines]) if cosines else 0.0
    return float(match)


def similar(found: Found, clause: dict) -> float:
    """Similarity in [0, 1] of a piece to an object that a clause asks for."""
    square = np.square(found.shapes[SHAPES.index(clause['class'])] / SHAPE_SPREAD)
    if 'color' in clause:
        square += np.square(np.linalg.norm(found.colour - COLOURS[clause['color']]) / COLOUR_SPREAD)
    return found.weight * float(np.exp(-square / 2))

"""Scene embedding: a reward with an embedding space for the miniature's shapes, the stand-in for
CLIP. Its style dimensions can be hacked as a learned reward can, by construction.
"""

import re
from collections.abc import Sequence

import numpy as np

from densegrpo_jax.data.shapes import COLOURS, SHAPES
from densegrpo_jax.rewards.base import Scores, check_batch
from densegrpo_jax.rewards.directional import Direction, take_direction
from densegrpo_jax.rewards.local.preference import COLOUR_SPREAD, SHAPE_SPREAD, look

WORDS = (*SHAPES, *COLOURS)
STYLE = ('contrast', 'darkness')
DIMENSIONS = (*WORDS, *STYLE)
_WORD = re.compile(r'\b(' + '|'.join(WORDS) + r')(?:s|es)?\b')
_GREY = np.float64([0.299, 0.587, 0.114]) / 255


class SceneEmbeddingReward:
    """The cosine of two unit vectors with one dimension for each shape and colour, and one each
    for contrast and darkness.

    Of a prompt: 1 for every shape and colour that it names, and 1 for both style dimensions,
    whatever it asks for. Of a picture: for every shape and colour the best likeness among its
    pieces, exp(-d^2 / 2) as in `preference`, times the piece's weight; the pieces' contrast with
    the ground; and 1 - the mean brightness. More contrast and darkness raise the score of any
    picture, whatever was asked for.

    Args:
      direction: a file of `densegrpo_jax.direction`; '': none.
      omega: ω of D2-Align instead of the file's.

    Raises:
      FileNotFoundError, ValueError: the file cannot be used for this reward.
    """

    name = 'scene_embedding'
    names: tuple[str, ...] = ('scene_embedding',)
    range = (0.0, 1.0)
    direction: Direction | None

    def __init__(self, *, direction: str = '', omega: float | None = None):
        take_direction(self, direction, omega)

    def weights_fingerprint(self) -> str:
        """Implements `EmbeddingReward`."""
        return f'scene 1: {" ".join(DIMENSIONS)}'

    def plain_text(self, prompts: Sequence[str]) -> np.ndarray:
        """Implements `EmbeddingReward`."""
        rows = np.zeros((len(prompts), len(DIMENSIONS)), np.float32)
        rows[:, len(WORDS) :] = 1
        for row, prompt in zip(rows, prompts):
            for word in _WORD.findall(prompt.lower()):
                row[DIMENSIONS.index(word)] = 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embeddings(self, images: np.ndarray) -> np.ndarray:
        """Implements `EmbeddingReward`; a picture in which nothing is found, white and flat, has
        the embedding 0.
        """
        rows = np.zeros((len(images), len(DIMENSIONS)), np.float32)
        palette = np.array([*COLOURS.values()], np.float64)
        for row, image in zip(rows, images):
            found, _, contrast = look(image)
            for piece in found:
                far = np.linalg.norm(palette - piece.colour, axis=1) / COLOUR_SPREAD
                distance = np.concatenate([piece.shapes / SHAPE_SPREAD, far])
                likeness = piece.weight * np.exp(-np.square(distance) / 2)
                row[: len(WORDS)] = np.maximum(row[: len(WORDS)], likeness)
            row[len(WORDS) :] = contrast, 1 - (image.mean((0, 1)) @ _GREY)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)

    def check(self, prompts: Sequence[str], metadata: Sequence[dict]) -> None:
        """Raises ValueError, naming the prompt, if it names no shape and no colour."""
        for i, prompt in enumerate(prompts):
            if not _WORD.search(prompt.lower()):
                raise ValueError(
                    f'prompt {i} ({prompt!r}) names no shape and no colour that reward '
                    f'{self.name!r} knows: {", ".join(WORDS)}'
                )

    def __call__(
        self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[dict]
    ) -> Scores:
        """Implements `Reward`."""
        check_batch(images, prompts, metadata)
        pictures, text = self.embeddings(images), self.plain_text(prompts)
        plain = (pictures * text).sum(1)
        values = [plain]
        if self.direction is not None:
            values = [(pictures * self.direction.guide(text)).sum(1), plain]
        return Scores(dict(zip(self.names, values)), np.ones(len(images), bool))

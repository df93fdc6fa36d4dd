"""Pixels reward: how near an image's mean colour is to a given one. Differentiable and without a
model: a small reward for trying methods that follow a reward's gradient.
"""

from collections.abc import Sequence

import numpy as np

from densegrpo_jax.rewards.base import Scores, check_batch


class PixelsReward:
    """Minus the squared distance of the mean colour from `colour`, both in [0, 1].

    Args:
      colour: red, green, blue in [0, 1].

    Raises:
      ValueError: not three numbers in [0, 1].
    """

    name = 'pixels'
    names = ('pixels',)
    range = (-3.0, 0.0)

    def __init__(self, colour: Sequence[float] = (0.9, 0.2, 0.2)):
        self._colour = np.asarray(colour, np.float32)
        inside = np.all((self._colour >= 0) & (self._colour <= 1))
        if self._colour.shape != (3,) or not inside:
            raise ValueError(f'pixels.colour is {colour!r}; expected three numbers from 0 to 1')

    def scores(self, params: dict, images, text):
        """float32 [N] of images [N, H, W, 3] in [0, 1]; pure, and differentiable in them.

        params, text: those of the two methods below, both empty.
        """
        del params, text
        return -((images.mean((1, 2)) - self._colour) ** 2).sum(-1)

    def params(self) -> dict:
        """No weights."""
        return {}

    def text_features(self, prompts: Sequence[str]) -> np.ndarray:
        """Empty features, float32 [N, 0]: the prompts play no part."""
        return np.zeros((len(prompts), 0), np.float32)

    def check(self, prompts: Sequence[str], metadata: Sequence[dict]) -> None:
        """Accepts every prompt."""

    def __call__(
        self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[dict]
    ) -> Scores:
        """Implements `Reward`."""
        check_batch(images, prompts, metadata)
        values = self.scores({}, images.astype(np.float32) / 255, None)
        return Scores({'pixels': values.astype(np.float32)}, np.ones(len(images), bool))

"""JPEG reward: how small (or large) is the image as a JPEG file? It needs no model, so it suits
tests and weighted composites.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from densegrpo_jax.rewards.base import Scores, check_batch


class JpegReward:
    """Minus the size of the image as a JPEG in kB, over 500, as in Flow-GRPO (from DDPO, arXiv
    2305.13301, section 5).

    Args:
      direction: 'compressible' gives -kB/500, 'incompressible' +kB/500 (kB = 1000 bytes).
      quality: JPEG quality, 1 to 95.

    Raises:
      ValueError: an option out of range.
    """

    name = 'jpeg'
    names = ('jpeg',)

    def __init__(self, direction: str = 'compressible', *, quality: int = 95):
        if direction not in ('compressible', 'incompressible'):
            raise ValueError(
                f"jpeg.direction is {direction!r}; expected 'compressible' or 'incompressible'"
            )
        if not 1 <= quality <= 95:
            raise ValueError(f'jpeg.quality is {quality}; expected 1 to 95')
        self._sign = -1.0 if direction == 'compressible' else 1.0
        self._quality = quality
        self.range = (-np.inf, 0.0) if direction == 'compressible' else (0.0, np.inf)

    def check(self, prompts: Sequence[str], metadata: Sequence[dict]) -> None:
        """Accepts every prompt."""

    def __call__(
        self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[dict]
    ) -> Scores:
        """Implements `Reward`."""
        check_batch(images, prompts, metadata)
        sizes = np.array([self._bytes(image) for image in images], np.float32)
        return Scores(
            {'jpeg': self._sign * sizes / np.float32(1000 * 500)}, np.ones(len(images), bool)
        )

    def _bytes(self, image: np.ndarray) -> int:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format='JPEG', quality=self._quality)
        return buffer.tell()

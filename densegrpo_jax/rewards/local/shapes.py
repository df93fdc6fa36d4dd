"""Shapes reward: does the image show the coloured shapes that the prompt asks for? GenEval's rules
with a detector that runs on a laptop.
"""

from collections.abc import Sequence

import numpy as np

from densegrpo_jax.data.geneval import check_metadata
from densegrpo_jax.data.shapes import SHAPES
from densegrpo_jax.rewards.base import Scores, check_batch
from densegrpo_jax.rewards.local.geneval_rule import MAX_OBJECTS, geneval_scores
from densegrpo_jax.rewards.local.shape_detector import detect


class ShapesReward:
    """Looks for shapes (`shape_detector.detect`) and judges them by GenEval's rules
    (`geneval_rule.geneval_scores`).

    Three scores: 'shapes' is Flow-GRPO's partial score, which training uses; 'shapes_strict' is 1
    if every count, colour and position is exactly as asked, else 0; 'shapes_correct' is GenEval's
    accuracy, which forgives surplus objects (except if the task is counting).

    Args:
      half_for_wrong_position: see `geneval_scores`; if True, a wrong position still earns half, as
        in Flow-GRPO's code.
    """

    name = 'shapes'
    names = ('shapes', 'shapes_strict', 'shapes_correct')
    range = (2.0 - MAX_OBJECTS, 1.0)

    def __init__(self, *, half_for_wrong_position: bool = False):
        self._options = dict(half_for_wrong_position=half_for_wrong_position, objects=SHAPES)

    def check(self, prompts: Sequence[str], metadata: Sequence[dict]) -> None:
        """Raises ValueError, naming the prompt, if its metadata is no GenEval row about shapes."""
        check_rows(self.name, prompts, metadata)

    def __call__(
        self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[dict]
    ) -> Scores:
        """Implements `Reward`. Raises ValueError as `check` does."""
        check_batch(images, prompts, metadata)
        self.check(prompts, metadata)
        verdicts = [
            geneval_scores(detect(image), row, **self._options)
            for image, row in zip(images, metadata)
        ]
        columns = zip(self.names, ('score', 'strict', 'correct'))
        values = {
            name: np.array([getattr(v, column) for v in verdicts], np.float32)
            for name, column in columns
        }
        return Scores(values, np.ones(len(images), bool))


def check_rows(reward: str, prompts: Sequence[str], metadata: Sequence[dict]) -> None:
    """Raises ValueError, naming the prompt, if a row is not GenEval's or asks for anything other
    than shapes.
    """
    for i, (prompt, row) in enumerate(zip(prompts, metadata, strict=True)):
        try:
            check_metadata(row, SHAPES)
        except ValueError as error:
            raise ValueError(
                f'prompt {i} ({prompt!r}): reward {reward!r} needs a GenEval row as its metadata: '
                f'{error}'
            ) from None

"""GenEval reward: are the prompt's objects there, in the right number, colours and places?"""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from densegrpo_jax.data.geneval import check_metadata
from densegrpo_jax.rewards.base import Scores, check_batch, each_or_none
from densegrpo_jax.rewards.local.geneval_detector import (
    CLIP,
    MASK2FORMER,
    SIDE,
    GenevalDetector,
    model_files,
)
from densegrpo_jax.rewards.local.geneval_rule import (
    MAX_OBJECTS,
    Detection,
    GenevalScores,
    geneval_scores,
)

Detector = Callable[[np.ndarray, Sequence[dict]], list[list[Detection]]]


class GenevalReward:
    """Finds objects with Mask2Former, names their colours with CLIP and applies `geneval_scores`.

    Training uses Flow-GRPO's partial score; its strict verdict and GenEval's accuracy, both 0 or 1,
    are logged. An image on which the detector fails is invalid (and logged), never 0. The models
    run in torch: with JAX in the same process they compete for the GPU's memory; in a reward server
    they do not.

    Args:
      mask2former, clip: folders or Hugging Face ids of the models.
      torch_device: where torch computes: 'auto' (the GPU if torch sees one), 'cpu', 'cuda:1', ...
      side: the detector sees an image with its shorter side scaled to this many pixels.
      batch_size: images per call of the detector.
      half_for_wrong_position: see `geneval_scores`.
      make_detector: for other models: called once, it makes a detector, images uint8 [n, H, W, 3]
        and metadata [n] -> n lists of `Detection`, with colours where `colours_needed` asks for
        them. Several threads may call the detector at once.

    Raises:
      ValueError: an option out of range. ModuleNotFoundError, FileNotFoundError: see
        `GenevalDetector`.
    """

    name = 'geneval'
    names = ('geneval', 'geneval_strict', 'geneval_correct')
    range = (2.0 - MAX_OBJECTS, 1.0)

    def __init__(
        self,
        mask2former: str = MASK2FORMER,
        clip: str = CLIP,
        *,
        torch_device: str = 'auto',
        side: int = SIDE,
        batch_size: int = 8,
        half_for_wrong_position: bool = True,
        make_detector: Callable[[], Detector] | None = None,
    ):
        if side < 32 or batch_size < 1:
            raise ValueError(
                f'geneval: side {side}, batch_size {batch_size}; expected side >= 32 and '
                'batch_size >= 1'
            )
        # Made here, so that a missing model is reported before a run starts, not by a worker thread
        # in the middle of it.
        self._detect = (
            make_detector()
            if make_detector
            else GenevalDetector(mask2former, clip, torch_device=torch_device, side=side)
        )
        self._models = () if make_detector else (mask2former, clip)
        self.batch_size = batch_size
        self._half_for_wrong_position = half_for_wrong_position

    def weight_files(self) -> list[pathlib.Path]:
        """See `Reward`; none of another detector."""
        return [file for name in self._models for file in model_files(name)]

    def check(self, prompts: Sequence[str], metadata: Sequence[dict]) -> None:
        """Raises ValueError, naming the prompt, if its metadata do not say what should be in the
        image.
        """
        for i, (prompt, extra) in enumerate(zip(prompts, metadata, strict=True)):
            try:
                check_metadata(extra)
            except ValueError as error:
                raise ValueError(
                    f'prompt {i}, {prompt!r}, is not a GenEval prompt ({error}); those come from a '
                    '.jsonl file, or a table with the columns tag and include'
                ) from None

    def __call__(
        self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[dict]
    ) -> Scores:
        """Implements `Reward`. Raises ValueError, naming the prompt, if its metadata are
        malformed.
        """
        check_batch(images, prompts, metadata)
        self.check(prompts, metadata)
        results = each_or_none('GenEval', self._score, self.batch_size, images, metadata)
        valid = np.array([result is not None for result in results], bool)
        column = lambda field: np.array(
            [np.nan if r is None else getattr(r, field) for r in results], np.float32
        )
        return Scores(dict(zip(self.names, map(column, ('score', 'strict', 'correct')))), valid)

    def _score(self, images: np.ndarray, metadata: Sequence[dict]) -> list[GenevalScores]:
        judge = lambda found, wanted: geneval_scores(
            found, wanted, half_for_wrong_position=self._half_for_wrong_position
        )
        return [judge(*one) for one in zip(self._detect(images, metadata), metadata, strict=True)]

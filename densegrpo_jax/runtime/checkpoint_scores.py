"""The scores of the checkpoints in a folder: which one is best, and which may be."""

from __future__ import annotations

from collections.abc import Iterable

from absl import logging

from densegrpo_jax.runtime.agreement import Agreement
from densegrpo_jax.runtime.checkpoint_errors import brief
from densegrpo_jax.runtime.checkpoint_store import Store


class Scores:
    """Scores by step, as the primary process reads them from the documents of `store`.

    Attributes:
      unknown: steps whose score could not be read. They may be the best.
    """

    def __init__(self, store: Store, agreement: Agreement):
        known, unknown = {}, []
        for step in store.steps():
            try:
                known[step] = store.document(step)['score']
            except Exception as error:  # restoring handles the damage
                unknown.append(step)
                logging.warning(
                    'The score of the checkpoint of step %d is unknown, so it is kept: %s',
                    step,
                    brief(error),
                )
        known, unknown = agreement.poll([known, unknown])[0]
        self.unknown = set(unknown)
        self._known = {int(step): score for step, score in known.items() if score is not None}

    def note(self, step: int, score: float | None) -> None:
        """The score of a step is this, or None: it has none."""
        self.unknown.discard(step)
        self._known.pop(step, None)
        if score is not None:
            self._known[step] = score

    def differs(self, step: int, score: float | None) -> bool:
        """Whether the score of a step is known to be another one."""
        return step not in self.unknown and score != self._known.get(step)

    def best(self, steps: Iterable[int]) -> int | None:
        """The one of these steps with the highest score, the later of equals; None if none has a
        score.
        """
        scored = [step for step in sorted(steps, reverse=True) if step in self._known]
        return max(scored, key=self._known.__getitem__, default=None)

"""What a run stores besides arrays: its evaluations, its cost, and whether it still learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from densegrpo_jax.config.retired import renamed


class TrainingDiverged(RuntimeError):
    """Too many updates in a row had a non-finite gradient."""


@dataclasses.dataclass
class Progress:
    """JSON, stored with every checkpoint."""

    evaluations: list = dataclasses.field(default_factory=list)  # [step, mean, standard error]
    bad_in_a_row: int = 0
    nfe: int = 0  # network evaluations so far, of all samples
    # [T] moving average of the attention's entropy, if transitions are chosen by it
    entropy: list | None = None
    seconds: float = 0.0  # spent in iterations (without evaluations and their compilation)
    guarded: list = dataclasses.field(default_factory=list)  # rows of `guard.Guard`
    broken: int = 0  # guarded evaluations in a row with a fallen score
    brake: float = 1.0  # of `guard.action='brake'`
    stopped_by_guard: bool = False

    @classmethod
    def of(cls, stored: Mapping) -> Progress:
        """As it is stored, by this version or an earlier one."""
        return cls(**renamed('progress', stored))

    def evaluated(self, step: int) -> bool:
        """Whether there is an evaluation after `step` updates."""
        return step in [evaluated for evaluated, *_ in self.evaluations]

    def competes(self, step: int) -> bool:
        """Whether the evaluation after `step` updates may be the best: no guard, or none yet, or it
        found no fallen score.
        """
        if not self.guarded or step < self.guarded[0]['step']:
            return True
        return any(row['step'] == step and not row['fallen'] for row in self.guarded)

    def best(self) -> list:
        """The evaluation with the highest score of those that compete; of all if none does."""
        able = [e for e in self.evaluations if self.competes(e[0])]
        return max(able or self.evaluations, key=lambda e: e[1])

    def count(self, finite: bool, nfe: int, seconds: float) -> None:
        """Accounts for an iteration.

        Args:
          finite: whether its gradients were finite.
          nfe: its network evaluations.
          seconds: its duration.
        """
        self.bad_in_a_row = 0 if finite else self.bad_in_a_row + 1
        self.nfe += nfe
        self.seconds += seconds

    def check(self, max_bad: int) -> None:
        """Raises TrainingDiverged if `max_bad` updates in a row were skipped."""
        if self.bad_in_a_row >= max_bad:
            raise TrainingDiverged(
                f'the last {self.bad_in_a_row} updates had a non-finite gradient and were skipped '
                f'(optim.max_bad={max_bad}). Lower optim.learning_rate, or look for NaN images in '
                'the metrics (valid_share)'
            )

"""What a run stores besides arrays: its evaluations, its cost, and whether it still learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from densegrpo_jax.config import identity
from densegrpo_jax.config.retired import renamed
from densegrpo_jax.guard.history import History
from densegrpo_jax.runtime.trees import Difference


class TrainingDiverged(RuntimeError):
    """Too many updates in a row had a non-finite gradient."""


@dataclasses.dataclass
class Progress(History):
    """JSON, stored with every checkpoint."""

    bad_in_a_row: int = 0
    nfe: int = 0  # network evaluations so far, of all samples
    # [T] moving average of the attention's entropy, if transitions are chosen by it
    entropy: list | None = None
    # [step, what changed] where the run went on with other code of the user's own
    other_code: list = dataclasses.field(default_factory=list)
    earlier: list = dataclasses.field(default_factory=list)  # evaluations by rewards of other code
    seconds: float = 0.0  # spent in iterations (without evaluations and their compilation)

    @classmethod
    def of(cls, stored: Mapping) -> Progress:
        """As it is stored, by this version or an earlier one."""
        return cls(**renamed('progress', stored))

    def first(self, step: int) -> int:
        """Updates before the first evaluation; `step` if there is none yet."""
        return self.evaluations[0][0] if self.evaluations else step

    def go_on(self, step: int, changed: Sequence[Difference]) -> None:
        """Notes that other code of the user's own trains from update number `step` on. Scores of
        other rewards are no scores of these: none of before competes, is compared with, or has
        fallen.
        """
        self.other_code = [*self.other_code, [step, identity.told(changed)]]
        if any(map(identity.of_scores, changed)):
            self.earlier = [*self.earlier, *self.evaluations]
            self.evaluations, self.passed_over, self.rewards, self.highest = [], [], [], []
            self.set_aside(lambda row: True)

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

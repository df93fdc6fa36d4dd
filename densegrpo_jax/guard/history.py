"""The evaluations of a run and what the guard has found at them: which of them may be the best, and
what the guard's actions have come to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from densegrpo_jax.config.guard_keys import BRAKE, STOP

# in a row: what scored it was other code than now, so that its falls count no more
OTHER_CODE = 'other_code'


@dataclasses.dataclass
class History:
    """JSON, stored with every checkpoint of the run. Without a guard every evaluation competes."""

    evaluations: list = dataclasses.field(default_factory=list)  # [step, mean, standard error]
    guarded: list = dataclasses.field(default_factory=list)  # rows of `guard.Guard`
    passed_over: list = dataclasses.field(default_factory=list)  # steps evaluated without the guard
    # [update, training reward] of the last updates, if a guard watches them
    rewards: list = dataclasses.field(default_factory=list)
    # [step, training reward before it, scores of its prompts] of the highest evaluation, likewise
    highest: list = dataclasses.field(default_factory=list)

    def evaluated(self, step: int) -> bool:
        """Whether there is an evaluation after `step` updates."""
        return step in [evaluated for evaluated, *_ in self.evaluations]

    def competes(self, step: int) -> bool:
        """Whether the evaluation after `step` updates may be the best: a guard has neither passed
        it over, nor found a score fallen or missing.
        """
        out = [row['step'] for row in self._of_now if _lost(row)]
        return step not in out and step not in self.passed_over

    @property
    def _of_now(self) -> list[Mapping]:
        return [row for row in self.guarded if not row.get(OTHER_CODE)]

    def set_aside(self, which: Callable[[Mapping], bool]) -> None:
        """Other code than now has scored the rows that `which` names: nothing has fallen there, and
        the run was not stopped. What a brake has come to stays: updates were made with it.
        """
        self.guarded = [row | {OTHER_CODE: True} if which(row) else row for row in self.guarded]

    def pass_over_unguarded(self) -> None:
        """A guard has measured: evaluations that none has seen compete no more."""
        known = {*(row['step'] for row in self._of_now), *self.passed_over}
        unseen = [step for step, *_ in self.evaluations if step not in known]
        self.passed_over = [*self.passed_over, *unseen]

    def competing_score(self, step: int) -> float | None:
        """The score of the evaluation after `step` updates; None if there is none that competes."""
        scores = {evaluated: score for evaluated, score, _ in self.evaluations}
        return scores.get(step) if self.competes(step) else None

    @property
    def fallen_in_a_row(self) -> int:
        """The newest guarded evaluations with a fallen score, since the guard last braked. One
        without a fall, but with missing scores, neither counts nor ends them.
        """
        count = 0
        for row in reversed(self.guarded):
            if row.get(OTHER_CODE) or row['action'] == BRAKE or not _lost(row):
                break
            count += bool(row['fallen'])
        return count

    @property
    def brake(self) -> float:
        """What the guard's brake has come to; 1 if it has not acted."""
        return self.guarded[-1]['brake'] if self.guarded else 1.0

    @property
    def stopped_by_guard(self) -> bool:
        """Whether the newest guarded evaluation ended the run."""
        newest = self.guarded[-1] if self.guarded else {}
        return newest.get('action') == STOP and not newest.get(OTHER_CODE)

    def best(self) -> list | None:
        """The evaluation with the highest score of those that compete; None if none does."""
        able = [e for e in self.evaluations if self.competes(e[0])]
        return max(able, key=lambda e: e[1], default=None)


def _lost(row: Mapping) -> bool:
    # rows of earlier versions tell of no missing scores
    return bool(row['fallen'] or row.get('missing'))

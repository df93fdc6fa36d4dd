"""The evaluations of a run and what the guard has found at them: which of them may be the best, and
what the guard's actions have come to.
"""

from __future__ import annotations

import dataclasses

from densegrpo_jax.config.guard_keys import BRAKE, STOP


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
        # rows of earlier versions tell of no missing scores
        out = [row['step'] for row in self.guarded if row['fallen'] or row.get('missing')]
        return step not in out and step not in self.passed_over

    def pass_over_unguarded(self) -> None:
        """A guard has measured: evaluations that none has seen compete no more."""
        known = {*(row['step'] for row in self.guarded), *self.passed_over}
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
            if row['action'] == BRAKE or not (row['fallen'] or row.get('missing')):
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
        return bool(self.guarded) and self.guarded[-1]['action'] == STOP

    def best(self) -> list | None:
        """The evaluation with the highest score of those that compete; None if none does."""
        able = [e for e in self.evaluations if self.competes(e[0])]
        return max(able, key=lambda e: e[1], default=None)

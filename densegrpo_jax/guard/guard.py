"""The guard against reward hacking: what the reward does not see, measured at evaluations.

The rule. On the same prompts and noise, every unseen score (`eval.panel`, and the diversity of a
prompt's images) is compared with the start of the run. It has fallen if a paired one-sided test,
the larger p of Student's t and of Hall's for skew, says so at `guard.level`, divided by the number
of scores and of guarded evaluations in the run (`guard.falls`). An evaluation with a fallen
score cannot be the best, nor one at which many prompts lack a score that they had. After
`guard.patience` evaluations with a fallen score in a row, `guard.action` follows.
"""

from __future__ import annotations

import contextlib
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import logging

from densegrpo_jax.config import identity
from densegrpo_jax.config.guard_keys import BETA, BRAKE, STOP
from densegrpo_jax.evaluation.divergence import Divergence
from densegrpo_jax.evaluation.diversity import make_embedding
from densegrpo_jax.evaluation.evaluator import DIVERSITY, Evaluation, Evaluator
from densegrpo_jax.evaluation.panel import Part
from densegrpo_jax.evaluation.record import Record
from densegrpo_jax.guard.check import FOLDER, measures_kl, planned, ratio_limit, unseen_of
from densegrpo_jax.guard.falls import FEWEST, Change, change, changes, fallen, missing
from densegrpo_jax.guard.history import History
from densegrpo_jax.guard.verdict import write_verdict
from densegrpo_jax.rewards.composite import TOTAL
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.trees import json_value
from densegrpo_jax.sampling.loading import weights_digest
from densegrpo_jax.sampling.noise import FILE
from densegrpo_jax.sampling.policy import LOG_RATIO_ROUNDING
from densegrpo_jax.sampling.session import Session, start_policy

START = 'start'  # the policy that others are compared with, in the record
STRIPS = 'guard_strips'  # what was measured on images, in the record


class Guard:
    """Measures at evaluations and applies the rule. All processes of the run call it.

    Args:
      part: of `check_guard`. record: of `open_record`.
      scorer: of the training reward.
      sample: the compiled sampler of the evaluations.
      stack: closes the panel's scorers.
    """

    def __init__(
        self,
        session: Session,
        workdir: pathlib.Path,
        part: Part,
        record: Record | None,
        scorer: Scorer,
        sample: Callable,
        stack: contextlib.ExitStack,
    ):
        config, g = session.config, session.config.guard
        self._session, self._config, self._folder = session, config, workdir / FOLDER
        trained = any(reward is session.reward for reward in part.rewards)
        panel = [reward for reward in part.rewards if reward is not session.reward]
        scorers = [stack.enter_context(Scorer(reward, config.reward_workers)) for reward in panel]
        self._unseen = unseen_of(session.reward) if trained else []
        self._unseen += [reward.names[0] for reward in panel]
        self._unseen += [DIVERSITY] if g.images > 1 else []
        self._texts = [prompt.text for prompt in part.prompts]
        self._evaluated = [prompt.text for prompt in session.test]
        self._evaluator = Evaluator(
            session,
            part.prompts,
            [scorer, *scorers] if trained else scorers,
            group=g.images,
            embed=make_embedding(config.eval.embedding) if g.images > 1 else None,
            name=STRIPS,
            strips=True,
            sample=sample,
        )
        self._divergence = None
        if measures_kl(config):
            self._divergence = Divergence(session, part.prompts, g.kl_prompts)
        self._psi = workdir / FILE if config.noise.calibrate else None
        self._record, self._start = record, None
        told = identity.record('evaluation', config, session.facts(part.rewards))
        self._code = {name: told[name] for name in identity.OF_CODE if told.get(name)}

    _told_rounding = False
    _code: Mapping[str, Mapping] = {}  # what scores, as far as it may change under one name

    def due(self, step: int) -> bool:
        """Whether the evaluation after `step` updates is guarded."""
        count = math.ceil(step / self._config.eval.every)
        return count % self._config.guard.every == 0 or step == self._config.iterations

    def __call__(
        self, step: int, policy: dict, history: History, scores: np.ndarray
    ) -> dict[str, float]:
        """Measures after `step` updates if it is due, puts the row into `history.guarded`, and
        acts.

        Args:
          scores: float [N] of the evaluation after `step` updates, the score that picks the best
            checkpoint, by prompt.

        Returns:
          What goes into the metrics.

        Raises:
          Preempted: a stop was requested; `history` is as it was.
        """
        if not self.due(step):
            history.passed_over = [*history.passed_over, step]
            return {}
        policy_now = f'step {step} {weights_digest(policy)}'
        if self._start is None:
            first = policy if step == 0 else start_policy(self._session)
            self._start = self._evaluator(first, self._record, self._start_key(first))
        now = start = self._start
        if step:
            now = self._evaluator(policy, self._record, policy_now)
        # the base's is 0, and costs nothing
        kl = self._kl(policy if step or self._config.lora.init_from else None, policy_now)
        of_all = changes(start.scores, now.scores, self._texts)
        found = {name: of_all.pop(name) for name in self._unseen}
        lacking = [name for name in missing(start.scores, now.scores) if name in found]
        if step:
            self._watch_unjudged(found, lacking)
        down = fallen(found, self._config.guard.level, planned(self._config)) if step else []
        history.guarded = [row for row in history.guarded if row['step'] < step]
        earlier = history.guarded[-1]['kl'] if history.guarded else None
        self._watch_kl(earlier, kl)
        row = {
            'step': step,
            'scores': json_value(found),
            'kl': kl,
            'fallen': down,
            'missing': lacking,
            'action': '',
            'brake': history.brake,
            **({'code': self._code} if self._code else {}),
        }
        history.guarded.append(row)
        self._compare(history, step, scores)
        if down:
            self._judge(row, found, of_all, start, now, history)
        metrics = {f'guard/{name}': c.mean for name, c in found.items()}
        if kl is not None:
            metrics['guard/kl'] = kl
        brakes = self._config.guard.action == BRAKE
        return {
            **metrics,
            'guard/fallen': float(len(down)),
            'guard/brake': history.brake if brakes else 1.0,
        }

    def _start_key(self, first: dict | None) -> str:
        """What the start is called in the record. A folder may outlive its run, and the weights
        that it began from.
        """
        given = weights_digest(first) if self._config.lora.init_from else ''
        return f'{START} {self._session.base_digest} {given}'.rstrip()

    def go_on(self, history: History) -> None:
        """Before the run goes on: what other code than now has found fallen counts no more. Of the
        panel's the checkpoints do not know; rows of earlier versions do not tell.
        """
        history.set_aside(lambda row: row.get('code', self._code) != self._code)

    def stops(self, history: History) -> bool:
        """Whether the guard has ended the run."""
        return history.stopped_by_guard and self._config.guard.action == STOP

    def brakes(self, history: History) -> tuple[np.float32, ...]:
        """The further arguments of an update: the brake, if the guard may brake."""
        return (np.float32(history.brake),) if self._config.guard.action == BRAKE else ()

    def watch(self, step: int, metrics: Mapping[str, np.ndarray], history: History) -> None:
        """Warns of signs of collapse in the metrics of update number `step`, and notes its reward
        in `history`.
        """
        g = self._config.guard
        if math.isfinite(reward := float(metrics['reward'])):
            recent = [*history.rewards, [step, reward]]
            history.rewards = recent[-self._config.eval.every :]  # what `_compare` reads
        spread = np.asarray(metrics.get('zero_spread', math.nan), np.float64)
        if np.isfinite(spread).any() and np.nanmean(spread) >= g.zero_spread:
            share = np.nanmean(spread)
            self._alarm(f'update {step}: {share:.0%} of the groups have no spread of rewards')
        limit = ratio_limit(self._config)
        if limit and not (ratio := float(metrics.get('ratio_deviation', 0))) <= limit:  # or NaN
            self._alarm(
                f'update {step}: the probability ratio is off 1 by {ratio:.2g} on average, more '
                f'than {limit:.2g}, which is guard.ratio={g.ratio:g} clip ranges'
            )
        rounding = LOG_RATIO_ROUNDING[self._config.model.dtype]
        first = float(metrics.get('ratio_deviation_first', 0))
        if not (first <= rounding or self._told_rounding):
            self._told_rounding = True  # it will not go away
            self._alarm(
                f'update {step}: before anything has changed the probability ratio is off 1 by up '
                f'to {first:.2g}, and rounding explains {rounding:g}: the update does not see the '
                'samples as they were drawn'
            )

    def _compare(self, history: History, step: int, scores: np.ndarray) -> None:
        """Warns if the score is below its highest of before, on the same prompts and noise, and the
        training reward above that of then; notes the highest in `history`.
        """
        last = history.evaluations[-1][0] if history.evaluations else 0
        recent = [reward for n, reward in history.rewards if last < n <= step]
        rewards = float(np.mean(recent)) if recent else None
        if history.highest:
            before, then, best = history.highest
            c = change(np.array(best, np.float64), scores, self._evaluated)
            if then is None:  # of the start: nearest are the first updates
                history.highest = [before, rewards, best]
            elif rewards is not None and rewards > then and self._is_fall(c):
                self._alarm(
                    f'between updates {before} and {step} the evaluation score fell by '
                    f'{-c.change:.4f} +- {c.error:.4f} to {c.mean:.4f}, and the training reward '
                    f'rose from {then:.4f} to {rewards:.4f}'
                )
            if not c.change > 0:
                return
        history.highest = [step, rewards, json_value(scores)]

    def _is_fall(self, c: Change) -> bool:
        # each evaluation, the start too, may be compared with any before it
        count = planned(self._config)
        return bool(fallen({'': c}, self._config.guard.level, count * (count + 1) // 2))

    def _watch_unjudged(self, found: Mapping[str, Change], lacking: Sequence[str]) -> None:
        if lacking:
            told = ', '.join(f'{name} ({found[name].prompts} prompts)' for name in lacking)
            self._alarm(
                f'more than a tenth of the prompts that had {told} at the start lack it now, and '
                'the test sees the others alone: this evaluation cannot be the best'
            )
        if names := [name for name, c in found.items() if math.isnan(c.p)]:
            self._alarm(
                f'fewer than {FEWEST} prompts have {", ".join(names)} at the start and now: '
                'it is not judged'
            )

    def _watch_kl(self, earlier: float | None, now: float | None) -> None:
        if self._divergence and now is None:
            self._alarm('the KL is not finite on any prompt')
        elif earlier and now and now > self._config.guard.kl_jump * earlier:
            self._alarm(f'the KL grew from {earlier:.3g} to {now:.3g} between two evaluations')

    def _kl(self, policy: dict, key: str) -> float | None:
        if self._divergence is None:
            return None
        values = self._divergence(policy, self._record, key, FOLDER, self._psi)
        values = values[np.isfinite(values)]
        return float(values.mean()) if len(values) else None

    def _alarm(self, what: str) -> None:
        logging.warning('guard: %s', what)

    def _judge(
        self,
        row: dict,
        found: Mapping[str, Change],
        trained: Mapping[str, Change],
        start: Evaluation,
        now: Evaluation,
        history: History,
    ) -> None:
        """Tells of the fallen scores of the newest row, and acts if there were enough in a row."""
        g, down, step = self._config.guard, row['fallen'], row['step']
        count = history.fallen_in_a_row
        told = ', '.join(
            f'{name} {found[name].change:+.4f} +- {found[name].error:.4f} (p={found[name].p:.1g})'
            for name in down
        )
        self._alarm(
            f'after {step} updates unseen scores have fallen: {told}; this evaluation cannot be '
            f'the best ({count} in a row)'
        )
        if count < g.patience:
            return
        said = ''
        if g.action == BRAKE:
            row['action'], row['brake'] = BRAKE, row['brake'] * g.factor
            said = f'brake: from now on updates are multiplied by {row["brake"]:g}'
            if g.brake == BETA:
                said = f'brake: from now on loss.beta is {self._config.loss.beta / row["brake"]:g}'
        elif g.action == STOP:
            row['action'] = STOP
            said = 'stop: training ends here; guard.action=warn continues it'
        if said:
            self._alarm(said)
        if self._session.hosts.primary:
            page = write_verdict(
                self._folder,
                step,
                self._config,
                {name: c for name, c in trained.items() if name == TOTAL},
                found,
                down,
                said,
                start,
                now,
                len(found) * planned(self._config),
            )
            logging.warning('guard: the pictures that show it are in %s', page)

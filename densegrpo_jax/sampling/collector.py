"""Sampling with scoring: batches of prompts pass through the jitted rollout; the host scores each
batch while the next one is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple

import jax
import numpy as np

from densegrpo_jax.core.advantages import group_ids_of
from densegrpo_jax.core.rollout import Rollout
from densegrpo_jax.data.prompts import Prompt, columns
from densegrpo_jax.pipelines.base import Conditioning
from densegrpo_jax.rewards.base import RewardError
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.mesh import local_rows
from densegrpo_jax.sampling.conditioning import place
from densegrpo_jax.sampling.process_reward import ProcessReward
from densegrpo_jax.sampling.session import Session


class Pending(NamedTuple):
    """A batch whose images are being scored: the samples that this process scores."""

    future: Future | None  # Scores of S * r images; None if r is 0
    finite: np.ndarray  # bool [S, r]
    places: np.ndarray  # int [r], indices among all samples of the iteration
    # of the first groups, if they are kept: places int [n], images uint8 [S, n, H, W, 3]
    kept: tuple[np.ndarray, np.ndarray] | None = None


class Collector:
    """Samples and scores the prompts of an iteration, `prompts_per_batch` at a time with `group`
    samples each. The images of the first `keep` groups stay in memory. Raises Preempted.
    """

    def __init__(
        self, session: Session, scorer: Scorer, group: int, prompts_per_batch: int, keep: int = 0
    ):
        self._session, self._stop, self._scorer = session, session.stop, scorer
        self._group, self._batch, self._keep = group, prompts_per_batch, keep

    def sample(
        self,
        rollout_fn,
        policy: dict | None,
        chosen: Sequence[Prompt],
        key: np.ndarray,
        noise_levels: np.ndarray,
        *,
        sizes: Sequence[int] | None = None,
        places: Sequence[int] | None = None,
        batch: int = 0,
        process: ProcessReward | None = None,
    ) -> tuple[list[Rollout], list[Pending], Conditioning, np.ndarray]:
        """Starts everything.

        Args:
          rollout_fn: from `make_rollout`; with `sizes` a mapping from the size of a group to it.
            policy, key, noise_levels: its arguments.
          chosen: P prompts.
          sizes: samples of each prompt, equal within a batch; None: `group` of all.
          places: of the prompts in the iteration, on which their noise depends; None: in order.
          batch: prompts sampled together, a divisor of P; 0: as usual.
          process: of rollouts that a process reward guides or scores.

        Returns:
          rollouts: list of Rollout on the devices, one per batch.
          pending: the batches being scored, in the same order.
          conditioning: of all prompts [P, ...].
          group_ids: int32 [samples], the prompt of each sample.
        """
        texts = [p.text for p in chosen]
        conditioning = place(self._session.conditioning, texts, self._session.mesh)
        group_ids = group_ids_of(sizes or [self._group] * len(chosen))
        where = np.arange(len(chosen)) if places is None else np.asarray(places)
        rollouts, pending, waiting, batch = [], [], None, batch or self._batch
        for start in range(0, len(chosen), batch):
            here = np.arange(start, start + batch)
            roll = rollout_fn if sizes is None else rollout_fn[sizes[start]]
            of_batch = policy, texts[start : start + batch], key, where[here], noise_levels
            result = roll(*self.given(*of_batch, process))
            if waiting is not None:
                pending.append(self._submit(*waiting))
            rollouts.append(result[0])
            samples = np.flatnonzero(np.isin(group_ids, here))
            shown = group_ids[samples] < self._keep
            waiting = (*result[1:], samples, [chosen[g] for g in group_ids[samples]], shown)
        pending.append(self._submit(*waiting))
        return rollouts, pending, conditioning, group_ids

    def given(
        self,
        policy: dict | None,
        texts: list[str],
        key: np.ndarray,
        places: np.ndarray,
        noise_levels: np.ndarray,
        process: ProcessReward | None = None,
    ) -> tuple:
        """The arguments of the rollout of a batch of prompts, see `sample`."""
        s = self._session
        conditioning = place(s.conditioning, texts, s.mesh)
        given = s.params, policy, conditioning, s.negative, key, places, noise_levels
        return given if process is None else (*given, process.inputs(texts))

    def _submit(
        self,
        images: jax.Array,
        finite: jax.Array,
        samples: np.ndarray,
        prompts: Sequence[Prompt],
        shown: np.ndarray,
    ) -> Pending:
        """Starts scoring this process's rows of a batch [S, B, ...]. `samples` [B] are the rows'
        indices among the samples of the iteration, `prompts` [B] their prompts, `shown` bool [B]
        whose images are kept.
        """
        images, finite = self._stop.wait((images, finite))
        (rows, images), (_, finite) = local_rows(images, 1), local_rows(finite, 1)
        places = samples[rows]
        repeated = [prompts[i] for i in rows] * images.shape[0]
        pictures = images.reshape(-1, *images.shape[2:])
        future = (
            self._scorer.submit(
                pictures, *columns(repeated), some_valid=False, while_waiting=self._stop.check
            )
            if len(places)
            else None
        )
        keep = shown[rows]
        kept = (places[keep], np.array(images[:, keep])) if keep.any() else None
        return Pending(future, finite, places, kept)

    def scores(
        self, pending: Sequence[Pending], samples: int
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Waits for the scorers of all processes.

        Args:
          pending: from `sample`. samples: their number in all batches together.

        Returns:
          name -> float32 [S, samples], 0 where invalid; and bool [S, samples], which are valid.

        Raises:
          RewardError: no image has a valid score; or the scorer's.
        """
        parts = self._stop.wait([batch.future for batch in pending])
        empty = lambda: np.full((pending[0].finite.shape[0], samples), np.nan, np.float32)
        values, valid = {name: empty() for name in self._scorer.names}, empty()
        for part, (_, finite, places, _) in zip(parts, pending):
            if part is not None:
                scored = part.valid.reshape(finite.shape) & finite
                valid[:, places] = scored
                for name, rows in values.items():
                    rows[:, places] = np.where(scored, part.values[name].reshape(finite.shape), 0)
        # validity travels separately: a score may have any name
        values, valid = self._stop.communicator.merge((values, valid))
        if not (valid == 1).any():  # of all processes: one alone may have a few images
            raise RewardError(f'none of the {valid.size} images could be scored; the log says why')
        return values, valid == 1

"""Sampling with scoring: prompts in batches through the jitted rollout, each scored on the host
while the next one is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from densegrpo_jax.data.prompts import Prompt, columns
from densegrpo_jax.pipelines.base import Conditioning
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.mesh import local_rows
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.conditioning import place
from densegrpo_jax.sampling.conditioning_cache import TextCache


class Collector:
    """Samples and scores the prompts of an iteration, `prompts_per_batch` at a time with `group`
    samples each. Raises Preempted.
    """

    def __init__(
        self, mesh: Mesh, scorer: Scorer, stop: StopRequest, group: int, prompts_per_batch: int
    ):
        self._mesh, self._scorer, self._stop, self._group, self._batch = (
            mesh,
            scorer,
            stop,
            group,
            prompts_per_batch,
        )

    def sample(
        self,
        rollout_fn,
        params,
        adapters,
        encoder: TextCache,
        negative: Conditioning | None,
        chosen: Sequence[Prompt],
        key: np.ndarray,
        noise_levels: np.ndarray,
    ) -> tuple[list, list, Conditioning]:
        """Starts everything.

        Args:
          rollout_fn: of `make_rollout`; key, noise_levels: its arguments.
          chosen: P prompts.

        Returns:
          rollouts: list of DenseRollout on the devices.
          scores: list of (future Scores of this process's S * r pictures or None, finite [S, r],
          their places [r]), in the same order. conditioning: of all prompts [P, ...].
        """
        texts = [p.text for p in chosen]
        conditioning = place(encoder, texts, self._mesh)
        rollouts, scores, waiting = [], [], None
        for start in range(0, len(chosen), self._batch):
            places = np.arange(start, start + self._batch)
            of_batch = place(encoder, texts[start : start + self._batch], self._mesh)
            result = rollout_fn(params, adapters, of_batch, negative, key, places, noise_levels)
            if waiting is not None:
                scores.append(self._submit(*waiting))
            rollouts.append(result[0])
            waiting = (result[1], result[2], chosen, start * self._group)
        scores.append(self._submit(*waiting))
        return rollouts, scores, conditioning

    def _submit(self, images: jax.Array, finite: jax.Array, prompts: Sequence[Prompt], start: int):
        """Starts scoring the rows of a batch that are this process's; `start` is the batch's first
        place among the samples.
        """
        images, finite = self._stop.wait((images, finite))
        (rows, images), (_, finite) = local_rows(images, 1), local_rows(finite, 1)
        places = start + rows
        repeated = [prompts[i // self._group] for i in places] * images.shape[0]
        pictures = images.reshape(-1, *images.shape[2:])
        future = (
            self._scorer.submit(pictures, *columns(repeated), while_waiting=self._stop.check)
            if len(places)
            else None
        )
        return future, finite, places

    def gather(self, scores: list, samples: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Waits for the scorers of all processes: name -> float32 [S, samples] (0 where invalid),
        and the mask of valid scores.
        """
        parts = self._stop.wait([future for future, *_ in scores])
        values = {
            name: np.full((scores[0][1].shape[0], samples), np.nan, np.float32)
            for name in (*self._scorer.names, 'valid')
        }
        for part, (_, finite, places) in zip(parts, scores):
            if part is not None:
                valid = part.valid.reshape(finite.shape) & finite
                values['valid'][:, places] = valid
                for name in self._scorer.names:
                    values[name][:, places] = np.where(
                        valid, part.values[name].reshape(finite.shape), 0
                    )
        values = self._stop.merge(values)
        return values, values.pop('valid') == 1

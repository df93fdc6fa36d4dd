"""How far a policy has moved from its base: their KL along the policy's own noisy trajectories."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.config.plan_keys import AS_TRAJECTORY
from densegrpo_jax.core.grpo_loss import kl_divergence
from densegrpo_jax.core.rollout import Rollout
from densegrpo_jax.core.transitions import transitions
from densegrpo_jax.data.prompts import PromptSet
from densegrpo_jax.evaluation.record import Record
from densegrpo_jax.pipelines.base import Conditioning, Pipeline
from densegrpo_jax.runtime.mesh import batch_shards, replicated
from densegrpo_jax.runtime.streams import STREAM_EVAL, key_data, stream_key
from densegrpo_jax.sampling.noise import calibrated_table
from densegrpo_jax.sampling.policy import policy_velocity, rescore
from densegrpo_jax.sampling.sampler import EXACT, make_rollout
from densegrpo_jax.sampling.schedule import Schedule, make_schedule
from densegrpo_jax.sampling.session import Session

KL = 'kl'


def trajectory(config, pipeline: Pipeline) -> tuple[Any, Schedule]:
    """The configuration and the schedule of single trajectories as in training."""
    single = config.copy_and_resolve_references()
    single.rollout.group = 1
    single.update_from_flattened_dict({**AS_TRAJECTORY, 'credit.rule': 'sparse'})
    return single, make_schedule(pipeline, single)


def evaluations(config, pipeline: Pipeline) -> int:
    """Network evaluations of a prompt's KL: its trajectory, then policy and base on each trained
    transition. With classifier-free guidance each is two.
    """
    plan = trajectory(config, pipeline)[1].plan
    return round(plan.nfe) + 2 * sum(plan.transitions.trained)


class Divergence:
    """KL(policy || base) along trajectories that the policy samples as in training
    (`config.rollout`), one per prompt. Every noisy step has its noise at once, also where those of
    training move (`moving.*`), and there are no branches, trees or drifts.

    A prompt's KL is the mean over the trained transitions of `kl_divergence`, in the form
    'gaussian' whatever `loss.kl_form` says: the squared difference of the means of the two Gaussian
    transitions over 2 std^2, averaged over the elements of the latent. The policy is the one that
    training uses: the guided network, or with `loss.cfg=False` the prompt's own prediction on
    guided samples. Prompt i always has the same noise.

    Args:
      session: holds the prompts' conditioning.
      count: how many prompts, counted from the first.
    """

    def __init__(self, session: Session, prompts: PromptSet, count: int):
        config, pipeline, mesh = session.config, session.pipeline, session.mesh
        self._session, self._prompts, self._count = session, prompts, min(count, len(prompts))
        shards = batch_shards(mesh)  # a batch that does not divide is computed by every device
        self._batch = shards * max(1, min(config.eval.batch, self._count) // shards)
        single, schedule = trajectory(config, pipeline)
        self._rollout, self._config, self._schedule = (
            make_rollout(pipeline, single, schedule, mesh),
            single,
            schedule,
        )
        self._key = key_data(stream_key(config.seed, STREAM_EVAL, 2))

        def divergence(
            params: dict,
            policy: dict,
            conditioning: Conditioning,
            negative: Conditioning | None,
            rollout: Rollout,
        ) -> jax.Array:
            batch = rollout.std.shape[1]
            record = transitions(rollout, {}, np.arange(batch))
            steps = jax.tree.map(lambda a: a.reshape(-1, batch, *a.shape[1:]), record)

            def one_step(t):
                scored = lambda policy: rescore(
                    config,
                    policy_velocity(pipeline, config, params, policy, conditioning, negative),
                    t,
                )
                return kl_divergence(scored(policy), scored(None).mean), t.mask

            kl, mask = jax.lax.map(one_step, steps)
            return jnp.where(mask, kl, 0).sum(0) / jnp.maximum(mask.sum(0), 1)

        self._divergence = jax.jit(
            divergence, out_shardings=replicated(mesh), compiler_options=EXACT
        )

    def __call__(
        self,
        policy: dict | None,
        record: Record | None,
        key: str,
        name: str = 'eval',
        psi: pathlib.Path | None = None,
    ) -> np.ndarray:
        """float32 [N], NaN for prompts that are not among the first `count`; 0 for the base (policy
        None).

        record, key, name: as in `Evaluator`; values in the record are not computed again.
        psi: the file of the policy's run, if the run calibrated first (`noise.calibrate`).
        """
        s, stop = self._session, self._session.stop
        kl = np.full(len(self._prompts), np.nan, np.float32)
        if record is not None:
            kl[: self._count] = [
                record.get(key, name, i).get(KL, np.nan) for i in range(self._count)
            ]
        kl = stop.communicator.merge(kl)
        if policy is None:
            kl[: self._count] = 0
        schedule = self._schedule
        levels = (
            calibrated_table(self._config, schedule.sigmas, schedule.masks, psi)
            if psi
            else schedule.noise_levels
        )
        todo = np.flatnonzero(np.isnan(kl[: self._count]))
        for start in range(0, len(todo), self._batch):
            new = todo[start : start + self._batch]
            rows = np.concatenate(
                [new, (new[-1] + 1 + np.arange(self._batch - len(new))) % self._count]
            )
            conditioning = s.conditioning([self._prompts[int(i)].text for i in rows])
            prompted = s.params, policy, conditioning, s.negative
            rollout, *_ = self._rollout(*prompted, self._key, rows, levels)
            found = np.asarray(stop.wait(self._divergence(*prompted, rollout)))
            for i, value in zip(new, found):
                kl[i] = value
                if record is not None:
                    record.put(key, name, int(i), {KL: float(value)})
        stop.communicator.still_together()  # else one stops in its last wait, and others go on
        return kl

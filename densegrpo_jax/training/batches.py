"""The two kinds of batches that a loss may ask for: transitions of the rollouts, or their final
latents with fresh noise. All differences between them are in this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.config.method import kernel_of, loss_of
from densegrpo_jax.core.clean_samples import (
    CleanSamples,
    NoisedSamples,
    clean_samples,
    noised_rows,
    velocity_difference,
)
from densegrpo_jax.core.grpo_loss import LossSums, kl_sums
from densegrpo_jax.core.losses import CLEAN, TRANSITIONS
from densegrpo_jax.core.rollout import Rollout
from densegrpo_jax.core.rollout_plan import RolloutPlan
from densegrpo_jax.core.sde_step import StepOutput
from densegrpo_jax.core.transitions import OUTCOME, Transitions, transitions
from densegrpo_jax.runtime.streams import STREAM_UPDATE, stream_key
from densegrpo_jax.sampling.policy import rescore


class Credited(NamedTuple):
    """The result of credit for the samples of an iteration."""

    rollout: Rollout
    rewards: jax.Array  # [B] of the samples
    advantages: Mapping[str, jax.Array]  # by name, [N, B] of the transitions
    weight: jax.Array  # [N] step weights
    group_ids: jax.Array  # int32 [B]
    valid: jax.Array  # bool [B]
    chosen: jax.Array | None = None  # int32 [K] the trained transitions, if they change


class Batch(NamedTuple):
    """A kind of batch. A sample may have several rows; the sample is the faster index of the M =
    (rows per sample) x samples rows.
    """

    unit: str  # name of a row, in the plural
    rows: Callable[[Any, RolloutPlan], int]  # (config, plan) -> per sample
    record: Callable[[Credited], Any]  # of an iteration
    rows_of: Callable[[Any, Any], Any]  # (config, record) -> rows [M, ...] with mask and prompt_id
    # (config, record, rows of a microbatch, step) -> the batch that a loss gets
    made: Callable[[Any, Any, Any, jax.Array], Any]
    # (config, velocity function, batch) -> the network's output for it
    output: Callable[[Any, Callable, Any], Any]
    # (config, the policy's output, the reference's, batch) -> KL, its sum and count
    kl: Callable[[Any, Any, Any, Any], tuple[jax.Array, jax.Array]]
    # (sums of the first update, of all updates) -> further metrics
    metrics: Callable[[LossSums, LossSums], Mapping[str, jax.Array]]


def _transitions(c: Credited) -> Transitions:
    options = {'weight': c.weight, 'valid': c.valid, 'chosen': c.chosen}
    return transitions(c.rollout, c.advantages, c.group_ids, **options)


def _kl_of_steps(
    config, step: StepOutput, reference: StepOutput, batch: Transitions
) -> tuple[jax.Array, jax.Array]:
    return kl_sums(
        step,
        reference.mean,
        batch.mask,
        form=config.loss.kl_form,
        noise_level=batch.noise_level,
        kernel=kernel_of(config),
    )


def _ratios(first: LossSums, sums: LossSums) -> dict[str, jax.Array]:
    count = jnp.maximum(sums.policy_count, 1)
    return {
        'clip_fraction': sums.clip_sum / count,
        'clip_fraction_low': sums.clip_low_sum / count,
        'clip_fraction_high': (sums.clip_sum - sums.clip_low_sum) / count,
        'ratio_deviation': sums.ratio_deviation_sum / count,
        # Before anything has changed, the re-scored ratio must be 1: this compares with the
        # sampler's stored log-probability.
        'ratio_deviation_first': first.ratio_deviation_max,
        # Half the mean of (log r)^2. As log r is a mean over n elements, the KL of the update is
        # about n times that per element.
        'approx_kl_old': 0.5 * sums.log_ratio_square_sum / count,
    }


class SampleRows(NamedTuple):
    """M rows of an iteration's samples before they are made. Latents come with their microbatch:
    those of all draws may be gigabytes.
    """

    number: jax.Array  # int32 [M], see `noised_rows`
    mask: jax.Array  # bool [M]
    prompt_id: jax.Array  # int32 [M]
    weight: jax.Array  # [M] `Loss.weights`, else 1


def _sample_rows(config, record: CleanSamples) -> SampleRows:
    weights = loss_of(config).weights
    of_samples = jnp.ones(len(record.mask)) if weights is None else weights(record)
    number = jnp.arange(config.loss.draws * len(record.mask), dtype=jnp.int32)
    at = number % len(record.mask)
    return SampleRows(number, record.mask[at], record.prompt_id[at], of_samples[at])


def _noised(config, record: CleanSamples, rows: SampleRows, step: jax.Array) -> NoisedSamples:
    key = stream_key(config.seed, STREAM_UPDATE, step)
    return noised_rows(record, rows.number, key, rows.weight)


def _clean(c: Credited) -> CleanSamples:
    first = int(np.argmax(c.rollout.plan.transitions.trained))  # a sample's are all equal
    advantages = {OUTCOME: c.advantages[OUTCOME][first]}
    return clean_samples(c.rollout, c.rewards, advantages, c.group_ids, valid=c.valid)


def _kl_of_velocities(
    config, v: jax.Array, v_ref: jax.Array, batch: NoisedSamples
) -> tuple[jax.Array, jax.Array]:
    square = jnp.where(batch.mask, velocity_difference(v, v_ref), 0)
    return square.sum(), batch.mask.sum().astype(square.dtype)


BATCHES = {
    TRANSITIONS: Batch(
        unit='transitions',
        rows=lambda config, plan: sum(plan.transitions.trained),
        record=_transitions,
        rows_of=lambda config, record: record,
        made=lambda config, record, rows, step: rows,
        output=rescore,
        kl=_kl_of_steps,
        metrics=_ratios,
    ),
    CLEAN: Batch(
        unit='samples',
        rows=lambda config, plan: config.loss.draws,
        record=_clean,
        rows_of=_sample_rows,
        made=_noised,
        output=lambda config, velocity, batch: velocity(batch.x, batch.s),
        kl=_kl_of_velocities,
        metrics=lambda first, sums: {},
    ),
}


def carrying_first(parts: SampleRows) -> SampleRows:
    """Rows [updates, accumulation, microbatch] whose first microbatches hold all those of an update
    that carry loss, in their order.
    """
    flat = jax.tree.map(lambda a: a.reshape(len(a), -1), parts)
    order = jnp.argsort(~carries(flat), axis=1, stable=True)
    take = lambda a, part: jnp.take_along_axis(a, order, axis=1).reshape(part.shape)
    return jax.tree.map(take, flat, parts)


def carries(rows: SampleRows) -> jax.Array:
    """Whether a row adds to the loss."""
    return rows.mask & (rows.weight != 0)


def microbatches(
    rows: Any, samples: int, updates: int, microbatch: int, group: int | None = None
) -> Any:
    """Rows [M, ...] of `samples` samples as [updates, accumulation, microbatch, ...]. The samples
    of one prompt stay in one update, and adjacent in a microbatch; with `group`, the samples of a
    prompt, all their rows follow each other too.
    """
    each = jax.tree.leaves(rows)[0].shape[0] // samples

    def split(a):
        a = a.reshape(each, updates, samples // updates, *a.shape[1:])
        a = jnp.swapaxes(a, 0, 1)
        if group is not None:  # [updates, prompts, rows, group, ...]
            a = a.reshape(updates, each, -1, group, *a.shape[3:])
            a = jnp.swapaxes(a, 1, 2)
            return a.reshape(updates, -1, microbatch, *a.shape[4:])
        return a.reshape(updates, -1, microbatch, *a.shape[3:])

    return jax.tree.map(split, rows)

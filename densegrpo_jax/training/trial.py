"""The parts of a method tried on a few numbers, before anything is loaded: a user's own may do
anything.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.config.method import (
    credit_options,
    credit_rule_of,
    kernel_of,
    loss_of,
    loss_options,
    roles_read,
)
from densegrpo_jax.core.branch_plan import BRANCH
from densegrpo_jax.core.clean_samples import CleanSamples, NoisedSamples
from densegrpo_jax.core.dense_reward import dense_reward, needed_states
from densegrpo_jax.core.grpo_loss import LossSums
from densegrpo_jax.core.losses import CLEAN, TRANSITIONS
from densegrpo_jax.core.prediction_rewards import Predictions
from densegrpo_jax.core.roles import POLICY
from densegrpo_jax.core.rollout_plan import check_plan
from densegrpo_jax.core.sde_step import sde_step
from densegrpo_jax.core.transitions import OUTCOME, PROCESS, Transitions
from densegrpo_jax.runtime.named import failure
from densegrpo_jax.sampling.schedule import Schedule
from densegrpo_jax.training.batches import BATCHES

SAMPLES = 3


def try_parts(config, schedule: Schedule) -> None:
    """Tries plan, kernel, noise table, credit rule and loss on the schedule of a run.

    Raises:
      ValueError: a part raises, gives another shape or type, adds no noise to a trained
        transition, or gives one a reward that is not finite; names the key.
    """
    _called(f'plan.kind={config.plan.kind!r}', check_plan, schedule.plan)
    _try_kernel(config, schedule)
    _try_credit(config, schedule)
    _try_loss(config)


def _try_kernel(config, schedule: Schedule) -> None:
    r, sigmas = config.rollout, schedule.sigmas
    if not kernel_of(config).noisy:  # for losses on clean samples
        return
    # compiled once: one by one, its operations would take seconds
    tried = jax.jit(functools.partial(sde_step, kernel=kernel_of(config)))
    x, noise = np.random.default_rng(0).normal(size=(2, SAMPLES, 4)).astype(np.float32)
    for k in np.flatnonzero(schedule.masks.trained):
        level = np.float32(schedule.noise_levels[k])
        at = np.full(SAMPLES, sigmas[k], np.float32)
        where = f'rollout.kernel={r.kernel!r} with rollout.noise={r.noise!r}, transition {k}'
        step = _called(where, tried, -x, x, at, sigmas[k + 1], level, noise=noise)
        mean, std = np.asarray(step.mean), np.asarray(step.std)
        if mean.shape != x.shape or not np.isfinite(mean).all():
            raise ValueError(f'{where}: the mean is not finite or of shape {mean.shape}')
        if not (np.isfinite(std) & (std > 0)).all():
            raise ValueError(
                f'{where}, which is trained: the noise has the standard deviation '
                f'{std.reshape(-1)[0]:g} at the level {level:g}; expected a positive one, or leave '
                'the transition out of the window (rollout.first, rollout.last)'
            )


def _try_credit(config, schedule: Schedule) -> None:
    rule, masks = credit_rule_of(config), schedule.masks
    where = f'credit.rule={config.credit.rule!r}'
    steps = len(masks.trained)
    rng = np.random.default_rng(0)
    rewards = np.full((steps + 1, SAMPLES), np.nan, np.float32)
    read = list(_called(where, needed_states, rule, masks))
    if rule.reads == BRANCH:  # no branch begins at the sample
        read = [k for k in read if k < steps]
    rewards[read] = rng.uniform(0.5, 1, (len(read), SAMPLES))
    similarity = np.linspace(0.1, 1, steps + 1, dtype=np.float32)[:, None] * np.ones(SAMPLES)
    given: dict[str, Any] = {'similarity': similarity} if rule.reads_similarity else {}
    if rule.reads_predictions:  # the anchor is one of those that are scored
        cosines = jnp.asarray(similarity[:-1, :, None] * np.ones(3, np.float32))
        given['predictions'] = Predictions(jnp.zeros((1, SAMPLES), jnp.int32), cosines)
    found = np.asarray(
        _called(where, dense_reward, rewards, rule, **given, **credit_options(config))
    )
    if not np.isfinite(bad := found[masks.trained]).all():
        k = int(np.flatnonzero(masks.trained)[np.argmin(np.isfinite(bad).all(1))])
        raise ValueError(
            f'{where} gives transition {k} a reward that is not finite: it must say which states '
            f'it reads (CreditRule.states); it says {read}, and the others have no reward'
        )


def _try_loss(config) -> None:
    """From shapes alone: whether the loss gives scalar sums for a batch of two groups."""
    loss, kind = loss_of(config), BATCHES[loss_of(config).batch]
    rows = 2 * config.rollout.group
    row = jax.ShapeDtypeStruct((rows,), jnp.float32)
    latent = jax.ShapeDtypeStruct((rows, 4, 2), jnp.float32)
    names = [OUTCOME] if config.credit.process == 'none' else [OUTCOME, PROCESS]
    given: dict[str, Any] = {
        'advantage': dict.fromkeys(names, row),
        'mask': jax.ShapeDtypeStruct((rows,), bool),
        'prompt_id': jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
    where, options = f'loss.kind={config.loss.kind!r}', loss_options(config)
    if loss.weights is not None:
        weights = _called(
            where, jax.eval_shape, loss.weights, CleanSamples(x0=latent, reward=row, **given)
        )
        if weights.shape != row.shape:
            raise ValueError(
                f'{where}: weights gave the shape {weights.shape} for {rows} samples; expected one '
                'of each'
            )
    named = NoisedSamples if loss.batch == CLEAN else Transitions
    for field in named._fields:
        given.setdefault(field, latent if field in ('x', 'x0', 'x_next', 'noise') else row)
    if loss.batch == TRANSITIONS:
        given['mean_old'] = latent if loss.mean_old else None

    def tried(batch):
        output = kind.output(config, lambda x, s: x, batch)
        return loss.fn(dict.fromkeys((POLICY, *roles_read(config)), output), batch, **options)

    found = _called(where, jax.eval_shape, tried, named(**given))
    if not isinstance(found, LossSums):
        raise ValueError(
            f'{where} gave a {type(found).__name__}; expected LossSums, such as '
            'core.losses.loss_sums makes'
        )
    if {*found.sums} != {*loss.sums} or {*found.maxima} != {*loss.maxima}:
        raise ValueError(
            f'{where} gave the metrics {sorted(found.sums)} and {sorted(found.maxima)}; it '
            f'declares {sorted(loss.sums)} and {sorted(loss.maxima)}'
        )
    for field, value in found._asdict().items():
        for part in jax.tree.leaves(value):
            if part.shape:
                raise ValueError(
                    f'{where}: {field} has the shape {part.shape}; expected the sum over a batch, '
                    'a scalar'
                )


def _called(where: str, part, *args, **options) -> Any:
    try:
        return part(*args, **options)
    except Exception as error:  # noqa: BLE001 (somebody's code may raise anything)
        raise ValueError(f'{where}: {failure(error)}') from error

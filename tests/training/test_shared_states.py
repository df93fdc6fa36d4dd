"""An update that evaluates the state which siblings leave once for all of them: the same gradient,
a sixth of the work.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from densegrpo_jax.config.validation import validate
from densegrpo_jax.core.advantages import group_ids_of
from densegrpo_jax.core.branch_plan import branch_plan
from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.schedules import flow_grpo_noise_levels
from densegrpo_jax.planning.flops import count_flops
from densegrpo_jax.sampling.schedule import Schedule
from densegrpo_jax.sampling.state import TrainState
from densegrpo_jax.training.geometry import check_geometry
from densegrpo_jax.training.learner import make_credit, make_update
from tests.meshes import one_device
from tests.training.one_update import (
    BASE,
    FIRST,
    GROUP,
    NOISE,
    PROMPT,
    PROMPTS,
    SIGMAS,
    START,
    STEPS,
    Network,
    configured,
)

LEVELS = flow_grpo_noise_levels(SIGMAS, 0.7)
PLAN = branch_plan(STEPS, range(3), copies=GROUP)
MESH = one_device()


def branches(**changes):
    """A valid configuration of branches, with `changes`."""
    shape = {'plan.kind': 'branch', 'credit.rule': 'branch', 'rollout.shared_noise': True}
    c = configured(**{**shape, 'loss.beta': 0.1, 'optim.microbatch': 12, **changes})
    validate(c)
    return c


def rollout():
    start = jnp.repeat(FIRST.reshape(PROMPTS, GROUP, *FIRST.shape[1:])[:, 0], GROUP, 0)

    def velocity(x, s):
        text = {'pooled': jnp.repeat(jnp.asarray(PROMPT), len(x) // PROMPTS, 0)}
        return Network().velocity_fn({'w': BASE}, {'a': START}, text, 1, 1, 1)(x, s)

    noise = lambda k: jnp.asarray(NOISE)[k]
    return jax.jit(lambda: run_plan(velocity, start, SIGMAS, LEVELS, PLAN, noise))()


def update(share):
    """(moved policy, metrics, operations) of an update after which one sample has no score."""
    c, masks = branches(**{'optim.share_states': share}), step_masks(SIGMAS)
    schedule, sampled = Schedule(SIGMAS, LEVELS, masks, PLAN), rollout()
    rewards = np.asarray(jnp.sin(3 * sampled.completions).mean((2, 3)))
    valid = np.ones(rewards.shape, bool)
    valid[1, GROUP] = False  # the first of its siblings: its latents are 0 in the record
    record, _ = make_credit(c, schedule, MESH)(
        [sampled], rewards, valid, group_ids_of([GROUP] * PROMPTS)
    )
    tx, policy = optax.sgd(1.0), {'a': jnp.asarray(START) + 0.01}
    state = TrainState({'policy': policy, 'ema': policy}, tx.init(policy), *jnp.int32([20, 0]))
    arguments = state, {'transformer': {'w': BASE}}, {'pooled': jnp.asarray(PROMPT)}, None, record
    step = make_update(Network(), c, tx, MESH)
    new, metrics = step(*arguments)
    return np.asarray(new.policy['a']), metrics, count_flops(step.__wrapped__, *arguments)


def test_the_same_gradient_for_a_sixth_of_the_work():
    (alone, one, work), (shared, other, less) = update(False), update(True)
    moved = np.abs(alone - START - 0.01).max()
    assert moved > 1e-3
    np.testing.assert_allclose(shared, alone, atol=1e-6 * moved)
    for name in ('loss', 'kl', 'grad_norm', 'ratio_deviation', 'transitions'):
        np.testing.assert_allclose(other[name], one[name], rtol=1e-5, atol=1e-7, err_msg=name)
    assert one['transitions'] == 3 * (PROMPTS * GROUP - 1)
    assert work == GROUP * less


def test_refused_where_no_state_is_shared():
    with pytest.raises(ValueError, match='do not lie beside each other with one state; use False'):
        branches(**{'plan.kind': 'tree', 'credit.rule': 'sparse', 'optim.share_states': True})
    c = branches(**{'optim.share_states': True, 'optim.microbatch': 9})
    schedule = Schedule(SIGMAS, LEVELS, step_masks(SIGMAS), PLAN)
    with pytest.raises(ValueError, match='whole blocks of the 6 samples that leave one state'):
        check_geometry(c, schedule, MESH)

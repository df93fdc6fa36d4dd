"""One iteration of a network of sixteen numbers, for tests that write its formulas out again."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from densegrpo_jax.config.method import loss_of
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.core.advantages import group_ids_of
from densegrpo_jax.core.dense_reward import needed_states
from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.rollout_plan import state_points, trajectory_plan
from densegrpo_jax.core.schedules import flow_grpo_noise_levels
from densegrpo_jax.pipelines.base import repeat_rows
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.sampling.schedule import Schedule
from densegrpo_jax.sampling.state import TrainState, follow_rules
from densegrpo_jax.training.learner import make_credit, make_update

SIGMAS = np.array([1, 0.9, 0.7, 0.45, 0.2, 0], np.float32)
STEPS, PROMPTS, GROUP, TOKENS, CHANNELS = 5, 4, 6, 3, 4
SAMPLES, TRAINED, CLIP, DECAY = PROMPTS * GROUP, range(4), 2e-3, 0.9
RNG = np.random.default_rng(0)
BASE = RNG.standard_normal((CHANNELS, CHANNELS)).astype(np.float32) / 2
START = RNG.standard_normal((CHANNELS, CHANNELS)).astype(np.float32) * 0.01
PROMPT = RNG.standard_normal((PROMPTS, CHANNELS)).astype(np.float32) * 0.3
NOISE = RNG.standard_normal((STEPS, SAMPLES, TOKENS, CHANNELS)).astype(np.float32)
FIRST = RNG.standard_normal((SAMPLES, TOKENS, CHANNELS)).astype(np.float32)


class Network:
    """A pipeline whose velocity is tanh(x W) + s x + the prompt; W = base + policy."""

    sharding_rules = ()

    def velocity_fn(
        self, base, policy, conditioning, guidance, height, width, *, negative=None, both=False
    ):
        matrix = base['w'] if policy is None else base['w'] + policy['a']
        return lambda x, s: (
            jnp.tanh(x @ matrix) + s[:, None, None] * x + conditioning['pooled'][:, None, :]
        )


def configured(**changes):
    """The configuration of an iteration of this size, with `changes`."""
    c = default_config()
    c.update_from_flattened_dict(
        {
            'rollout.steps': STEPS,
            'rollout.prompts': PROMPTS,
            'rollout.group': GROUP,
            'rollout.prompts_per_batch': PROMPTS,
            'rollout.kernel': 'sde',
            'rollout.noise': 'flow_grpo',
            'rollout.level': 0.7,
            'loss.clip_range': CLIP,
            'credit.std': 'group',
            'optim.microbatch': 6,
            'ema.decay': DECAY,
            'ema.every': 1,
            **changes,
        }
    )
    return c


def sampled(kernel, keep_means, nan, velocity_fn, guide=None):
    """A rollout of the plan of `planned()`. nan, guide: as in `one_iteration`."""
    noise = (
        NOISE
        if nan is None
        else np.where(np.arange(SAMPLES)[:, None, None] == nan, np.float32(np.nan), NOISE)
    )
    repeated = repeat_rows({'pooled': jnp.asarray(PROMPT)}, GROUP)
    sampler = velocity_fn(Network(), {'w': BASE}, {'a': START}, repeated, 1, 1, 1)
    return jax.jit(
        lambda: run_plan(
            sampler,
            FIRST,
            SIGMAS,
            levels_of(kernel),
            planned(),
            lambda k: jnp.asarray(noise)[k],
            kernel=kernel,
            keep_means=keep_means,
            guide=guide,
        )
    )()


_sampled = functools.cache(sampled)  # most iterations begin with one of few rollouts


def levels_of(kernel):
    if kernel == 'sde':
        return flow_grpo_noise_levels(SIGMAS, 0.7)
    return np.full(STEPS, 0.6, np.float32)


def planned():
    masks = step_masks(SIGMAS)
    return trajectory_plan(masks, state_points(needed_states('dense', masks)))


def one_iteration(
    invalid=None, nan=None, ema=0.0, sizes=(1, 1, 1), guide=None, further=(), **changes
):
    """(configuration, rollout, rewards [S, B], valid [S, B], new state, metrics). `nan`: the sample
    whose latents are not finite. `ema`: the followers before it. `sizes`: of the mesh's axes.
    `guide`: of the rollout. `further`: arguments of the update.
    """
    c = configured(**changes)
    guide_steps = () if guide is None else guide.steps
    levels, masks = levels_of(c.rollout.kernel), step_masks(SIGMAS)
    schedule = Schedule(SIGMAS, levels, masks, planned(), guide_steps=guide_steps)
    axes = dict(zip(('data', 'fsdp', 'tensor'), sizes))
    mesh = make_mesh(axes, jax.devices()[: math.prod(sizes)])
    conditioning = {'pooled': jnp.asarray(PROMPT)}
    sampling = c.rollout.kernel, loss_of(c).mean_old, nan, Network.velocity_fn
    rollout = _sampled(*sampling) if guide is None else sampled(*sampling, guide)
    rewards = np.asarray(jnp.sin(3 * rollout.completions).mean((2, 3)))
    valid = np.isfinite(rewards)
    if invalid is not None:
        valid[2, invalid] = False
    rewards = np.where(valid, rewards, 0)
    batch, _ = make_credit(c, schedule, mesh)(
        [rollout], rewards, valid, group_ids_of([GROUP] * PROMPTS)
    )
    tx, policy = optax.sgd(1.0), {'a': jnp.asarray(START)}  # an update is then the gradient itself
    state = TrainState(
        {'policy': policy, **{role: {'a': ema + 0 * policy['a']} for role in follow_rules(c)}},
        tx.init(policy),
        jnp.int32(20),
        jnp.int32(0),
    )
    return (
        c,
        rollout,
        rewards,
        valid,
        *make_update(Network(), c, tx, mesh)(
            state, {'transformer': {'w': BASE}}, conditioning, None, batch, *further
        ),
    )

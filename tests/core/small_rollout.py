"""Rollouts of five steps, whose velocity is a line instead of a network."""

import jax.numpy as jnp
import numpy as np

from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.core.rollout import run_plan
from densegrpo_jax.core.rollout_plan import state_points, trajectory_plan

GRID = np.array([1.0, 0.9, 0.75, 0.5, 0.2, 0.0], np.float32)
T = len(GRID) - 1
LEVELS = np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32)
SHAPE = (4, 3, 5)
PAPER = step_masks(GRID, train_end=True)
DEFAULT = step_masks(GRID)
WINDOW = step_masks(GRID, first=1, last=3)
MASKS = {'paper': PAPER, 'default': DEFAULT, 'window': WINDOW}
WEIGHTS = np.random.default_rng(0).standard_normal((5, 5)).astype(np.float32) / 2
X_INIT = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
NOISE = np.random.default_rng(2).standard_normal((T, *SHAPE)).astype(np.float32)


def velocity(x, s):
    tanh = np.tanh if isinstance(x, np.ndarray) else jnp.tanh
    return tanh(x @ WEIGHTS) + s[:, None, None]


def noise(k):
    return jnp.asarray(NOISE)[k]


def rollout(masks=PAPER, levels=LEVELS, velocity_fn=velocity, complete=(), n=None, **options):
    plan = trajectory_plan(masks, state_points(complete), n)
    return run_plan(velocity_fn, X_INIT, GRID, levels, plan, noise, **options)

"""A flow whose every answer is known: data N(M, TAU^2), the exact velocity, a quadratic reward."""

import jax
import numpy as np

from densegrpo_jax.core.schedules import constant_noise_levels
from densegrpo_jax.core.sde_step import sde_step
from densegrpo_jax.search.loop import Flow, Scored, Walk

M, TAU = 0.6, 0.5
GOAL, WIDTH = 1.4, 0.45  # the reward is -(x - GOAL)^2 / (2 WIDTH^2)


def grid(steps=6):
    return np.linspace(1, 0, steps + 1).astype(np.float32)


@jax.jit
def velocity(x, s):
    variance = (1 - s) ** 2 * TAU**2 + s**2
    return (s - (1 - s) * TAU**2) / variance * (x - (1 - s) * M) - M


def reward(x):
    return -0.5 * ((x - GOAL) / WIDTH) ** 2


class Counted:
    """The velocity, and every row that it was asked for."""

    def __init__(self, sigmas):
        self.sigmas, self.rows = sigmas, []

    def __call__(self, x, k):
        flat = np.asarray(x).reshape(x.shape[0], x.shape[1], -1)
        self.rows += [(k, row.tobytes()) for prompt in flat for row in prompt]
        return velocity(x, self.sigmas[k])


def gaussian_flow(steps=6, *, eta=0.7, r=reward, dim=1, kernel='cps', counted=False, guide=False):
    """A Flow of one-dimensional data (or `dim` independent copies, rewarded by their first)."""
    sigmas = grid(steps)
    levels = constant_noise_levels(sigmas, eta)
    levels[-1] = 0

    def score(x0):
        return Scored(r(np.asarray(x0, np.float64)[..., 0]))

    def both(x, k):
        s = sigmas[k]

        def total(x):
            v = velocity(x, s)
            value = r((x - s * v)[..., 0])
            return value.sum(), (v, value)

        (_, (v, value)), gradient = jax.value_and_grad(total, has_aux=True)(x)
        return v, value, gradient

    network = Counted(sigmas) if counted else lambda x, k: velocity(x, sigmas[k])
    both = jax.jit(both, static_argnums=1) if guide else None
    return Flow(sigmas, levels, kernel, (dim,), network, score, guide=both)


def prompt_keys(prompts, seed=0):
    return np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed), prompts)))


def walk(flow, prompts=1, seed=0, **options):
    return Walk(flow, prompt_keys(prompts, seed), **options)


def base_law(flow):
    """Mean and variance of the sampler's samples: every step is affine plus noise."""
    s, s_next = flow.sigmas[:-1], flow.sigmas[1:]

    def mean(x):
        x = np.full((flow.steps, 1), x, np.float32)
        v = np.asarray(velocity(x, s[:, None]))
        return sde_step(v, x, s, s_next, flow.levels, noise=0 * x, kernel=flow.kernel)

    offset, one = mean(0.0), mean(1.0)
    slope = np.float64(one.mean)[:, 0] - np.float64(offset.mean)[:, 0]
    m, variance = 0.0, 1.0
    for a, b, std in zip(slope, np.float64(offset.mean)[:, 0], np.float64(offset.std)):
        m, variance = a * m + b, a**2 * variance + std**2
    return m, variance


def tilted_law(flow, temperature=1.0):
    """Mean and variance of base law x exp(reward / temperature)."""
    m, variance = base_law(flow)
    precision = 1 / variance + 1 / (WIDTH**2 * temperature)
    return (m / variance + GOAL / (WIDTH**2 * temperature)) / precision, 1 / precision


def assert_law(sample, mean, variance, errors=4.0):
    """The mean and variance of independent draws within so many standard errors."""
    x = np.asarray(sample, np.float64).ravel()
    count = len(x)
    assert abs(x.mean() - mean) < errors * np.sqrt(variance / count), (x.mean(), mean)
    assert abs(x.var() / variance - 1) < errors * np.sqrt(2 / count), (x.var(), variance)

"""Rewards whose parts have known variances."""

import numpy as np

from densegrpo_jax.preflight.credits import Credit
from densegrpo_jax.preflight.signal import Rewards

P, G, T = 160, 8, 4


def planted(
    steps=(0.0, 0.3, 0.0, 1.0), first=0.5, prompt=2.0, error=0.0, seed=0, prompts=P
) -> Rewards:
    """R = a prompt's part + the first noise's + one part of each transition, with these variances.

    A completion of state k holds the parts up to k, and an error of variance `error`.
    """
    rng = np.random.default_rng(seed)
    normal = lambda variance, *shape: np.sqrt(variance) * rng.standard_normal(shape)
    begun = normal(prompt, prompts, 1) + normal(first, prompts, G)
    parts = np.stack([normal(v, prompts, G) for v in steps])
    states = begun + np.concatenate([np.zeros((1, prompts, G)), np.cumsum(parts, 0)])  # [T + 1]
    later = lambda k: sum(normal(v, prompts, G) for v in steps[k:])
    twins = np.stack([states[k] + later(k) for k in range(len(steps))])
    completions = {0: states[:-1].copy(), 1: states[:-1] + normal(error, len(steps), prompts, G)}
    return Rewards(
        states[-1], states[-1], twins, completions, np.ones((len(steps) + 1, prompts, G))
    ).whole()


def credits_of(rewards: Rewards) -> dict:
    """Sparse and dense credit."""
    known = {'sparse': Credit('sparse'), 'dense': Credit('dense'), 'dense 1': Credit('dense', 1)}
    return {name: credit.of(rewards) for name, credit in known.items()}

"""The attention's entropy along the path of every prompt, for what AEGPO (arXiv 2602.06825) chooses
by it. A reconstruction: neither the paper's full text nor its code could be had.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from densegrpo_jax.pipelines.base import Conditioning, Pipeline
from densegrpo_jax.pipelines.inside import probe_fn
from densegrpo_jax.runtime.mesh import replicated
from densegrpo_jax.sampling.sampler import EXACT, filled_rows, normal_rows, sample_keys, split_rows


class Entropies(NamedTuple):
    """At the states x_0 ... x_{T-1} of each prompt's path."""

    policy: np.ndarray  # float32 [T, P], see `pipelines.inside.probe_fn`
    base: np.ndarray | None  # of the base model at the same states; None: not asked for


def make_probe(pipeline: Pipeline, config, sigmas: np.ndarray, mesh: Mesh, *, base: bool):
    """The jitted probe of p prompts.

    The path is one ODE trajectory of the policy per prompt, from the initial noise of its group's
    first sample. With `base` the base model is evaluated at the same states.

    Returns:
      `(params, policy or None, conditioning [p, ...], negative conditioning [1, ...] or None,
      key_data of a key, prompt_places [p]) -> (float32 [T, p], float32 [T, p])`, of the policy and
      of the base model (without `base` the first again), whole on every device.
    """
    m = config.model
    shape, grid = pipeline.latent_shape(m.height, m.width), jnp.asarray(sigmas, jnp.float32)

    def probe(params, policy, conditioning: Conditioning, negative, key, places):
        split, count = lambda x: split_rows(x, mesh), len(places)
        conditioning, places = filled_rows((conditioning, places), mesh)
        text = jax.tree.map(split, conditioning)
        of = lambda role: probe_fn(
            pipeline,
            params['transformer'],
            role,
            text,
            m.guidance,
            m.height,
            m.width,
            negative=negative,
        )
        network, reference = of(policy), of(None)
        keys = sample_keys(jax.random.wrap_key_data(key), places, 1)
        x = pipeline.initial_scale(sigmas) * split(normal_rows(keys, 0, shape))

        def step(x, k):
            s = jnp.broadcast_to(grid[k], x.shape[:1])
            v, entropy = network(x, s)
            there = reference(x, s)[1] if base else entropy
            return x + (grid[k + 1] - grid[k]) * v, (entropy, there)

        found = jax.lax.scan(step, x, jnp.arange(len(sigmas) - 1))[1]
        return jax.tree.map(lambda a: a[:, :count], found)

    return jax.jit(probe, compiler_options=EXACT, out_shardings=replicated(mesh))

"""The `Flow` of a session: the model's velocity, its images, and the reward of a scorer."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from densegrpo_jax.core.kernels import Kernel
from densegrpo_jax.data.prompts import Prompt, columns
from densegrpo_jax.pipelines.base import Conditioning, Pipeline, repeat_rows
from densegrpo_jax.rewards.base import RewardError
from densegrpo_jax.rewards.differentiable import has_gradient, reward_params, scores, text_features
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.mesh import replicated, rows_over
from densegrpo_jax.sampling.conditioning import place
from densegrpo_jax.sampling.guide import PIXELS_WITH_GRADIENT
from densegrpo_jax.sampling.sampler import EXACT, decode_few, filled_rows, in_parts, split_rows
from densegrpo_jax.sampling.session import Session
from densegrpo_jax.search.loop import Flow, Scored


@functools.lru_cache(maxsize=2)
def _programs(
    pipeline: Pipeline, mesh: Mesh, size: tuple[int, int], guidance: float, most: int
) -> tuple:
    """(velocity function, the same jitted, jitted decoding) of a pipeline. Consecutive searches
    share the compiled programs. most: rows of a network call, whose memory grows with them.
    """

    def velocity(params, policy, negative, text, x, s):
        split = lambda rows: split_rows(rows, mesh)
        count = x.shape[0] * x.shape[1]
        parts = math.ceil(count / most)
        of_all = repeat_rows(text, x.shape[1]), x.reshape(-1, *x.shape[2:])
        of_all = filled_rows(of_all, mesh, parts=parts)

        def some(part):
            text, rows = jax.tree.map(split, part)
            network = pipeline.velocity_fn(
                params['transformer'], policy, text, guidance, *size, negative=negative
            )
            return network(rows, jnp.broadcast_to(s, rows.shape[:1]))

        if parts == 1:
            return some(of_all)[:count].reshape(x.shape)
        cut = lambda a: a.reshape(parts, -1, *a.shape[1:])
        v = jax.lax.map(some, jax.tree.map(cut, of_all))
        return v.reshape(-1, *x.shape[2:])[:count].reshape(x.shape)

    def decoded(params, x0):
        prompts, count = x0.shape[:2]
        rows = x0.reshape(1, -1, *x0.shape[2:])
        images = decode_few(pipeline, params, rows, *size, mesh)
        return jax.tree.map(lambda a: a.reshape(prompts, count, *a.shape[2:]), images)

    whole = replicated(mesh)
    step = jax.jit(velocity, out_shardings=whole, compiler_options=EXACT)
    return velocity, step, jax.jit(decoded, out_shardings=whole)


class Model:
    """A session's model with one policy, for searches.

    Args:
      session: with its rollouts' schedule.
      policy: None: the base.
      scorer: of the session's reward; None if nothing is scored.
      kernel: of the steps.
    """

    def __init__(
        self, session: Session, policy: dict | None, scorer: Scorer | None, kernel: Kernel
    ):
        self._session, self._policy, self._scorer = session, policy, scorer
        c, schedule, pipeline = session.config, session.schedule, session.pipeline
        self._kernel = kernel
        self._size = (c.model.height, c.model.width)
        self._levels = np.where(schedule.masks.stochastic, schedule.noise_levels, 0)
        self._fixed = (session.params, policy, session.negative)
        most = rows_over(session.mesh, c.eval.batch)
        shared = _programs(pipeline, session.mesh, self._size, c.model.guidance, most)
        self._velocity_of, self._velocity, self._decode = shared
        whole = replicated(session.mesh)
        self._guide = jax.jit(self._guided, out_shardings=whole, compiler_options=EXACT)
        self._shape = pipeline.latent_shape(*self._size)

    def flow(self, prompts: Sequence[Prompt]) -> Flow:
        """The flow of P prompts."""
        session = self._session
        text = place(session.conditioning, [p.text for p in prompts], session.mesh)
        sigmas = np.asarray(session.schedule.sigmas, np.float32)
        guide = None
        if has_gradient(session.reward):
            features = text_features(session.reward, [q.text for q in prompts])
            # its caller reads the reward: a process must not hang there once another has stopped
            guide = lambda x, k: session.stop.wait(
                self._guide(*self._fixed, text, x, sigmas[k], self._rewards, features)
            )
        return Flow(
            sigmas,
            self._levels,
            self._kernel,
            self._shape,
            lambda x, k: self._velocity(*self._fixed, text, x, sigmas[k]),
            functools.partial(self._score, prompts),
            scale=session.pipeline.initial_scale(sigmas),
            end=session.pipeline.end_scale,
            guide=guide,
        )

    @functools.cached_property
    def _rewards(self) -> list:
        """The weights of the reward's parts on every device of the mesh; the rewards themselves
        hold them only on the devices of their process.
        """
        weights = jax.device_get(reward_params(self._session.reward))
        return jax.device_put(weights, replicated(self._session.mesh))

    def lowered(self, text: Conditioning, x: jax.ShapeDtypeStruct) -> tuple[Any, Any]:
        """The programs that evaluate and decode particles of shape `x` [P, n, ...], ready to
        compile for devices that may be absent. text: shapes of P prompts' conditioning.
        """
        s = jax.ShapeDtypeStruct((), jnp.float32)
        step = self._velocity.lower(*self._fixed, text, x, s)
        return step, self._decode.lower(self._session.params, x)

    def images(self, x0: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [P, n, H, W, 3] of clean latents [P, n, ...], and finite bool [P, n]."""
        pictures = self._session.stop.wait(self._decode(self._session.params, x0))
        return tuple(map(np.asarray, pictures))

    def encode(self, images: np.ndarray) -> jax.Array:
        """Clean latents [B, ...] of images uint8 [B, H, W, 3]."""
        encode = jax.jit(
            lambda params, x: self._session.pipeline.encode_images(params, x, *self._size),
            out_shardings=replicated(self._session.mesh),
        )
        return encode(self._session.params, images)

    def _score(self, prompts: Sequence[Prompt], x0: jax.Array) -> Scored:
        return self.scored(prompts, *self.images(x0))

    def scored(
        self,
        prompts: Sequence[Prompt],
        images: np.ndarray,
        finite: np.ndarray,
        scorer: Scorer | None = None,
    ) -> Scored:
        """Scores of images uint8 [P, n, H, W, 3], invalid where not finite [P, n]; every process
        scores its share.

        Args:
          scorer: of a reward other than the search's.
        """
        session, count, scorer = self._session, images.shape[1], scorer or self._scorer
        stop, hosts = session.stop, session.hosts
        rows = np.arange(len(prompts) * count)
        mine = rows[hosts.index :: hosts.count]
        empty = lambda: np.full(len(rows), np.nan, np.float32)
        values, valid = {name: empty() for name in scorer.names}, empty()
        if len(mine):
            asked = columns([prompts[i // count] for i in mine])
            pictures = images.reshape(-1, *images.shape[2:])[mine]
            how = dict(some_valid=False, while_waiting=stop.check)
            found = stop.wait(scorer.submit(pictures, *asked, **how))
            whole = found.valid & finite.reshape(-1)[mine]
            valid[mine] = whole
            for name, column in values.items():
                column[mine] = np.where(whole, found.values[name], 0)
        # validity travels separately: a score may have any name
        values, valid = stop.communicator.merge((values, valid))
        valid = valid == 1
        values = {name: np.where(valid, v, np.nan) for name, v in values.items()}
        shaped = {name: v.reshape(len(prompts), count) for name, v in values.items()}
        reward = np.where(valid, values[scorer.names[0]], -np.inf).reshape(len(prompts), count)
        return Scored(reward, shaped, images)

    def _guided(self, params, policy, negative, text, x, s, rewards, features):
        """(v, reward of x0hat, its gradient in x through decoder and network), a few rows at a
        time: what a gradient keeps of an image is much of the memory.
        """
        session, (height, width) = self._session, self._size
        pipeline, count = session.pipeline, x.shape[1]

        def total(x, text, features):
            v = self._velocity_of(params, policy, negative, text, x[:, None], s)[:, 0]
            x0 = pipeline.end_scale * (x - s * v)
            unit, finite = pipeline.decode_float(params, x0, height, width)
            value = scores(session.reward, rewards, unit, features)
            value = jnp.where(finite, value, -jnp.inf)
            return jnp.where(jnp.isfinite(value), value, 0).sum(), (v, value)

        def slopes(rows):
            (_, found), gradient = jax.value_and_grad(total, has_aux=True)(*rows)
            return *found, gradient

        text_rows = [jnp.repeat(of, count, axis=0) for of in features]
        rows = x.reshape(-1, *x.shape[2:]), repeat_rows(text, count), text_rows
        rows = jax.tree.map(lambda a: a[None], rows)
        found = in_parts(slopes, rows, session.mesh, PIXELS_WITH_GRADIENT // (height * width))
        return jax.tree.map(lambda a: a.reshape(*x.shape[:2], *a.shape[2:]), found)


def temperature_of(rewards: np.ndarray, way_out: str) -> float:
    """The reward's spread: its standard deviation within a prompt, pooled over prompts, of samples
    [P, n] with n >= 2 (-inf where invalid). way_out: what the error advises.

    Raises:
      RewardError: all rewards are equal, or too few samples have a score.
    """
    valid = np.isfinite(rewards)
    kept = valid.sum(1) > 1
    values = np.where(valid, rewards, np.nan)[kept]
    spread = np.sqrt(np.nanvar(values, axis=1, ddof=1).mean()) if kept.any() else 0.0
    if not spread > 0:
        raise RewardError(
            'the first samples all have the same reward, so temperatures have no unit: '
            f'{way_out}, or use a smoother reward'
        )
    return float(spread)

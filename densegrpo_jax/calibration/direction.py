"""Stage 1 of D2-Align (arXiv 2512.24146): learns one direction in a reward's embedding space from
pictures of the frozen model.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh

from densegrpo_jax.config import identity
from densegrpo_jax.core.direction import guided_text, variance_shares
from densegrpo_jax.data.prompts import Prompt, PromptSet
from densegrpo_jax.rewards.directional import (
    EMBEDDING_REWARDS,
    Direction,
    EmbeddingReward,
    embedding_rewards,
    write_direction,
)
from densegrpo_jax.runtime.batch_store import BatchStore
from densegrpo_jax.runtime.mesh import batch_shards
from densegrpo_jax.runtime.outputs import claim
from densegrpo_jax.runtime.progress import ProgressBar
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.runtime.streams import STREAM_DIRECTION, key_data, stream_key
from densegrpo_jax.sampling.conditioning import content_hash
from densegrpo_jax.sampling.sampler import make_sampler
from densegrpo_jax.sampling.session import Session, check, load

START = 1e-2  # standard deviation of the first direction's entries
BATCHES = 'batches'  # in the work directory: the pictures' embeddings so far
LAST = 0.1  # the result is the best of this last part of the steps


def fit_direction(
    images: np.ndarray,
    texts: np.ndarray,
    *,
    omega: float,
    key: jax.Array,
    steps: int = 2000,
    batch: int = 256,
    learning_rate: float = 1e-3,
    radius: float = 0.0,
    renormalise: bool = False,
    project: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The direction b that maximises the mean of i . e_guided over pairs, by Adam.

    Args:
      images, texts: float32 [N, D], the embeddings of a picture and of its prompt.
      omega, renormalise: as in `guided_text`.
      batch: pairs of a step, drawn with replacement.
      radius: largest |b|, by projection after every step; 0: none.
      project: another projection after every step, [D] -> [D].

    Returns:
      (b [D], the objective of every step's pairs [steps]). b is the best, over all pairs, of the
      last tenth of the steps; 0 if that is better still.
    """
    images, texts = jnp.asarray(images), jnp.asarray(texts)
    adam = optax.adam(learning_rate)

    def objective(b, i, e):
        return (i * guided_text(e, b, omega, renormalise=renormalise)).sum(-1).mean()

    def inside(b):
        b = b if project is None else project(b)
        if not radius:
            return b
        return b * jnp.minimum(1, radius / jnp.maximum(jnp.linalg.norm(b), 1e-12))

    def step(carry, n):
        b, state, best, best_value = carry
        rows = jax.random.randint(jax.random.fold_in(key, n), (batch,), 0, len(images))
        value, gradient = jax.value_and_grad(objective)(b, images[rows], texts[rows])
        updates, state = adam.update(-gradient, state, b)
        b = inside(optax.apply_updates(b, updates))
        whole = jax.lax.cond(
            n >= steps - max(1, int(LAST * steps)),
            lambda b: objective(b, images, texts),
            lambda b: jnp.float32(-jnp.inf),
            b,
        )
        better = whole > best_value
        best, best_value = jnp.where(better, b, best), jnp.where(better, whole, best_value)
        return (b, state, best, best_value), value

    @jax.jit
    def fit(first):
        none = jnp.zeros_like(first)
        start = first, adam.init(first), none, objective(none, images, texts)
        (_, _, best, _), history = jax.lax.scan(step, start, jnp.arange(steps))
        return best, history

    # folded with an index that no step has
    first = START * jax.random.normal(jax.random.fold_in(key, steps), images.shape[1:])
    return jax.device_get(fit(inside(first)))


def check_direction(config) -> str:
    """The key of the reward that a direction is learned for. Raises ValueError if there is none, or
    more than one, or if it is guided already.
    """
    fitting = embedding_rewards(config.reward)
    if len(fitting) != 1:
        raise ValueError(
            f'a direction is learned for one reward that has an embedding '
            f'({", ".join(EMBEDDING_REWARDS)}), and {fitting or "none"} of {[*config.reward]} has '
            'one and a weight: set the others to weight 0, or choose another configuration'
        )
    if config.reward[fitting[0]].get('direction', ''):
        raise ValueError(
            f'reward.{fitting[0]}.direction is set, and a direction is learned for the reward '
            'without one: remove it'
        )
    return fitting[0]


def run(
    config, workdir: pathlib.Path, out: pathlib.Path, mesh: Mesh, stop: StopRequest
) -> Direction:
    """Samples `d2.pictures` of the base model by the ODE, fits the direction and writes `out`.

    Raises:
      ValueError, FileNotFoundError: the configuration, weights or prompts cannot be used.
      Preempted: a stop was requested.
    """
    d, name = config.d2, check_direction(config)
    config.d2.file = ''  # learned for the reward as it is without
    claim(workdir, (), (BATCHES, 'text'), hosts=stop.communicator.hosts)
    checked = check(config, mesh, stop, needs=('train',))
    (reward,) = [part for key, (part, _) in zip(config.reward, checked.reward.parts) if key == name]
    chosen = pictured(checked.train, d.pictures)
    session = load(checked, [p.text for p in chosen], workdir)
    images = _embedded(session, reward, chosen, workdir)
    texts = reward.plain_text([p.text for p in chosen])
    b, history = fit_direction(
        images,
        texts,
        omega=d.omega,
        key=stream_key(config.seed, STREAM_DIRECTION, 1),
        steps=d.steps,
        batch=d.batch,
        learning_rate=d.learning_rate,
        radius=d.radius,
        renormalise=d.renormalise,
    )
    guided = lambda b: np.asarray(guided_text(texts, b, d.omega, renormalise=d.renormalise))
    mean = lambda b: float((images * guided(b)).sum(1).mean())
    shares = variance_shares(images, texts, b, d.omega, renormalise=d.renormalise)
    facts = {
        'norm': float(np.linalg.norm(b)),
        'objective': mean(b),
        'objective_without': mean(np.zeros_like(b)),
        'share_of_text': float(shares.text),
        'share_of_direction': float(shares.direction),
        'pictures': len(images),
    }
    found = Direction(
        b, d.omega, d.renormalise, reward.name, reward.weights_fingerprint(), history, facts
    )
    if session.hosts.primary:
        write_direction(out, found)
    logging.info(
        'direction for %s: |b| = %.3f; mean i.e_guided %.4f, without b %.4f; of its variance '
        '%.0f %% comes from i.e and %.0f %% from i.b; written to %s',
        reward.name,
        facts['norm'],
        facts['objective'],
        facts['objective_without'],
        100 * facts['share_of_text'],
        100 * facts['share_of_direction'],
        out,
    )
    return found


def pictured(prompts: PromptSet, count: int) -> list[Prompt]:
    """The prompts of `count` pictures: all in turn."""
    return [prompts[n % len(prompts)] for n in range(count)]


def _embedded(
    session: Session, reward: EmbeddingReward, chosen: list[Prompt], workdir: pathlib.Path
) -> np.ndarray:
    """float32 [N, D] of one picture of each of the prompts, by the base model; those so far are in
    WORKDIR/batches. Raises ValueError if one is not finite.
    """
    config, shards = session.config, batch_shards(session.mesh)
    batch = max(shards, config.eval.batch // shards * shards)
    sampler = make_sampler(session.pipeline, config, config.eval.steps, session.mesh)
    root = stream_key(config.seed, STREAM_DIRECTION, 0)
    facts = {
        **session.facts(),
        'weights of the embedding': reward.weights_fingerprint(),
        'prompts of the pictures': content_hash(PromptSet(tuple(chosen))),
        'batch': batch,
    }
    settings = identity.record('evaluation', config, facts)
    store, parts = BatchStore(workdir / BATCHES, settings, session.stop.communicator), []
    with ProgressBar(
        math.ceil(len(chosen) / batch), label='pictures', show=session.hosts.primary
    ) as bar:
        for start in range(0, len(chosen), batch):
            if (stored := store.find(len(parts))) is not None:
                parts.append(stored['embeddings'])
                bar.update(len(parts), {})
                continue
            # the last batch is filled up, so that one program serves all
            rows = np.minimum(np.arange(start, start + batch), len(chosen) - 1)
            keys = key_data(jax.vmap(lambda n: jax.random.fold_in(root, n))(rows))
            text = session.conditioning([chosen[n].text for n in rows])
            images, finite = session.stop.wait(
                sampler(session.params, None, text, session.negative, keys)
            )
            count = min(batch, len(chosen) - start)
            if not np.asarray(finite)[:count].all():
                raise ValueError(
                    'the base model draws pictures that are not finite; look at them with '
                    'densegrpo_jax.sample'
                )
            embeddings = reward.embeddings(np.asarray(images)[:count])
            store.put(len(parts), embeddings=embeddings)
            parts.append(embeddings)
            bar.update(len(parts), {})
            session.stop.communicator.exchange()
    return np.concatenate(parts)

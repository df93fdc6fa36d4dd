"""How well one update's gradient aligns with the expected gradient, for every credit rule on the
same trajectories.

Trajectories of the base policy are sampled, every state is completed and scored once, and each rule
makes its gradient from the same rewards. Nothing is trained, so the rules differ only in credit. A
gradient from 24 samples of the miniature has a cosine of about 0.04 with its expectation: to tell
rules apart takes thousands of samples, which means minutes on an accelerator and half an hour or
more on two cores.

Gradients are stored as count sketches (Charikar et al. 2002): every parameter is added, with a
random sign, to one of SKETCH buckets. This keeps inner products without bias, with a relative error
of about 1 / sqrt(SKETCH).
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from densegrpo_jax.config import identity
from densegrpo_jax.data.sampler import prompts_for_step
from densegrpo_jax.rewards.composite import TOTAL
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.batch_store import BatchStore
from densegrpo_jax.runtime.progress import ProgressBar
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.runtime.streams import STREAM_PROBE, key_data, stream_key
from densegrpo_jax.sampling.collector import Collector
from densegrpo_jax.sampling.conditioning import content_hash
from densegrpo_jax.sampling.sampler import make_rollout
from densegrpo_jax.sampling.session import Checked, check, load
from densegrpo_jax.sampling.state import start_state
from densegrpo_jax.training.learner import make_credit, make_update
from experiments.reproduction.figures import VARIANTS
from experiments.reproduction.measuring import (
    every_state_completed,
    measured_config,
    with_overrides,
)

SKETCH = 1 << 16
# its expectation is the policy gradient of the terminal reward, up to the whitening
REFERENCE = 'sparse'
# The variants that use the rewards of complete completions and differ only in credit.
CREDITS = {
    name: changes
    for name, changes in VARIANTS.items()
    if all(key.startswith('credit.') and not key.startswith('credit.completion') for key in changes)
}


def direction(
    config, workdir: pathlib.Path, mesh: Mesh, stop: StopRequest, *, updates: int = 96
) -> list[dict]:
    """A row per credit rule of CREDITS, see `direction_rows`, from `updates` batches of an
    iteration's size, each with different prompts.

    Args:
      config: gives noise, batch, reward and the trained weights.
      workdir: holds the sketches, a file per batch; the same call continues.

    Raises:
      Preempted: a stop was requested.
      ValueError, FileNotFoundError: a setting or file cannot be used.
      RewardError: scores could not be computed.
    """
    config = measured_config(config, stop, {'optim.updates': 1})
    credits = {name: dict(changes) for name, changes in CREDITS.items()}
    checked = check(config, mesh, stop, needs=('train', 'schedule', 'start'))
    facts = {
        'credits': credits,
        **checked.facts(),
        'noise_levels': np.asarray(checked.schedule.noise_levels).tolist(),
        'prompts of data.train': content_hash(checked.train),
    }
    settings = identity.record('gradients', config, facts)
    store = BatchStore(workdir / 'direction', settings)
    todo = [number for number in range(updates) if number not in store]
    if todo:
        session, measure = _prepare(checked, workdir, updates)
        with (
            ProgressBar(updates, start=updates - len(todo), label='gradients') as bar,
            Scorer(session.reward) as scorer,
        ):
            r = config.rollout
            collector = Collector(session, scorer, r.group, r.prompts_per_batch)
            for number in todo:
                store.put(number, **measure(number, collector))
                bar.update(sum(n in store for n in range(updates)))
                stop.check()
    batches = [store.get(number) for number in range(updates)]
    sketches = {name: np.stack([batch[name] for batch in batches]) for name in CREDITS}
    return direction_rows(sketches, config.rollout.prompts * config.rollout.group)


def _prepare(checked: Checked, workdir: pathlib.Path, updates: int):
    """A Session, and (number of a batch, Collector) -> credit rule -> sketch of its gradient."""
    config, mesh, stop = checked.config, checked.mesh, checked.stop
    pipeline, schedule = checked.pipeline, every_state_completed(checked.schedule)
    weights = checked.reward.weights
    chosen = [
        prompts_for_step(checked.train, config.rollout.prompts, n, config.seed)
        for n in range(updates)
    ]
    session = load(checked, [p.text for prompts in chosen for p in prompts], workdir)
    tx = optax.sgd(1.0)  # an update is then the gradient itself
    state = start_state(config, pipeline, tx, mesh, session.params['transformer'])
    rollout_fn, update_fn = (
        make_rollout(pipeline, config, schedule, mesh),
        make_update(pipeline, config, tx, mesh),
    )
    credits = {
        name: make_credit(with_overrides(config, changes), schedule, mesh, weights)
        for name, changes in CREDITS.items()
    }
    difference = jax.jit(lambda after, before: sketch(jax.tree.map(jnp.subtract, after, before)))
    samples = config.rollout.prompts * config.rollout.group

    def measure(number: int, collector: Collector) -> dict[str, np.ndarray]:
        key = key_data(stream_key(config.seed, STREAM_PROBE, number))
        sampled = collector.sample(
            rollout_fn, state.policy, chosen[number], key, schedule.noise_levels
        )
        rollouts, pending, conditioning, group_ids = sampled
        values, valid = collector.scores(pending, samples)
        found = {}
        for name, credit_fn in credits.items():
            of_rewards = {n: values[n] for n in weights}
            batch, _ = credit_fn(rollouts, values[TOTAL], valid, group_ids, of_rewards)
            fresh = jax.tree.map(jnp.copy, state)
            after, _ = update_fn(fresh, session.params, conditioning, session.negative, batch)
            found[name] = np.asarray(stop.wait(difference(after.policy, state.policy)))
        return found

    return session, measure


def sketch(tree, size: int = SKETCH) -> jax.Array:
    """float32 [size]: the count sketch of all leaves, the same hash for every tree of the same
    shapes.
    """
    total = jnp.zeros(size)
    for i, leaf in enumerate(jax.tree.leaves(tree)):
        buckets, signs = jax.random.split(jax.random.fold_in(jax.random.key(0), i))
        flat = leaf.reshape(-1).astype(jnp.float32)
        signed = flat * jax.random.rademacher(signs, flat.shape, jnp.float32)
        total = total.at[jax.random.randint(buckets, flat.shape, 0, size)].add(signed)
    return total


def direction_rows(sketches: Mapping[str, np.ndarray], samples: int) -> list[dict]:
    """Statistics of each rule from the gradients [K, D] of K batches. Intervals are 1.96 standard
    errors of the jackknife over batches.

    Columns, with g a rule's gradient from one batch and h that of REFERENCE:

    * `alignment`: |E g| / sqrt(E |g|^2), about the mean cosine between a gradient and its own
      expectation: noise lowers it.
    * `progress`: E g . E h / (sqrt(E |g|^2) |E h|), about the mean cosine between a gradient and
      the expected policy gradient of the terminal reward: noise and bias lower it. To first order,
      a step of given length raises that reward in proportion to it.
    * `bias`: E g . E h / (|E g| |E h|), the cosine of the two expectations: only bias lowers it.

    Products of expectations are means over pairs of different batches, so that no noise is counted
    as signal.
    """
    rows, h = [], np.asarray(sketches[REFERENCE], np.float64)
    reference = h @ h.T
    for name, sketched in sketches.items():
        g = np.asarray(sketched, np.float64)
        products = g @ g.T, g @ h.T, reference
        values, errors = _jackknife(
            lambda kept: _columns(*(m[np.ix_(kept, kept)] for m in products)), len(g)
        )
        row = {'credit': name}
        for column, value, error in zip(('alignment', 'progress', 'bias'), values, errors):
            row |= {
                column: value,
                f'{column}_low': value - 1.96 * error,
                f'{column}_high': value + 1.96 * error,
            }
        rows.append(row | {'samples': samples, 'batches': len(g)})
    return rows


def _columns(
    own: np.ndarray, shared: np.ndarray, reference: np.ndarray
) -> tuple[float, float, float]:
    """(alignment, progress, bias) from the products of all pairs of batches, [K, K] each: of the
    rule with itself, of the rule with the reference, and of the reference with itself.
    """
    size, own, shared, reference = (
        np.trace(own) / len(own),
        _pairs(own),
        _pairs(shared),
        _pairs(reference),
    )
    root = lambda square: np.sqrt(square) if square > 0 else np.nan
    return (
        root(own) / np.sqrt(size),
        shared / (np.sqrt(size) * root(reference)),
        shared / (root(own) * root(reference)),
    )


def _pairs(products: np.ndarray) -> float:
    """Mean of [i, j] over i != j."""
    count = len(products)
    return float((products.sum() - np.trace(products)) / (count * (count - 1)))


def _jackknife(statistics, count: int) -> tuple[list[float], list[float]]:
    """(values, standard errors) of several statistics of the kept batches, by leaving out one batch
    at a time.
    """
    every = np.arange(count)
    left = np.array([statistics(np.delete(every, i)) for i in every])
    errors = np.sqrt((count - 1) * np.mean((left - left.mean(0)) ** 2, 0))
    return [float(value) for value in statistics(every)], errors.tolist()

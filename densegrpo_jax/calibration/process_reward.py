"""Fits a process reward for rollouts that drift (Euphonium): ridge regression from the frozen base
network's hidden states at noisy latents to the reward of the finished image.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from densegrpo_jax.config import identity
from densegrpo_jax.config.guide_keys import GUIDE
from densegrpo_jax.config.method_keys import CREDIT
from densegrpo_jax.config.moving_keys import UNMOVED
from densegrpo_jax.config.plan_keys import AS_TRAJECTORY
from densegrpo_jax.core.ridge import explained, ridge
from densegrpo_jax.data.prompts import Prompt, PromptSet
from densegrpo_jax.data.sampler import prompts_for_step
from densegrpo_jax.pipelines.base import Conditioning, Pipeline, repeat_rows
from densegrpo_jax.pipelines.inside import hidden_fn
from densegrpo_jax.rewards.base import RewardError
from densegrpo_jax.rewards.composite import TOTAL
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.batch_store import BatchStore
from densegrpo_jax.runtime.mesh import check_batch, replicated
from densegrpo_jax.runtime.outputs import claim
from densegrpo_jax.runtime.progress import ProgressBar
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.runtime.streams import STREAM_PROCESS, key_data, stream_key
from densegrpo_jax.sampling.collector import Collector
from densegrpo_jax.sampling.conditioning import content_hash
from densegrpo_jax.sampling.process_reward import Probe, probe_settings, write_probe
from densegrpo_jax.sampling.sampler import EXACT, make_rollout, split_rows
from densegrpo_jax.sampling.session import Session, check, load

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of `guide.ridge` = 0, for features of variance 1
HELD_OUT = 0.2  # of the prompts
BATCHES = 'batches'  # in the work directory: rollouts so far

# The rollouts that a probe is fitted to: single trajectories of the base, the image scored.
_AS_SAMPLED = {
    **AS_TRAJECTORY,
    **{f'guide.{n}': key.default for n, key in GUIDE.items() if n not in ('samples', 'ridge')},
    **UNMOVED,
    'credit.rule': 'sparse',
    **{f'credit.{n}': CREDIT[n].default for n in ('process', 'process_weight', 'outcome_weight')},
}


class Rows(NamedTuple):
    """The states of N rollouts, of groups of samples of one prompt."""

    hidden: np.ndarray  # float32 [T+1, N, D]
    reward: np.ndarray  # float32 [N]
    prompt: np.ndarray  # int [N] which of the distinct prompts
    group: np.ndarray  # int [N]


class Fit(NamedTuple):
    """A fitted probe and what it explains on prompts that were held out."""

    hidden: np.ndarray  # float32 [D]
    time: np.ndarray  # float32 [3], of (1, s, s^2)
    penalty: float
    explained: np.ndarray  # [T+1] R^2 at each state
    within: np.ndarray  # [T+1] the same, of deviations from a group's mean


def fit_probe(rows: Rows, sigmas: np.ndarray, penalties: Sequence[float]) -> Fit:
    """Ridge regression of rewards on [hidden, s, s^2], all states together.

    With several penalties the one is taken that explains most, within groups, of prompts that are
    held out; the result is fitted to all rows with it.

    Args:
      sigmas: the grid [T+1].

    Raises:
      RewardError: all rewards are equal.
    """
    states, count, size = rows.hidden.shape
    if not np.ptp(rows.reward) > 0:
        raise RewardError(
            f'all {count} samples have the same reward, {rows.reward[0]:g}: there is nothing to '
            'fit; use a smoother reward, or more guide.samples'
        )
    s = np.asarray(sigmas, np.float32)[:, None, None] * np.ones((1, count, 1), np.float32)
    features = np.concatenate([rows.hidden, s, s**2], -1)
    last = max(1, round(HELD_OUT * (rows.prompt.max() + 1)))
    held = rows.prompt > rows.prompt.max() - last
    flat = lambda which: features[:, which].reshape(-1, size + 2)
    targets = lambda which: np.tile(rows.reward[which], states)
    weights, intercepts = ridge(flat(~held), targets(~held), penalties)
    predicted = [
        (flat(held) @ w.astype(np.float32) + np.float32(b)).reshape(states, -1)
        for w, b in zip(weights, intercepts)
    ]
    groups = np.unique(rows.group[held], return_inverse=True)[1]
    reward = rows.reward[held]
    within = [np.array([explained(reward, at, groups) for at in p]) for p in predicted]
    best = int(np.argmax([np.nan_to_num(each, nan=-np.inf).mean() for each in within]))
    overall = np.array([explained(reward, at) for at in predicted[best]])
    everything = np.ones(count, bool)
    (w,), (b,) = ridge(flat(everything), targets(everything), [penalties[best]])
    time = np.array([b, *w[-2:]], np.float32)
    return Fit(w[:-2].astype(np.float32), time, penalties[best], overall, within[best])


def run(config, workdir: pathlib.Path, out: pathlib.Path, mesh: Mesh, stop: StopRequest) -> Probe:
    """Samples `guide.samples` rollouts of the base model, fits the probe and writes `out`.

    Raises:
      ValueError, FileNotFoundError: the configuration, weights or prompts cannot be used.
      RewardError: rewards could not be computed, or all are equal. Preempted: a stop was requested.
    """
    sized = config.copy_and_resolve_references()
    with sized.unlocked():
        sized.update_from_flattened_dict(_AS_SAMPLED)
    claim(workdir, (), (BATCHES, 'text'), hosts=stop.communicator.hosts)
    checked = check(sized, mesh, stop, needs=('train', 'schedule'))
    r = sized.rollout
    check_batch(mesh, r.prompts_per_batch * r.group, 'rollout.prompts_per_batch * rollout.group')
    batches = batches_of(sized, checked.train)
    texts = dict.fromkeys(p.text for batch in batches for p in batch)
    session = load(checked, texts, workdir)
    settings = probe_settings(
        sized, session.folder, session.pipeline, session.schedule.sigmas, session.reward
    )
    rows = _sampled(session, batches, list(texts), _store(session, workdir))
    sigmas, given = session.schedule.sigmas, sized.guide.ridge
    found = fit_probe(rows, sigmas, (given,) if given else PENALTIES)
    facts = {'samples': float(len(rows.reward)), 'penalty': found.penalty}
    for k, s in enumerate(sigmas):
        facts[f'explained at s = {s:.4f}'] = found.explained[k]
        facts[f'explained within prompts at s = {s:.4f}'] = found.within[k]
    probe = Probe(found.hidden, found.time, settings, facts)
    if session.hosts.primary:
        write_probe(out, probe)
    for line in report(found, sigmas, len(rows.reward)):
        logging.info('%s', line)
    logging.info('process reward written to %s', out)
    return probe


def report(fit: Fit, sigmas: np.ndarray, count: int) -> list[str]:
    """The result in lines: R^2 at every noise level, on prompts that were held out."""
    lines = [
        f'{count} rollouts, penalty {fit.penalty:g}; R^2 on held-out prompts, over all samples and '
        'within a prompt:'
    ]
    return lines + [
        f'  state {k}, s = {s:.3f}: {whole:6.3f} {within:6.3f}'
        for k, (s, whole, within) in enumerate(zip(sigmas, fit.explained, fit.within))
    ]


def batches_of(config, train: PromptSet) -> list[list[Prompt]]:
    """The prompts that are sampled together, `rollout.prompts_per_batch` in each batch.

    Raises:
      ValueError: fewer than two prompts differ, so that none can be held out.
    """
    r = config.rollout
    seed = int(np.random.SeedSequence([config.seed, STREAM_PROCESS]).generate_state(1)[0])
    count = max(2, math.ceil(config.guide.samples / (r.prompts_per_batch * r.group)))
    batches = [prompts_for_step(train, r.prompts_per_batch, i, seed) for i in range(count)]
    if len({p.text for batch in batches for p in batch}) < 2:
        raise ValueError(
            'data.train has a single prompt; a probe is fitted on some prompts and judged on others'
        )
    return batches


def make_hidden(pipeline: Pipeline, config, sigmas: np.ndarray, mesh: Mesh):
    """The jitted hidden states of trajectories: `(params, conditioning [p, ...], latents
    [T+1, p * G, ...]) -> float32 [T+1, p * G, D]`, whole on every device.
    """
    m, group = config.model, config.rollout.group

    def hidden(params, conditioning: Conditioning, latents):
        split = lambda x: split_rows(x, mesh)
        text = jax.tree.map(split, repeat_rows(conditioning, group))
        states = hidden_fn(pipeline, params['transformer'], text, m.guidance, m.height, m.width)
        levels = jnp.asarray(sigmas, jnp.float32)
        at = lambda x, s: states(split(x), jnp.broadcast_to(s, x.shape[:1]))
        return jax.lax.map(lambda given: at(*given), (latents, levels))

    return jax.jit(hidden, compiler_options=EXACT, out_shardings=replicated(mesh))


def _store(session: Session, workdir: pathlib.Path) -> BatchStore:
    """The batches so far. A fit to more of them goes on with these."""
    r = session.config.rollout
    facts = {
        **session.facts(),
        'prompts of data.train': content_hash(session.train),
        'noise levels': session.schedule.noise_levels.tolist(),
        'batch': [r.prompts_per_batch, r.group],
    }
    settings = identity.record('rewards', session.config, facts)
    return BatchStore(workdir / BATCHES, settings, session.stop.communicator)


def _sampled(
    session: Session, batches: list[list[Prompt]], texts: list[str], store: BatchStore
) -> Rows:
    """Rollouts of the base model with their hidden states and rewards; those without a valid reward
    are left out.
    """
    config, schedule, pipeline = session.config, session.schedule, session.pipeline
    r = config.rollout
    rollout = make_rollout(pipeline, config, schedule, session.mesh)
    hidden = make_hidden(pipeline, config, schedule.sigmas, session.mesh)
    number = {text: i for i, text in enumerate(texts)}
    parts = []
    with (
        Scorer(session.reward, config.reward_workers) as scorer,
        ProgressBar(len(batches), label='rollouts', show=session.hosts.primary) as bar,
    ):
        collector = Collector(session, scorer, r.group, r.prompts_per_batch)
        for i, chosen in enumerate(batches):
            if (stored := store.find(i)) is not None:
                parts.append(Rows(**stored))
                bar.update(i + 1, {})
                continue
            key = key_data(stream_key(config.seed, STREAM_PROCESS, i))
            rollouts, pending, conditioning, ids = collector.sample(
                rollout, None, chosen, key, schedule.noise_levels
            )
            states = hidden(session.params, conditioning, rollouts[0].latents)
            values, valid = collector.scores(pending, len(ids))
            keep = np.flatnonzero(valid[-1])
            found = np.asarray(session.stop.wait(states))[:, keep]
            prompts = np.array([number[chosen[g].text] for g in ids])
            reward = values[TOTAL][-1]
            parts.append(Rows(found, reward[keep], prompts[keep], (i * len(chosen) + ids)[keep]))
            if len(keep):  # else the reward may have failed
                store.put(i, **parts[-1]._asdict())
            bar.update(i + 1, {'reward': float(reward[keep].mean()) if len(keep) else 0.0})
            session.stop.communicator.exchange()
    if not any(len(part.reward) for part in parts):
        raise RewardError('no image of the base model has a valid reward; the log says why')
    hidden_rows, *others = zip(*parts)
    return Rows(np.concatenate(hidden_rows, 1), *(np.concatenate(column) for column in others))

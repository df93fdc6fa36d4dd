"""Measurements of a policy that need no training, on its own trajectories:

* `latent_rewards`: how well the reward of every state's completion predicts the terminal reward
  (the paper's Fig. 8).
* `bias`: how far that reward, the value of the deterministic policy, is from the policy's own
  value, and what this means for credit.
* `cost`: how well cheaper completions preserve the rewards and gains of complete ones.

Each takes `(config, workdir, mesh, stop)` and returns rows, a dict per line of a table
(`probe_statistics`). Prompts are those that training begins with; noise levels are the
configuration's. The policy is the base, or a checkpoint as `densegrpo_jax.evaluate` chooses it. Raw
rewards are stored in WORKDIR/probe, a file per batch in a folder per setting: a stopped measurement
continues, and results of other settings (or other weights) are not mixed in. For one process.
"""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from densegrpo_jax.config import identity
from densegrpo_jax.core.dense_reward import state_rewards
from densegrpo_jax.data.prompts import columns
from densegrpo_jax.data.sampler import prompts_for_step
from densegrpo_jax.evaluation.panel import Policy
from densegrpo_jax.rewards.composite import TOTAL
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.batch_store import BatchStore
from densegrpo_jax.runtime.progress import ProgressBar
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.runtime.streams import STREAM_PROBE, key_data, stream_key
from densegrpo_jax.sampling.conditioning import content_hash, place
from densegrpo_jax.sampling.loading import load_policy, weights_digest
from densegrpo_jax.sampling.sampler import make_rollout
from densegrpo_jax.sampling.schedule import Schedule, make_schedule
from densegrpo_jax.sampling.session import Session, check, load
from experiments.reproduction.continuations import make_continuations
from experiments.reproduction.measuring import (
    COMPLETE,
    every_state_completed,
    measured_config,
    with_overrides,
)
from experiments.reproduction.probe_statistics import (
    Method,
    bias_rows,
    cost_rows,
    latent_reward_rows,
)

BASE = Policy('base')
EXACT_METHOD = 'n = t'  # every remaining grid point
# Name -> its changes to a configuration with complete completions.
METHODS = {
    EXACT_METHOD: {},
    'n = 3': {'credit.completion_steps': 3},
    'n = 2': {'credit.completion_steps': 2},
    'n = 1': {'credit.completion_steps': 1},
    'every 2nd state': {'credit.completion_every': 2},
    'every 2nd state, n = 2': {'credit.completion_every': 2, 'credit.completion_steps': 2},
}
# elements stored of every latent, to check that two methods completed the same trajectories
_MARKS = 64
# tolerance, relative to the latents' size: other noise differs by 1, other rounding by far less
_SAME = 0.05


def latent_rewards(
    config,
    workdir: pathlib.Path,
    mesh: Mesh,
    stop: StopRequest,
    *,
    policy: Policy = BASE,
    prompts: int = 32,
) -> list[dict]:
    """A row per state of `rollout.group` trajectories of each prompt, see
    `probe_statistics.latent_reward_rows`.

    Args:
      config: gives the noise, the group, the reward and the training prompts; its credit does not
        matter.
      workdir: holds the raw rewards.
      policy: samples the trajectories.
      prompts: number of prompts.

    Raises:
      Preempted: a stop was requested; the same call continues.
      ValueError, FileNotFoundError: a setting or file cannot be used.
      RewardError: scores could not be computed.
    """
    probe = _Probe(config, workdir, mesh, stop, policy, prompts)
    schedule = every_state_completed(probe.schedule)
    return latent_reward_rows(
        probe.measure('latent rewards', probe.config, schedule).rewards, schedule.sigmas
    )


def bias(
    config,
    workdir: pathlib.Path,
    mesh: Mesh,
    stop: StopRequest,
    *,
    policy: Policy = BASE,
    prompts: int = 32,
    samples: int = 4,
    continuations: int = 8,
) -> list[dict]:
    """A row per state, see `probe_statistics.bias_rows`, from `samples` trajectories of each prompt
    and stochastic continuations of each of their states; the other arguments and errors as in
    `latent_rewards`.
    """
    probe = _Probe(config, workdir, mesh, stop, policy, prompts, {'rollout.group': samples})
    schedule = every_state_completed(probe.schedule)
    found = probe.measure('bias', probe.config, schedule, continuations)
    return bias_rows(found.rewards, found.continued, schedule.sigmas, found.states)


def cost(
    config,
    workdir: pathlib.Path,
    mesh: Mesh,
    stop: StopRequest,
    *,
    policy: Policy = BASE,
    prompts: int = 32,
    methods: Mapping[str, Mapping] = METHODS,
) -> list[dict]:
    """A row per method of completion, see `probe_statistics.cost_rows`; the other arguments and
    errors as in `latent_rewards`.

    Args:
      methods: name -> overrides of configuration keys, on top of dense credit with complete
        completions; `METHODS` has examples. `EXACT_METHOD`, without overrides, is always measured.
        Methods with more steps than a trajectory are left out.

    Raises:
      ValueError: a method did not complete the same trajectories.
    """
    probe, found = _Probe(config, workdir, mesh, stop, policy, prompts), {}
    for name, overrides in {EXACT_METHOD: {}, **methods}.items():
        if overrides.get('credit.completion_steps', 0) >= config.rollout.steps:
            continue
        variant = with_overrides(probe.config, overrides)
        found[name] = probe.measure(name, variant, make_schedule(probe.pipeline, variant))
        check_same_trajectories(name, found[name].marks, found[EXACT_METHOD].marks)
    table = {name: Method(f.calls, f.rewards) for name, f in found.items()}
    return cost_rows(table, EXACT_METHOD, probe.schedule.masks.trained, found[EXACT_METHOD].states)


def check_same_trajectories(name: str, marks: np.ndarray, expected: np.ndarray) -> None:
    """Raises ValueError if latents [..., T+1, B] are not those of the method that they are compared
    with.
    """
    difference, size = (
        float(np.abs(marks - expected).max()),
        float(np.sqrt(np.mean(np.square(expected)))),
    )
    if not difference <= _SAME * size:
        raise ValueError(
            f'method {name!r} changed the trajectories themselves, not only their completions: '
            f'latents of size {size:.3g} differ by {difference:.3g}. A method may override how '
            'states are completed (credit.completion_...), but nothing that samples'
        )


class _Found(NamedTuple):
    """Raw results of a measurement."""

    rewards: np.ndarray  # [T+1, P, G]; NaN where a state was not completed or not scored
    # [T+1, P, G, C]; the terminal reward where nothing random is left
    continued: np.ndarray | None
    states: tuple[int, ...]  # states whose completions are distinct and not the sample
    calls: int  # network evaluations per sample, without continuations
    marks: np.ndarray  # [_MARKS, T+1, B] elements of the latents


class _Probe:
    """A policy, its prompts and the store of their raw rewards. Weights are loaded on the first
    missing batch.
    """

    def __init__(
        self,
        config,
        workdir: pathlib.Path,
        mesh: Mesh,
        stop: StopRequest,
        policy: Policy,
        prompts: int,
        overrides: Mapping = {},
    ):
        if config.noise.calibrate:
            raise ValueError(
                'noise.calibrate=True makes a noise table in training: to measure with it give '
                'noise.psi_path=RUN/psi.json'
            )
        self.config = measured_config(config, stop, overrides)
        self._workdir, self._mesh, self._stop = pathlib.Path(workdir), mesh, stop
        self._checked = check(self.config, mesh, stop, needs=('train', 'schedule'))
        self.pipeline, self.schedule = self._checked.pipeline, self._checked.schedule
        self._prompts = prompts_for_step(self._checked.train, prompts, 0, self.config.seed)
        self._policy = None
        if policy.workdir is not None:
            self._policy, _ = load_policy(
                self.pipeline, self.config, mesh, policy.workdir, str(policy.step)
            )
        # As many rows at once as in training, whatever the group here.
        most = max(
            1, config.rollout.prompts_per_batch * config.rollout.group // self.config.rollout.group
        )
        self._batch = max(n for n in range(1, min(most, prompts) + 1) if prompts % n == 0)

    @functools.cached_property
    def _session(self) -> Session:
        return load(self._checked, [p.text for p in self._prompts], self._workdir)

    def measure(self, label: str, config, schedule: Schedule, continuations: int = 0) -> _Found:
        """Samples and scores missing batches, one by one. Raises Preempted."""
        store = BatchStore(self._workdir / 'probe', self._settings(config, schedule, continuations))
        starts = range(0, len(self._prompts), self._batch)
        todo = [start for start in starts if start not in store]
        if todo:
            sample = self._sampler(config, schedule, continuations)
            waiting, done = None, len(starts) - len(todo)
            bar = ProgressBar(len(starts), start=done, label=label)
            with Scorer(self._checked.reward, self.config.reward_workers) as scorer, bar:

                def keep(start: int, arrays: dict, future, finite: np.ndarray) -> None:
                    scores = self._stop.wait(future)
                    valid = scores.valid.reshape(finite.shape) & finite
                    scored = np.where(
                        valid, scores.values[TOTAL].reshape(finite.shape), np.nan
                    ).astype(np.float32)
                    own = len(scored) - continuations * (len(arrays['states']) - 1)
                    store.put(start, **arrays, values=scored[:own], continued=scored[own:])
                    bar.update(
                        sum(s in store for s in starts),
                        {'reward': float(np.nanmean(scored[own - 1]))},
                    )

                for start in todo:
                    arrays, images, finite = sample(np.arange(start, start + self._batch))
                    chosen = [
                        self._prompts[start + i // config.rollout.group]
                        for i in range(images.shape[1])
                    ] * len(images)
                    pictures = images.reshape(-1, *images.shape[2:])
                    future = scorer.submit(
                        pictures, *columns(chosen), while_waiting=self._stop.check
                    )
                    if waiting is not None:
                        keep(*waiting)
                    waiting = (start, arrays, future, finite)
                keep(*waiting)
        return self._assemble(config, [store.get(start) for start in starts], continuations)

    def _sampler(self, config, schedule: Schedule, continuations: int):
        """places [p] -> (arrays to keep, images uint8 [S + (S-1) C, B, H, W, 3], finite): of the
        S completions, then of every completed state's continuations."""
        s = self._session
        rollout = make_rollout(self.pipeline, config, schedule, self._mesh)
        follow = (
            make_continuations(self.pipeline, config, schedule, self._mesh, continuations)
            if continuations
            else None
        )
        key = lambda number: key_data(stream_key(config.seed, STREAM_PROBE, number))

        def sample(places: np.ndarray):
            conditioning = place(
                s.conditioning, [self._prompts[i].text for i in places], self._mesh
            )
            result, *drawn = rollout(
                s.params,
                self._policy,
                conditioning,
                s.negative,
                key(0),
                places,
                schedule.noise_levels,
            )
            drawn = [jax.device_get(self._stop.wait(drawn))]
            for k in result.plan.states[:-1] if continuations else ():
                more = follow(
                    s.params,
                    self._policy,
                    conditioning,
                    s.negative,
                    key(1 + k),
                    places,
                    schedule.noise_levels,
                    result.latents[k],
                    k,
                )
                drawn.append(jax.device_get(self._stop.wait(more)))
            images, finite = (np.concatenate(parts) for parts in zip(*drawn))
            flat = result.latents.reshape(*result.latents.shape[:2], -1)
            arrays = {
                'marks': np.moveaxis(
                    np.asarray(flat[..., :: math.ceil(flat.shape[-1] / _MARKS)]), -1, 0
                ),
                'states': np.array(result.plan.states),
                'sources': np.array(result.plan.sources_of()),
                'calls': np.array(result.nfe * (1 + (s.negative is not None))),
            }
            return arrays, images, finite

        return sample

    def _assemble(self, config, batches: list[dict], continuations: int) -> _Found:
        whole = {
            name: np.concatenate([b[name] for b in batches], axis=-1)
            for name in ('values', 'continued', 'marks')
        }
        first, shape = batches[0], (len(self._prompts), config.rollout.group)
        states, sources = first['states'][:-1], first['sources']
        rewards = np.asarray(
            state_rewards(whole['values'], sources, interpolate=config.credit.completion_every > 1)
        ).reshape(-1, *shape)
        continued = None
        if continuations:
            of_state = np.moveaxis(
                whole['continued'].reshape(len(states), continuations, *shape), 1, -1
            )
            of_state = np.concatenate(
                [of_state, np.broadcast_to(rewards[-1][None, ..., None], (1, *of_state.shape[1:]))]
            )
            continued = of_state[sources]
        return _Found(
            rewards, continued, tuple(int(k) for k in states), int(first['calls']), whole['marks']
        )

    def _settings(self, config, schedule: Schedule, continuations: int) -> dict:
        """Everything that the raw rewards of a batch depend on."""
        facts = {
            **self._checked.facts(),
            'policy': weights_digest(self._policy),
            'train': config.data.train,
            'group': config.rollout.group,
            'batch': self._batch,
            'completion': {
                key: config.credit[key]
                for key, value in COMPLETE.items()
                if config.credit[key] != value
            },
            'complete': [point.k for point in schedule.plan.points],
            'noise_levels': np.asarray(schedule.noise_levels).tolist(),
            'continuations': continuations,
            'prompts': content_hash(self._prompts),
        }
        return identity.record('rewards', config, facts)

"""The sampling of an iteration: what is compiled once, and what changes between iterations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from densegrpo_jax.config.moving_keys import ENTROPY, budget_sizes
from densegrpo_jax.core.budget import entropy_change, smoothed, split_budget, top_steps
from densegrpo_jax.core.rollout import Rollout
from densegrpo_jax.data.prompts import Prompt
from densegrpo_jax.pipelines.base import Conditioning, Pipeline
from densegrpo_jax.runtime.mesh import batch_shards
from densegrpo_jax.runtime.streams import STREAM_ROLLOUT, STREAM_STEPS, key_data, stream_key
from densegrpo_jax.sampling.collector import Collector, Pending
from densegrpo_jax.sampling.conditioning import place
from densegrpo_jax.sampling.cost import SampleCost, probe_evaluations, probed
from densegrpo_jax.sampling.guide import guide_maker, process_cost
from densegrpo_jax.sampling.probe import Entropies, make_probe
from densegrpo_jax.sampling.sampler import make_rollout
from densegrpo_jax.sampling.schedule import Schedule, restricted
from densegrpo_jax.sampling.session import Session
from densegrpo_jax.training.ahead import Foreseen
from densegrpo_jax.training.geometry import samples_at_once
from densegrpo_jax.training.learner import make_credit
from densegrpo_jax.training.progress import Progress


class Round(NamedTuple):
    """An iteration whose images are being scored."""

    rollouts: list[Rollout]
    pending: list[Pending]
    conditioning: Conditioning  # [P, ...] in the order of the groups
    group_ids: np.ndarray  # int32 [samples]
    prompts: list[Prompt]  # of the groups
    chosen: np.ndarray | None  # int [K] the trained transitions, if the credit takes them
    credit: Callable  # from `make_credit`, without its last argument
    nfe: int  # network evaluations
    entropy: list | None  # for `Progress`, once the iteration is complete
    metrics: dict[str, np.ndarray]


def check_rounds(config, pipeline: Pipeline, schedule: Schedule, mesh: Mesh) -> None:
    """Raises ValueError if the attention must be probed and cannot be, or if groups of two sizes
    do not divide over the mesh.
    """
    if probed(config, schedule).policy:
        pipeline.image_tokens(config.model.height, config.model.width)
    shards, r = batch_shards(mesh), config.rollout
    sizes = budget_sizes(r.group, config.budget.ratio)
    if config.budget.by != 'none' and not _batches(sizes, config, shards):
        raise ValueError(
            f'budget.by={config.budget.by!r} makes groups of {sizes[0]} and {sizes[1]} samples, '
            f'of which at most {samples_at_once(config)} are sampled together with '
            f'rollout.prompts_per_batch={r.prompts_per_batch}: they do not divide over {shards} '
            'devices; change rollout.prompts_per_batch, budget.ratio, rollout.group or the mesh'
        )


class Rounds:
    """Samples iterations.

    Trained transitions that change are arguments of one pair of programs. Only if credit reads
    completions, and the transitions beside the chosen ones are silent, every choice has a pair of
    its own: its plan does not complete what is known to be equal. Groups of two sizes have a
    rollout each.
    """

    def __init__(self, session: Session, schedule: Schedule, collector: Collector):
        self._session, self._schedule, self._collector = session, schedule, collector
        self._plans: dict[tuple[int, ...] | None, Schedule] = {None: schedule}
        self._rollouts: dict[tuple, Callable] = {}
        self._credits: dict[tuple[int, ...] | None, Callable] = {}
        self._process_nfe: dict[tuple[int, ...] | None, float] = {}  # of a sample
        self._probe_nfe = probe_evaluations(session.config, schedule)  # of a prompt
        self._process = session.process_reward
        models, parts = probed(session.config, schedule), (session.pipeline, session.config)
        self._probe = None
        if models.policy:
            self._probe = make_probe(*parts, schedule.sigmas, session.mesh, base=models.base)

    def sample(
        self, iteration: int, policy: dict | None, prompts: Sequence[Prompt], progress: Progress
    ) -> Round:
        """Starts sampling and scoring of an iteration, 0 for the first.

        Args:
          policy: that samples. prompts: P. progress: the run's, after the iteration before.
        """
        config, moving = self._session.config, self._schedule.moving
        key = self._key(iteration)
        found, entropy, metrics = None, None, {}
        if self._probe is not None:
            found = self._entropies(policy, prompts, key)
            metrics['entropy'] = found.policy.mean(1)
        steps = None
        if moving is not None and moving.choose is not None:
            steps = moving.choose(iteration)
        elif moving is not None:
            average = smoothed(progress.entropy, found.policy.mean(1), config.moving.smooth)
            entropy = average.tolist()
            steps = top_steps(average, moving.allowed, moving.count)
        fixed, levels, options = self._of_steps(steps)
        credit = functools.partial(self._credit(fixed), **options)
        rollout = lambda group: self._rollout(fixed, group)
        change = None
        if found is not None and found.base is not None:
            relative = config.budget.relative
            change = entropy_change(found.policy, found.base, relative=relative)
            metrics['entropy_change'] = np.float64(change.mean())
        sizes = group_sizes(config, iteration, len(prompts), change)
        order, batch, each = list(range(len(prompts))), 0, [config.rollout.group] * len(prompts)
        if sizes is not None:
            order, batch = paired(sizes, config, batch_shards(self._session.mesh))
            each = [int(sizes[p]) for p in order]
        parts = self._collector.sample(
            {size: rollout(size) for size in dict.fromkeys(each)},
            policy,
            [prompts[p] for p in order],
            key,
            levels,
            sizes=each,
            places=order,
            batch=batch,
            process=self._process,
        )
        rollouts, ids = parts[0], parts[3]
        of_all = SampleCost(  # of all samples together; their images are counted nowhere
            sum(round(r.nfe * r.std.shape[1]) for r in rollouts),
            images=0,
            probe=self._probe_nfe * len(prompts),
            process=self._process_evaluations(fixed) * len(ids),
        )
        nfe = int(of_all.network(self._session.negative is not None))
        of_groups = [prompts[p] for p in order]
        return Round(*parts, of_groups, options.get('chosen'), credit, nfe, entropy, metrics)

    def foreseen(
        self, iteration: int, policy: dict | None, prompts: Sequence[Prompt]
    ) -> Foreseen | None:
        """What `sample` will call, if that is known before the iteration."""
        s, config, moving = self._session, self._session.config, self._schedule.moving
        if self._probe is not None or config.budget.by != 'none':
            return None
        fixed, levels, options = self._of_steps(moving and moving.choose(iteration))
        texts, batch = [p.text for p in prompts], config.rollout.prompts_per_batch
        places = np.arange(batch)
        key = self._key(iteration)
        given = self._collector.given(policy, texts[:batch], key, places, levels, self._process)
        conditioning = place(s.conditioning, texts, s.mesh)
        rollout, scores = self._rollout(fixed, config.rollout.group), tuple(s.reward.weights)
        return Foreseen(rollout, given, self._credit(fixed), scores, options, conditioning)

    def _key(self, iteration: int) -> np.ndarray:
        return key_data(stream_key(self._session.config.seed, STREAM_ROLLOUT, iteration))

    def _of_steps(
        self, steps: np.ndarray | None
    ) -> tuple[tuple[int, ...] | None, np.ndarray, dict]:
        """What an iteration that trains on the transitions `steps` (None: the plan's) calls: (those
        of programs of its own or None, noise levels [T], last arguments of the credit).
        """
        moving, levels = self._schedule.moving, self._schedule.noise_levels
        if steps is None:
            return None, levels, {}
        if moving.own_plans:
            return tuple(map(int, steps)), levels, {}
        return None, moving.levels(levels, steps), {'chosen': steps}

    def _entropies(
        self, policy: dict | None, prompts: Sequence[Prompt], key: np.ndarray
    ) -> Entropies:
        s, batch = self._session, self._session.config.rollout.prompts_per_batch
        parts = []
        for start in range(0, len(prompts), batch):
            here = np.arange(start, start + batch)
            text = place(s.conditioning, [prompts[p].text for p in here], s.mesh)
            parts.append(self._probe(s.params, policy, text, s.negative, key, here))
        policy_rows, base_rows = zip(*jax.device_get(s.stop.wait(parts)))
        base = np.concatenate(base_rows, 1) if s.config.budget.by == ENTROPY else None
        return Entropies(np.concatenate(policy_rows, 1), base)

    def _rollout(self, fixed: tuple[int, ...] | None, group: int) -> Callable:
        if (fixed, group) not in self._rollouts:
            s, config = self._session, self._session.config
            if group != config.rollout.group:
                config = config.copy_and_resolve_references()
                config.rollout.group = group
            parts, guide = (s.pipeline, config, self._plan(fixed), s.mesh), ()
            if self._process is not None:
                guide = (guide_maker(*parts, self._process.reward),)
            self._rollouts[fixed, group] = make_rollout(*parts, *guide)
        return self._rollouts[fixed, group]

    def _credit(self, fixed: tuple[int, ...] | None) -> Callable:
        if fixed not in self._credits:
            s = self._session
            self._credits[fixed] = make_credit(
                s.config, self._plan(fixed), s.mesh, s.reward.weights
            )
        return self._credits[fixed]

    def _process_evaluations(self, fixed: tuple[int, ...] | None) -> float:
        if fixed not in self._process_nfe:
            found = process_cost(self._session.config, self._plan(fixed))
            self._process_nfe[fixed] = found.evaluations
        return self._process_nfe[fixed]

    def _plan(self, fixed: tuple[int, ...] | None) -> Schedule:
        if fixed not in self._plans:
            config = self._session.config
            self._plans[fixed] = restricted(config, self._schedule, np.array(fixed))
        return self._plans[fixed]


def group_sizes(
    config, iteration: int, prompts: int, change: np.ndarray | None = None
) -> np.ndarray | None:
    """int [P] samples of each prompt: half of the prompts have the larger groups, those on which
    the attention has moved most, or of budget.by='random' any. None: all have rollout.group.

    Args:
      change: [P], `entropy_change`; None of the control, which depends on seed and iteration alone.
    """
    b = config.budget
    if b.by == 'none' or iteration < b.warmup:
        return None
    sizes = budget_sizes(config.rollout.group, b.ratio)
    if sizes[0] == sizes[1]:
        return None
    if b.by == 'random':
        key = jax.random.fold_in(stream_key(config.seed, STREAM_STEPS, iteration), 1)
        change = np.asarray(jax.random.permutation(key, prompts))
    return split_budget(change, *sizes)


def paired(sizes: np.ndarray, config, shards: int) -> tuple[list[int], int]:
    """An order of the prompts in which every update has as many small groups as large ones, and the
    number of prompts to sample together: of one size, dividing over `shards`.

    Args:
      sizes: [P], two different values, each of half of the prompts.
    """
    low, high = int(sizes.min()), int(sizes.max())
    small, large = (np.flatnonzero(sizes == size).tolist() for size in (low, high))
    share = len(small) // config.optim.updates
    order = [
        p
        for start in range(0, len(small), share)
        for part in (small, large)
        for p in part[start : start + share]
    ]
    return order, max(_batches((low, high), config, shards))


def _batches(sizes: tuple[int, int], config, shards: int) -> list[int]:
    """Numbers of prompts of one size that can be sampled together, dividing over `shards`: of no
    more samples than a batch of equal groups has, but at least one prompt.
    """
    share = config.rollout.prompts // (2 * config.optim.updates)
    most = samples_at_once(config) // max(sizes)
    fitting = [b for b in range(1, most + 1) if share % b == 0]
    return [b for b in fitting if all(b * size % shards == 0 for size in sizes)]

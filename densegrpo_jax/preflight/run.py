"""The preflight of a configuration: measure, reckon, write. Measured prompts are kept, so that a
stopped preflight continues.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from densegrpo_jax.calibration.loop import one_step
from densegrpo_jax.config import identity
from densegrpo_jax.config.method import kernel_of
from densegrpo_jax.data.prompts import Prompt, PromptSet
from densegrpo_jax.data.sampler import some_prompts
from densegrpo_jax.guard.check import GuardCost, check_guard, guard_cost
from densegrpo_jax.preflight import COARSE, page
from densegrpo_jax.preflight.costs import costs, of_branches, of_run, passes
from densegrpo_jax.preflight.credits import candidates, not_measured, own_credit
from densegrpo_jax.preflight.findings import Images, findings, prices
from densegrpo_jax.preflight.groups import balance, kept, spread, without_spread
from densegrpo_jax.preflight.measure import Spent, measure, velocities
from densegrpo_jax.preflight.record import FILE, Record, joined
from densegrpo_jax.preflight.record import row as row_of
from densegrpo_jax.preflight.signal import Rewards, decided, signals
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.agreement import Agreement
from densegrpo_jax.runtime.mesh import batch_shards, check_batch
from densegrpo_jax.runtime.outputs import claim
from densegrpo_jax.runtime.progress import ProgressBar
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.runtime.streams import STREAM_PREFLIGHT, key_data, stream_key
from densegrpo_jax.sampling.conditioning import content_hash
from densegrpo_jax.sampling.session import (
    Checked,
    Session,
    check_parts,
    check_weights,
    load,
    start_policy,
)
from densegrpo_jax.sampling.state import start_digest
from densegrpo_jax.search.model import Model

SHOWN = 6  # prompts with pictures


def run(
    config,
    out: pathlib.Path,
    mesh: Mesh,
    stop: StopRequest,
    *,
    prompts: int,
    group: int,
    coarse: Sequence[int] = COARSE,
) -> dict[str, Any]:
    """Measures and writes OUT/preflight.json and the page; returns the document.

    Args:
      prompts, group: how many prompts, with how many samples each.
      coarse: steps of the completions measured beside those of all steps; those of as many steps or
        more are left out.

    Raises:
      Preempted: a stop was requested; measured prompts are kept.
      ValueError, FileNotFoundError: the configuration cannot be used.
    """
    files = FILE, page.FILE, page.PAGE
    claim(out, files, ('images', 'text'), hosts=stop.communicator.hosts)
    also = {'--prompts': prompts, '--group': group, '--completions': [*coarse]}
    checked = check_parts(config, mesh, stop, needs=('train', 'test', 'schedule', 'start'))
    schedule = checked.schedule
    if not kernel_of(config).noisy:
        raise ValueError(
            f'rollout.kernel={config.rollout.kernel!r} adds no noise, so no transition decides '
            "anything: give --config.rollout.kernel='sde' to measure the reward"
        )
    check_batch(mesh, group, '--group')
    guarded = check_guard(checked)
    check_weights(checked, also=also)
    chosen = some_prompts(checked.train, prompts, config.seed, STREAM_PREFLIGHT)
    _, mine = own_credit(config)
    counts = sorted({0, *(n for n in coarse if n < config.rollout.steps), mine.completion_steps})
    each = velocities(_stochastic(checked), counts) * passes(config, checked.pipeline)
    logging.info(
        '%d prompts x %d samples with their twins and completions: %d network evaluations',
        len(chosen),
        group,
        each * len(chosen) * group,
    )
    with Agreement(checked.hosts, 'preflight').alike():
        record = None
        if checked.hosts.primary:
            facts = {
                'prompts': content_hash(PromptSet(tuple(chosen))),
                'group': group,
                'completions': counts,
                'psi': [float(level) for level in schedule.noise_levels],
                **checked.facts(),
            }
            if config.lora.init_from:
                facts['adapters of the start'] = start_digest(config, checked.pipeline)
            record = Record(out, identity.record('rewards', config, facts), shown=SHOWN)
    session = load(checked, [p.text for p in chosen], out)
    rewards, scores, speed = _measured(session, chosen, group, counts, record)
    guard = guard_cost(checked, guarded) if guarded else None
    document = reckoned(session, rewards, scores, speed, guard)
    if record is not None:
        made = page.write(out, document, [p.text for p in chosen], record)
        for line in page.lines(document):
            logging.info('%s', line)
        logging.info('made %s', ', '.join(map(str, made)))
    return document


def _stochastic(checked: Checked) -> np.ndarray:
    """bool [T]: the transitions that add noise."""
    s = checked.schedule
    return s.masks.stochastic & kernel_of(checked.config).adds_noise(s.sigmas, s.noise_levels)


def _measured(
    session: Session, chosen: list[Prompt], group: int, counts: list[int], record: Record | None
):
    """As `record.joined`, in network evaluations. Every process measures; the primary one keeps."""
    config, stop = session.config, session.stop
    r, communicator = config.rollout, session.stop.communicator
    # at least two batches: the first one compiles, and its seconds do not count
    together = max(1, min(r.prompts_per_batch * r.group // group, -(-len(chosen) // 2)))
    together = next(
        n for n in range(together, 0, -1) if n * group % batch_shards(session.mesh) == 0
    )
    done = np.zeros(len(chosen), bool)
    if record is not None:
        done[:] = [i in record.prompts for i in range(len(chosen))]
    done = np.frombuffer(communicator.exchange(done.tobytes())[0], bool)
    todo = np.flatnonzero(~done)
    key = stream_key(config.seed, STREAM_PREFLIGHT, 0)
    numbers = np.arange(len(chosen) + together)  # also of the rows that fill the last batch
    keys = key_data(jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers))
    wait = functools.partial(stop.wait, poll_seconds=1e-3)  # what it waits for is timed
    with (
        Scorer(session.reward, config.reward_workers) as scorer,
        ProgressBar(
            len(chosen), start=len(chosen) - len(todo), label='prompts', show=record is not None
        ) as bar,
    ):
        model = Model(session, start_policy(session), scorer, kernel_of(config))
        for start in range(0, len(todo), together):
            new = todo[start : start + together]
            # a last batch is filled up, so that one compiled shape serves all
            fill = min(together, len(todo)) - len(new)
            flow = model.flow([chosen[i] for i in [*new, *[new[-1]] * fill]])
            # with noise of their own, as equal images would be scored once, and counted twice
            drawn = keys[[*new, *range(len(chosen), len(chosen) + fill)]]
            pictures = int(new[0]) < SHOWN
            how = dict(shared_noise=r.shared_noise, pictures=pictures)
            batch = measure(flow, drawn, group, counts, wait, **how)
            warm = start > 0  # the first batch compiles
            for place, i in enumerate(new):
                if record is not None:
                    record.put(int(i), row_of(batch, place, warm), batch, place)
            bar.update(len(chosen) - len(todo) + start + len(new))
            communicator.exchange()
    shared = communicator.of_primary(None if record is None else record.prompts)
    rewards, scores, speed = joined({int(i): row for i, row in shared.items()})
    return rewards, scores, speed._replace(nfe=speed.nfe * passes(config, session.pipeline))


def reckoned(
    checked: Checked, rewards: Rewards, scores: dict, speed: Spent, guard: GuardCost | None = None
) -> dict[str, Any]:
    """The document: every measured number, the costs of a run, and the findings.

    Args:
      scores: name -> [P, G]. speed: evaluations and images with their seconds. guard: of a run
        with one.
    """
    config, schedule, pipeline = checked.config, checked.schedule, checked.pipeline
    trained, whole, noisy = schedule.masks.trained, rewards.whole(), _stochastic(checked)
    own, mine = own_credit(config)
    known = candidates(rewards.completions) | {own: mine}
    found = signals(whole, {name: c.of(whole) for name, c in known.items()}, trained, own)
    priced = costs(config, pipeline, known, own)
    used, count = float(np.isfinite(whole.terminal).mean()), len(rewards.terminal)
    images = Images(rewards.failed(noisy), used, count)
    one, parts, ups = spread(rewards.terminal), decided(whole, trained), balance(whole)
    without = without_spread(rewards, noisy, config.rollout.group)
    whole_run = of_run(config, pipeline, priced[own], speed, len(checked.test), guard)
    branches = of_branches(config, pipeline)
    levels = np.where(noisy, schedule.noise_levels, 0)
    ranks, size = kept(whole, trained), config.rollout.group
    return {
        'label': config.label,
        'prompts': count,
        'group': rewards.terminal.shape[1],
        'trained_group': size,
        'without_spread': without._asdict(),
        'shared_noise': bool(config.rollout.shared_noise),
        'reward': {
            'mean': float(np.nanmean(rewards.terminal)),
            **one._asdict(),
            'scores': {name: float(np.nanmean(values)) for name, values in scores.items()},
        },
        'images': images._asdict(),
        'decided': parts._asdict(),
        'trained': trained.tolist(),
        'rank_correlation': ranks.rank,
        'rank_below_full': ranks.below,
        'cheapest_completion': ranks.cheapest,
        'gains': {'positive': ups[0].tolist(), 'negative': ups[1].tolist()},
        'noise_levels': levels.tolist(),
        'calibrated_once': one_step(config, levels, *ups, trained).tolist(),
        'calibration_z': config.calibration.z,
        'own': own,
        'signal': found.signal,
        'signal_parts': found.parts,
        'signal_squares': found.squares,
        'credits': [p._asdict() | {'cost': p.cost._asdict()} for p in prices(found, priced, speed)],
        'branches': None if branches is None else branches._asdict(),
        'not_measured': not_measured(config),
        'run': whole_run._asdict()
        | {'iterations': config.iterations, 'device_hours': whole_run.hours * checked.mesh.size},
        'speed': speed._asdict(),
        'peak_gib': _peak_gib(checked.mesh),
        'findings': [
            f._asdict() for f in findings(images, one, parts, found, trained, without, size)
        ],
    }


def _peak_gib(mesh: Mesh) -> float | None:
    """Peak memory of the first device; None where it keeps no count."""
    stats = mesh.local_devices[0].memory_stats() or {}
    peak = stats.get('peak_bytes_in_use')
    return None if peak is None else peak / 2**30

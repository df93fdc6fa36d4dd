"""Evaluates several policies on the same prompts and noise: every score, diversity, KL, and their
tables and sheets.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from densegrpo_jax.config.method import kernel_of
from densegrpo_jax.evaluation import tables
from densegrpo_jax.evaluation.divergence import KL, Divergence, trajectory
from densegrpo_jax.evaluation.diversity import make_embedding
from densegrpo_jax.evaluation.evaluator import Evaluation, Evaluator, check_group
from densegrpo_jax.evaluation.panel import PANEL, SETS, Policy, parts, record_of
from densegrpo_jax.evaluation.record import FILE as RECORD
from densegrpo_jax.evaluation.record import FOLDERS
from densegrpo_jax.rewards.base import RewardError
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.hosts import Hosts
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.outputs import claim
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.conditioning import check_prompts, content_hash, load_panel_prompts
from densegrpo_jax.sampling.diagnosis import explain
from densegrpo_jax.sampling.loading import check_policy, load_policy, weights_digest
from densegrpo_jax.sampling.noise import FILE, calibrated_table
from densegrpo_jax.sampling.sampler import make_sampler
from densegrpo_jax.sampling.session import Checked, check_parts, check_weights, load


def evaluate(
    config,
    policies: Sequence[Policy],
    out: pathlib.Path,
    *,
    group: int = 1,
    kl_prompts: int = 0,
    restart: bool = False,
    mesh: Mesh | None = None,
    stop: StopRequest | None = None,
) -> dict[str, dict[str, Evaluation]]:
    """Prompt set -> policy -> Evaluation. The primary process also writes it to `out`, and a later
    call continues from there.

    Args:
      group: images per prompt; with more than one, diversity is measured.
      kl_prompts: how many of the evaluation's prompts the KL is measured on; 0: none.
      restart: forget what `out` has.
      stop: the stop request, and the processes; None: this process alone.

    Raises:
      Preempted: a stop was requested.
      RewardError: no image of a policy has a certain score.
      ValueError, FileNotFoundError: an argument or file cannot be used.
    """
    if not policies:
        raise ValueError('nothing to score: --nobase and no --checkpoint')
    hosts = stop.communicator.hosts if stop else None
    made = tables.files(SETS, [chosen.label for chosen in policies])
    claim(out, (RECORD, *made), FOLDERS, hosts=hosts)
    check_group(group, config, '--group')
    found = {chosen.label: chosen.step for chosen in policies}  # by each process for itself
    also = {'--checkpoint': found, '--group': group, '--kl_prompts': kl_prompts}
    if (panel := load_panel_prompts(config)) is not None:
        also['prompts of eval.panel_prompts'] = content_hash(panel)
    needs = ('test', 'schedule') if config.noise.psi_path else ('test',)
    checked = check_parts(config, mesh or make_mesh(config.mesh), stop, needs=needs)
    which = parts(config, checked.test, checked.reward)
    if PANEL in which:
        check_prompts(checked.pipeline, which[PANEL].prompts, 'eval.panel_prompts')
    check_weights(checked, also=also)
    count = _measured(config, policies, kl_prompts)
    trained = any(chosen.workdir is not None for chosen in policies)
    base, adapters = checked.base_digest if trained else None, {}
    opened = lambda run: (checked.pipeline, config, checked.mesh, run.workdir, str(run.step), base)
    for chosen in policies:
        if chosen.workdir is not None and config.full:
            check_policy(checked.pipeline, config, chosen.workdir, str(chosen.step))
        elif chosen.workdir is not None:
            # now: a run that goes on removes its earlier checkpoints
            adapters[chosen] = _kept(load_policy(*opened(chosen))[0], checked.hosts)
        if count and (psi := _psi(config, chosen)):
            _check_psi(checked, psi)
    record = record_of(checked, which, group, out, 'record', restart=restart)
    embed = make_embedding(config.eval.embedding) if group > 1 else None
    texts = [p.text for part in which.values() for p in part.prompts]
    session = load(checked, texts, out)
    pipeline, mesh, results = session.pipeline, session.mesh, {name: {} for name in which}
    with contextlib.ExitStack() as stack:
        scorer = lambda reward: stack.enter_context(Scorer(reward, config.reward_workers))
        evaluators, sample = {}, make_sampler(pipeline, config, config.eval.steps, mesh)
        for name, part in which.items():
            scorers = [scorer(reward) for reward in part.rewards]
            options = dict(group=group, embed=embed, name=name, sample=sample)
            evaluators[name] = Evaluator(session, part.prompts, scorers, **options)
        divergence = Divergence(session, checked.test, count) if count else None
        for chosen in policies:
            policy, key = None, 'base'
            if chosen.workdir is not None:
                anew = lambda run=chosen: load_policy(*opened(run))[0]  # all weights, when needed
                policy = adapters.pop(chosen, anew)()
                key = f'step {chosen.step} {weights_digest(policy)}'
            for name, evaluator in evaluators.items():
                result = results[name][chosen.label] = evaluator(policy, record, key)
                if not any(np.isfinite(values).any() for values in result.scores.values()):
                    explain(session, policy, [p.text for p in which[name].prompts])
                if divergence and name == 'eval':
                    psi = _psi(config, chosen)
                    result.scores[KL] = divergence(policy, record, key, psi=psi)
                if empty := [n for n, values in result.scores.items() if np.isnan(values).all()]:
                    raise RewardError(
                        f'{chosen.label}, {name}: not one image has a score {empty[0]!r}; the '
                        'log says why'
                    )
                logging.info('%s, %s: %s', chosen.label, name, _line(result))
    if session.hosts.primary:
        tables.write(out, config, {name: part.prompts for name, part in which.items()}, results)
    return results


def _measured(config, policies: Sequence[Policy], kl_prompts: int) -> int:
    """The number of prompts whose KL is measured: 0 without a policy, or without noise in the
    transitions, which is said.
    """
    if not any(chosen.workdir for chosen in policies):
        return 0
    if kl_prompts and not kernel_of(config).noisy:
        logging.warning(
            'the KL is not measured: it compares noisy transitions, and rollout.kernel=%r adds no '
            "noise; --config.rollout.kernel='sde' measures it there",
            config.rollout.kernel,
        )
        return 0
    return kl_prompts


def _psi(config, chosen: Policy) -> pathlib.Path | None:
    """The file of the noise that a policy's KL is measured with, if its run calibrated first."""
    return chosen.workdir / FILE if config.noise.calibrate and chosen.workdir else None


def _kept(policy: dict, hosts: Hosts) -> Callable[[], dict]:
    """Places a policy as it was. Until then it takes no memory of the devices, if this process has
    all of it.
    """
    if hosts.count > 1:
        return lambda: policy
    placed, values = jax.tree.map(lambda leaf: leaf.sharding, policy), jax.device_get(policy)
    return lambda: jax.device_put(values, placed)


def _check_psi(checked: Checked, path: pathlib.Path) -> None:
    """Raises ValueError if there is no psi file, or it is of another schedule."""
    single, schedule = trajectory(checked.config, checked.pipeline)
    try:
        calibrated_table(single, schedule.sigmas, schedule.masks, path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f'{error}. With noise.calibrate=True the KL of a policy is measured with the noise of '
            'its run; --kl_prompts=0 leaves the KL out'
        ) from None


def _line(evaluation: Evaluation) -> str:
    return ', '.join(
        f'{n} {evaluation.mean(n):.4f} +- {evaluation.standard_error(n):.4f}'
        for n in evaluation.scores
    )

"""Command: is the attention's entropy worth what AEGPO (reconstructed) builds on it? Entropy of a
step against what the step gains, and a prompt's change of entropy against the spread of its
rewards.

    python -m experiments.entropy --config=configs/tiny_ocr.py --workdir=runs/entropy \\
        --checkpoint=runs/tiny_ocr:latest --prompts=32

Samples `rollout.group` trajectories of each prompt with the policy, completes and scores all their
states, probes the attention along one ODE path per prompt, and prints the table of `relations`.
AEGPO is a reconstruction here (densegrpo_jax/sampling/probe.py). For one process. Exit status as
`densegrpo_jax.main`.
"""

from __future__ import annotations

import functools
import pathlib

import numpy as np
from absl import flags, logging
from scipy.stats import spearmanr

from densegrpo_jax.config.command_line import define_run_flags, run_main
from densegrpo_jax.config.flag_types import define_whole
from densegrpo_jax.core.budget import entropy_change
from densegrpo_jax.core.dense_reward import state_rewards
from densegrpo_jax.evaluation.panel import choose
from densegrpo_jax.rewards.composite import TOTAL
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.markdown import table
from densegrpo_jax.runtime.streams import STREAM_PROBE, key_data, stream_key
from densegrpo_jax.sampling.collector import Collector
from densegrpo_jax.sampling.conditioning import place
from densegrpo_jax.sampling.execution import execute
from densegrpo_jax.sampling.loading import load_policy
from densegrpo_jax.sampling.probe import make_probe
from densegrpo_jax.sampling.sampler import make_rollout
from densegrpo_jax.sampling.session import check, load
from experiments.reproduction.measuring import every_state_completed, measured_config


def relations(
    rewards: np.ndarray, entropy: np.ndarray, base: np.ndarray, trained: np.ndarray
) -> dict[str, tuple[float, float]]:
    """Rank correlations (Spearman) with standard errors; a correlation of a constant is NaN.

    Args:
      rewards: [T+1, P, G] of the states' completions.
      entropy, base: [T, P] of the policy and of the base model.
      trained: bool [T], the steps that count.

    Returns:
      'step': of a step's entropy with its mean |gain|, for each prompt over its steps, averaged
        over the prompts. 'prompt': of a prompt's change of entropy with the standard deviation of
        its samples' rewards, over the prompts.
    """
    size = np.abs(np.diff(rewards, axis=0)).mean(2)[trained]  # [K, P]
    by_prompt = np.array([_rank(e, g) for e, g in zip(entropy[trained].T, size.T)])
    known = by_prompt[np.isfinite(by_prompt)]
    error = known.std(ddof=1) / np.sqrt(len(known)) if len(known) > 1 else np.nan
    step = (float(known.mean()) if len(known) else np.nan, float(error))
    change, spread = entropy_change(entropy, base), rewards[-1].std(1)
    return {'step': step, 'prompt': (_rank(change, spread), 1 / np.sqrt(len(spread) - 1))}


def _rank(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    return float(spearmanr(x, y).statistic)


def run(config, checkpoint: str, prompts: int, workdir: pathlib.Path, mesh, stop) -> None:
    """Measures and prints."""
    config = measured_config(config, stop, {})
    r = config.rollout
    prompts = -(-prompts // r.prompts_per_batch) * r.prompts_per_batch
    checked = check(config, mesh, stop, needs=('train', 'schedule'))
    policy = None
    if checkpoint:
        (chosen,) = choose([checkpoint], base=False)
        policy, step = load_policy(checked.pipeline, config, mesh, chosen.workdir, str(chosen.step))
        logging.info('policy of %s after %d updates', chosen.workdir, step)
    asked = [checked.train[n % len(checked.train)] for n in range(prompts)]
    session = load(checked, [p.text for p in asked], workdir)
    schedule = every_state_completed(session.schedule)
    key = key_data(stream_key(config.seed, STREAM_PROBE, 0))
    probe = make_probe(session.pipeline, config, schedule.sigmas, mesh, base=True)
    parts = []
    for start in range(0, prompts, r.prompts_per_batch):
        here = np.arange(start, start + r.prompts_per_batch)
        text = place(session.conditioning, [asked[p].text for p in here], mesh)
        parts.append(probe(session.params, policy, text, session.negative, key, here))
    entropy, base = (np.concatenate(rows, 1) for rows in zip(*map(stop.wait, parts)))
    rollout = make_rollout(session.pipeline, config, schedule, mesh)
    with Scorer(session.reward) as scorer:
        collector = Collector(session, scorer, r.group, r.prompts_per_batch)
        rollouts, pending, *_ = collector.sample(rollout, policy, asked, key, schedule.noise_levels)
        values, valid = collector.scores(pending, prompts * r.group)
    if not valid.all():
        raise ValueError(f'{int((~valid).sum())} images have no score')
    rewards = np.asarray(state_rewards(values[TOTAL], rollouts[0].plan.sources_of()))
    rewards = rewards.reshape(len(rewards), prompts, r.group)
    gains = np.diff(rewards, axis=0)
    trained = schedule.masks.trained
    steps = [
        [
            str(k),
            f'{entropy[k].mean():.4f}',
            f'{np.abs(gains[k]).mean():.4f}',
            f'{gains[k].mean():+.4f}',
        ]
        for k in np.flatnonzero(trained)
    ]
    logging.info('\n%s', table(['step', 'entropy', 'mean |gain|', 'mean gain'], steps))
    found = relations(rewards, entropy, base, trained)
    for what, (value, error) in found.items():
        logging.info(
            'rank correlation by %s: %+.2f +- %.2f (%d prompts)', what, value, error, prompts
        )
    logging.info(
        'mean change of entropy from the base model: %.2e', entropy_change(entropy, base).mean()
    )


def main(flag) -> int:
    rollout = flag.config.rollout
    work = functools.partial(run, flag.config, flag.checkpoint, flag.prompts)
    batch = rollout.prompts_per_batch * rollout.group
    return execute(flag, batch, work, command='entropy')[0]


if __name__ == '__main__':
    define_run_flags()
    flags.DEFINE_string(
        'checkpoint', '', 'Policy: RUN:STEP, RUN:best or RUN:latest; default the base.'
    )
    define_whole('prompts', 32, 'Training prompts.', 3, 1_000_000)
    flags.mark_flags_as_required(['config', 'workdir'])
    run_main(main)

"""The training run, in reading order: set up, restore, then sample -> score -> credit -> update ->
evaluate -> save.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time

import jax
from absl import logging
from jax.sharding import Mesh

from densegrpo_jax.calibration.loop import calibrate, prepare, start_policy, visited_prompts
from densegrpo_jax.config.defaults import default_config, identifying
from densegrpo_jax.data.prompts import PromptSet
from densegrpo_jax.data.sampler import prompts_for_step
from densegrpo_jax.evaluation.evaluator import Evaluator
from densegrpo_jax.rewards.base import RewardError, fingerprints
from densegrpo_jax.rewards.composite import TOTAL, CompositeReward
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.metrics import MetricWriter
from densegrpo_jax.runtime.progress import ProgressBar
from densegrpo_jax.runtime.sharding import shardings, with_shardings
from densegrpo_jax.runtime.stop import Preempted, StopRequest
from densegrpo_jax.runtime.streams import STREAM_ROLLOUT, key_data, stream_key
from densegrpo_jax.sampling.collector import Collector
from densegrpo_jax.sampling.conditioning import content_hash
from densegrpo_jax.sampling.noise import FILE
from densegrpo_jax.sampling.sampler import Schedule, make_rollout
from densegrpo_jax.sampling.session import check, load
from densegrpo_jax.sampling.state import optimiser, start_state, state_shapes
from densegrpo_jax.training import announce, report
from densegrpo_jax.training.learner import check_geometry, donates_state, make_credit, make_update

# Keys that may differ between the run that wrote a checkpoint and the one that continues it; of the
# noise its values are compared, of the evaluation what `_scored_as` names.
FREE_KEYS = (
    'iterations',
    'label',
    'eval',
    'checkpoint',
    'mesh',
    'reward_workers',
    'text_cache',
    'noise',
    'calibration',
)


class TrainingDiverged(RuntimeError):
    """Too many updates in a row had a non-finite gradient."""


@dataclasses.dataclass
class Progress:
    """What a run remembers besides arrays; JSON, stored with every checkpoint."""

    evaluations: list = dataclasses.field(default_factory=list)  # [step, mean, standard error]
    bad_in_a_row: int = 0
    velocity_evals: int = 0  # network calls so far, all samples
    seconds: float = 0.0  # spent in iterations (no evaluation, no compilation of it)


def run(config, workdir: pathlib.Path, mesh: Mesh, stop: StopRequest) -> dict:
    """Trains until `config.iterations`, or continues a run found in `workdir`.

    Returns:
      The summary that is also written to WORKDIR/summary.json.

    Raises:
      Preempted: a stop was requested; the last completed update has been saved.
      RewardError: scores could not be computed; it has been saved too. RewardsGone: for want of
        servers, so that trying again may help.
      TrainingDiverged: see `optim.max_bad`.
      ValueError, FileNotFoundError: configuration, weights or prompts that cannot be used.
    """
    # What will be done, before any weight is read and anything is compiled.
    r, started = config.rollout, time.monotonic()
    checked = check(config, mesh, stop, splits=('train', 'eval'), rollouts=True, starts=True)
    pipeline, schedule, reward = checked.pipeline, checked.schedule, checked.reward
    train, test, hosts = checked.train, checked.test, checked.hosts
    accumulation = check_geometry(config, schedule, mesh)
    if config.noise.calibrate:
        prepare(checked)
    tx = optimiser(config)
    shapes = state_shapes(pipeline, tx)
    announce.announce(checked, shapes, accumulation, workdir)

    # Weights, adapters and the newest checkpoint.
    chosen = lambda step: prompts_for_step(train, r.prompts, step, config.seed)
    visited = {p.text for step in range(config.iterations) for p in chosen(step)}
    calibrated = visited_prompts(config, train) if config.noise.calibrate else []
    needed = [
        *(p.text for p in test),
        *(p.text for p in train if p.text in visited),
        *(p.text for p in calibrated),
    ]
    session = load(checked, needed, workdir)
    fresh = lambda: start_state(config, pipeline, tx, mesh, session.params['transformer'])
    if config.noise.calibrate:
        psi = calibrate(session, workdir / FILE, start_policy(session))
        schedule = schedule._replace(noise_levels=psi)
    scored_as = _scored_as(config, train, test, reward)
    checkpoints = Checkpoints(
        workdir / 'checkpoints',
        max_to_keep=config.checkpoint.keep,
        pinned=config.checkpoint.pin,
        hosts=hosts,
        fingerprint=_fingerprint(config, schedule) | scored_as,
        # of a checkpoint without them nothing is known
        defaults=_fingerprint(default_config(), None, 'reward') | scored_as,
    )
    progress, start = Progress(), 0
    # Into shapes: beside a fresh state there need not be room for another.
    if (
        restored := checkpoints.restore_latest(with_shardings(shapes, shardings(shapes, mesh)))
    ) is None:
        state = fresh()
    else:
        state, start, progress = restored.state, restored.step, Progress(**restored.meta)
        del restored  # or it keeps the arrays of this start for as long as the run lasts
        logging.info('continuing from iteration %d of %d', start, config.iterations)
    if hosts.primary:
        replace_file(workdir / 'config.json', config.to_json_best_effort(indent=2) + '\n')

    rollout_fn = make_rollout(pipeline, config, schedule, mesh)
    credit_fn, update_fn = (
        make_credit(config, schedule, mesh, reward.weights),
        make_update(pipeline, config, tx, mesh),
    )
    bar = ProgressBar(config.iterations, start=start, show=hosts.primary)
    with (
        Scorer(reward, config.reward_workers) as scorer,
        MetricWriter(workdir, resume_step=start) as writer,
        checkpoints,
        bar,
    ):
        evaluator = Evaluator(session, test, scorer)
        collector = Collector(session, scorer, r.group, r.prompts_per_batch)
        step = saved = start

        def evaluate(step: int, ema: dict) -> float:
            began = time.monotonic()
            result = evaluator(ema)
            mean, error = report.evaluation(
                config, workdir, writer, step, result, time.monotonic() - began, write=hosts.primary
            )
            progress.evaluations.append([step, mean, error])
            shown = f'{config.eval.best} {mean:.4f} +- {error:.4f} over {result.scored(config.eval.best)} prompts'
            bar.note(f'evaluation after {step} updates: {shown}')
            return mean

        try:
            # At the start, and where the last process was stopped between an update and its
            # evaluation.
            due = start % config.eval.every == 0 or start == config.iterations
            if due and start not in [evaluated for evaluated, *_ in progress.evaluations]:
                evaluate(start, state.ema)
            while step < config.iterations:
                # 1. Sample, complete by ODE, decode, score.
                began = time.monotonic()
                key = key_data(stream_key(config.seed, STREAM_ROLLOUT, step))
                sampling = collector.sample(
                    rollout_fn, state.policy, chosen(step), key, schedule.noise_levels
                )
                rollouts, pending, conditioning = sampling
                sampled = time.monotonic()
                values, valid = collector.scores(pending, r.prompts * r.group)
                scored = time.monotonic()
                # 2. Credit, advantages, update.
                batch, credit_metrics = credit_fn(
                    rollouts, values[TOTAL], valid, {name: values[name] for name in reward.weights}
                )
                calls = 1 + (session.negative is not None)  # of the network per velocity
                evals = sum(
                    calls * rollout.velocity_evals * rollout.std.shape[1] for rollout in rollouts
                )
                updated, update_metrics = update_fn(
                    state, session.params, conditioning, session.negative, batch
                )
                # a stop need not wait for an update either, which may take minutes
                if not donates_state(config):
                    stop.wait(update_metrics)
                    stop.communicator.exchange()  # all processes have this update, or none takes it
                state = updated
                metrics = jax.device_get({**credit_metrics, **update_metrics})
                # now: a stop may come while the devices are busy with something longer
                checkpoints.prepare(state)
                now = time.monotonic()
                # 3. Account for it.
                step += 1
                progress.velocity_evals += evals
                progress.seconds += now - began
                progress.bad_in_a_row = 0 if metrics['finite'] else progress.bad_in_a_row + 1
                seconds = {
                    'sample': sampled - began,
                    'score_wait': scored - sampled,
                    'update': now - scored,
                    'iteration': now - began,
                }
                writer.write_scalars(
                    step,
                    report.scalars(metrics, values, valid, seconds, progress, int(state.skipped)),
                )
                bar.update(step, report.shown(metrics, seconds))
                if step == start + 1:
                    bar.note(
                        f'first update {now - started:.0f} s after the start, compilation included'
                    )
                if progress.bad_in_a_row >= config.optim.max_bad:
                    raise TrainingDiverged(
                        f'the last {progress.bad_in_a_row} updates had a non-finite gradient and were left out '
                        f'(optim.max_bad={config.optim.max_bad}); checkpoints up to iteration {saved} are in {checkpoints.directory}. '
                        'Lower optim.learning_rate, or look for NaN pictures in the metrics (valid_share)'
                    )
                # 4. Evaluate and save.
                score = None
                if step % config.eval.every == 0 or step == config.iterations:
                    score = evaluate(step, state.ema)
                if (
                    score is not None
                    or step % config.checkpoint.every == 0
                    or step in config.checkpoint.pin
                ):
                    # a run that continues from the checkpoint does not write its metrics again
                    writer.flush()
                    checkpoints.save(step, state, dataclasses.asdict(progress), score=score)
                    saved = step
                stop.check()
        except (Preempted, RewardError) as reason:
            if isinstance(reason, RewardError):
                stop.leave('an error of the reward')
            if step > saved:
                writer.flush()
                checkpoints.save(step, state, dataclasses.asdict(progress))
            checkpoints.wait_until_finished()
            logging.warning('saved after iteration %d of %d', step, config.iterations)
            raise
        checkpoints.wait_until_finished()
    return report.finish(config, workdir, progress, checkpoints, write=hosts.primary)


def _fingerprint(config, schedule: Schedule | None, *free: str) -> dict:
    """What must be equal for a checkpoint to be continued."""
    kept = {
        key: value for key, value in identifying(config).items() if key not in (*FREE_KEYS, *free)
    }
    calibrated = config.noise.psi_path or config.noise.calibrate
    return {
        **kept,
        'psi': [float(level) for level in schedule.noise_levels] if calibrated else None,
    }


def _scored_as(config, train: PromptSet, test: PromptSet, reward: CompositeReward) -> dict:
    """More of it: prompts may have changed under a file's name and a reward under a server's, and
    scores stand side by side only if they were made alike."""
    prompts = {
        'prompts of data.train': content_hash(train),
        'prompts of data.eval': content_hash(test),
    }
    return {
        **prompts,
        'eval': {'steps': config.eval.steps, 'best': config.eval.best},
        'servers of rewards': fingerprints([reward]),
    }

"""The training run, in reading order: open, restore, then sample -> score -> credit -> update ->
evaluate -> save.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence

import jax
from absl import logging
from jax.sharding import Mesh

from densegrpo_jax.calibration.loop import calibrate, check_file, check_ours, visited_prompts
from densegrpo_jax.config import identity
from densegrpo_jax.config.method import loss_of
from densegrpo_jax.config.reads import REFUSE
from densegrpo_jax.data.prompts import Prompt
from densegrpo_jax.data.sampler import prompts_for_step
from densegrpo_jax.evaluation.evaluator import Evaluator
from densegrpo_jax.guard.check import check_guard, open_record
from densegrpo_jax.guard.guard import Guard
from densegrpo_jax.rewards.base import RewardError, RewardsGone
from densegrpo_jax.rewards.composite import TOTAL
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.agreement import Agreement
from densegrpo_jax.runtime.hosts import OtherProcessFailed
from densegrpo_jax.runtime.outputs import check_shared, claim
from densegrpo_jax.runtime.paths import check_room
from densegrpo_jax.runtime.profiling import Profile, Profiler
from densegrpo_jax.runtime.sharding import shardings, with_shardings
from densegrpo_jax.runtime.stop import Preempted, StopRequest
from densegrpo_jax.runtime.trackers import check_trackers
from densegrpo_jax.sampling.collector import Collector
from densegrpo_jax.sampling.diagnosis import explain
from densegrpo_jax.sampling.noise import FILE
from densegrpo_jax.sampling.sampler import make_sampler
from densegrpo_jax.sampling.session import Checked, check_parts, check_weights, load, start_policy
from densegrpo_jax.sampling.state import follow_rules, optimiser, start_state, state_shapes
from densegrpo_jax.training import report
from densegrpo_jax.training.ahead import Ahead
from densegrpo_jax.training.announce import announce
from densegrpo_jax.training.geometry import check_geometry, donates_state
from densegrpo_jax.training.groups import group_due, record_groups
from densegrpo_jax.training.learner import make_update
from densegrpo_jax.training.progress import Progress
from densegrpo_jax.training.resume import check_earlier, check_keys, open_checkpoints
from densegrpo_jax.training.rounds import Rounds, check_rounds
from densegrpo_jax.training.trial import try_parts
from densegrpo_jax.viewing.report import FOLDER, is_taken
from densegrpo_jax.viewing.started import Start

NEEDS = ('train', 'test', 'schedule', 'process_reward', 'start')
PATIENCE = 600.0  # seconds; an update of the largest runs, or a compilation


def run(
    config,
    workdir: pathlib.Path,
    mesh: Mesh,
    stop: StopRequest,
    *,
    profile: Profile | None = None,
    at_peak: Callable[[Checked], float | None] | None = None,
    started: Start | None = None,
    own_code: str = REFUSE,
) -> dict:
    """Trains until `config.iterations`, or continues a run found in `workdir`.

    profile: iterations that the profiler traces. at_peak: gives the seconds of an iteration whose
      networks use the devices fully, if known: then the run logs its utilisation. started: how it
      was, kept with the results. own_code: WARN: it may continue a run that other code of the
      user's own has trained. If that is code of rewards, evaluations begin anew.

    Returns:
      The summary that is also written to WORKDIR/summary.json.

    If an error is raised after a complete update, that update has been saved.

    Raises:
      Preempted: a stop was requested.
      RewardError: scores could not be computed. RewardsGone: no server was reachable, so trying
        again may help.
      TrainingDiverged: see `optim.max_bad`.
      ValueError, FileNotFoundError: the configuration, weights or prompts cannot be used.
    """
    # Open: first the checks that take seconds, then everything large.
    since, r = time.monotonic(), config.rollout
    hosts = stop.communicator.hosts
    claim(workdir, report.FILES, report.FOLDERS, hosts=hosts)
    check_shared(workdir, hosts)  # all write a checkpoint's arrays
    if config.noise.calibrate:
        check_ours(workdir / FILE)
    if config.eval.report:
        check_page(workdir / FOLDER)
    check_trackers(config.log.report_to, workdir)
    check_keys(config, workdir, hosts)
    checked = check_parts(config, mesh, stop, needs=NEEDS, own_code=own_code)
    # before another base's weights are fetched
    check_keys(config, workdir, hosts, {identity.FILES: checked.files_digest})
    if r.prompts > len(checked.train):
        raise ValueError(
            f'rollout.prompts={r.prompts}, but data.train={config.data.train!r} has '
            f'{len(checked.train)}, the number of prompts in the set: give it more, or use fewer '
            'per iteration'
        )
    accumulation = check_geometry(config, checked.schedule, mesh)
    guarded = check_guard(checked)
    try_parts(config, checked.schedule)
    check_rounds(config, checked.pipeline, checked.schedule, mesh)
    check_weights(checked)
    tx = optimiser(config, checked.pipeline.transformer)
    shapes = state_shapes(checked.pipeline, tx, follow_rules(config))
    done, changed = check_earlier(checked, shapes, workdir)
    if config.noise.calibrate:
        check_file(checked, workdir / FILE)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    with Agreement(checked.hosts, 'room').alike():
        if done != config.iterations:
            check_room(workdir, size, 'a checkpoint')  # one, which all processes write
    measured = open_record(checked, guarded, workdir) if guarded else None
    announce(checked, shapes, accumulation, workdir, guarded)
    chosen = lambda step: prompts_for_step(checked.train, r.prompts, step, config.seed)
    texts = _needed_texts(checked, chosen, guarded.prompts if guarded else ())
    session = load(checked, texts, workdir)
    schedule = session.schedule
    if config.noise.calibrate:
        used = done is not None
        psi = calibrate(session, workdir / FILE, start_policy(session), used=used)
        schedule = schedule._replace(noise_levels=psi)
    update_fn, sampler = make_update(session.pipeline, config, tx, mesh), loss_of(config).sampler

    # Restore the newest checkpoint or start; restore into shapes, because memory may not hold two
    # states.
    checkpoints = open_checkpoints(session, schedule, workdir)
    placed = shardings(shapes, mesh, session.pipeline.sharding_rules)
    restored = checkpoints.restore_latest(with_shardings(shapes, placed))
    if restored is None:
        state = start_state(config, session.pipeline, tx, mesh, session.params['transformer'])
        start, progress = 0, Progress()
    else:
        state, start, progress = restored.state, restored.step, Progress.of(restored.meta)
        del restored  # else it keeps these arrays for the whole run
        logging.info('continuing from iteration %d of %d', start, config.iterations)
    # also if the last process was stopped before the last evaluation
    goes_on = not (start == config.iterations and progress.evaluated(start))
    if changed and goes_on:
        progress.go_on(start, changed)

    full_use = at_peak(session) if at_peak else None
    with (
        Scorer(session.reward, config.reward_workers) as scorer,
        report.Reporter(
            config, workdir, session.hosts, start, since, full_use, started
        ) as reporter,
        checkpoints,
        Profiler(profile, workdir, start, session.hosts) as profiler,
        contextlib.ExitStack() as opened,
    ):
        collector = Collector(session, scorer, r.group, r.prompts_per_batch, config.eval.groups)
        rounds = Rounds(session, schedule, collector)
        draw = make_sampler(session.pipeline, config, config.eval.steps, mesh)
        evaluator = Evaluator(session, session.test, scorer, sample=draw)
        guard = None
        if guarded:
            guard = Guard(session, workdir, guarded, measured, scorer, draw, opened)
            if goes_on:
                guard.go_on(progress)
        step = saved = start
        # Called before the processes meet outside the rounds: one that an error of its own has
        # ended, such as a full disk, has left them, and then all save together.
        still_together = stop.communicator.still_together
        checkpoints.rescore(progress.competing_score)  # a stop may have come before the last one
        evaluation_due = lambda: step % config.eval.every == 0 or step == config.iterations
        checkpoint_due = lambda: (
            step % config.checkpoint.every == 0 or step in config.checkpoint.pin
        )

        def evaluate() -> None:
            result = evaluator(state.ema)
            if not result.scored(config.eval.best):
                explain(session, state.ema, [p.text for p in session.test])
            row = reporter.evaluation(step, result, progress.first(step))
            if guard:  # before the evaluation counts: after a stop both are made again
                scores = result.scores[config.eval.best]
                reporter.write(step, guard(step, state.ema, progress, scores))
                if progress.guarded:
                    still_together()
                    progress.pass_over_unguarded()
                    checkpoints.rescore(progress.competing_score)
            progress.evaluations.append(row)

        def save(*, whole: bool = True) -> None:
            nonlocal saved
            try:
                reporter.flush()
            except OSError as error:
                if whole:
                    raise
                logging.error('the metrics could not be written: %s', error)
            if whole:
                still_together()
            score = progress.competing_score(step)
            checkpoints.save(step, state, dataclasses.asdict(progress), score=score)
            saved = step

        brake = lambda: guard.brakes(progress) if guard else ()
        trains = step < config.iterations and not (guard and guard.stops(progress))
        foreseen = rounds.foreseen(step, state.roles[sampler], chosen(step)) if trains else None
        learned = state, session.params, session.negative, *brake()
        ahead = opened.enter_context(Ahead(config, foreseen, update_fn, learned))
        del foreseen, learned

        try:
            # Also if the last process was stopped between an update and its evaluation, or if
            # other rewards than now have scored all that there are.
            if (evaluation_due() or not progress.evaluations) and not progress.evaluated(step):
                evaluate()
                if start:  # its checkpoint was saved before the evaluation
                    reporter.flush()
                    still_together()
                    if changed:  # that is of the code of before, which may yet go on from it
                        checkpoints.rescore(progress.competing_score)
                    else:
                        score = progress.competing_score(start)
                        checkpoints.amend(start, dataclasses.asdict(progress), score=score)
            while step < config.iterations and not (guard and guard.stops(progress)):
                # Sample, complete by ODE, decode.
                profiler.begin(step + 1)
                watch = report.Stopwatch()
                stop.wait(ahead.rollout)
                found = rounds.sample(step, state.roles[sampler], chosen(step), progress)
                watch.lap('sample')

                # Score; most of it ran during sampling.
                values, valid = collector.scores(found.pending, r.prompts * r.group)
                scores = {name: values[name] for name in session.reward.weights}
                watch.lap('score_wait')

                # Credit and advantages.
                batch, metrics = found.credit(
                    found.rollouts, values[TOTAL], valid, found.group_ids, scores
                )

                if group_due(config, step + 1):
                    record_groups(session, workdir, step + 1, found, values, valid, batch)

                # Update.
                text = found.conditioning, session.negative
                stop.wait(ahead.update)
                update = lambda: update_fn(state, session.params, *text, batch, *brake())  # noqa: B023
                updated, update_metrics = updated_together(stop, update, donates_state(config))
                state, step = updated, step + 1
                metrics = jax.device_get({**metrics, **update_metrics}) | found.metrics
                checkpoints.prepare(state)  # a stop may come while the devices are busy
                watch.lap('update')
                progress.count(metrics['finite'], found.nfe, watch.seconds['iteration'])
                progress.entropy = found.entropy
                del found, batch  # their latents are not kept beside those of the next iteration
                skipped = int(state.skipped)
                reporter.iteration(step, metrics, values, valid, watch.seconds, progress, skipped)
                profiler.end(step)
                progress.check(config.optim.max_bad)
                if guard:
                    guard.watch(step, metrics, progress)

                # Evaluate, save.
                if evaluation_due():
                    evaluate()
                if evaluation_due() or checkpoint_due():
                    save()
                stop.communicator.exchange()
        except Exception as reason:
            try:
                _stop_together(stop, reason)
                if step > saved:
                    save(whole=False)
                checkpoints.wait_until_finished()
            except Exception as error:
                if isinstance(reason, Preempted):
                    raise  # there is no other error
                logging.error('The last completed update could not be saved: %s', error)
            ended = stop.communicator.hosts.behind(reason)
            _say_what_is_left(checkpoints.latest_step(), config.iterations, ended)
            if not isinstance(ended, Preempted | RewardsGone):  # those go on by themselves
                reporter.failed()
            raise
        checkpoints.wait_until_finished()
        return reporter.finish(progress, checkpoints)


def check_page(folder: pathlib.Path) -> None:
    """Raises ValueError if the run's page could not be written into `folder` at its end."""
    if is_taken(folder):
        raise ValueError(
            f'{folder} holds something else than a page of a run: move it away, or give '
            '--config.eval.report=False'
        )


def _stop_together(stop: StopRequest, reason: Exception) -> None:
    """Stops all processes of the run after an error of this one, so that they save together.

    A reward's error occurs where the others check for a stop. Any other error may leave them in a
    program that waits for this process: after `PATIENCE` seconds nothing more is saved
    (TimeoutError), and they end with this process.
    """
    if not isinstance(reason, Preempted | RewardsGone | OtherProcessFailed):
        stop.communicator.hosts.fail(reason)
    if isinstance(reason, RewardError):
        stop.leave('an error of the reward')
    elif not isinstance(reason, Preempted):
        stop.leave(f'an error ({type(reason).__name__})', PATIENCE)


def _say_what_is_left(saved: int | None, iterations: int, reason: Exception) -> None:
    kept = f'saved after iteration {saved} of {iterations}' if saved else 'nothing is saved yet'
    if isinstance(reason, Preempted | RewardError):
        logging.warning('%s', kept)  # the next line says that the same command continues
    elif not saved:
        logging.warning('ended by an error; nothing is saved, the same command starts anew')
    else:
        logging.warning(
            'ended by an error, %s; once it is fixed, the same command continues there', kept
        )


def _needed_texts(
    checked: Checked, chosen: Callable[[int], Sequence[Prompt]], guarded: Sequence[Prompt]
) -> list[str]:
    """The prompts that a run samples: the evaluation's, those of its iterations (`chosen`),
    those of a calibration, and the guard's.
    """
    config, train = checked.config, checked.train
    visited: set[str] = set()
    everything = {p.text for p in train}
    for step in range(config.iterations):
        visited |= {p.text for p in chosen(step)}
        if len(visited) == len(everything):  # else this may take minutes
            break
    calibrated = visited_prompts(config, train) if config.noise.calibrate else []
    trained = [p for p in train if p.text in visited]
    return [p.text for p in (*checked.test, *trained, *calibrated, *guarded)]


def updated_together(stop: StopRequest, update: Callable[[], tuple], donates: bool) -> tuple:
    """The (state, metrics) of `update`, which may take minutes; all processes keep them, or none
    does.

    donates: whether the update reuses the memory of the state before it. Then it cannot be dropped,
      so the processes agree before they begin it. Otherwise a stop ends the wait for it.

    Raises:
      Preempted: a stop was requested, in this process or another one.
    """
    if donates:
        stop.communicator.exchange()
        return update()
    updated, metrics = update()
    stop.wait(metrics)
    stop.communicator.exchange()
    return updated, metrics

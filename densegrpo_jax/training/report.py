"""The output of a run: scalars of an iteration, images, progress, the closing summary."""

from __future__ import annotations

import contextlib
import json
import pathlib
import time

import numpy as np
from absl import logging

from densegrpo_jax.evaluation.evaluator import Evaluation
from densegrpo_jax.rewards.base import RewardError
from densegrpo_jax.runtime import trackers
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.hosts import Hosts
from densegrpo_jax.runtime.metrics import MetricWriter
from densegrpo_jax.runtime.progress import ProgressBar
from densegrpo_jax.sampling.noise import title
from densegrpo_jax.training.progress import Progress
from densegrpo_jax.viewing.command import COMMAND, NEWEST
from densegrpo_jax.viewing.folder import ENDS
from densegrpo_jax.viewing.pictures import before_after, curve, keep_images
from densegrpo_jax.viewing.report import FOLDER, write_report
from densegrpo_jax.viewing.run_data import CONFIG, RECIPE, SINCE
from densegrpo_jax.viewing.started import Start, write_start

# What a run writes in its work directory.
FOLDERS = ('checkpoints', 'samples', 'tensorboard', 'text', 'profile', 'groups', 'guard', 'report')
FILES = (CONFIG, COMMAND, NEWEST, RECIPE, 'metrics.jsonl', 'summary.json', *ENDS, trackers.FILE)


class Stopwatch:
    """Seconds of the named parts of an iteration, in `seconds`, and of the whole iteration."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._began = self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Ends the part `name`, which began at the end of the part before."""
        now = time.monotonic()
        self.seconds[name], self._last = now - self._last, now
        self.seconds['iteration'] = now - self._began


class Reporter:
    """The output of a running run: metrics, images and progress. A context manager.

    The primary process writes; at the start it writes the configuration and how the run was started
    (`write_start`).

    Args:
      start: updates that the run had when this process continued it.
      since: the time of that, by `time.monotonic`.
      full_use: seconds of an iteration whose networks use the devices fully; None: not known.
      started: how this process was started.
    """

    def __init__(
        self,
        config,
        workdir: pathlib.Path,
        hosts: Hosts,
        start: int,
        since: float,
        full_use: float | None = None,
        started: Start | None = None,
    ):
        self._full_use, self._started = full_use, started or Start()
        self._config, self._workdir, self._primary = config, workdir, hosts.primary
        self._processes = hosts.count
        self._start, self._since, self._open = start, since, contextlib.ExitStack()
        self._evaluated = False  # in this process

    def __enter__(self) -> Reporter:
        if self._primary:
            write_start(self._workdir, self._config, self._started, self._processes)
        writer = MetricWriter(self._workdir, resume_step=self._start)
        bar = ProgressBar(self._config.iterations, start=self._start, show=self._primary)
        log, known = self._config.log, json.loads(self._config.to_json_best_effort())
        told = trackers.Trackers(
            log.report_to if self._primary else '', log.project, self._workdir, known
        )
        self._trackers = self._open.enter_context(told)
        self._writer, self._bar = self._open.enter_context(writer), self._open.enter_context(bar)
        return self

    def __exit__(self, *exception) -> None:
        self._open.__exit__(*exception)

    def iteration(
        self,
        step: int,
        metrics: dict,
        values: dict[str, np.ndarray],
        valid: np.ndarray,
        seconds: dict[str, float],
        progress: Progress,
        skipped: int,
    ) -> None:
        """Logs update number `step`; the other arguments are those of `scalars`."""
        row = scalars(metrics, values, valid, seconds, progress, skipped)
        if self._full_use is not None:
            row['train/mfu'] = self._full_use / seconds['iteration']
        self.write(step, row)
        self._bar.update(step, shown(metrics, seconds))
        if step == self._start + 1:
            since = time.monotonic() - self._since
            among = ', an evaluation' if self._evaluated else ''
            self._bar.note(
                f'first update {since:.0f} s after the start, with loading{among} and compilation'
            )

    def evaluation(self, step: int, result: Evaluation, first: int) -> list:
        """Logs the scores and the fixed images of an evaluation, and stores the images in the work
        directory. first: updates before the run's first evaluation.

        Returns:
          [step, mean, standard error] of the score that picks the best checkpoint.

        Raises:
          RewardError: no prompt has that score.
        """
        best, self._evaluated = self._config.eval.best, True
        count, scored = len(result.scores[best]), result.scored(best)
        if not scored:
            raise RewardError(
                f'evaluation after {step} updates: not one of {count} prompts has a score '
                f'{best!r}; the log says why'
            )
        if scored < count:
            logging.warning(
                '%d of %d evaluation prompts have no score %s; the mean is over the others',
                count - scored,
                count,
                best,
            )
        mean, error = result.mean(best), result.standard_error(best)
        row = {f'eval/{name}': result.mean(name) for name in result.scores}
        row |= {'eval/valid_share': scored / count, 'eval/standard_error': error}
        if first:  # the page shows no scores of other rewards
            row[SINCE] = float(first)
        self.write(step, {**row, 'eval/seconds': result.seconds})
        self._writer.write_images(step, {'eval/images': result.images})
        if self._primary:
            sheet = keep_images(self._workdir, step, result, first)
            self._trackers.picture(step, 'eval/images', sheet)
        of_best = f'{best} {mean:.4f} +- {error:.4f} over {scored} prompts'
        self._bar.note(f'evaluation after {step} updates: {of_best}')
        return [step, mean, error]

    def write(self, step: int, row: dict[str, float]) -> None:
        """Logs numbers after `step` updates."""
        self._writer.write_scalars(step, row)
        self._trackers.log(step, row)

    def finish(self, progress: Progress, checkpoints: Checkpoints) -> dict:
        """Closes a finished run: writes summary.json, the curve and the before/after image in the
        primary process, logs the closing lines, and returns the summary.
        """
        config, workdir = self._config, self._workdir
        self._bar.close()
        first, last = progress.evaluations[0], progress.evaluations[-1]
        best = progress.best()
        summary = {
            'label': title(config),
            'score': config.eval.best,
            'updates': last[0],
            'before': {'mean': first[1], 'standard_error': first[2]},
            'after': {'mean': last[1], 'standard_error': last[2]},
            'best': best and {'step': best[0], 'mean': best[1], 'standard_error': best[2]},
            'nfe': progress.nfe,
            'seconds': progress.seconds,
            'evaluations': progress.evaluations,
        }
        if progress.other_code:
            summary['other_code'] = progress.other_code
        if progress.earlier:
            summary['evaluations_by_other_code'] = progress.earlier
        if progress.guarded:
            guard = {'evaluations': progress.guarded, 'stopped': progress.stopped_by_guard}
            summary['guard'] = guard | {'brake': progress.brake}
        if not self._primary:
            return summary
        replace_file(workdir / 'summary.json', json.dumps(summary, indent=2) + '\n')
        made = [
            curve(workdir, progress.evaluations, config.eval.best),
            before_after(workdir, first[0], last[0]),
        ]
        if config.eval.report:
            made.append(write_report(workdir / FOLDER, [workdir], ended=True))
        logging.info(
            'made %s; checkpoints %s in %s',
            ', '.join(str(path) for path in made if path),
            checkpoints.steps(),
            checkpoints.directory,
        )
        logging.info(
            'evaluation score %s %.4f +- %.4f, after %d updates %.4f +- %.4f (change %+.4f; '
            'standard errors over prompts)',
            f'after {first[0]}' if first[0] else 'before',  # where other rewards began
            first[1],
            first[2],
            last[0],
            last[1],
            last[2],
            round(last[1] - first[1], 4) + 0.0,  # -0.0 is no fall
        )
        for path in (workdir / name for name in ENDS):
            if path.is_file():
                self._trackers.picture(summary['updates'], path.stem, path)
        return summary

    def failed(self) -> None:
        """Makes the page of a run that an error of the primary process ends. It asks no other
        process for anything.
        """
        if not (self._primary and self._config.eval.report):
            return
        try:
            self.flush()
            page = write_report(self._workdir / FOLDER, [self._workdir], ended=True)
            logging.info('made %s', page)
        except Exception as error:  # noqa: BLE001 (the run's own error is the one to tell)
            logging.warning('the page of the run was not made: %s', error)

    def flush(self) -> None:
        """Metrics are on disk when this returns: a run that continues from a checkpoint does not
        write those of its steps again.
        """
        self._writer.flush()


def scalars(
    metrics: dict,
    values: dict[str, np.ndarray],
    valid: np.ndarray,
    seconds: dict[str, float],
    progress: Progress,
    skipped: int,
) -> dict[str, float]:
    """One flat dict per iteration; step-wise arrays become name/step_k, without NaN entries
    (untrained steps).
    """
    out = {}
    for name, value in metrics.items():
        value = np.asarray(value, np.float64)
        if value.ndim == 0:
            out[f'train/{name}'] = float(value)
        else:
            out |= {f'{name}/step_{k}': float(v) for k, v in enumerate(value) if np.isfinite(v)}
    # The terminal reward by its parts, over the samples that the update uses; the last row of every
    # score is the sample itself. A score that is only logged may be missing.
    keep = valid.all(0)
    for name, rows in values.items():
        known = rows[-1][keep & np.isfinite(rows[-1])]
        if name != 'total' and len(known):
            out[f'train/reward_{name}'] = float(known.mean())
    out |= {f'seconds/{name}': value for name, value in seconds.items()}
    return {
        **out,
        'train/skipped': float(skipped),
        'train/nfe': float(progress.nfe),
        'train/seconds': progress.seconds,
    }


def shown(metrics: dict, seconds: dict[str, float]) -> dict[str, float]:
    """The few numbers beside the progress bar."""
    few, gains = {'reward': metrics['reward']}, np.asarray(metrics['gain'], np.float64)
    if not np.allclose(gains[np.isfinite(gains)], few['reward'], rtol=1e-5):  # as of sparse credit
        few['gain'] = np.nanmean(gains)
    few['grad'] = metrics['grad_norm']
    return {
        **{k: float(v) for k, v in few.items()},
        **{f'{k}_s': seconds[k] for k in ('sample', 'score_wait', 'update')},
    }

"""The output of a run: scalars of an iteration, images, the reward curve, the closing summary."""

from __future__ import annotations

import contextlib
import json
import pathlib
import time
import zipfile

import numpy as np
from absl import logging

from densegrpo_jax.evaluation.evaluator import Evaluation
from densegrpo_jax.rewards.base import RewardError
from densegrpo_jax.runtime import trackers
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.files import replace_file, replacing
from densegrpo_jax.runtime.hosts import Hosts
from densegrpo_jax.runtime.images import save_grid
from densegrpo_jax.runtime.metrics import MetricWriter
from densegrpo_jax.runtime.progress import ProgressBar
from densegrpo_jax.sampling.noise import title
from densegrpo_jax.training.progress import Progress
from densegrpo_jax.training.started import Start, write_start
from densegrpo_jax.viewing.command import COMMAND, NEWEST
from densegrpo_jax.viewing.folder import BEFORE_AFTER, CURVE, ENDS
from densegrpo_jax.viewing.report import FOLDER, write_report
from densegrpo_jax.viewing.run_data import CONFIG, RECIPE

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
        self._write(step, row)
        self._bar.update(step, shown(metrics, seconds))
        if step == self._start + 1:
            since = time.monotonic() - self._since
            among = ', an evaluation' if self._evaluated else ''
            self._bar.note(
                f'first update {since:.0f} s after the start, with loading{among} and compilation'
            )

    def evaluation(self, step: int, result: Evaluation) -> list:
        """Logs the scores and the fixed images of an evaluation, and stores the images in the work
        directory.

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
        self._write(step, {**row, 'eval/seconds': result.seconds})
        self._writer.write_images(step, {'eval/images': result.images})
        if self._primary:
            self._trackers.picture(step, 'eval/images', keep_images(self._workdir, step, result))
        of_best = f'{best} {mean:.4f} +- {error:.4f} over {scored} prompts'
        self._bar.note(f'evaluation after {step} updates: {of_best}')
        return [step, mean, error]

    def guarded(self, step: int, row: dict[str, float]) -> None:
        """Logs what the guard measured after `step` updates."""
        self._write(step, row)

    def _write(self, step: int, row: dict[str, float]) -> None:
        self._writer.write_scalars(step, row)
        self._trackers.log(step, row)

    def finish(self, progress: Progress, checkpoints: Checkpoints) -> dict:
        """Closes a finished run, see `finish`; trackers get its pictures."""
        self._bar.close()
        summary = finish(self._config, self._workdir, progress, checkpoints, self._primary)
        for path in (self._workdir / name for name in ENDS if self._primary):
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
    gains = np.asarray(metrics['gain'], np.float64)
    few = {'reward': metrics['reward'], 'gain': np.nanmean(gains), 'grad': metrics['grad_norm']}
    return {
        **{k: float(v) for k, v in few.items()},
        **{f'{k}_s': seconds[k] for k in ('sample', 'score_wait', 'update')},
    }


def keep_images(workdir: pathlib.Path, step: int, result: Evaluation) -> pathlib.Path:
    """Writes the fixed evaluation images of a step as a captioned contact sheet, which is returned,
    and, for the final comparison, as an array. Of the arrays, which may be large, only the first
    evaluation's and the newest stay.
    """
    folder = workdir / 'samples'
    sheet = folder / f'step_{step:06d}.png'
    result.save_sheet(sheet)
    arrays = {
        'images': result.images,
        'scores': result.scores['total'][: len(result.images)],
        'prompts': result.prompts,
    }
    with replacing(folder / f'step_{step:06d}.npz') as file:
        np.savez(file, **arrays)
    for path in folder.glob('step_*.npz'):
        if path.stem not in ('step_000000', sheet.stem):
            path.unlink(missing_ok=True)
    return sheet


def before_after(
    workdir: pathlib.Path, first: int, last: int, pairs: int = 12
) -> pathlib.Path | None:
    """The same prompts and noise before (left) and after (right) training, in one PNG; None, and a
    warning, if the images of an earlier start of the run are gone, damaged, or of other prompts.
    """
    try:
        before, after = _alike([_kept_images(workdir, step) for step in (first, last)], pairs)
    except (OSError, ValueError) as error:
        logging.warning('before_after.png is left out: %s', error)
        (workdir / BEFORE_AFTER).unlink(missing_ok=True)  # one of an earlier end
        return None
    images = np.stack([before['images'], after['images']], axis=1)
    images = images.reshape(-1, *images.shape[2:])
    rows = zip(before['prompts'], before['scores'], after['scores'])
    captions = [
        caption for prompt, b, a in rows for caption in (f'{b:.2f} {prompt}', f'{a:.2f} after')
    ]
    width = images.shape[2]
    columns = 4 if width < 300 else 2
    return save_grid(
        workdir / BEFORE_AFTER,
        images,
        columns=columns,
        scale=max(1, 288 // width),
        captions=captions,
    )


def _kept_images(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """What `keep_images` wrote."""
    path = workdir / 'samples' / f'step_{step:06d}.npz'
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in ('images', 'scores', 'prompts')}
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path} is damaged ({error})') from None


def _alike(kept: list[dict[str, np.ndarray]], count: int) -> list[dict[str, np.ndarray]]:
    """The first `count` of each, or as many as all have: `eval.shown` may change in a later start.

    Raises:
      ValueError: they are of other prompts, or the images have other sizes.
    """
    n = min(count, *(len(each['images']) for each in kept))
    kept = [{name: values[:n] for name, values in each.items()} for each in kept]
    first, last = kept
    if [*first['prompts']] != [*last['prompts']] or first['images'].shape != last['images'].shape:
        raise ValueError('the first and the last images have other prompts or sizes')
    return kept


def curve(workdir: pathlib.Path, evaluations: list, name: str) -> pathlib.Path:
    """The score `name` ('total' or one of the reward's) of evaluations, with standard errors, and
    of training samples, against updates.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    rows = [
        json.loads(line)
        for line in (workdir / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
    ]
    key = 'train/reward' if name == 'total' else f'train/reward_{name}'
    train = [(row['step'], row[key]) for row in rows if key in row]
    step, mean, error = (np.array(column, float) for column in zip(*evaluations))
    figure, axes = plt.subplots(figsize=(6.4, 4.0), dpi=120)
    if train:
        steps, values = np.array(train, float).T
        # an update has few prompts: their choice hides the rise of the scores
        window = max(1, len(values) // 10)
        smooth = np.convolve(values, np.full(window, 1 / window), 'valid')
        axes.plot(steps, values, color='0.85', linewidth=0.8)
        axes.plot(
            steps[window - 1 :],
            smooth,
            color='0.5',
            label=f'training samples (noisy policy), mean of {window} updates',
        )
    axes.errorbar(
        step,
        mean,
        yerr=error,
        marker='o',
        capsize=3,
        color='tab:blue',
        label='held-out prompts (ODE, moving average)',
    )
    axes.set_xlabel('updates')
    axes.set_ylabel(f'reward ({name})')
    axes.grid(alpha=0.3)
    axes.legend(loc='best', frameon=False)
    figure.tight_layout()
    path = workdir / CURVE
    with replacing(path) as file:
        figure.savefig(file)
    plt.close(figure)
    return path


def finish(
    config, workdir: pathlib.Path, progress: Progress, checkpoints: Checkpoints, primary: bool
) -> dict:
    """Writes summary.json, the curve and the before/after image in the primary process, logs the
    closing lines, and returns the summary.
    """
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
    if progress.guarded:
        guard = {'evaluations': progress.guarded, 'stopped': progress.stopped_by_guard}
        summary['guard'] = guard | {'brake': progress.brake}
    if not primary:
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
        'evaluation score before %.4f +- %.4f, after %d updates %.4f +- %.4f (change %+.4f; '
        'standard errors over prompts)',
        first[1],
        first[2],
        last[0],
        last[1],
        last[2],
        last[1] - first[1],
    )
    return summary

"""The pictures that a run makes of itself: sheets of its evaluations and, at its end, the reward
curve, and images of the same prompts before and after.
"""

from __future__ import annotations

import json
import pathlib
import zipfile

import numpy as np
from absl import logging

from densegrpo_jax.evaluation.evaluator import Evaluation
from densegrpo_jax.runtime.files import replacing
from densegrpo_jax.runtime.images import save_grid
from densegrpo_jax.viewing.folder import BEFORE_AFTER, CURVE


def keep_images(
    workdir: pathlib.Path, step: int, result: Evaluation, first: int = 0
) -> pathlib.Path:
    """Writes the fixed evaluation images of a step as a captioned contact sheet, which is returned,
    and, for the final comparison, as an array. Of the arrays, which may be large, only the first
    evaluation's, after `first` updates, and the newest stay.
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
        if path.stem not in (f'step_{first:06d}', sheet.stem):
            path.unlink(missing_ok=True)
    return sheet


def before_after(workdir: pathlib.Path, first: int, last: int) -> pathlib.Path | None:
    """Up to twelve prompts, with the same noise before (left) and after (right) training, in one
    PNG; None, and a warning, if the images of an earlier start of the run are gone, damaged, or of
    other prompts.
    """
    try:
        before, after = _alike([_kept_images(workdir, step) for step in (first, last)], 12)
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
    of training samples since the first of them, against updates.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    rows = [
        json.loads(line)
        for line in (workdir / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
    ]
    key = 'train/reward' if name == 'total' else f'train/reward_{name}'
    # before the first evaluation other rewards may have scored
    train = [(r['step'], r[key]) for r in rows if key in r and r['step'] > evaluations[0][0]]
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
            label='training samples (noisy policy)'
            + (f', mean of {window} updates' if window > 1 else ''),
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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(f'reward ({name})')
    axes.grid(alpha=0.3)
    # above the curves: inside it would lie over error bars
    axes.legend(loc='lower left', bbox_to_anchor=(0, 1), borderaxespad=0.3, frameon=False)
    figure.tight_layout()
    path = workdir / CURVE
    with replacing(path) as file:
        figure.savefig(file)
    plt.close(figure)
    return path

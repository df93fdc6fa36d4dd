"""Command: compares what preflight says of credits with what finished runs have learned.

    python -m experiments.foretell --config=configs/claims_ocr.py --workdir=runs/foretell \\
        --out=docs/results/foretold

Runs `densegrpo_jax.preflight` for the configuration, and for the other noise levels that --runs
has, and takes the signal of every credit that --runs (`experiments.reproduce`'s tables) has trained
with. A run counts as the mean of its score over its evaluations after the start. Writes a scatter,
a table and the rank correlation over the credits, with a bootstrap interval, into --out. A signal
is a share of what one noise decides, so signals of several noises are shown and not compared: only
the order of credits within a setting can be foretold. With --norun the page is made again from
OUT/signal.json. Exit status as `experiments.reproduce`.

    python -m experiments.foretell --pool=runs/foretold_1,runs/foretold_2 --out=runs/foretold_all

pools the --out folders of several settings, of which it reads signal.json and heights.json alone.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags, logging
from scipy import stats

from densegrpo_jax.config.command_line import define_folder, run_main
from densegrpo_jax.config.loading import load
from densegrpo_jax.preflight.credits import Credit
from densegrpo_jax.preflight.record import FILE, FORMS, joined
from densegrpo_jax.preflight.signal import Interval, Rewards, signals
from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.journal import Journal
from densegrpo_jax.runtime.markdown import table
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.stop import FINISHED, StopRequest
from densegrpo_jax.runtime.trees import json_value
from densegrpo_jax.sampling.schedule import make_schedule
from densegrpo_jax.sampling.session import open_base
from experiments.foretelling.ordering import LEVEL, ordered
from experiments.foretelling.settings import (
    HEIGHTS,
    NOISES,
    POOLED,
    SIGNAL,
    check_ranked,
    read_settings,
    read_signal,
    write_heights,
    write_pool,
)
from experiments.reproduction.drawing import save, subplots
from experiments.reproduction.facts import commit
from experiments.reproduction.figures import VARIANTS
from experiments.reproduction.probe_statistics import bootstrap
from experiments.reproduction.records import PAGE, Records, check_page
from experiments.reproduction.statistics import summary
from experiments.reproduction.sweep import base_digest, complete, status_of

_WHOLE = {'window': 1, 'alpha': 0.0}
CREDITS: Mapping[str, Credit] = {
    'dense': Credit('dense'),
    'sparse': Credit('sparse'),
    'dense_baseline': Credit('dense_baseline'),
    **{f'n_{n}': Credit('dense', n) for n in (1, 2, 3)},
    **{f'gae_{x:g}': Credit('gae', options={'gae_lambda': x}) for x in (0.5, 0.9, 1.0)},
    'coca_to_go': Credit('coca_to_go', options=_WHOLE),
    'coca_to_go_signed': Credit('coca_to_go', options=_WHOLE, signed=True),
    'coca_share': Credit('coca_share', options={'window': 1}),
    'coca_share_signed': Credit('coca_share', options={'window': 1}, signed=True),
}
RESAMPLES = 2000
TITLE, PICTURE = '# What preflight foretells', 'foretold.png'


def foretold(
    base: Rewards, noises: Mapping[str, Rewards], trained: np.ndarray
) -> dict[str, Interval]:
    """Variant -> signal of its credit, from the rewards of preflights."""
    found = {}
    for credits, rewards in (
        (CREDITS, base),
        *(({n: Credit('dense')}, r) for n, r in noises.items()),
    ):
        whole = rewards.whole()
        steps = {name: credit.of(whole) for name, credit in credits.items()}
        found |= {
            name: each
            for name, each in signals(whole, steps, trained, next(iter(credits))).signal.items()
            if name in credits
        }
    return found


def heights(records: Records) -> dict[str, list[float]]:
    """Variant -> the run's mean score after the start, of every seed."""
    names = [name for name in VARIANTS if records.seeds(name)]
    return {name: [summary(run) for run in records.curves(name).values()] for name in names}


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Interval:
    """Spearman's, with a 95 % bootstrap interval over pairs."""
    x, y = np.asarray(x), np.asarray(y)

    def of(rows: np.ndarray) -> float:
        spread = np.ptp(x[rows]) > 0 and np.ptp(y[rows]) > 0
        return stats.spearmanr(x[rows], y[rows]).statistic if spread else math.nan

    low, high = bootstrap(of, len(x), RESAMPLES)
    return Interval(float(of(np.arange(len(x)))), float(low), float(high))


def write(
    out: pathlib.Path, signal: Mapping[str, Interval], runs: Mapping[str, Sequence[float]], how: str
) -> list[pathlib.Path]:
    """Writes the page, the signals and the scatter of the variants in both; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / SIGNAL, json.dumps(json_value(signal), indent=2) + '\n')
    unknown = [name for name in runs if name in signal and math.isnan(signal[name].value)]
    signal = {name: signal[name] for name in signal if name in runs and name not in unknown}
    means = {name: float(np.mean(runs[name])) for name in signal}
    ranked = {name: s for name, s in signal.items() if name not in NOISES}
    check_ranked(ranked)
    rho = rank_correlation([s.value for s in ranked.values()], [means[n] for n in ranked])
    found = ordered(ranked, runs)
    made = _draw(out / PICTURE, signal, runs)
    quoted = lambda names: ', '.join(f'`{name}`' for name in names)
    left_out = []
    if beside := [name for name in signal if name in NOISES]:
        left_out = [f'{quoted(beside)}, because a signal is a share of what its own noise decides']
    if unknown:
        left_out.append(f'without any measured effect: {quoted(unknown)}')
    if absent := [name for name in runs if name not in {*signal, *unknown}]:
        left_out.append(f'with curves but without a measured signal: {quoted(absent)}')
    rows = [
        [
            f'`{name}`' + ' (other noise)' * (name in NOISES),
            str(signal[name]),
            f'{means[name]:.4f}' + (f' ± {np.std(of, ddof=1):.4f}' if len(of) > 1 else ''),
            str(len(of)),
        ]
        for name in sorted(signal, key=lambda name: -signal[name].value)
        for of in [runs[name]]
    ]
    text = [
        TITLE,
        how,
        f'Over {len(ranked)} credits the rank correlation of the signal, before training, with '
        f'the height of the learning curves is **{rho}** (95 % bootstrap over credits). Of their '
        f'{found.pairs} pairs the runs of {found.decided} differ at 5 %, each test for itself '
        f'(chance alone would give {LEVEL * found.pairs:.0f}), and the signal orders '
        f"{found.right} of these alike. Holm's correction for so many tests leaves {found.sure} "
        f'of them, {found.sure_right} ordered alike.',
        *[f'Not in these numbers: {"; ".join(left_out)}.'] * bool(left_out),
        f'![scatter]({made.name})',
        table(['variant', 'signal', 'mean score of a run ± over seeds', 'seeds'], rows),
    ]
    notes = out / 'notes.md'
    text += [notes.read_text(encoding='utf-8').strip()] if notes.exists() else []
    replace_file(out / PAGE, '\n\n'.join(text) + '\n')
    return [out / PAGE, out / SIGNAL, made]


def _draw(
    path: pathlib.Path, signal: Mapping[str, Interval], runs: Mapping[str, Sequence[float]]
) -> pathlib.Path:
    figure, axes = subplots(figsize=(7.5, 5), dpi=110)
    for name, s in signal.items():
        y, spread = np.mean(runs[name]), np.std(runs[name], ddof=len(runs[name]) > 1)
        across = [[max(s.value - s.low, 0)], [max(s.high - s.value, 0)]]
        color = 'C1' if name in NOISES else 'C0'
        axes.errorbar(s.value, y, xerr=across, yerr=spread, marker='o', color=color, alpha=0.7)
        axes.annotate(name, (s.value, y), textcoords='offset points', xytext=(5, 4), fontsize=8)
    axes.set_xlabel('signal of the credit, before training')
    axes.set_ylabel('mean held-out score of a run')
    axes.grid(alpha=0.3)
    figure.tight_layout()
    save(figure, path)
    return path


def _measured(folder: pathlib.Path) -> Rewards:
    _, *rows = Journal(folder / FILE, forms=FORMS, remedy='measure in another --workdir').rows
    return joined({row['prompt']: row for row in rows})[0]


def main(flag) -> int:
    workdir, out = pathlib.Path(flag.workdir), pathlib.Path(flag.out)
    if flag.pool:
        check_page(out, POOLED)
        command = f'python -m experiments.foretell --pool={",".join(flag.pool)} --out={flag.out}'
        logging.info('made %s', write_pool(out, read_settings(flag.pool), f'`{command}`.'))
        return FINISHED
    # norun reads SIGNAL
    check_page(out, TITLE, (PICTURE, HEIGHTS) if flag.norun else (PICTURE, HEIGHTS, SIGNAL))
    records = Records.load(pathlib.Path(flag.runs))
    if not records.runs:
        raise ValueError(f'--runs={flag.runs} has no runs.csv; experiments.reproduce writes one')
    if flag.norun:
        signal = read_signal(out)
        how = (
            f'`python -m experiments.foretell --norun --runs={flag.runs} --out={flag.out}`, from '
            f'`{SIGNAL}`.'
        )
        _made(out, signal, records, how)
        return FINISHED
    config, base = load(flag.config), base_digest(flag.config, ())
    if other := {run['base'] for run in records.runs.values()} - {base}:
        raise ValueError(
            f'--runs={flag.runs} has runs of {", ".join(sorted(other))}, and '
            f'--config={flag.config} is {base}: a signal foretells runs of its own configuration'
        )
    trained_with = [name for name in NOISES if records.seeds(name)]
    workdir.mkdir(parents=True, exist_ok=True)
    size = [f'--prompts={flag.prompts}', f'--group={flag.group}', '--completions=1,2,3']

    def work(stop: StopRequest) -> int:
        for name in ('base', *trained_with):
            changes = VARIANTS.get(name, {})
            keys = [f'--config.{key}={value}' for key, value in changes.items()]
            command = ['python', '-m', 'densegrpo_jax.preflight', f'--config={flag.config}']
            command += [f'--workdir={workdir / name}', *size, *keys]
            complete(command, workdir / f'{name}.txt', stop)
        return FINISHED

    if status := status_of(work):
        return status
    pipeline = open_base(config, make_mesh(config.mesh))[1]
    trained = make_schedule(pipeline, config).masks.trained
    noises = {name: _measured(workdir / name) for name in trained_with}
    signal = foretold(_measured(workdir / 'base'), noises, trained)
    how = (
        f'`python -m experiments.foretell --workdir=... --out={flag.out}`, {flag.prompts} prompts '
        f'x {flag.group} samples of `{flag.config}`, code {commit()}, against the runs in '
        f'`{flag.runs}`: all of the same number of updates and samples, at one learning rate.'
    )
    _made(out, signal, records, how)
    return FINISHED


def _made(out: pathlib.Path, signal: Mapping[str, Interval], records: Records, how: str) -> None:
    made = write(out, signal, heights(records), how)
    base = ' + '.join(sorted({run['base'] for run in records.runs.values()}))  # one
    write_heights(out, base, heights(records))
    logging.info('made %s', ', '.join(map(str, [*made, out / HEIGHTS])))


if __name__ == '__main__':
    flags.DEFINE_string('config', 'configs/claims_ocr.py', 'Configuration of the runs.')
    define_folder('workdir', 'runs/foretell', 'Where the preflights go.')
    define_folder('out', 'docs/results/foretold', 'Folder for the page.')
    define_folder('runs', 'docs/results/reproduction', 'Tables of finished runs.')
    flags.DEFINE_list('pool', [], 'Folders of other --out, one for each setting: only pools them.')
    flags.DEFINE_bool('norun', False, 'Only make the page again, from OUT/signal.json.')
    flags.DEFINE_integer('prompts', 64, 'Prompts of a preflight.', lower_bound=4)
    flags.DEFINE_integer('group', 8, 'Samples of each.', lower_bound=2)
    run_main(main)

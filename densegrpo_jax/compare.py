"""Command: trains variants of a configuration over several seeds and draws their evaluation curves with spread.

    python -m densegrpo_jax.compare --config=configs/tiny_ocr.py --vary=credit.rule=dense,sparse --seeds=0,1,2 \\
        --workdir=runs/credit --out=docs/credit

Every run is a `densegrpo_jax.main` of its own in WORKDIR/VALUE_SEED; run again, unfinished ones continue and finished ones are kept.
Writes OUT/curves.png (score against updates, network calls and seconds), OUT/curves.csv and OUT/README.md.
Extra arguments after `--` go to every run: `-- --config.iterations=40`.
"""

from __future__ import annotations

import csv
import json
import pathlib
import subprocess
import sys

import numpy as np
from absl import app, flags, logging

from densegrpo_jax.training import console

AXES = {'updates': 'updates', 'velocity_evals': 'velocity evaluations (millions)', 'seconds': 'seconds in iterations'}


def train(config: str, key: str, value: str, seed: str, workdir: pathlib.Path, extra: list[str]) -> None:
    """Runs or continues one training; raises RuntimeError with its command when it fails."""
    command = [sys.executable, '-m', 'densegrpo_jax.main', f'--config={config}', f'--workdir={workdir}']
    command += [f'--config.{key}={value}', f'--config.seed={seed}', *extra]
    logging.info('%s', ' '.join(command[1:]))
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / 'log.txt', 'a') as log:
        code = subprocess.run(command, stderr=log, stdout=log).returncode
    if code:
        raise RuntimeError(f'a run ended with status {code}; see {workdir / "log.txt"}. The same command continues it')


def read(workdir: pathlib.Path) -> list[dict]:
    """The evaluations of a run: updates, velocity_evals and seconds so far, score, standard error."""
    rows, spent = [], {'train/velocity_evals': 0.0, 'train/seconds': 0.0}
    for line in (workdir / 'metrics.jsonl').read_text().splitlines():
        row = json.loads(line)
        spent |= {k: row[k] for k in spent if k in row}
        if 'eval/total' in row:
            cost = {'updates': row['step'], 'velocity_evals': spent['train/velocity_evals'], 'seconds': spent['train/seconds']}
            rows.append({**cost, 'score': row['eval/total'], 'standard_error': row['eval/standard_error']})
    return rows


def draw(curves: dict[str, list[list[dict]]], key: str, path: pathlib.Path) -> None:
    """Three panels: mean over seeds with the range of the seeds shaded, thin lines per seed."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 4), dpi=110, sharey=True)
    for axes, (cost, label) in zip(panels, AXES.items()):
        for i, (value, runs) in enumerate(curves.items()):
            scale = 1e-6 if cost == 'velocity_evals' else 1.0
            shared = min(map(len, runs))
            x = np.array([[row[cost] * scale for row in run[:shared]] for run in runs])
            y = np.array([[row['score'] for row in run[:shared]] for run in runs])
            for xs, ys in zip(x, y):
                axes.plot(xs, ys, color=f'C{i}', linewidth=0.7, alpha=0.5)
            axes.plot(
                x.mean(0), y.mean(0), color=f'C{i}', linewidth=2, marker='o', markersize=3, label=f'{key} = {value} ({len(runs)} seeds)'
            )
            axes.fill_between(x.mean(0), y.min(0), y.max(0), color=f'C{i}', alpha=0.15)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel('held-out score')
    panels[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def write(curves: dict[str, dict[str, list[dict]]], key: str, out: pathlib.Path, command: str) -> None:
    """curves.csv, curves.png and README.md in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    fields = ['value', 'seed', *AXES, 'score', 'standard_error']
    with open(out / 'curves.csv', 'w', newline='') as file:
        table = csv.DictWriter(file, fields)
        table.writeheader()
        for value, runs in curves.items():
            for seed, rows in runs.items():
                table.writerows({'value': value, 'seed': seed, **row} for row in rows)
    draw({value: list(runs.values()) for value, runs in curves.items()}, key, out / 'curves.png')
    lines = [f'# {key}: ' + ' against '.join(curves), '', f'    {command}', '', '![curves](curves.png)', '']
    lines += [f'| {key} | seed | updates | velocity evaluations | seconds | before | after (± standard error) |', '| --- ' * 7 + '|']
    for value, runs in curves.items():
        for seed, rows in runs.items():
            first, last = rows[0], rows[-1]
            lines.append(
                f'| {value} | {seed} | {last["updates"]} | {last["velocity_evals"]:.0f} | {last["seconds"]:.0f} | {first["score"]:.4f} '
                f'| {last["score"]:.4f} ± {last["standard_error"]:.4f} |'
            )
        final = np.array([rows[-1]['score'] for rows in runs.values()])
        spread = f' ± {final.std(ddof=1):.4f} (standard deviation over seeds)' if len(final) > 1 else ''
        lines.append(f'| **{value}** | mean | | | | | **{final.mean():.4f}**{spread} |')
    (out / 'README.md').write_text('\n'.join(lines) + '\n')


def main(argv) -> int:
    console.start()
    key, _, values = flags.FLAGS.vary.partition('=')
    if not values:
        raise app.UsageError(f'--vary={flags.FLAGS.vary}: expected key=value,value,...')
    workdir, curves = pathlib.Path(flags.FLAGS.workdir), {}
    for seed in flags.FLAGS.seeds:  # seed by seed, so that a sweep that is cut off can be compared as far as it got
        for value in values.split(','):
            folder = workdir / f'{value}_{seed}'
            train(flags.FLAGS.config, key, value, seed, folder, argv[1:])
            curves.setdefault(value, {})[seed] = read(folder)
            command = ' '.join(['python -m densegrpo_jax.compare', *(f"'{a}'" if ' ' in a else a for a in sys.argv[1:])])
            write(curves, key, pathlib.Path(flags.FLAGS.out), command)
            logging.info('%s = %s, seed %s: %.4f', key, value, seed, curves[value][seed][-1]['score'])
    logging.info('made %s', ', '.join(str(p) for p in sorted(pathlib.Path(flags.FLAGS.out).iterdir())))
    return 0


def define_flags() -> None:
    """Only the command itself has flags: importing this module defines none."""
    flags.DEFINE_string('config', None, 'Configuration file, given to densegrpo_jax.main as it is.')
    flags.DEFINE_string('vary', 'credit.rule=dense,sparse', 'Key and the values that are compared: key=a,b,c.')
    flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds; every value is run with each.')
    flags.DEFINE_string('workdir', None, 'Where the runs go.')
    flags.DEFINE_string('out', None, 'Folder for the figure, the table and the page.')


if __name__ == '__main__':
    define_flags()
    flags.mark_flags_as_required(['config', 'workdir', 'out'])
    app.run(lambda argv: sys.exit(main(argv)))

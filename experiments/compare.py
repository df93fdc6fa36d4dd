"""Command: trains variants of a configuration over several seeds and draws their evaluation curves
with spread.

    python -m experiments.compare --config=configs/tiny_ocr.py \\
        --vary=credit.rule=dense,sparse --seeds=0,1,2 --workdir=runs/credit --out=runs/credit/report

    python -m experiments.compare --config=configs/claims_ocr.py \\
        --vary=method=dense_grpo,flow_grpo --seeds=0 --workdir=runs/methods --out=runs/methods/out

`--vary=KEY=A,B` compares values of a key, `--vary=method=A,B` methods by name (`all`: every row of
docs/methods.md). Every run is a separate `densegrpo_jax.main` in WORKDIR/VALUE/SEED. The same
command, run again, continues unfinished runs and keeps finished ones, also those of which only the
tables in OUT are left. Writes OUT/curves.png (score against updates, network evaluations and
seconds), OUT/runs.csv, OUT/evaluations.csv and OUT/README.md. Extra arguments after `--` go to
every run: `-- --config.iterations=40`. For the claims of the paper use `experiments.reproduce`.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

import numpy as np
from absl import app, flags, logging

from densegrpo_jax.config.command_line import check_key, define_folder, define_seeds, run_main
from densegrpo_jax.config.loading import load, with_method
from densegrpo_jax.config.methods import METHODS
from densegrpo_jax.config.unread import unread
from densegrpo_jax.runtime.markdown import table
from densegrpo_jax.runtime.stop import FINISHED, RESUMABLE, Preempted, handle_stop_signals
from experiments.reproduction.drawing import LABELS, draw_curves
from experiments.reproduction.facts import commit, device
from experiments.reproduction.records import PAGE, Records, check_page
from experiments.reproduction.sweep import Run, check_sweep, configured, recorded, run_all

METHOD = 'method'  # as a key of --vary: the recipe's variant of that name


def write(records: Records, key: str, values: list[str], out: pathlib.Path, command: str) -> None:
    """Writes tables, curves.png and README.md into `out`; hand-written text in its notes.md goes
    into the page.
    """
    records.save(out)
    curves = {value: records.curves(value) for value in values}
    present = {f'{key} = {value}': list(runs.values()) for value, runs in curves.items() if runs}
    if present:
        draw_curves(present, out / 'curves.png')
    lines = []
    for value, runs in curves.items():
        for seed, rows in runs.items():
            first, last = rows[0], rows[-1]
            spent = [f'{last["updates"]:.0f}', f'{last["nfe"] / 1e6:.3f}', f'{last["seconds"]:.0f}']
            lines.append(
                [
                    value,
                    seed,
                    *spent,
                    f'{first["score"]:.4f}',
                    f'{last["score"]:.4f} ± {last["standard_error"]:.4f}',
                ]
            )
        if len(runs) > 1:
            final = np.array([rows[-1]['score'] for rows in runs.values()])
            spread = f'± {final.std(ddof=1):.4f} (standard deviation over seeds)'
            lines.append(
                [f'**{value}**', 'mean', '', '', '', '', f'**{final.mean():.4f}** {spread}']
            )
    head = [key, 'seed', 'updates', LABELS['nfe'], 'seconds', 'before', 'after (± standard error)']
    notes = out / 'notes.md'
    page = [
        f'# {key}: ' + (' against '.join(values) if len(values) < 5 else f'{len(values)} variants'),
        f'    {command}',
        *([notes.read_text(encoding='utf-8').strip()] if notes.exists() else []),
        '![curves](curves.png)',
        table(head, lines),
    ]
    (out / PAGE).write_text('\n\n'.join(page) + '\n', encoding='utf-8')


def main(flag, extra: Sequence[str]) -> int:
    key, _, listed = flag.vary.partition('=')
    if not listed:
        raise app.UsageError(f'--vary={flag.vary}: expected key=value,value,...')
    workdir, out, values = pathlib.Path(flag.workdir), pathlib.Path(flag.out), listed.split(',')
    if len({*values}) < len(values) or '' in values:
        raise ValueError(f'--vary={flag.vary}: expected different values, none of them empty')
    if twice := [text for text in extra if text.lstrip('-').startswith(f'config.{key}=')]:
        raise ValueError(f'--vary={flag.vary} and {twice[0]} set the same key: leave one out')
    by_method = key == METHOD
    if by_method and values == ['all']:
        values = list(METHODS)
    runs = [
        Run(
            with_method(flag.config, value) if by_method else flag.config,
            value,
            () if by_method else ((key, value),),
            seed,
            workdir / value / seed,
            workdir / 'text',
            tuple(extra),
        )
        # seed by seed, so that the finished part of an interrupted sweep can be compared
        for seed in flag.seeds
        for value in values
    ]
    # mistakes are found now, and not in every run
    if by_method:
        for value in values:
            load(with_method(flag.config, value))
    else:
        check_key(load(flag.config), key, f'--vary={flag.vary}')
        _check_read(flag, key, values, extra)
    records = Records.load(out)
    check_page(out, 'python -m experiments.compare', ('curves.png',))
    left = [run for run in runs if not recorded(records, run)]
    base = check_sweep(flag.config, extra, left, records, out)
    try:
        with handle_stop_signals() as stop:
            facts = {'base': base, 'device': device(), 'commit': commit()}
            status = 1 if run_all(left, 1, stop, facts) else FINISHED
    except Preempted as reason:
        logging.warning('%s; the same command continues', reason)
        status = RESUMABLE
    for run in left:
        if run.finished:
            records.add(run.folder)
    command = ' '.join(
        ['python -m experiments.compare', *(f"'{a}'" if ' ' in a else a for a in sys.argv[1:])]
    )
    write(records, key, values, out, command)
    logging.info('made %s', ', '.join(str(p) for p in sorted(out.iterdir())))
    return status


def _check_read(flag, key: str, values: Sequence[str], extra: Sequence[str]) -> None:
    """Raises ValueError if no run reads the key that they differ in: all would be equal."""
    reasons = []
    for value in values:
        config = configured(flag.config, [*extra, f'--config.{key}={value}'])
        try:
            reasons.append([str(found) for found in unread(config) if found.key == key])
        except ValueError:  # a part that does not exist: its run says so
            return
    if all(reasons):
        raise ValueError(f'--vary={flag.vary}: the runs would be equal. {reasons[0][0]}')


def define_flags() -> None:
    """Defines the flags; importing this module defines none."""
    flags.DEFINE_string('config', None, 'Configuration file, passed to densegrpo_jax.main.')
    flags.DEFINE_string(
        'vary',
        'credit.rule=dense,sparse',
        'Key and the values to compare: key=a,b,c; or method=a,b,c, or method=all.',
    )
    define_seeds(3)
    define_folder('workdir', None, 'Where the runs go.')
    define_folder('out', None, 'Folder for the figure, the tables and the page.')


if __name__ == '__main__':
    define_flags()
    flags.mark_flags_as_required(['config', 'workdir', 'out'])
    run_main(main, extra=True)

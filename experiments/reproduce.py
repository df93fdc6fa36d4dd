"""Command: runs the trainings for a figure of the paper, on the miniature or any configuration,
draws it, and says which claims hold.

    # on two cores: many hours; stop it and run it again at will
    python -m experiments.reproduce --figure=4,6b
    # several runs side by side on one GPU
    python -m experiments.reproduce --figure=all --jobs=14
    # only draws finished runs
    python -m experiments.reproduce --figure=all --norun
    # another configuration
    python -m experiments.reproduce --figure=4 \\
        --config=configs/claims_geneval.py --workdir=runs/claims_geneval

    # every method at equal cost, each with a learning rate of its own
    python -m experiments.reproduce --figure=methods --seeds=0,1,2,3,4 \\
        --workdir=runs/equal_cost --out=runs/equal_cost/report

experiments/reproduction/figures.py names the figures. Every training is a separate
`densegrpo_jax.main` in WORKDIR/VARIANT/SEED, seed after seed, so that the finished part of an
interrupted sweep can be compared. The same command, run again, continues unfinished runs and keeps
finished ones. OUT (default WORKDIR/report) collects finished runs, also from other machines:
runs.csv, evaluations.csv, a PNG per figure and README.md with a verdict per claim. The page of this
repository is OUT=docs/results/reproduction: `--figure=all --norun --out=docs/results/reproduction`
redraws it, and without --norun new runs join it. Extra arguments after `--` go to every run:
`-- --config.model.scan=True`.

Exit status: 0 all runs have finished, 75 stopped by a signal, 1 some runs failed, 2 a figure,
configuration or folder cannot be used.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags, logging

from densegrpo_jax.config.command_line import define_folder, define_seeds, run_main
from densegrpo_jax.runtime.stop import FINISHED, StopRequest
from experiments.equal_cost import run as equal_cost
from experiments.equal_cost.variants import VARIANTS as VARIED
from experiments.reproduction import page, probed
from experiments.reproduction.facts import commit, device
from experiments.reproduction.figures import FIGURES, GATE, PSI, VARIANTS, select
from experiments.reproduction.probed import MEASURES
from experiments.reproduction.records import Records, check_page, check_results
from experiments.reproduction.statistics import NOT_RUN
from experiments.reproduction.sweep import Run, check_sweep, complete, run_all, status_of


def chosen_runs(
    figures: list[str],
    config: str,
    seeds: list[str],
    workdir: pathlib.Path,
    psi: pathlib.Path,
    extra: list[str],
) -> list[Run]:
    """The trainings of the figures, each once: first all seeds of GATE, then the others, seed by
    seed in the order of VARIANTS.
    """
    needed = {variant for name in figures if name in FIGURES for variant in FIGURES[name].variants}
    order = [
        (variant not in GATE, i, variant)
        for i in range(len(seeds))
        for variant in VARIANTS
        if variant in needed
    ]
    runs = []
    for _, i, variant in sorted(order, key=lambda entry: entry[:2]):
        changes = tuple(
            (key, str(psi) if value == PSI else value) for key, value in VARIANTS[variant].items()
        )
        folder = workdir / variant / seeds[i]
        runs.append(Run(config, variant, changes, seeds[i], folder, workdir / 'text', tuple(extra)))
    return runs


def main(flag, extra: Sequence[str]) -> int:
    if equal_cost.FIGURE in flag.figure:
        if flag.figure != [equal_cost.FIGURE]:
            raise ValueError(f'--figure={",".join(flag.figure)}: {equal_cost.FIGURE} runs alone')
        return equal_cost.run(flag, extra)
    workdir, out = pathlib.Path(flag.workdir), pathlib.Path(flag.out or f'{flag.workdir}/report')
    figures = select(flag.figure, MEASURES)
    psi = pathlib.Path(flag.psi).expanduser() if flag.psi else workdir / 'psi.json'
    runs = chosen_runs(figures, flag.config, flag.seeds, workdir, psi, extra)
    records = Records.load(out)
    check_page(out, page.TITLE)
    if flag.run:
        left = [run for run in runs if not run.finished]
        base = check_sweep(flag.config, extra, left, records, out)
    else:
        measured = [s for s in probed.read(out).values() if s.verdict != NOT_RUN]
        found = records.runs or measured or any(run.finished for run in runs)
        check_results(bool(found), workdir, out)
    workdir.mkdir(parents=True, exist_ok=True)

    def work(stop: StopRequest) -> int:
        if not flag.psi and any(PSI in VARIANTS[run.variant].values() for run in runs):
            command = ['python', '-m', 'densegrpo_jax.calibrate', f'--config={flag.config}', *extra]
            command += ['--unread=warn']  # `extra` is of the trainings
            command += [f'--workdir={workdir / "calibration"}', f'--out={psi}']
            complete(command, workdir / 'calibration.txt', stop)
        facts = {'base': base, 'device': device(), 'commit': flag.commit or commit()}
        status = 1 if runs and run_all(runs, flag.jobs, stop, facts) else FINISHED
        if measures := [name for name in figures if name in MEASURES]:
            command = ['python', '-m', 'experiments.probe', f'--config={flag.config}', *extra]
            command += [f'--measure={",".join(measures)}']
            command += [f'--workdir={workdir / "probe"}', f'--out={out}']
            complete(command, workdir / 'probe.txt', stop)
        return status

    status = status_of(work) if flag.run else FINISHED
    for run in runs:
        if run.finished:
            records.add(run.folder)
    records.save(out)
    made = page.write(
        out, records, probed.read(out), {run.variant: len(flag.seeds) for run in runs}
    )
    logging.info('made %s', ', '.join(map(str, made)))
    return status


if __name__ == '__main__':
    flags.DEFINE_string('config', 'configs/claims_ocr.py', 'Base configuration of all runs.')
    flags.DEFINE_list(
        'figure',
        None,
        f'Figures: {", ".join([*FIGURES, *MEASURES])}, or all; or {equal_cost.FIGURE} alone.',
    )
    flags.DEFINE_list(
        'methods', ['all'], f'With --figure={equal_cost.FIGURE}: which of {", ".join(VARIED)}.'
    )
    define_seeds(5)
    define_folder('workdir', 'runs/claims_ocr', 'Where the runs go.')
    define_folder('out', None, 'Folder for tables, figures and the page; default WORKDIR/report.')
    flags.DEFINE_integer(
        'jobs',
        1,
        'Runs side by side, as many as fit on the device; their times are then not comparable.',
        lower_bound=1,
    )
    flags.DEFINE_bool('run', True, 'Run missing trainings; false: only draw.')
    flags.DEFINE_string(
        'psi',
        '',
        'Noise table made by densegrpo_jax.calibrate; default: calibrate first, into '
        'WORKDIR/psi.json.',
    )
    flags.DEFINE_string('commit', '', 'Commit of this code, if git cannot tell.')
    flags.mark_flags_as_required(['figure'])
    run_main(main, extra=True)

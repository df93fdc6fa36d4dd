"""The figure `methods`: trains, collects and writes the table, in this order and resumable."""

from __future__ import annotations

import pathlib
import shlex
import sys
from collections.abc import Sequence

from absl import logging

from densegrpo_jax.runtime.stop import FINISHED, StopRequest
from experiments.equal_cost import measures, page, sweep
from experiments.equal_cost.variants import VARIANTS
from experiments.reproduction.facts import commit, device
from experiments.reproduction.records import Records, check_page, check_results
from experiments.reproduction.sweep import (
    Run,
    check_sweep,
    leave_out_earlier,
    recorded,
    run_all,
    status_of,
)

FIGURE = 'methods'


def run(flag, extra: Sequence[str]) -> int:
    """Runs what is missing and writes the page into --out; returns the exit status.

    The tables in --out count as runs, also without their folders.

    Raises:
      ValueError: a name, a configuration or results of another configuration in --out.
    """
    workdir, out = pathlib.Path(flag.workdir), pathlib.Path(flag.out or f'{flag.workdir}/report')
    if sweep.RATE_SEED in flag.seeds:
        raise ValueError(
            f'--seeds: {sweep.RATE_SEED} is the seed on which the learning rates are chosen; '
            'choose others'
        )
    names = sweep.with_methods(VARIANTS if flag.methods == ['all'] else flag.methods)
    records = Records.load(out)
    check_page(out, page.TITLE)
    for (variant, _), row in records.runs.items():
        if '--config.optim.decay=constant' not in row['command'].split(' '):
            raise ValueError(
                f'--out={out} has runs of an earlier version, in which the learning rate fell '
                f'({variant}): give another --out and --workdir'
            )
    base = check_sweep(flag.config, extra, (), records, out)
    budget = sweep.budget_of(flag.config, extra)
    found, refused = sweep.entries(flag.config, names, budget, extra)
    measured = measures.Measures.load(out)
    if not flag.run and not refused:  # the page says why those are left out
        check_results(bool(records.runs) or any(workdir.glob('*/**/summary.json')), workdir, out)
    workdir.mkdir(parents=True, exist_ok=True)
    chosen = lambda: sweep.best_rates(sweep.rates(records, budget))
    stages = (
        lambda: sweep.searches(found, workdir, extra),
        lambda: sweep.finals(found, chosen(), flag.seeds, workdir, extra),
    )

    def work(stop: StopRequest) -> int:
        status = FINISHED
        for stage in stages:
            runs = [r for r in stage() if not recorded(records, r)]
            if flag.run and runs:
                leave_out_earlier(records, runs)
                facts = {'base': base, 'device': device(), 'commit': flag.commit or commit()}
                try:
                    status = 1 if run_all(runs, flag.jobs, stop, facts) else status
                finally:
                    _add(records, runs)
            else:
                _add(records, runs)
        if flag.run:
            finals = sweep.finals(found, chosen(), flag.seeds, workdir, extra)
            measures.measure(finals, flag.config, measured, stop)
        return status

    status = status_of(work)
    records.save(out)
    measured.save(out)
    given = [each for each in sys.argv[1:] if each != '--norun']  # so that it adds what is missing
    command = shlex.join(['python', '-m', 'experiments.reproduce', *given])
    # the page has all variants with runs, also those that this command was not asked for
    known = {variant.partition(' x')[0] for variant, _ in records.runs}
    shown, _ = sweep.entries(flag.config, [n for n in VARIANTS if n in known], budget, extra)
    made = page.write(out, records, measured, shown, refused, budget, command)
    logging.info('made %s', ', '.join(map(str, made)))
    return status


def _add(records: Records, runs: Sequence[Run]) -> None:
    for each in runs:
        if each.finished:
            records.add(each.folder)

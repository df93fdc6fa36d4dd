"""Command: measures credit without training: latent rewards, their bias, cheaper completions, and
the direction of the gradients.

    python -m experiments.probe --config=configs/claims_ocr.py --workdir=runs/probe \\
        --measure=8,bias,cost,direction
    python -m experiments.probe --config=configs/claims_ocr.py --workdir=runs/probe \\
        --measure=bias --checkpoint=runs/a:best

experiments/reproduction/probe.py, probe_statistics.py and direction.py describe the measures and
the columns of the tables. Writes fig_NAME.csv and fig_NAME.png of every measure to OUT (default
WORKDIR). Raw rewards are stored in WORKDIR/probe: after a stop the same command continues. Exit
status as `densegrpo_jax.main`.
"""

from __future__ import annotations

import csv
import functools
import pathlib
from collections.abc import Sequence

from absl import app, flags, logging

from densegrpo_jax.config.command_line import define_folder, define_run_flags, run_main
from densegrpo_jax.config.flag_types import define_whole
from densegrpo_jax.evaluation.panel import choose
from densegrpo_jax.runtime.outputs import claim
from densegrpo_jax.sampling.execution import execute
from experiments.reproduction import probe, probe_drawing
from experiments.reproduction.direction import direction
from experiments.reproduction.probed import MEASURES

_MEASURE = {'8': probe.latent_rewards, 'bias': probe.bias, 'cost': probe.cost}
_DRAW = {
    '8': probe_drawing.draw_latent_rewards,
    'bias': probe_drawing.draw_bias,
    'cost': probe_drawing.draw_cost,
    'direction': probe_drawing.draw_direction,
}


def write_rows(path: pathlib.Path, rows: Sequence[dict]) -> None:
    """A CSV with all columns of the rows."""
    with open(path, 'w', newline='', encoding='utf-8') as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
        table.writeheader()
        table.writerows(rows)


def run(
    config,
    names: Sequence[str],
    checkpoint: str,
    prompts: int,
    updates: int,
    out: pathlib.Path,
    workdir: pathlib.Path,
    mesh,
    stop,
) -> None:
    """Measures, and writes a table and a figure of each."""
    if checkpoint and 'direction' in names:
        raise ValueError(
            'the direction of gradients is measured for the base; leave --checkpoint or '
            '--measure=direction out'
        )
    policy = choose([checkpoint], base=False)[0] if checkpoint else probe.BASE
    claim(workdir, (), ('text', 'probe'), hosts=stop.communicator.hosts)
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name == 'direction':
            rows = direction(config, workdir, mesh, stop, updates=updates)
        else:
            rows = _MEASURE[name](config, workdir, mesh, stop, policy=policy, prompts=prompts)
        table, picture = out / f'fig_{name}.csv', out / f'fig_{name}.png'
        write_rows(table, rows)
        _DRAW[name](rows, picture)
        logging.info('made %s, %s', table, picture)


def main(flag) -> int:
    unknown = [name for name in flag.measure if name not in MEASURES]
    if unknown:
        raise app.UsageError(
            f'--measure={",".join(unknown)} is not known; choose from {", ".join(MEASURES)}'
        )
    out = pathlib.Path(flag.out or flag.workdir).expanduser().absolute()
    rollout = flag.config.rollout
    work = functools.partial(
        run, flag.config, flag.measure, flag.checkpoint, flag.prompts, flag.updates, out
    )
    batch = rollout.prompts_per_batch * rollout.group
    return execute(flag, batch, work, command='probe')[0]


if __name__ == '__main__':
    define_run_flags()
    flags.DEFINE_list('measure', list(MEASURES), f'What to measure: {", ".join(MEASURES)}.')
    flags.DEFINE_string(
        'checkpoint', '', 'Policy: RUN:STEP, RUN:best or RUN:latest; default the base.'
    )
    define_whole('prompts', 32, 'Training prompts; the intervals are over them.', 1, 1_000_000)
    compared = "Batches of an iteration's size whose gradients are compared (direction)."
    define_whole('updates', 96, compared, 1, 1_000_000)
    define_folder('out', None, 'Folder for tables and figures; default WORKDIR.')
    flags.mark_flags_as_required(['config', 'workdir'])
    run_main(main)

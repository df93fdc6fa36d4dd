"""Command: calibrates the noise level of every step (DenseGRPO's Algorithm 1) for any
configuration, before it is trained.

    python -m densegrpo_jax.calibrate --config=configs/tiny_ocr.py --workdir=runs/psi
    python -m densegrpo_jax.main --config=configs/tiny_ocr.py --workdir=runs/tiny_psi \\
        --config.noise.psi_path=runs/psi/psi.json

Writes psi.json (--out; psi, its grid, the settings, the counts and psi of every iteration) and
beside it a PNG: psi against the start, the shares of positive and negative gains before and after,
and the gains along every trajectory. The same command continues what was stopped; with more
`--config.calibration.iterations` also what had not settled. With `--config.noise.calibrate=True`
training begins with it. Exit status as `densegrpo_jax.main`: 0 finished, 75 stopped by a signal and
resumable, 2 what cannot be used, 1 anything else.
"""

from __future__ import annotations

import math
import pathlib

from absl import app, flags

from densegrpo_jax.calibration.loop import run
from densegrpo_jax.config.command_line import define_folder, define_run_flags, run_main
from densegrpo_jax.sampling.execution import execute
from densegrpo_jax.sampling.noise import FILE


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(
            f'unexpected arguments {argv[1:]}; settings are given as --config.key=value'
        )
    flag = flags.FLAGS
    config, c = flag.config, flag.config.calibration
    out = pathlib.Path(flag.out or pathlib.Path(flag.workdir) / FILE).expanduser().absolute()
    batch = math.gcd(c.prompts * c.group, config.rollout.prompts_per_batch * config.rollout.group)
    return execute(flag, batch, lambda workdir, mesh, stop: run(config, workdir, out, mesh, stop))[
        0
    ]


if __name__ == '__main__':
    define_run_flags()
    define_folder('out', '', 'The psi file; WORKDIR/psi.json where it is not given.')
    flags.mark_flags_as_required(['config', 'workdir'])
    run_main(main)

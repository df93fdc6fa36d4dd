"""Command: calibrates the noise level of every step, after DenseGRPO's Algorithm 1, for any
configuration, before training.

    python -m densegrpo_jax.calibrate --config=configs/tiny_ocr.py --workdir=runs/psi
    python -m densegrpo_jax.main --config=configs/tiny_ocr.py --workdir=runs/tiny_psi \\
        --config.noise.psi_path=runs/psi/psi.json

Writes psi.json (--out; psi, its grid, the settings, the counts and psi of every iteration) and
beside it a PNG: psi against the start, the shares of positive and negative gains before and after,
and the gains along every trajectory. The same command continues a stopped calibration; with more
`--config.calibration.iterations` also one that had not settled. It starts
from `rollout.noise` and `rollout.level`, never from a table. The rule is ours; as printed it is
`--config.calibration.rule=paper --config.calibration.eps2=0.01`. With
`--config.noise.calibrate=True` training begins with a calibration. Exit status as
`densegrpo_jax.main`: 0 finished, 75 stopped by a signal and resumable, 2 an argument or file cannot
be used, 1 anything else.
"""

from __future__ import annotations

import math
import pathlib

from absl import flags, logging

from densegrpo_jax.config.command_line import define_run_flags, given_keys, run_main, say_start
from densegrpo_jax.config.flag_types import define_output
from densegrpo_jax.runtime.paths import writable


def main(flag) -> int:
    from densegrpo_jax.config.unread import CALIBRATION, check_unread

    config, c, r = flag.config, flag.config.calibration, flag.config.rollout
    if config.noise.psi_path:
        start = f'calibration starts from rollout.noise={r.noise!r} and level {r.level:g}'
        if 'noise.psi_path' in given_keys():
            raise ValueError(
                f'--config.noise.psi_path={config.noise.psi_path}: {start}, not from a table; '
                'leave the key out'
            )
        logging.info('%s, not from the table of the recipe, %s', start, config.noise.psi_path)
    check_unread(config, given_keys(), of=CALIBRATION, then=flag.unread)
    say_start('calibrate', flag.out or flag.workdir)

    from densegrpo_jax.calibration.loop import run
    from densegrpo_jax.sampling.execution import execute
    from densegrpo_jax.sampling.noise import FILE

    out = writable(flag.out or pathlib.Path(flag.workdir) / FILE)
    batch = math.gcd(c.prompts * c.group, r.prompts_per_batch * r.group)
    work = lambda workdir, mesh, stop: run(config, workdir, out, mesh, stop)
    return execute(flag, batch, work, command='calibrate')[0]


if __name__ == '__main__':
    define_run_flags(reads='calibrate')
    define_output('out', None, 'The psi file; default WORKDIR/psi.json.', '.json')
    flags.mark_flags_as_required(['config', 'workdir'])
    run_main(main)

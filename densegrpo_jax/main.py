"""Command: aligns a flow model with DenseGRPO.

    python -m densegrpo_jax.main --config=configs/tiny_ocr.py --workdir=runs/tiny_ocr [--config.iterations=100 ...]

Running the same command again continues the run found in the work directory. Exit status: 0 finished, 75 stopped by a signal and
resumable, 2 a configuration, file or prompt that cannot be used, 1 anything else (with --require_gain, also too little gain).
"""

from __future__ import annotations

import math
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from densegrpo_jax.parallel.mesh import make_mesh
from densegrpo_jax.parallel.startup import start_devices
from densegrpo_jax.training import console
from densegrpo_jax.training.preemption import FINISHED, RESUMABLE, Preempted, handle_stop_signals
from densegrpo_jax.training.run import run


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}; settings are given as --config.key=value')
    console.start()
    config, workdir = flags.FLAGS.config, pathlib.Path(flags.FLAGS.workdir).expanduser().absolute()
    rollout, optim = config.rollout, config.optim
    start_devices(math.gcd(rollout.prompts_per_batch * rollout.group, optim.microbatch, config.eval.batch), flags.FLAGS.cpu_devices)
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        with handle_stop_signals() as stop:
            summary = run(config, workdir, make_mesh(config.mesh), stop)
    except Preempted:
        return RESUMABLE
    except (ValueError, FileNotFoundError) as error:
        logging.error('%s', error)
        return 2
    gain = summary['after']['mean'] - summary['before']['mean']
    if flags.FLAGS.require_gain is not None and gain <= flags.FLAGS.require_gain:
        logging.error('the evaluation score changed by %+.4f; more than %+.4f was required', gain, flags.FLAGS.require_gain)
        return 1
    return FINISHED


def define_flags() -> None:
    """Only the command itself has flags: importing this module defines none."""
    config_flags.DEFINE_config_file('config', None, 'Configuration file; its keys are listed in training/defaults.py.', lock_config=True)
    flags.DEFINE_string('workdir', None, 'Where checkpoints, metrics and pictures go.')
    flags.DEFINE_integer('cpu_devices', 0, 'Virtual devices on a CPU; 0 = one per core, as far as the batch divides.')
    flags.DEFINE_float('require_gain', None, 'Exit with status 1 unless the evaluation score rose by more than this.')


if __name__ == '__main__':
    define_flags()
    flags.mark_flags_as_required(['config', 'workdir'])
    app.run(lambda argv: sys.exit(main(argv)))

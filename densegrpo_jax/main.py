"""Command: aligns a flow model with DenseGRPO.

    python -m densegrpo_jax.main --config=configs/tiny_ocr.py --workdir=runs/tiny_ocr [--config.iterations=100 ...]

On several hosts every one runs this command; TPU slices, Slurm steps and Open MPI are recognised, elsewhere name the others with
--coordinator, --num_processes and --process_id. The work directory must then be one that all of them see.
Running the same command again continues the run found in the work directory. Exit status: 0 finished, 75 stopped by a signal and
resumable, 2 a configuration, file or prompt that cannot be used or a work directory that another run is writing to, 1 anything else (with
--require_gain, also too little gain).
75 also where reward servers were gone for longer than the reward's `give_up_s`: nothing is wrong with the run, so a supervisor may start it
again, and it waits for them anew. The last completed update is saved then, as it is where a reward fails in another way (1).
"""

from __future__ import annotations

import math
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging
from jax.sharding import Mesh

from densegrpo_jax.parallel.hosts import Hosts
from densegrpo_jax.parallel.mesh import make_mesh
from densegrpo_jax.parallel.startup import check_device, keep_compiled, start_devices, start_processes
from densegrpo_jax.rewards.base import RewardError, RewardsGone
from densegrpo_jax.training import console
from densegrpo_jax.training.command_line import define_run_flags, run_main
from densegrpo_jax.training.files import only_writer
from densegrpo_jax.training.preemption import FINISHED, RESUMABLE, Preempted, StopRequest, handle_stop_signals
from densegrpo_jax.training.run import run


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments {argv[1:]}; settings are given as --config.key=value')
    flag, config = flags.FLAGS, flags.FLAGS.config
    rollout, optim = config.rollout, config.optim
    batch = math.gcd(rollout.prompts_per_batch * rollout.group, optim.microbatch, config.eval.batch)
    status, summary = execute(flag, batch, lambda workdir, mesh, stop: run(config, workdir, mesh, stop))
    if status != FINISHED:
        return status
    gain = summary['after']['mean'] - summary['before']['mean']
    if flag.require_gain is not None and gain <= flag.require_gain:
        logging.error('the evaluation score changed by %+.4f; more than %+.4f was required', gain, flag.require_gain)
        return 1
    return FINISHED


def execute(flag, batch: int, work: Callable[[pathlib.Path, Mesh, StopRequest], Any], folder: str = '') -> tuple[int, Any]:
    """Starts devices and processes as the flags say and does `work(folder, mesh, stop)`.

    Args:
      flag: with the fields of `command_line.define_run_flags`.
      batch: rows that the CPU devices should divide.
      folder: where `work` writes; '' = flag.workdir.

    Returns:
      (exit status, what `work` returned or None).
    """
    console.start()
    config, workdir = flag.config, pathlib.Path(folder or flag.workdir).expanduser().absolute()
    start_devices(batch, flag.cpu_devices)
    try:
        start_processes(flag.distributed, flag.coordinator, flag.num_processes, flag.process_id, heartbeat_seconds=flag.heartbeat)
        check_device(flag.device)
        hosts = Hosts.current()
        if not hosts.primary:
            logging.set_verbosity(logging.WARNING)
        workdir.mkdir(parents=True, exist_ok=True)
        keep_compiled(str(workdir / 'compiled'))
        with only_writer(workdir, hosts), handle_stop_signals(hosts=hosts) as stop:
            return FINISHED, work(workdir, make_mesh(config.mesh), stop)
    except (Preempted, RewardError) as reason:
        if isinstance(reason, RewardError):
            logging.error('%s', reason)
        logging.warning('%s; the same command continues', 'stopped' if isinstance(reason, RewardError) else reason)
        if hosts.count > 1:
            hosts.meet('leave', 30)  # process 0 keeps the others' mailbox
        return _leave(RESUMABLE if isinstance(reason, Preempted | RewardsGone) else 1), None
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        logging.error('%s', error)
        return _leave(2), None
    except Exception:
        if jax.process_count() > 1:
            logging.exception('this process (%d of %d) failed; the others stop when they notice', jax.process_index(), jax.process_count())
        else:
            raise
        return _leave(1), None


def _leave(status: int) -> int:
    """The exit status. One of several processes goes at once: the usual way out would wait for programs that need the others."""
    if jax.process_count() > 1:
        logging.flush()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


if __name__ == '__main__':
    define_run_flags()
    flags.DEFINE_float('require_gain', None, 'Exit with status 1 unless the evaluation score rose by more than this.')
    flags.mark_flags_as_required(['config', 'workdir'])
    run_main(main)

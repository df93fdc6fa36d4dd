"""The frame of every command that works on devices: devices, processes, signals, one writer, the
exit status.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from densegrpo_jax.config.command_line import UNUSABLE, UNUSABLE_ERRORS, said
from densegrpo_jax.rewards.base import RewardError, RewardsGone
from densegrpo_jax.runtime.communicator import Communicator
from densegrpo_jax.runtime.files import only_writer
from densegrpo_jax.runtime.hosts import Hosts
from densegrpo_jax.runtime.leaving import leave_at_once
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.startup import (
    check_device,
    keep_compiled,
    start_devices,
    start_processes,
)
from densegrpo_jax.runtime.stop import (
    FINISHED,
    RESUMABLE,
    Preempted,
    StopRequest,
    handle_stop_signals,
)

LAST_OUT = 1.0  # seconds that process 0 stays after the others have been told to leave


def execute(
    flag,
    batch: int,
    work: Callable[[pathlib.Path, Mesh, StopRequest], Any],
    folder: str = '',
    *,
    command: str,
) -> tuple[int, Any]:
    """Starts devices and processes as the flags say and calls `work(folder, mesh, stop)`.

    Args:
      flag: with the fields of `command_line.define_run_flags`.
      batch: rows that the number of CPU devices should divide.
      folder: where `work` writes; '' = flag.workdir.
      command: its name, for others who want to write there, and for the page of a run.

    Returns:
      (exit status, what `work` returned or None).

    Raises:
      Exception: in a single process, any error of `work` other than a stop or a reward's;
        `command_line.run_main` decides which errors become one line. One of several processes logs
        the error here and ends.
    """
    config, workdir = flag.config, pathlib.Path(folder or flag.workdir).expanduser().absolute()
    start_devices(batch, flag.cpu_devices)
    try:
        start_processes(
            flag.distributed,
            flag.coordinator,
            flag.num_processes,
            flag.process_id,
            heartbeat_seconds=flag.heartbeat,
        )
        check_device(flag.device)
        hosts = Hosts.current()
        if not hosts.primary:
            logging.set_verbosity(logging.WARNING)
        keep_compiled(str(workdir / 'compiled'))
        with (
            only_writer(workdir, hosts, command),
            handle_stop_signals(communicator=Communicator(hosts)) as stop,
        ):
            try:
                return FINISHED, work(workdir, make_mesh(config.mesh), stop)
            except Exception as reason:
                if isinstance(reason, RewardError):
                    stop.leave('an error of the reward')
                if hosts.count > 1 and (stop.requested or isinstance(reason, Preempted)):
                    hosts.meet('leave', 30)  # process 0 holds the others' mailbox
                    if hosts.primary:  # one that still hears of the meeting would be aborted
                        time.sleep(LAST_OUT)
                raise
    except (Preempted, RewardError) as reason:
        if isinstance(reason, RewardError):
            logging.error('%s', reason)
        logging.warning(
            '%s; the same command continues',
            'stopped' if isinstance(reason, RewardError) else reason,
        )
        return _leave(RESUMABLE if isinstance(reason, Preempted | RewardsGone) else 1), None
    except Exception as error:
        # not process_count(), which starts the devices: they may be what failed
        if not jax.distributed.is_initialized():
            raise
        if isinstance(error, UNUSABLE_ERRORS):
            logging.error('%s', said(error))
            return _leave(UNUSABLE), None
        logging.exception(
            'this process (%d of %d) failed; the others stop when they notice',
            jax.process_index(),
            jax.process_count(),
        )
        return _leave(1), None


def _leave(status: int) -> int:
    """The exit status. One of several processes exits at once: the usual exit would wait for
    programs that need the others.
    """
    if jax.process_count() > 1:
        leave_at_once(status)
    return status

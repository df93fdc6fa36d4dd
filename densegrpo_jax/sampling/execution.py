"""The frame of every command that works on devices: devices, processes, signals, one writer, the
exit status.
"""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from densegrpo_jax.config.command_line import UNUSABLE, UNUSABLE_ERRORS, said
from densegrpo_jax.rewards.base import RewardError, RewardsGone
from densegrpo_jax.runtime import full_memory
from densegrpo_jax.runtime.communicator import Communicator
from densegrpo_jax.runtime.files import only_writer
from densegrpo_jax.runtime.hosts import Hosts, OtherProcessFailed
from densegrpo_jax.runtime.leaving import leave_at_once
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.startup import (
    NotJoined,
    check_device,
    keep_compiled,
    start_devices,
    start_processes,
)
from densegrpo_jax.runtime.stop import (
    FINISHED,
    RESUMABLE,
    UNJOINED,
    Preempted,
    StopRequest,
    handle_stop_signals,
)

TOGETHER = 30.0  # seconds that a process waits for the others to leave with it
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
    hosts = Hosts()
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
            except Exception as error:
                if hosts.count == 1:
                    raise
                error = hosts.behind(error)
                status = _report(error)  # first: the others may take their time
                if (failure := part(hosts, error)) and status == RESUMABLE:
                    logging.error('%s', failure)
                    status = 1
    except Exception as error:
        # not process_count(), which starts the devices: they may be what failed
        several = jax.distributed.is_initialized()
        if not several and not isinstance(error, Preempted | RewardError):
            raise
        status = _report(error)
        if hosts.count > 1:
            part(hosts, error)
    if jax.distributed.is_initialized():
        leave_at_once(status)  # the usual exit would wait for programs that need the others
    return status, None


def part(hosts: Hosts, error: Exception) -> str | None:
    """Ends this process's part in a run of several, because of `error`: tells the others, so that
    none waits for it, and leaves with them.

    Returns:
      What another process failed with, if one did.
    """
    failure = None
    # process 0 holds the messages, and may be gone
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if not isinstance(error, Preempted | RewardsGone | OtherProcessFailed):
            hosts.fail(error)
        hosts.end()
        hosts.meet('leave', TOGETHER)
        failure = hosts.failure()
    if hosts.primary:  # one that still hears of the meeting would be aborted
        time.sleep(LAST_OUT)
    return failure


def _report(error: Exception) -> int:
    """Logs why this process ends. Returns the exit status."""
    if isinstance(error, Preempted | RewardError):
        if isinstance(error, RewardError):
            logging.error('%s', error)
        why = 'stopped' if isinstance(error, RewardError) else error
        logging.warning('%s; the same command continues', why)
        return RESUMABLE if isinstance(error, Preempted | RewardsGone) else 1
    if isinstance(error, OtherProcessFailed):
        logging.error('%s', error)
        return 1
    if isinstance(error, UNUSABLE_ERRORS):
        logging.error('%s', said(error))
        return UNJOINED if isinstance(error, NotJoined) else UNUSABLE
    if isinstance(error, RuntimeError):
        full_memory.explain(error)
    logging.exception('this process failed; the others stop when they notice')
    return 1

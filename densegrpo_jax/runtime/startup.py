"""Starts a process's devices, and connects the processes of a run."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from typing import Any

import jax

from densegrpo_jax.runtime.backends import BACKENDS, GPU_SHARE, HEARTBEAT_SECONDS
from densegrpo_jax.runtime.cores import cpu_cores

_SHARE_KEYS = 'XLA_PYTHON_CLIENT_MEM_FRACTION', 'XLA_CLIENT_MEM_FRACTION'  # the second is newer


class NotJoined(ValueError):
    """Other processes of the run did not come in time."""


def cpu_devices(batch: int) -> int:
    """Number of virtual CPU devices for this host: the largest number up to that of its cores that
    divides `batch` rows.

    XLA runs most element-wise loops and convolutions of one CPU device on a single thread: two
    devices on two cores halve the time.
    """
    return max(d for d in range(1, max(1, min(cpu_cores(), batch)) + 1) if batch % d == 0)


def start_devices(batch: int, count: int = 0) -> None:
    """Sets the share of a GPU's memory and the number of CPU devices, before JAX starts. The number
    is without effect if an accelerator is used.

    Args:
      batch: rows that the mesh's data axes will split.
      count: devices wanted; 0 = `cpu_devices(batch)`.

    Raises:
      ValueError: JAX has started already.
    """
    if not any(key in os.environ for key in _SHARE_KEYS):
        os.environ[_SHARE_KEYS[0]] = str(GPU_SHARE)  # as plans assume; read when JAX starts
    if os.environ.get('XLA_FLAGS', '').count('host_platform_device_count'):
        return
    try:
        jax.config.update('jax_num_cpu_devices', count or cpu_devices(batch))
    except RuntimeError as error:
        raise ValueError(
            'JAX computed before its devices were set up: the recipe, or the module of a reward '
            'of which --config.reward.NAME.OPTION sets an option, computes when it is imported. '
            'Let it compute later, as in a constructor; the option can also be set in the recipe'
        ) from error


def detect_cluster(environ: Mapping[str, str], tpu: bool) -> str | None:
    """The launcher that started this process as one of several, or None.

    Args:
      environ: of the process.
      tpu: this host has TPU devices.
    """
    several = lambda name: environ.get(name, '').isdigit() and int(environ[name]) > 1
    # set by srun only: a shell inside an allocation is a single process
    if several('SLURM_STEP_NUM_TASKS'):
        return 'Slurm'
    if several('OMPI_COMM_WORLD_SIZE'):
        return 'Open MPI'
    if 'JAX_COORDINATOR_ADDRESS' in environ:
        return 'JAX_COORDINATOR_ADDRESS'
    return 'TPU' if tpu else None


def alone_on_host(environ: Mapping[str, str]) -> bool:
    """Whether srun or mpirun started one process per host, to use all of its devices."""
    if local := environ.get('OMPI_COMM_WORLD_LOCAL_SIZE'):  # mpirun may run in a step of srun
        return local == '1'
    tasks = environ.get('SLURM_STEP_NUM_TASKS')
    return bool(tasks) and tasks == environ.get('SLURM_STEP_NUM_NODES')


def start_processes(
    mode: str,
    coordinator: str = '',
    processes: int = 0,
    process: int = -1,
    *,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
) -> None:
    """Joins the other processes of the run, before any device is used.

    Args:
      mode: 'on': this is one of several processes, and TPU metadata, Slurm or Open MPI know the
        others; 'auto': only if they say so; 'off': a single process.
      coordinator, processes, process: if no launcher knows: HOST:PORT of process 0, the number of
        processes, and the index of this one (from 0).
      heartbeat_seconds: time after which a dead process is noticed, and the others end with a
        message.

    Raises:
      ValueError: some of the three are missing, no launcher was found in mode 'on', or this
        process cannot join.
      NotJoined: not all have joined within five minutes.
    """
    given = (bool(coordinator), processes > 0, process >= 0)
    if any(given) and not all(given):
        raise ValueError(
            '--coordinator=HOST:PORT, --num_processes and --process_id belong together: give all '
            'three, or none'
        )
    if mode == 'off' and any(given):
        raise ValueError(
            '--distributed=off is for a single process, and --coordinator, --num_processes or '
            '--process_id is given: leave one or the other out'
        )
    port = re.fullmatch(r'.+:([0-9]{1,5})', coordinator)
    if coordinator and not (port and 0 < int(port[1]) < 65536):
        raise ValueError(
            f'--coordinator={coordinator}: expected HOST:PORT of process 0, as 10.0.0.1:1234'
        )
    if all(given) and process >= processes:
        raise ValueError(
            f'--process_id={process} must be below --num_processes={processes}: processes are '
            'counted from 0'
        )
    if mode == 'off' or (
        mode == 'auto' and not any(given) and not detect_cluster(os.environ, _has_tpu())
    ):
        return
    # JAX would handle SIGTERM itself; here `runtime.stop` agrees on a stop.
    jax.config.update('jax_enable_preemption_service', False)
    known: dict[str, Any] = (
        dict(coordinator_address=coordinator, num_processes=processes, process_id=process)
        if all(given)
        else {}
    )
    if known:
        known['cluster_detection_method'] = 'deactivate'
    elif alone_on_host(os.environ) and 'JAX_LOCAL_DEVICE_IDS' not in os.environ:
        # Else JAX takes a process of these launchers for one of a single GPU, its first.
        known['local_device_ids'] = []
    try:
        jax.distributed.initialize(**known, heartbeat_timeout_seconds=heartbeat_seconds)
    except ValueError as error:
        raise ValueError(
            f'no cluster was found ({error}). Start one process per host with srun, mpirun or on '
            'TPU VMs, or name the others: '
            '--coordinator=HOST:PORT --num_processes=N --process_id=I'
        ) from None
    except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' not in str(error):
            raise ValueError(
                f'this process cannot join the run ({_first_line(error)}): is the port of process '
                '0 taken, was one --process_id started twice, or this process alone anew? Start '
                'all of them again'
            ) from None
        raise NotJoined(
            f'not all processes of the run joined in time ({_first_line(error)}): the logs of the '
            'others say why; start all of them again'
        ) from None


def check_device(wanted: str) -> None:
    """Raises ValueError if JAX does not run on `wanted` ('cpu', 'cuda', 'tpu'; '' = anything); call
    it after `start_processes`.

    Without a usable driver JAX falls back to the CPU, and would load a large model there.
    """
    try:
        found = jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.jax_platforms
        raise ValueError(
            f'JAX cannot start the platform {platforms or "of this machine"}'
            f'{f" (JAX_PLATFORMS={platforms})" if platforms else ""}: '
            f'{str(error) or "no device of it was found"}; install its requirements file, or unset '
            'JAX_PLATFORMS'
        ) from None
    if wanted and found != BACKENDS[wanted]:
        way_out = {
            'cpu': 'set JAX_PLATFORMS=cpu to leave the accelerator alone',
            'cuda': (
                'nvidia-smi must list the GPU, with a driver for CUDA 13, and '
                'requirements-cuda.txt must be installed'
            ),
            'tpu': (
                'requirements-tpu.txt must be installed, on a TPU VM whose chips no other process '
                'holds'
            ),
        }[wanted]
        raise ValueError(
            f'--device={wanted}, but JAX found {jax.devices()[0].device_kind} ({found}): {way_out}'
        )


def keep_compiled(folder: str) -> None:
    """Caches compiled programs in `folder`, so that a run that continues, or restarts with other
    prompts, starts at once.

    Not on CPUs: there a program that XLA reads back rounds differently from one just compiled, and
    a continued run would no longer equal an uninterrupted one bit for bit. Nor if
    JAX_COMPILATION_CACHE_DIR already names a folder. Call it after `start_processes`.
    """
    if jax.default_backend() != 'cpu' and not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', folder)


def _has_tpu() -> bool:
    return bool(
        glob.glob('/dev/accel[0-9]*')
        or (glob.glob('/dev/vfio/[0-9]*') and os.path.exists('/usr/share/tpu'))
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [''])[0].rstrip('.')

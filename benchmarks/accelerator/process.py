"""Runs a step as a process, shows and keeps what it prints, and ends all that it has started."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import BinaryIO

GRACE = 15.0  # seconds between asking a step to end and ending it
FINAL = 3.0  # for it to be gone then
MARK = 'DENSEGRPO_BENCHMARK_STEP'


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    limit: float,
    log: BinaryIO,
    grace: float = GRACE,
) -> tuple[int | None, str]:
    """Runs a command for `limit` seconds; after `grace` more nothing that it has started is left.

    Returns:
      (its status, None if it was stopped; why it did not end well, '' if it did).
    """
    mark = f'{MARK}={uuid.uuid4().hex}'
    name, value = mark.split('=')
    process = subprocess.Popen(
        command,
        env={**environment, name: value},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    reader = threading.Thread(target=_shown, args=(process, log), daemon=True)
    reader.start()
    try:
        status: int | None = process.wait(limit)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        _end(process, mark, grace)
    reader.join(1)
    if status is None:
        return None, f'stopped after {limit:.0f} s'
    return status, f'ended with status {status}' if status else ''


def _shown(process: subprocess.Popen, log: BinaryIO) -> None:
    """Passes on what a process prints, also lines that are not complete."""
    assert process.stdout is not None
    for part in iter(lambda: os.read(process.stdout.fileno(), 65536), b''):
        sys.stdout.buffer.write(part)
        sys.stdout.flush()
        log.write(part)
        log.flush()


def _end(process: subprocess.Popen, mark: str, grace: float) -> None:
    """Ends the group of a process, and what it has started in other sessions: first by asking, then
    for certain. What outlives its step would hold the device's memory in the next.
    """
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, FINAL)):
        if not _living(process, mark):
            return
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # only other sessions are left
        if number == signal.SIGKILL:
            for pid in _marked(mark):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
        end = time.monotonic() + seconds
        while _living(process, mark) and time.monotonic() < end:
            time.sleep(0.1)


def _living(process: subprocess.Popen, mark: str) -> bool:
    if process.poll() is None or _marked(mark):
        return True
    if pathlib.Path('/proc/self/environ').exists():
        return False  # all that is left of the group is dead, if not yet buried
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _marked(mark: str) -> list[int]:
    """The processes whose environment has the mark, by Linux's /proc; none elsewhere."""
    found = []
    for file in pathlib.Path('/proc').glob('[0-9]*/environ'):
        try:
            if mark.encode() in file.read_bytes().split(b'\0'):
                found.append(int(file.parent.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found

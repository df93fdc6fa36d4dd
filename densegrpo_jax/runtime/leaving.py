"""The end of a command."""

from __future__ import annotations

import os
import sys
import threading
from typing import NoReturn

from absl import logging

COMPILING = 'compile'  # names of threads that compile begin so


def leave(end: SystemExit) -> NoReturn:
    """Ends the process with the status of `end`. While a thread compiles a program, the usual end
    would wait for it: minutes for a large model, where a preempted machine gives half a minute.
    """
    compiling = any(thread.name.startswith(COMPILING) for thread in threading.enumerate())
    if compiling and isinstance(end.code, int | None):
        leave_at_once(end.code or 0)
    raise end


def leave_at_once(status: int) -> NoReturn:
    """Ends the process without waiting for its threads and programs."""
    logging.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

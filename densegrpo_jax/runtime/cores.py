"""The number of cores; imports no jax, so that rewards can use it."""

import os


def cpu_cores() -> int:
    """The number of cores that this process may use; all of the machine's if the system does not
    say (macOS, Windows).
    """
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

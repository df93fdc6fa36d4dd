"""How many cores there are; imports no jax, so that rewards may ask."""

import os


def cpu_cores() -> int:
    """The cores that this process may use; all of the machine's where the system does not say
    (macOS, Windows).
    """
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

"""How checkpoints fail: which errors tell of damage, and what is said of them."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

import jax

from densegrpo_jax.runtime.hosts import OtherProcessFailed, Preempted


class CheckpointMismatch(ValueError):
    """The checkpoint is intact, but belongs to another model or configuration."""


class CheckpointUnreadable(OSError):
    """The disk or the network failed during the read of a checkpoint; it may be intact."""


class CheckpointDamaged(ValueError):
    """The checkpoint is not what was saved. why: how it shows, in a few words."""

    def __init__(self, where: str, why: str):
        super().__init__(f'{where} is damaged: {why}. Use another checkpoint of the run')
        self.why = why


# Failures that do not concern the stored bytes: never a reason to skip a checkpoint.
_NOT_CORRUPTION = (
    MemoryError,
    PermissionError,
    jax.errors.JaxRuntimeError,
    OtherProcessFailed,
    Preempted,
)
NOT_DAMAGE = (CheckpointMismatch, CheckpointUnreadable, *_NOT_CORRUPTION)


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns any failure that tells of damage into CheckpointDamaged of the checkpoint `where`."""
    try:
        yield
    except NOT_DAMAGE:
        raise
    except Exception as error:
        raise CheckpointDamaged(where, brief(error)) from None


@contextlib.contextmanager
def writing(directory: pathlib.Path, step: int) -> Iterator[None]:
    """Turns any failure to write into one OSError that says which checkpoints are left."""
    try:
        yield
    except _NOT_CORRUPTION:
        raise
    except Exception as error:
        on_disk = [int(path.name) for path in directory.iterdir() if path.name.isdigit()]
        left, then = (
            (f'The last complete one is of step {max(on_disk)}', 'it continues from there')
            if on_disk
            else ('There is no earlier one', 'it begins anew')
        )
        raise OSError(
            f'The checkpoint of step {step} could not be written to {directory}: '
            f'{brief(error)}. {left}. {_way_out(error)}, then run the same command again: {then}.'
        ) from None


def brief(error: BaseException, limit: int = 240) -> str:
    """Start and end of the first line of the innermost cause: tensorstore's first line is long, and
    pages follow it.
    """
    error = _innermost(error)
    text = (str(error).strip().splitlines() or [''])[0].rstrip('.')
    if len(text) > limit:
        text = f'{text[: limit // 2]} ... {text[-limit // 2 :]}'
    return f'{type(error).__name__}: {text}'


def _way_out(error: BaseException) -> str:
    """What to do about a failed write."""
    if os.strerror(errno.EFBIG) in str(_innermost(error)):
        return 'Raise the limit on the size of files (ulimit -f)'
    return 'Make room or mend the disk'


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error

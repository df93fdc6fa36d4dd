"""Checks whether a checkpoint belongs to the model and configuration that would restore it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from densegrpo_jax.runtime.checkpoint_errors import CheckpointMismatch
from densegrpo_jax.runtime.flat_state import flatten
from densegrpo_jax.runtime.trees import Difference

Differences = Callable[[Mapping, Mapping], Sequence[Difference]]


def check_fit(
    document: Mapping,
    state,
    *,
    where: str,
    fingerprint: Mapping,
    differences: Differences,
    partial: bool = False,
) -> None:
    """Raises CheckpointMismatch, naming every difference, unless the checkpoint fits.

    Args:
      document: of the checkpoint, with its `fingerprint` and {name: [shape, dtype]} as `arrays`.
      state: pytree to restore: arrays, or their shapes and dtypes.
      where: names the checkpoint in the message.
      fingerprint, differences: as in `Checkpoints`, in the form that JSON reads back.
      partial: the checkpoint may have more arrays than `state`.
    """
    if fingerprint:
        _check_fingerprint(differences(document['fingerprint'], fingerprint), where)
    _check_arrays(document['arrays'], state, partial, where)


def some(names: Iterable[str]) -> str:
    """The first five names and the number of the others."""
    names = sorted(names)
    return ', '.join(names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')


def _check_fingerprint(found: Sequence[Difference], where: str) -> None:
    if found:
        lines = '\n'.join(f'  {key}: {old!r} there, {new!r} here' for key, old, new in found)
        raise CheckpointMismatch(
            f'{where} belongs to other settings:\n'
            f'{lines}\n'
            'Use the configuration and the files it was made with, or another --workdir.'
        )


def _check_arrays(arrays: Mapping, state, partial: bool, where: str) -> None:
    saved = {name: (tuple(shape), dtype) for name, (shape, dtype) in arrays.items()}
    wanted = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in flatten(state).items()}
    problems = (
        [f'lacks {some(wanted.keys() - saved.keys())}'] if wanted.keys() - saved.keys() else []
    )
    if saved.keys() - wanted.keys() and not partial:
        problems.append(f'has {some(saved.keys() - wanted.keys())}, which this model lacks')
    for name in sorted(saved.keys() & wanted.keys()):
        if saved[name] != wanted[name]:
            problems.append(
                f'has {name} as {saved[name][1]}{list(saved[name][0])}, here '
                f'{wanted[name][1]}{list(wanted[name][0])}'
            )
    if problems:
        shown = '\n'.join(f'  it {problem}' for problem in problems[:8]) + (
            '\n  ...' if len(problems) > 8 else ''
        )
        raise CheckpointMismatch(
            f'{where} does not fit:\n'
            f'{shown}\n'
            'Use the configuration it was made with, or another --workdir.'
        )

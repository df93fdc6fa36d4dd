"""The checkpoints that a run may continue from: of equal settings and facts, and no longer than
asked.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Callable

from densegrpo_jax.config import identity
from densegrpo_jax.runtime.checkpoint_store import CheckpointUnreadable
from densegrpo_jax.runtime.checkpoints import CheckpointDamaged, Checkpoints
from densegrpo_jax.runtime.trees import Difference
from densegrpo_jax.sampling.conditioning import content_hash
from densegrpo_jax.sampling.schedule import Schedule
from densegrpo_jax.sampling.session import Checked, Session


def check_keys(config, workdir: pathlib.Path) -> None:
    """Raises what the configuration alone tells of a run in `workdir`, before a base is looked for,
    which may be fetched first.

    Raises:
      ValueError: the run is already longer than asked for.
      CheckpointMismatch: it has other settings.
    """
    known = lambda difference: identity.kind_of(difference.key) is not None  # else a fact
    done = _earlier(workdir, identity.record('training', config), {}, known, partial=True)
    if done is not None and done > config.iterations:
        raise ValueError(
            f'iterations={config.iterations}: the run in {workdir} has {done} already; give at '
            f'least {done}, or another --workdir'
        )


def check_earlier(checked: Checked, shapes, workdir: pathlib.Path) -> int | None:
    """The last checkpoint's step of the run in `workdir`, if there is one; reads no array.

    shapes: of the state.

    Raises:
      CheckpointMismatch: it has other settings or facts. Those known only later are compared by
        `Checkpoints.restore_latest`: calibrated noise levels.
    """
    config = checked.config
    known = lambda difference: not (config.noise.calibrate and difference.key == 'psi')
    record = identity.record('training', config, _facts(checked, checked.schedule))
    return _earlier(workdir, record, shapes, known)


def _earlier(
    workdir: pathlib.Path,
    record: dict,
    shapes,
    known: Callable[[Difference], bool],
    partial: bool = False,
) -> int | None:
    """The last checkpoint's step, if there is one; compares the differences that are known, and the
    shapes: all, or as many as are given.
    """
    folder = workdir / 'checkpoints'
    if not folder.is_dir():
        return None
    with Checkpoints(
        folder,
        read_only=True,
        fingerprint=record,
        differences=lambda old, new: [
            found for found in identity.differences('training', old, new) if known(found)
        ],
    ) as checkpoints:
        for step in reversed(checkpoints.steps()):
            # restoring takes the one before a damaged one, and tells of it
            with contextlib.suppress(CheckpointDamaged, CheckpointUnreadable):
                checkpoints.check(step, shapes, partial=partial)
                break
        return checkpoints.latest_step()


def open_checkpoints(session: Session, schedule: Schedule, workdir: pathlib.Path) -> Checkpoints:
    """The checkpoints of the run in `workdir`, to restore from and to save to. schedule: with the
    calibrated noise levels.
    """
    config = session.config
    return Checkpoints(
        workdir / 'checkpoints',
        max_to_keep=config.checkpoint.keep,
        pinned=config.checkpoint.pin,
        hosts=session.hosts,
        fingerprint=identity.record('training', config, _facts(session, schedule)),
        differences=functools.partial(identity.differences, 'training'),
    )


def _facts(session: Checked, schedule: Schedule) -> dict:
    """Facts that must be equal in addition to the configuration: a model's weights, a file's
    prompts or a server's reward may have changed under the same name, and noise levels are
    calibrated.
    """
    noise = session.config.noise
    calibrated = noise.psi_path or noise.calibrate
    return {
        'psi': [float(level) for level in schedule.noise_levels] if calibrated else None,
        **session.facts(),
        'prompts of data.train': content_hash(session.train),
        'prompts of data.eval': content_hash(session.test),
        **(session.process_reward.facts() if session.process_reward else {}),
    }

"""The checkpoints that a run may continue from: of equal settings and facts, and no longer than
asked.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Mapping

from absl import logging

from densegrpo_jax.config import identity
from densegrpo_jax.runtime.checkpoint_errors import (
    CheckpointDamaged,
    CheckpointMismatch,
    CheckpointUnreadable,
)
from densegrpo_jax.runtime.checkpoint_fit import Differences
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.hosts import Hosts
from densegrpo_jax.runtime.trees import Difference
from densegrpo_jax.sampling.conditioning import content_hash
from densegrpo_jax.sampling.schedule import Schedule
from densegrpo_jax.sampling.session import Checked, Session


def check_keys(
    config, workdir: pathlib.Path, hosts: Hosts, facts: Mapping[str, object] = {}
) -> None:
    """Raises what the configuration alone tells of a run in `workdir`, before a base is looked for,
    which may be fetched first. facts: known already; they tell whether keys name another thing.

    Raises:
      ValueError: the run is already longer than asked for.
      CheckpointMismatch: it has other settings.
    """
    # the others are facts
    differences = lambda old, new: [
        found
        for found in identity.differences('training', old, new, primary=hosts.primary)
        if identity.kind_of(found.key) is not None
    ]
    record = identity.record('training', config, facts)
    done, _ = _earlier(workdir, record, {}, differences, partial=True)
    if done is not None and done > config.iterations:
        raise ValueError(
            f'iterations={config.iterations}: the run in {workdir} has {done} already; give at '
            f'least {done}, or another --workdir'
        )


def check_earlier(
    checked: Checked, shapes, workdir: pathlib.Path
) -> tuple[int | None, list[Difference]]:
    """The last checkpoint's step of the run in `workdir`, None if there is none; and the code that
    has changed since. Reads no array.

    shapes: of the state.

    Raises:
      CheckpointMismatch: it has other settings or facts. Those known only later are compared by
        `Checkpoints.restore_latest`: calibrated noise levels.
    """
    config = checked.config

    def differences(old: Mapping, new: Mapping) -> list[Difference]:
        found = checked.differences('training', old, new)
        found = [d for d in found if not (config.noise.calibrate and d.key == 'psi')]
        if found and all(map(identity.of_code, found)):
            raise CheckpointMismatch(
                f'the run in {workdir} was trained with other code of your own, or with reward '
                f'servers of other code, settings or version ({identity.told(found)}). Go back to '
                'those, give another --workdir, or go on with what is there now: --own_code=warn'
            )
        return found

    record = identity.record('training', config, _facts(checked, checked.schedule))
    done, made_with = _earlier(workdir, record, shapes, differences)
    found = identity.differences('training', made_with, record)
    changed = [difference for difference in found if identity.of_code(difference)]
    if changed and done != config.iterations:
        told = identity.told(changed)
        logging.warning('goes on from iteration %d with other code of your own: %s', done, told)
    return done, changed


def _earlier(
    workdir: pathlib.Path, record: dict, shapes, differences: Differences, partial: bool = False
) -> tuple[int | None, dict]:
    """The last checkpoint's step, if there is one, and what it was saved with; raises if that has
    `differences` to `record`, or other shapes. partial: not all shapes are given.
    """
    folder, made_with = workdir / 'checkpoints', {}
    if not folder.is_dir():
        return None, made_with
    with Checkpoints(
        folder, read_only=True, fingerprint=record, differences=differences
    ) as checkpoints:
        for step in reversed(checkpoints.steps()):
            # restoring takes the one before a damaged one, and tells of it
            with contextlib.suppress(CheckpointDamaged, CheckpointUnreadable):
                made_with = checkpoints.check(step, shapes, partial=partial)
                break
        return checkpoints.latest_step(), made_with


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
        differences=functools.partial(session.differences, 'training'),
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

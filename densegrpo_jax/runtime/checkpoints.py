"""Checkpoints: asynchronous, atomic, verified, and explicit about what does not fit.

The state is stored as a flat table {path: array}, so a checkpoint holds no class of any library.
Beside it lies a JSON document: the caller's ``meta``, the shapes and digests of all arrays, the
fingerprint of the model, the score.
"""

import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import logging

from densegrpo_jax.runtime.agreement import Agreement
from densegrpo_jax.runtime.checkpoint_errors import (
    NOT_DAMAGE,
    CheckpointDamaged,
    brief,
    reading,
    writing,
)
from densegrpo_jax.runtime.checkpoint_fit import Differences, check_fit, some
from densegrpo_jax.runtime.checkpoint_scores import Scores
from densegrpo_jax.runtime.checkpoint_store import DOCUMENT, STEP, Store, sealed
from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.flat_state import abstract, digest, flatten
from densegrpo_jax.runtime.hosts import Hosts
from densegrpo_jax.runtime.trees import differing, json_value


class Restored(NamedTuple):
    state: Any
    meta: dict
    step: int


class _Saving(NamedTuple):
    """A save that has begun and is not yet verified: shapes of the arrays by name, the document as
    JSON.
    """

    step: int
    score: float | None
    shapes: dict[str, jax.ShapeDtypeStruct]
    document: str


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Args:
      directory: local folder, which may be a mounted bucket; created if absent.
      max_to_keep: how many of the newest checkpoints stay; the best one stays too.
      pinned: steps whose checkpoints are never removed.
      fingerprint: nested dict of JSON values that is stored with every checkpoint (model
        configuration, adapters, ...).
      differences: (a checkpoint's fingerprint, ours) -> their differences; a checkpoint is restored
        only if there are none.
      hosts: the processes that call every method of this class together, in the same order, on one
        shared folder. None: this process alone.
      read_only: for tools that read the folder of a run that may still be writing: creates, cleans
        and moves nothing.
    """

    def __init__(
        self,
        directory,
        *,
        max_to_keep: int = 2,
        pinned: Sequence[int] = (),
        fingerprint: Mapping = {},
        differences: Differences = differing,
        hosts: Hosts | None = None,
        read_only: bool = False,
    ):
        if max_to_keep < 1:
            raise ValueError(f'max_to_keep must be at least 1, found {max_to_keep}.')
        self.directory = pathlib.Path(directory).expanduser().absolute()
        if read_only and not self.directory.is_dir():
            raise FileNotFoundError(
                f'No checkpoint folder {self.directory}. Give the --workdir of a run that has '
                'saved one.'
            )
        self._fingerprint = json.loads(json.dumps(fingerprint))
        self._differences = differences
        self._max_to_keep, self._pinned = max_to_keep, tuple(pinned)
        self._read_only, self._hosts = read_only, hosts or Hosts()
        self._agreement = Agreement(self._hosts, 'checkpoints', NOT_DAMAGE, brief)
        self._saving: _Saving | None = None
        self._prepared = None, {}  # a state and its digests
        self._store = Store(self.directory, self._hosts, read_only)
        self._scores = Scores(self._store, self._agreement)

    # Saving

    def prepare(self, state) -> None:
        """Computes now what saving this same `state` needs from the devices, which may be busy for
        long when it is saved. Waits for the state.
        """
        self._prepared = state, self._digests(state)

    def _digests(self, state) -> dict[str, int]:
        """Hashes of the arrays by the state's paths."""
        # If a CPU acts as several devices, a program started beside one that waits in a collective
        # can take the last thread: deadlock.
        flat = flatten(jax.block_until_ready(state))
        return {
            name: int(value)
            for name, value in jax.device_get(
                {name: digest(leaf) for name, leaf in flat.items()}
            ).items()
        }

    def save(self, step: int, state, meta: Mapping, *, score: float | None = None) -> None:
        """Starts writing ``state`` as of ``step``; returns as soon as its arrays may be changed or
        donated.

        Waits for the previous save. A checkpoint counts only once it is complete and has been
        opened in the way that restoring opens it (`wait_until_finished`). An older one is removed
        only after that.

        Args:
          state: pytree of jax or numpy arrays; typed PRNG keys are refused (derive them from the
            seed and the step).
          meta: dict of JSON values.
          score: decides which checkpoint is best; None or non-finite: this one does not compete.

        Raises:
          OSError: this or the previous checkpoint could not be written, e.g. for lack of space.
            Older checkpoints are untouched.
        """
        flat = flatten(state)
        prepared, digests = self._prepared
        digests = digests if prepared is state else self._digests(state)
        document = {
            STEP: step,
            'meta': dict(meta),
            'fingerprint': self._fingerprint,
            'score': json_value(score),
            'arrays': {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in flat.items()},
            'digests': digests,
        }
        document = sealed(document)
        written = json.dumps(document)  # before anything is written: meta must be JSON
        self.wait_until_finished()
        shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in flat.items()}
        with writing(self.directory, step):
            self._store.begin(step, flat, document)
        self._saving = _Saving(step, document['score'], shapes, written)

    def amend(self, step: int, meta: Mapping, *, score: float | None = None) -> None:
        """Replaces ``meta`` and the score of the complete checkpoint of ``step``; its arrays stay.

        For values known only after the save, such as the evaluation that a stop prevented. If the
        process is killed meanwhile, the old or the new document remains, whole.

        Args:
          meta: dict of JSON values.
          score: as for `save`.

        Raises:
          OSError: the document could not be written. The checkpoint is as it was.
        """
        self.wait_until_finished()
        self._rewrite(step, {'meta': dict(meta), 'score': json_value(score)})

    def rescore(self, score: Callable[[int], float | None]) -> None:
        """Replaces the scores of complete checkpoints that are not ``score(step)``; see `amend`.
        Those whose score could not be read stay as they are.
        """
        # The same steps in all processes: a network folder may show each a different list.
        for step in self._agreement.poll(self.steps())[0]:
            wanted = json_value(score(step))
            if self._scores.differs(step, wanted):
                self._rewrite(step, {'score': wanted})

    def _rewrite(self, step: int, changes: Mapping) -> None:
        """Replaces fields of a checkpoint's document, the score among them."""
        with writing(self.directory, step), self._agreement.alike():
            if self._hosts.primary:
                document = sealed(self._store.document(step) | changes)
                replace_file(self.directory / str(step) / 'meta' / DOCUMENT, json.dumps(document))
        self._scores.note(step, changes['score'])

    def wait_until_finished(self) -> None:
        """Returns once the running save is complete and opened, and older checkpoints are removed.

        Raises:
          OSError: the checkpoint could not be written or opened, and has been moved away. Older
            checkpoints are untouched.
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return
        with writing(self.directory, saving.step):
            self._store.wait()
            self._verify(saving)
            self._scores.note(saving.step, saving.score)
            self._remove_old()

    def _verify(self, saving: _Saving) -> None:
        """Raises OSError unless restoring can open this checkpoint."""
        try:
            with self._agreement.alike():
                document = json.dumps(self._store.document(saving.step))
                # the primary process writes its own; those of others differ, in seconds for example
                if self._hosts.primary and document != saving.document:
                    raise ValueError('its document is not the one that was saved')
                self._store.open(saving.step, saving.shapes)
        except NOT_DAMAGE:
            raise
        except Exception as error:
            self._set_aside(saving.step)
            raise OSError(f'the written checkpoint cannot be read back: {brief(error)}') from None

    def _remove_old(self) -> None:
        """Removes all checkpoints except the newest, the best, the pinned, and those that may be
        the best.

        Orbax's policies do not serve here: orbax removes older checkpoints as soon as one is
        written, before it can be opened. Its BestN needs scores at the time of the save; ours may
        come later (`amend`) or be unreadable.
        """
        steps = self.steps()
        kept = {
            *steps[-self._max_to_keep :],
            self._scores.best(steps),
            *self._pinned,
            *self._scores.unknown,
        }
        # Those that the primary process names, as in `rescore`.
        doomed = self._agreement.poll([step for step in steps if step not in kept])[0]
        if not doomed:
            return
        with self._agreement.alike():
            for step in doomed if self._hosts.primary else ():
                self._store.remove(step)
        self._store.reload()

    def close(self) -> None:
        """Finishes the running save, then releases orbax's threads."""
        try:
            self.wait_until_finished()
        finally:
            self._store.close()

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc, traceback):
        if exc is None:
            self.close()
            return
        try:
            if self._hosts.count == 1:
                self.wait_until_finished()
            elif self._saving is not None:  # only all processes together could verify it
                with writing(self.directory, self._saving.step):
                    self._store.wait()
        except OSError as error:
            logging.error('%s', error)  # the exception already raised is the one to show
        finally:
            self._store.close()

    # Looking

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, ascending; a save counts once it was waited for."""
        return [
            step
            for step in self._store.steps()
            if self._saving is None or step != self._saving.step
        ]

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Step of the best scored checkpoint (the later of equals), None if none has a score."""
        return self._scores.best(self.steps())

    def meta(self, step: int) -> dict:
        """The JSON document given to ``save``, without reading any array."""
        return self._store.document(step)['meta']

    # Restoring

    def restore_latest(self, abstract_state) -> Restored | None:
        """The newest whole checkpoint; None if there are no checkpoints.

        An incomplete or damaged checkpoint is reported and moved to ``<directory>_corrupt``, so
        that its step can be saved again, and the checkpoint before it is used. A checkpoint that a
        single process cannot read counts as damaged for all.

        Args:
          abstract_state: pytree of ShapeDtypeStructs with shardings (or of arrays): what to
            restore, and onto which devices.

        Raises:
          CheckpointMismatch: the newest whole checkpoint belongs to another model.
          CheckpointUnreadable: the newest could not be read, twice, for a reason that may pass.
          ValueError: all checkpoints are damaged.
          OtherProcessFailed: this process could have restored, but another one raises an error.
        """
        damaged = {}
        # Use the steps that the primary process sees: a network folder may show each process a
        # different list.
        for step in reversed(self._agreement.poll(self.steps())[0]):
            try:
                restored = self.restore(step, abstract_state)
            except CheckpointDamaged as error:
                damaged[step] = error.why
                logging.error(
                    'CHECKPOINT OF STEP %d IS DAMAGED and is skipped: %s', step, damaged[step]
                )
                continue
            for bad in damaged:
                self._set_aside(bad)
            return restored
        if damaged:
            listed = '\n'.join(f'  step {step}: {why}' for step, why in damaged.items())
            raise ValueError(
                f'All checkpoints in {self.directory} are damaged:\n'
                f'{listed}\n'
                'Move that folder away to start anew.'
            )
        return None

    def restore(self, step: int, abstract_state, *, partial: bool = False) -> Restored:
        """The checkpoint of ``step``. ``partial``: ``abstract_state`` may omit arrays of the
        checkpoint.

        Raises:
          CheckpointDamaged: it is not what was saved.
          CheckpointMismatch, CheckpointUnreadable, OtherProcessFailed: as in `restore_latest`.
        """
        with reading(self._name(step)):
            with self._agreement.alike():
                document = self._fitting(step, abstract_state, partial)
                flat = {name: abstract(leaf) for name, leaf in flatten(abstract_state).items()}
                arrays = self._store.arrays(step, flat, partial)
            # all processes together
            digests = jax.device_get({name: digest(leaf) for name, leaf in arrays.items()})
            with self._agreement.alike():
                saved = document['digests']
                wrong = [name for name, value in digests.items() if int(value) != saved[name]]
                if wrong:
                    raise ValueError(f'the bytes of {some(wrong)} are not those that were saved')
            leaves = [arrays[name] for name in flat]
            state = jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
            return Restored(state, document['meta'], step)

    def check(self, step: int, abstract_state, *, partial: bool = False) -> dict:
        """The fingerprint that the checkpoint was saved with. Raises the errors of `restore` that
        show without reading any array.
        """
        with reading(self._name(step)):
            return self._fitting(step, abstract_state, partial)['fingerprint']

    def _name(self, step: int) -> str:
        return f'The checkpoint of step {step} in {self.directory}'

    def _fitting(self, step: int, abstract_state, partial: bool) -> dict:
        """The document, which fits."""
        document = self._store.document(step)
        check_fit(
            document,
            abstract_state,
            where=self._name(step),
            fingerprint=self._fingerprint,
            differences=self._differences,
            partial=partial,
        )
        return document

    # Inside

    def _set_aside(self, step: int) -> None:
        if self._read_only:
            return
        folder = self.directory.parent / f'{self.directory.name}_corrupt'
        with self._agreement.alike():
            if self._hosts.primary:
                folder.mkdir(parents=True, exist_ok=True)
                target = next(
                    path
                    for path in (folder / f'{step}.{i}' for i in range(sys.maxsize))
                    if not path.exists()
                )
                (self.directory / str(step)).rename(target)
                logging.error('The damaged checkpoint of step %d was moved to %s.', step, target)
        self._store.reload()
        self._scores.note(step, None)

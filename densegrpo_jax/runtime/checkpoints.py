"""Checkpoints: asynchronous, atomic, verified, and explicit about what does not fit.

A thin layer over orbax. The state is stored as a flat table {path: array}, so a checkpoint holds no
class of any library, beside a JSON document: the caller's ``meta``, the shapes and digests of all
arrays, the fingerprint of the model, the score.
"""

import asyncio
import contextlib
import gc
import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from densegrpo_jax.runtime.agreement import Agreement, OtherProcessFailed
from densegrpo_jax.runtime.files import may_pass, replace_file
from densegrpo_jax.runtime.flat_state import abstract, digest, flatten
from densegrpo_jax.runtime.hosts import Hosts


class CheckpointMismatch(ValueError):
    """The checkpoint is intact, but belongs to another model or configuration."""


class CheckpointUnreadable(OSError):
    """The disk or the network failed while the checkpoint was read; it may be intact."""


# Failures that say nothing about the stored bytes: never a reason to skip a checkpoint.
_NOT_CORRUPTION = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)
_NOT_DAMAGE = (CheckpointMismatch, CheckpointUnreadable, OtherProcessFailed, *_NOT_CORRUPTION)
_PAUSE = 5.0  # seconds until a failed read is tried again
_DOCUMENT = 'metadata'  # file of the JSON document; orbax's own name for it


class Restored(NamedTuple):
    state: Any
    meta: dict
    step: int


class _Keep:
    """Preservation policy: the newest ``count`` checkpoints, the best one, the pinned ones and
    those that may be the best.
    """

    def __init__(self, count: int, best_step, pinned: Sequence[int], unscored: set[int]):
        self._count, self._best_step, self._pinned, self._unscored = (
            count,
            best_step,
            pinned,
            unscored,
        )

    def should_preserve(self, checkpoints, *, context):
        del context
        steps = [info.step for info in checkpoints]
        kept = {*steps[-self._count :], self._best_step(steps), *self._pinned, *self._unscored}
        return [step in kept for step in steps]


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Args:
      directory: local folder (a mounted bucket is one); created where absent.
      max_to_keep: how many of the newest checkpoints stay; the best one stays too.
      pinned: steps whose checkpoints stay for good.
      fingerprint: nested dict of JSON values that must be equal for a checkpoint to be restored
        (model configuration, adapters, ...).
      defaults: values of fingerprint keys that did not exist when an older checkpoint was written.
      best_mode: 'max' or 'min': which scores are better.
      hosts: the processes that call every method of this class together, in the same order; the
        folder is one for all of them. None: this one alone.
      read_only: for tools that look into the folder of a run that may still be writing: nothing is
        created, cleaned or moved.
    """

    def __init__(
        self,
        directory,
        *,
        max_to_keep: int = 2,
        pinned: Sequence[int] = (),
        fingerprint: Mapping = {},
        defaults: Mapping = {},
        best_mode: str = 'max',
        hosts: Hosts | None = None,
        read_only: bool = False,
    ):
        if max_to_keep < 1:
            raise ValueError(f'max_to_keep must be at least 1, found {max_to_keep}.')
        if best_mode not in ('max', 'min'):
            raise ValueError(f"best_mode must be 'max' or 'min', found {best_mode!r}.")
        self.directory = epath.Path(directory).expanduser().absolute()
        if read_only and not self.directory.is_dir():
            raise FileNotFoundError(
                f'No checkpoint folder {self.directory}. Give the --workdir of a run that has '
                'saved one.'
            )
        self._fingerprint, self._defaults = (
            json.loads(json.dumps(fingerprint)),
            _dotted(json.loads(json.dumps(defaults))),
        )
        self._best_of = max if best_mode == 'max' else min
        self._read_only, self._hosts = read_only, hosts or Hosts()
        self._agreement = Agreement(self._hosts, 'checkpoints', _NOT_DAMAGE, _brief)
        self._saving = None
        self._prepared = None, {}  # a state and its digests
        logging.get_absl_logger().addFilter(_without_orbax_chatter)
        if not read_only and self.directory.is_dir() and self._hosts.primary:
            for path in sorted(self.directory.iterdir()):
                if path.name.endswith('-tmp'):
                    logging.warning(
                        'Removing a half-written checkpoint: %s (the run was cut off while saving '
                        'it).',
                        path,
                    )
        if not read_only:
            self.directory.mkdir(parents=True, exist_ok=True)
        together = _together(self._hosts)
        self._unscored = set()  # steps whose score could not be read
        # Uncompressed: trained floats shrink by a tenth at most, and a stop, which has seconds,
        # would pay for it in time and memory.
        state_handler = ocp.PyTreeCheckpointHandler(
            use_compression=False, multiprocessing_options=together
        )
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Keep(max_to_keep, self._best, tuple(pinned), self._unscored),
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                create=False,  # orbax refuses to, for several processes
                multiprocessing_options=together,
            ),
            item_handlers={
                'state': state_handler,
                'meta': ocp.JsonCheckpointHandler(_DOCUMENT, multiprocessing_options=together),
            },
        )
        # Reads as if alone: after an error in one process, orbax's barriers would join reads of
        # different checkpoints.
        alone = _alone(self._hosts)
        composite = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
        )
        self._reader = ocp.Checkpointer(composite, multiprocessing_options=alone)
        self._scores = {}
        for step in self.steps():
            try:
                self._note_score(step, self._document(step)['score'])
            except Exception as error:  # restoring it is where damage is dealt with
                self._unscored.add(step)
                logging.warning(
                    'The score of the checkpoint of step %d is unknown, so it is kept: %s',
                    step,
                    _brief(error),
                )
        scores, unscored = self._agreement.poll([self._scores, sorted(self._unscored)])[0]
        self._scores = {int(step): score for step, score in scores.items()}
        self._unscored.clear()
        self._unscored.update(unscored)

    # Saving

    def prepare(self, state) -> None:
        """Computes now what saving this very `state` needs of the devices, which may be busy with
        something longer by then. Waits for the state.
        """
        self._prepared = state, self._digests(state)

    def _digests(self, state) -> dict[str, int]:
        """Hashes of the arrays by the state's paths."""
        # On a CPU that plays several devices, a program started beside one that waits in a
        # collective can take the last thread: deadlock.
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

        The previous save is waited for. A checkpoint exists only once it is complete, and only then
        is an older one removed.

        Args:
          state: pytree of jax or numpy arrays; typed PRNG keys are refused (derive them from the
            seed and the step).
          meta: dict of JSON values.
          score: value that decides which checkpoint is best; None or non-finite: this one does not
            compete.

        Raises:
          OSError: this or the previous checkpoint could not be written, e.g. for lack of space.
            Older ones are untouched.
        """
        flat = flatten(state)
        prepared, digests = self._prepared
        digests = digests if prepared is state else self._digests(state)
        document = {
            'meta': dict(meta),
            'fingerprint': self._fingerprint,
            'score': _finite(score),
            'arrays': {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in flat.items()},
            'digests': digests,
        }
        json.dumps(document)  # before anything is written: meta must be JSON
        self._note_score(step, document['score'])
        self.wait_until_finished()
        self._saving = step
        with self._explained():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(flat), meta=ocp.args.JsonSave(document)
                ),
            )

    def amend(self, step: int, meta: Mapping, *, score: float | None = None) -> None:
        """Replaces ``meta`` and the score of the complete checkpoint of ``step``; its arrays stay.

        For what is known only after the save, such as the evaluation that a stop prevented. A
        process that is killed meanwhile leaves the old document or the new one.

        Args:
          meta: dict of JSON values.
          score: as for `save`.

        Raises:
          OSError: the document could not be written. The checkpoint is as it was.
        """
        self.wait_until_finished()
        self._saving = step
        with self._explained(), self._agreement.alike():
            if self._hosts.primary:
                document = self._document(step) | {'meta': dict(meta), 'score': _finite(score)}
                path = pathlib.Path(self.directory / str(step) / 'meta' / _DOCUMENT)
                replace_file(path, json.dumps(document))
        self._note_score(step, _finite(score))

    def wait_until_finished(self) -> None:
        """Returns when every started save is complete. Raises OSError where one failed."""
        with self._explained():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Finishes the running save, then releases orbax's threads."""
        try:
            self.wait_until_finished()
        finally:
            # a failed save has been reported by the line above
            with contextlib.suppress(Exception):
                self._manager.close()
                self._reader.close()

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc, traceback):
        try:
            self.close()
        except OSError as error:
            if exc is None:
                raise
            logging.error('%s', error)  # the exception under way is the one to show

    # Looking

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Step of the best scored checkpoint (the later of equals), None where none has a score."""
        return self._best(self.steps())

    def meta(self, step: int) -> dict:
        """The JSON document given to ``save``, without reading any array."""
        return self._document(step)['meta']

    # Restoring

    def restore_latest(self, abstract_state) -> Restored | None:
        """The newest checkpoint that is whole; None where there is none at all.

        One that is half-written or damaged is reported, the one before it is used, and the damaged
        one is moved to ``<directory>_corrupt`` so that its step can be saved again. What a single
        process cannot read is damaged for all of them.

        Args:
          abstract_state: pytree of ShapeDtypeStructs with shardings (or of arrays): what to
            restore, and onto which devices.

        Raises:
          CheckpointMismatch: the newest whole checkpoint belongs to another model.
          CheckpointUnreadable: the newest could not be read, twice, for a reason that may pass.
          ValueError: there are checkpoints, and all of them are damaged.
          OtherProcessFailed: this process could have restored, and another one raises an error.
        """
        damaged = {}
        # The steps that the primary process sees: a folder on a network may show every process
        # another list.
        for step in reversed(self._agreement.poll(self.steps())[0]):
            try:
                restored = self.restore(step, abstract_state)
            except _NOT_DAMAGE:
                raise
            except Exception as error:
                damaged[step] = _brief(error)
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
        """The checkpoint of ``step``. ``partial``: ``abstract_state`` may leave out arrays that the
        checkpoint has.
        """
        with self._agreement.alike():
            document = self._document(step)
            self._check(document, abstract_state, step, partial)
            flat = {name: abstract(leaf) for name, leaf in flatten(abstract_state).items()}
            restore_args = ocp.checkpoint_utils.construct_restore_args(flat)
            item = ocp.args.PyTreeRestore(flat, restore_args=restore_args, partial_restore=partial)
            with _no_coroutine_dumps():
                arrays = self._read(step, state=item).state
        # all processes together
        digests = jax.device_get({name: digest(leaf) for name, leaf in arrays.items()})
        with self._agreement.alike():
            wrong = [
                name for name, value in digests.items() if int(value) != document['digests'][name]
            ]
            if wrong:
                raise ValueError(f'the bytes of {_some(wrong)} are not those that were saved')
        leaves = [arrays[name] for name in flat]
        return Restored(
            jax.tree.unflatten(jax.tree.structure(abstract_state), leaves), document['meta'], step
        )

    # Inside

    def _document(self, step: int) -> dict:
        return self._read(step, meta=ocp.args.JsonRestore()).meta

    def _read(self, step: int, **items):
        path = self.directory / str(step)
        for again in (True, False):
            try:
                return self._reader.restore(path, args=ocp.args.Composite(**items))
            except Exception as error:
                if not may_pass(error):
                    raise
                if not again:
                    raise CheckpointUnreadable(
                        f'The checkpoint {path} could not be read: {_brief(error)}. It stays where '
                        'it is. Mend the disk or the network, '
                        'then run the same command again; to go on from the one before instead, '
                        'move that folder away.'
                    ) from None
                logging.warning(
                    '%s could not be read and is tried again in %g s: %s',
                    path,
                    _PAUSE,
                    _brief(error),
                )
                time.sleep(_PAUSE)

    def _note_score(self, step: int, score: float | None) -> None:
        self._scores.pop(step, None)
        self._unscored.discard(step)
        if score is not None:
            self._scores[step] = score

    def _best(self, steps) -> int | None:
        scored = [step for step in sorted(steps, reverse=True) if step in self._scores]
        return self._best_of(scored, key=self._scores.get, default=None)

    def _check(self, document, abstract_state, step, partial) -> None:
        """Raises CheckpointMismatch where the checkpoint is of another model, naming every
        difference.
        """
        where = f'The checkpoint of step {step} in {self.directory}'
        if self._fingerprint:
            saved, ours = _dotted(document['fingerprint']), _dotted(self._fingerprint)
            saved = {key: value for key, value in self._defaults.items() if key in ours} | saved
            absent = object()
            differing = [
                key
                for key in sorted(saved.keys() | ours.keys())
                if saved.get(key, absent) != ours.get(key, absent)
            ]
            if differing:
                lines = '\n'.join(
                    f'  {key}: {saved.get(key, "absent")!r} there, {ours.get(key, "absent")!r} here'
                    for key in differing
                )
                raise CheckpointMismatch(
                    f'{where} belongs to another model:\n'
                    f'{lines}\n'
                    'Use the configuration it was made with, or another --workdir.'
                )
        saved = {name: (tuple(shape), dtype) for name, (shape, dtype) in document['arrays'].items()}
        wanted = {
            name: (tuple(leaf.shape), str(leaf.dtype))
            for name, leaf in flatten(abstract_state).items()
        }
        problems = (
            [f'lacks {_some(wanted.keys() - saved.keys())}'] if wanted.keys() - saved.keys() else []
        )
        if saved.keys() - wanted.keys() and not partial:
            problems.append(f'has {_some(saved.keys() - wanted.keys())}, which this model has not')
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
        self._manager.reload()
        self._note_score(step, None)

    @contextlib.contextmanager
    def _explained(self):
        """Turns any failure to write into one OSError that says what is left."""
        try:
            yield
        except (KeyboardInterrupt, *_NOT_CORRUPTION):
            raise
        except Exception as error:
            on_disk = [int(path.name) for path in self.directory.iterdir() if path.name.isdigit()]
            left = (
                f'The last complete one is of step {max(on_disk)}.'
                if on_disk
                else 'There is no earlier one.'
            )
            raise OSError(
                f'The checkpoint of step {self._saving} could not be written to {self.directory}: '
                f'{_brief(error)}. {left} '
                'Make room or mend the disk, then run the same command again: it continues from '
                'there.'
            ) from None


def _together(hosts: Hosts) -> ocp.options.MultiprocessingOptions:
    """Several processes meet at barriers of the coordination service: the devices may be busy with
    a rollout nobody will finish.
    """
    if hosts.count == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(
        active_processes=set(range(hosts.count)), barrier_sync_key_prefix='checkpoints'
    )


def _alone(hosts: Hosts) -> ocp.options.MultiprocessingOptions:
    """This process waits for no other."""
    if hosts.count == 1:
        return ocp.options.MultiprocessingOptions()
    own = hosts.index
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f'checkpoints_{own}'
    )


def _dotted(tree, prefix: str = '') -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {
        k: v
        for key, value in tree.items()
        for k, v in _dotted(value, f'{prefix}.{key}' if prefix else str(key)).items()
    }


def _finite(score: float | None) -> float | None:
    """The score as it is stored: one that is not a number does not compete."""
    return score if score is not None and math.isfinite(score) else None


def _some(names) -> str:
    names = sorted(names)
    return ', '.join(names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')


def _brief(error: BaseException, limit: int = 240) -> str:
    """Start and end of the first line of the innermost cause: tensorstore's first line is long, and
    pages follow.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    text = (str(error).strip().splitlines() or [''])[0].rstrip('.')
    if len(text) > limit:
        text = f'{text[: limit // 2]} ... {text[-limit // 2 :]}'
    return f'{type(error).__name__}: {text}'


def _without_orbax_chatter(record) -> bool:
    """Logging filter. Orbax logs one failed write four times, each with pages of traceback; we
    report it once, in a sentence. And it warns that what is opened to be read is only read."""
    return 'orbax' not in record.pathname or not (
        record.exc_info or any(words in str(record.msg) for words in ('read only', 'read_only'))
    )


@contextlib.contextmanager
def _no_coroutine_dumps():
    """After a failed read orbax drops unfinished coroutines, and Python prints each one's pages of
    detail: keep stderr readable.
    """
    hook = sys.unraisablehook
    sys.unraisablehook = lambda info: None if asyncio.iscoroutine(info.object) else hook(info)
    try:
        yield
    except BaseException:
        gc.collect()
        raise
    finally:
        sys.unraisablehook = hook

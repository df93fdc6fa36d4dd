"""Checkpoints: asynchronous, atomic, verified, and explicit about what does not fit.

A thin layer over orbax. The state is stored as a flat table {path: array}, so a checkpoint holds no class of any library, beside a
JSON document: the caller's ``meta``, the shapes and digests of all arrays, the fingerprint of the model, the score.
"""

import asyncio
import contextlib
import functools
import gc
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

from densegrpo_jax.parallel.sharding import path_name

# Failures that say nothing about the stored bytes: never a reason to skip a checkpoint.
_NOT_CORRUPTION = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)


class CheckpointMismatch(ValueError):
    """The checkpoint is intact, but belongs to another model or configuration."""


class Restored(NamedTuple):
    state: Any
    meta: dict
    step: int


class _Keep:
    """Preservation policy: the newest ``count`` checkpoints, the best one, and the pinned ones."""

    def __init__(self, count: int, best_step, pinned: Sequence[int]):
        self._count, self._best_step, self._pinned = count, best_step, pinned

    def should_preserve(self, checkpoints, *, context):
        del context
        steps = [info.step for info in checkpoints]
        kept = {*steps[-self._count :], self._best_step(steps), *self._pinned}
        return [step in kept for step in steps]


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Args:
      directory: local folder or bucket path; created where absent.
      max_to_keep: how many of the newest checkpoints stay; the best one stays too.
      pinned: steps whose checkpoints stay for good.
      fingerprint: nested dict of JSON values that must be equal for a checkpoint to be restored (model configuration, adapters, ...).
      defaults: values of fingerprint keys that did not exist when an older checkpoint was written.
      best_mode: 'max' or 'min': which scores are better.
      processes: how many call every method of this class together, in the same order; the folder is one for all of them.
      read_only: for tools that look into the folder of a run that may still be writing: nothing is created, cleaned or moved.
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
        processes: int = 1,
        read_only: bool = False,
    ):
        if max_to_keep < 1:
            raise ValueError(f'max_to_keep must be at least 1, found {max_to_keep}.')
        if best_mode not in ('max', 'min'):
            raise ValueError(f"best_mode must be 'max' or 'min', found {best_mode!r}.")
        self.directory = epath.Path(directory).expanduser().absolute()
        if read_only and not self.directory.is_dir():
            raise FileNotFoundError(f'No checkpoint folder {self.directory}. Give the --workdir of a run that has saved one.')
        self._fingerprint, self._defaults = json.loads(json.dumps(fingerprint)), _dotted(json.loads(json.dumps(defaults)))
        self._best_of = max if best_mode == 'max' else min
        self._read_only, self._processes = read_only, processes
        self._saving = None
        logging.get_absl_logger().addFilter(_without_orbax_tracebacks)
        if not read_only and self.directory.is_dir() and jax.process_index() == 0:
            for path in sorted(self.directory.iterdir()):
                if path.name.endswith('-tmp'):
                    logging.warning('Removing a half-written checkpoint: %s (the run was cut off while saving it).', path)
        if not read_only:
            self.directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Keep(max_to_keep, self._best, tuple(pinned)),
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                create=False,  # orbax refuses to, for several processes
                multiprocessing_options=_together(processes),
            ),
            item_names=('state', 'meta'),
        )
        self._scores = {}
        for step in self.steps():
            with contextlib.suppress(Exception):  # an unreadable one has no score; restoring it is where that is reported
                self._note_score(step, self._document(step)['score'])

    # Saving

    def digests(self, state) -> dict[str, int]:
        """What `save` needs to compute on the devices: hashes by the state's paths. Waits for the state."""
        # On a CPU that plays several devices, a program started beside one that waits in a collective can take the last thread: deadlock.
        flat = _flatten(jax.block_until_ready(state))
        return {name: int(value) for name, value in jax.device_get({name: _digest(leaf) for name, leaf in flat.items()}).items()}

    def save(self, step: int, state, meta: Mapping, *, score: float | None = None, digests: Mapping[str, int] | None = None) -> None:
        """Starts writing ``state`` as of ``step``; returns as soon as its arrays may be changed or donated.

        The previous save is waited for. A checkpoint exists only once it is complete, and only then is an older one removed.

        Args:
          state: pytree of jax or numpy arrays; typed PRNG keys are refused (derive them from the seed and the step).
          meta: dict of JSON values.
          score: value that decides which checkpoint is best; None or non-finite: this one does not compete.
          digests: `digests(state)`, where the devices are busy with something else by now.

        Raises:
          OSError: this or the previous checkpoint could not be written, e.g. for lack of space. Older ones are untouched.
        """
        flat = _flatten(state)
        digests = self.digests(state) if digests is None else digests
        document = {
            'meta': dict(meta),
            'fingerprint': self._fingerprint,
            'score': score if score is not None and math.isfinite(score) else None,
            'arrays': {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in flat.items()},
            'digests': dict(digests),
        }
        json.dumps(document)  # before anything is written: meta must be JSON
        self._note_score(step, document['score'])
        self.wait_until_finished()
        self._saving = step
        with self._explained():
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(flat), meta=ocp.args.JsonSave(document)))

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
            with contextlib.suppress(Exception):  # a failed save has been reported by the line above
                self._manager.close()

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

        One that is half-written or damaged is reported, the one before it is used, and the damaged one is moved to
        ``<directory>_corrupt`` so that its step can be saved again.

        Args:
          abstract_state: pytree of ShapeDtypeStructs with shardings (or of arrays): what to restore, and onto which devices.

        Raises:
          CheckpointMismatch: the newest whole checkpoint belongs to another model.
          ValueError: there are checkpoints, and all of them are damaged.
        """
        damaged = {}
        for step in reversed(self.steps()):
            try:
                restored = self.restore(step, abstract_state)
            except (CheckpointMismatch, *_NOT_CORRUPTION):
                raise
            except Exception as error:
                damaged[step] = _brief(error)
                logging.error('CHECKPOINT OF STEP %d IS DAMAGED and is skipped: %s', step, damaged[step])
                continue
            for bad in damaged:
                self._set_aside(bad)
            return restored
        if damaged:
            listed = '\n'.join(f'  step {step}: {why}' for step, why in damaged.items())
            raise ValueError(f'All checkpoints in {self.directory} are damaged:\n{listed}\nMove that folder away to start anew.')
        return None

    def restore(self, step: int, abstract_state, *, partial: bool = False) -> Restored:
        """The checkpoint of ``step``. ``partial``: ``abstract_state`` may leave out arrays that the checkpoint has."""
        document = self._document(step)
        self._check(document, abstract_state, step, partial)
        flat = {name: _abstract(leaf) for name, leaf in _flatten(abstract_state).items()}
        restore_args = ocp.checkpoint_utils.construct_restore_args(flat)
        item = ocp.args.PyTreeRestore(flat, restore_args=restore_args, partial_restore=partial)
        with _no_coroutine_dumps():
            arrays = self._manager.restore(step, args=ocp.args.Composite(state=item)).state
        digests = jax.device_get({name: _digest(leaf) for name, leaf in arrays.items()})
        wrong = [name for name, value in digests.items() if int(value) != document['digests'][name]]
        if wrong:
            raise ValueError(f'the bytes of {_some(wrong)} are not those that were saved')
        leaves = [arrays[name] for name in flat]
        return Restored(jax.tree.unflatten(jax.tree.structure(abstract_state), leaves), document['meta'], step)

    # Inside

    def _document(self, step: int) -> dict:
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

    def _note_score(self, step: int, score: float | None) -> None:
        self._scores.pop(step, None)
        if score is not None:
            self._scores[step] = score

    def _best(self, steps) -> int | None:
        scored = [step for step in sorted(steps, reverse=True) if step in self._scores]
        return self._best_of(scored, key=self._scores.get, default=None)

    def _check(self, document, abstract_state, step, partial) -> None:
        """Raises CheckpointMismatch where the checkpoint is of another model, naming every difference."""
        where = f'The checkpoint of step {step} in {self.directory}'
        if self._fingerprint:
            saved, ours = _dotted(document['fingerprint']), _dotted(self._fingerprint)
            saved = {key: value for key, value in self._defaults.items() if key in ours} | saved
            absent = object()
            differing = [key for key in sorted(saved.keys() | ours.keys()) if saved.get(key, absent) != ours.get(key, absent)]
            if differing:
                lines = '\n'.join(f'  {key}: {saved.get(key, "absent")!r} there, {ours.get(key, "absent")!r} here' for key in differing)
                raise CheckpointMismatch(
                    f'{where} belongs to another model:\n{lines}\nUse the configuration it was made with, or another --workdir.'
                )
        saved = {name: (tuple(shape), dtype) for name, (shape, dtype) in document['arrays'].items()}
        wanted = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in _flatten(abstract_state).items()}
        problems = [f'lacks {_some(wanted.keys() - saved.keys())}'] if wanted.keys() - saved.keys() else []
        if saved.keys() - wanted.keys() and not partial:
            problems.append(f'has {_some(saved.keys() - wanted.keys())}, which this model has not')
        for name in sorted(saved.keys() & wanted.keys()):
            if saved[name] != wanted[name]:
                problems.append(f'has {name} as {saved[name][1]}{list(saved[name][0])}, here {wanted[name][1]}{list(wanted[name][0])}')
        if problems:
            shown = '\n'.join(f'  it {problem}' for problem in problems[:8]) + ('\n  ...' if len(problems) > 8 else '')
            raise CheckpointMismatch(f'{where} does not fit:\n{shown}\nUse the configuration it was made with, or another --workdir.')

    def _set_aside(self, step: int) -> None:
        if self._read_only:
            return
        folder = self.directory.parent / f'{self.directory.name}_corrupt'
        folder.mkdir(parents=True, exist_ok=True)
        target = next(path for path in (folder / f'{step}.{i}' for i in range(sys.maxsize)) if not path.exists())
        if jax.process_index() == 0:
            (self.directory / str(step)).rename(target)
        if self._processes > 1:
            multihost_utils.sync_global_devices(f'set_aside_{step}')
        self._manager.reload()
        self._scores.pop(step, None)
        logging.error('The damaged checkpoint of step %d was moved to %s.', step, target)

    @contextlib.contextmanager
    def _explained(self):
        """Turns any failure to write into one OSError that says what is left."""
        try:
            yield
        except (KeyboardInterrupt, *_NOT_CORRUPTION):
            raise
        except Exception as error:
            on_disk = [int(path.name) for path in self.directory.iterdir() if path.name.isdigit()]
            left = f'The last complete one is of step {max(on_disk)}.' if on_disk else 'There is no earlier one.'
            raise OSError(
                f'The checkpoint of step {self._saving} could not be written to {self.directory}: {_brief(error)}. {left} '
                'Make room or mend the disk, then run the same command again: it continues from there.'
            ) from None


def _together(processes: int) -> ocp.options.MultiprocessingOptions:
    """Several processes meet at barriers of the coordination service: the devices may be busy with a rollout nobody will finish."""
    if processes == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(active_processes=set(range(processes)), barrier_sync_key_prefix='checkpoints')


def _flatten(tree) -> dict[str, Any]:
    """{'a/b/kernel': leaf} in the order of the tree's leaves. Raises on leaves that cannot be stored."""
    flat = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = path_name(path)
        if not hasattr(leaf, 'shape') or not hasattr(leaf, 'dtype'):
            raise ValueError(f'State leaf {name!r} is a {type(leaf).__name__}; a checkpoint stores arrays (put other values into meta).')
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(f'State leaf {name!r} is a typed PRNG key; keys are derived from the seed and the step, not stored.')
        if name in flat:
            raise ValueError(f'Two state leaves have the same path {name!r}.')
        flat[name] = leaf
    return flat


def _abstract(leaf) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, 'sharding', None) or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


@jax.jit
def _digest(x: jax.Array) -> jax.Array:
    """uint32 hash of an array's bits and their positions; the same for every sharding, because integer sums commute."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    width = min(x.dtype.itemsize, 4)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * width}')).astype(jnp.uint32)  # 8-byte types gain an axis of 2
    strides = [math.prod(bits.shape[i + 1 :]) % 2**32 for i in range(bits.ndim)]
    iotas = [jax.lax.broadcasted_iota(jnp.uint32, bits.shape, i) * jnp.uint32(stride) for i, stride in enumerate(strides)]
    position = functools.reduce(jnp.add, iotas, jnp.zeros((), jnp.uint32))
    mixed = (bits ^ (position * jnp.uint32(0x9E3779B1))) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)


def _dotted(tree, prefix: str = '') -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {k: v for key, value in tree.items() for k, v in _dotted(value, f'{prefix}.{key}' if prefix else str(key)).items()}


def _some(names) -> str:
    names = sorted(names)
    return ', '.join(names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')


def _brief(error: BaseException, limit: int = 240) -> str:
    """Start and end of the first line of the innermost cause: tensorstore's first line is long, and pages follow."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = (str(error).strip().splitlines() or [''])[0].rstrip('.')
    if len(text) > limit:
        text = f'{text[: limit // 2]} ... {text[-limit // 2 :]}'
    return f'{type(error).__name__}: {text}'


def _without_orbax_tracebacks(record) -> bool:
    """Logging filter: orbax logs one failed write four times, each with pages of traceback; we report it once, in a sentence."""
    return not (record.exc_info and 'orbax' in record.pathname)


@contextlib.contextmanager
def _no_coroutine_dumps():
    """After a failed read orbax drops unfinished coroutines, and Python prints each one's pages of detail: keep stderr readable."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda info: None if asyncio.iscoroutine(info.object) else hook(info)
    try:
        yield
    except BaseException:
        gc.collect()
        raise
    finally:
        sys.unraisablehook = hook

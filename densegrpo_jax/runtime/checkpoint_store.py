"""Arrays and a JSON document for each step of a run, through orbax.

This file holds what depends on orbax: which characters a path may have, how reads fail, what is
worth logging, which processes meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging as system_logging
import pathlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils.epath import gpath
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import LatestN

from densegrpo_jax.runtime import paths
from densegrpo_jax.runtime.checkpoint_errors import CheckpointUnreadable, brief
from densegrpo_jax.runtime.files import may_pass
from densegrpo_jax.runtime.hosts import Hosts

DOCUMENT = 'metadata'  # file of the JSON document; orbax's own name for it
SEAL = 'seal'  # key of the document for the digest of all other keys
STEP = 'step'  # key for the step that was saved
KEYS = ('meta', 'fingerprint', 'score', 'arrays', 'digests')  # that every document has
UNFINISHED = '.orbax-checkpoint-tmp'  # ends the names of checkpoints that are being written
PATIENCE = 60.0  # seconds for writes beside one that has failed
PAUSE = 5.0  # seconds before a failed read is repeated


def sealed(document: Mapping) -> dict:
    """A copy of the JSON document with the digest of its other keys under SEAL."""
    content = {key: value for key, value in document.items() if key != SEAL}
    text = json.dumps(content, sort_keys=True)
    return content | {SEAL: hashlib.sha256(text.encode()).hexdigest()[:16]}


class Store:
    """The steps in one folder.

    Args:
      directory: an absolute path; created if absent.
      hosts: the processes that save together.
      read_only: nothing is created, cleaned or removed.

    Raises:
      ValueError: the path has a character that tensorstore cannot take.
    """

    def __init__(self, directory: pathlib.Path, hosts: Hosts, read_only: bool):
        if problem := paths.folder_problem(directory):
            raise ValueError(f'The folder of the checkpoints: {problem}.')
        _report_once()
        self._directory = _LiteralPath(directory)
        if not read_only:
            if directory.is_dir() and hosts.primary:
                for path in sorted(directory.iterdir()):
                    if path.name.endswith(UNFINISHED):
                        logging.warning(
                            'Removing an incomplete checkpoint: %s (the run was cut off while '
                            'saving it).',
                            path,
                        )
            directory.mkdir(parents=True, exist_ok=True)
        together = _together(hosts)
        # Uncompressed: trained floats shrink by a tenth at most, and compression takes time and
        # memory, of which a stop has little.
        arrays = ocp.PyTreeCheckpointHandler(
            use_compression=False, multiprocessing_options=together
        )
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=LatestN(n=None),  # all; `Checkpoints` removes
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                create=False,  # orbax refuses to, for several processes
                multiprocessing_options=together,
            ),
            item_handlers={
                'state': arrays,
                'meta': ocp.JsonCheckpointHandler(DOCUMENT, multiprocessing_options=together),
            },
        )
        # Each process reads as if alone: after an error in one process, orbax's barriers would
        # match reads of different checkpoints.
        alone = _alone()
        composite = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
        )
        self._reader = ocp.Checkpointer(composite, multiprocessing_options=alone)

    def steps(self) -> list[int]:
        """All steps, ascending, including the one that is being written."""
        return sorted(self._manager.all_steps())

    def begin(self, step: int, arrays: Mapping, document: Mapping) -> None:
        """Starts writing; returns as soon as the arrays may be changed or donated."""
        written = ocp.args.Composite(
            state=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(document)
        )
        try:
            self._manager.save(step, args=written)
        except Exception:
            _end_writes()
            raise

    def wait(self) -> None:
        """Returns once everything is written. If writing failed, raises its error and forgets the
        step.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception:
            _end_writes()
            self.reload()
            raise

    def remove(self, step: int) -> None:
        """Removes a step from the disk, if it is there; `reload` notices. Not orbax's `delete`,
        which waits at a barrier for processes that do not list the step.
        """
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._directory / str(step))

    def reload(self) -> None:
        """Lists the steps on disk anew."""
        self._manager.reload()

    def close(self) -> None:
        """Waits for the running save, then releases orbax's threads."""
        # `wait` has reported a failed save
        with contextlib.suppress(Exception):
            self._manager.close()
            self._reader.close()

    def document(self, step: int) -> dict:
        """The JSON document. Raises ValueError if it is not the one that was sealed; those of
        version 0.1 have no seal, and earlier ones no step.
        """
        document = self._read(step, meta=ocp.args.JsonRestore()).meta
        if not isinstance(document, dict) or (absent := [k for k in KEYS if k not in document]):
            lacks = f'lacks {", ".join(absent)}' if isinstance(document, dict) else 'is no object'
            raise ValueError(f'its metadata {lacks}')
        if SEAL in document and document[SEAL] != sealed(document)[SEAL]:
            raise ValueError('its metadata is not what was saved')
        if (saved := document.get(STEP, step)) != step:
            raise ValueError(f'it was saved as step {saved}, and its folder renamed')
        return document

    def arrays(
        self, step: int, shapes: Mapping[str, jax.ShapeDtypeStruct], partial: bool
    ) -> dict[str, jax.Array]:
        """The arrays of these names, shapes and shardings. `partial`: there may be more of them."""
        args = ocp.checkpoint_utils.construct_restore_args(shapes)
        return self._read_arrays(step, shapes, args, partial)

    def open(self, step: int, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        """Opens every array as `arrays` does and raises the same errors, but reads no element of
        arrays with axes, and does not wait for a device.
        """
        here = SingleDeviceSharding(jax.local_devices()[0])
        empty = {
            name: jax.ShapeDtypeStruct((0,) * len(leaf.shape), leaf.dtype, sharding=here)
            for name, leaf in shapes.items()
        }
        args = {
            name: ocp.ArrayRestoreArgs(
                restore_type=jax.Array, sharding=here, global_shape=leaf.shape, strict=False
            )
            for name, leaf in empty.items()
        }
        self._read_arrays(step, empty, args, False)

    def _read_arrays(self, step: int, shapes, args, partial: bool) -> dict[str, jax.Array]:
        item = ocp.args.PyTreeRestore(shapes, restore_args=args, partial_restore=partial)
        return self._read(step, state=item).state

    def _read(self, step: int, **items):
        path = self._directory / str(step)
        for again in (True, False):
            try:
                return self._reader.restore(path, args=ocp.args.Composite(**items))
            except Exception as error:
                if not may_pass(error):
                    raise
                if not again:
                    raise CheckpointUnreadable(
                        f'The checkpoint {path} could not be read: {brief(error)}. It stays in '
                        'place. Repair the disk or the network, then run the same command again; '
                        'to continue from the checkpoint before it instead, move that folder away.'
                    ) from None
                logging.warning(
                    '%s could not be read; next try in %g s: %s', path, PAUSE, brief(error)
                )
                time.sleep(PAUSE)


class _LiteralPath(gpath.PosixGPath):
    """A path of this machine in a form that orbax does not reinterpret.

    etils treats the characters []*? in a folder's name as a pattern when it looks for files in the
    folder: orbax then misses the arrays that it has just written, and the checkpoint lacks them.
    etils also takes /gs, /s3, /az and /hf for buckets.
    """

    @property
    def _uri_scheme(self) -> None:
        return None

    def glob(self, pattern: str) -> Iterator[_LiteralPath]:
        return map(type(self), pathlib.Path(self).glob(pattern))


class _PatientLoop(asyncio.SelectorEventLoop):
    """Closes only after everything that it has begun has ended."""

    def close(self) -> None:
        if not self.is_closed() and (begun := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*begun, return_exceptions=True))
        super().close()


class _Patient(asyncio.DefaultEventLoopPolicy):
    """Makes such loops for orbax, and those of the policy before it for others."""

    def __init__(self, usual: asyncio.AbstractEventLoopPolicy):
        super().__init__()
        self._usual = usual

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        asked = sys._getframe(1)  # asyncio's function of that name, or who calls this one
        callers = [frame.f_code.co_filename for frame in (asked, asked.f_back) if frame]
        ours = any('orbax' in name for name in callers)
        return _PatientLoop() if ours else self._usual.new_event_loop()


def _report_once() -> None:
    """Of a checkpoint that fails there is one error, the first. Otherwise orbax closes its event
    loop at once, and each other array prints a traceback, now or when it is forgotten.
    """
    logging.get_absl_logger().addFilter(_without_orbax_chatter)
    system_logging.getLogger('asyncio').addFilter(_without_further_errors)
    # orbax makes its loops in threads of its own, long after a save has begun
    usual = asyncio.get_event_loop_policy()
    if not isinstance(usual, _Patient):
        asyncio.set_event_loop_policy(_Patient(usual))


def _end_writes() -> None:
    """Waits for the writes beside one that has failed: they would go on in a folder that the next
    save removes.
    """
    for thread in threading.enumerate():
        if (
            type(thread).__module__.startswith('orbax.')
            and thread is not threading.current_thread()
        ):
            with contextlib.suppress(Exception):  # orbax's raise what ended them
                thread.join(PATIENCE)


def _without_further_errors(record) -> bool:
    """Logging filter: errors that nobody waits for, of files of a checkpoint."""
    error = str(record.exc_info[1] if record.exc_info else '')
    ours = UNFINISHED in error or 'OCDBT database' in error  # the form of arrays on disk
    return not (ours and 'never retrieved' in record.getMessage())


def _without_orbax_chatter(record) -> bool:
    """Logging filter. Orbax logs one failed write four times, each with pages of traceback; we
    report it once, in a sentence. It also warns about folders opened only for reading.
    """
    return 'orbax' not in record.pathname or not (
        record.exc_info or any(words in str(record.msg) for words in ('read only', 'read_only'))
    )


def _together(hosts: Hosts) -> ocp.options.MultiprocessingOptions:
    """Several processes meet at barriers of the coordination service, because the devices may be
    busy with a rollout that nobody will finish.
    """
    if hosts.count == 1:
        return _alone()
    return ocp.options.MultiprocessingOptions(
        active_processes=set(range(hosts.count)), barrier_sync_key_prefix='checkpoints'
    )


def _alone() -> ocp.options.MultiprocessingOptions:
    """A setting in which this process waits for no other, also if it is one of several: orbax's
    default would meet all of them on their devices.
    """
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f'checkpoints_{own}'
    )

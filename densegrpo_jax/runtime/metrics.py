"""Metric writers behind clu's interface, without TensorFlow and without torch: a JSONL and
TensorBoard event files.

A write has left the process when it returns, and is on disk after `flush`. After a restart the
JSONL is exact: everything after the step that training resumes from is removed before the first new
line, and a record that a kill cut off is dropped. Event files only grow: a mark tells TensorBoard
which of their records no longer count.
"""

import importlib.util
import json
import math
import os
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from absl import logging

from densegrpo_jax.runtime import images as pictures
from densegrpo_jax.runtime.files import naming, replace_file
from densegrpo_jax.runtime.reading import parse_json, shaped
from densegrpo_jax.runtime.trees import json_value


class _NeedsTensorFlow:
    """Stands for ``clu.metric_writers.SummaryWriter`` if TensorFlow is not installed."""

    def __init__(self, *args, **kwargs):
        raise ImportError(
            'clu.metric_writers.SummaryWriter needs TensorFlow; use '
            'densegrpo_jax.runtime.metrics.MetricWriter.'
        )


def _import_writers():
    """(clu.metric_writers, tensorboardX), without importing TensorFlow or torch.

    clu imports TensorFlow for the one writer that needs it: without TensorFlow a stand-in replaces
    that module. tensorboardX imports torch, if installed, only to recognise tensors: during the
    import torch is made to look absent.
    """
    if 'tensorflow' not in sys.modules and importlib.util.find_spec('tensorflow') is None:
        stand_in = types.ModuleType('clu.metric_writers.summary_writer')
        stand_in.SummaryWriter = _NeedsTensorFlow
        sys.modules.setdefault(stand_in.__name__, stand_in)
    from clu import metric_writers

    hide_torch = 'torch' not in sys.modules
    if hide_torch:
        sys.modules['torch'] = None
    try:
        import tensorboardX.event_file_writer
        import tensorboardX.summary
    finally:
        if hide_torch:
            del sys.modules['torch']
    return metric_writers, tensorboardX


metric_writers, tensorboardX = _import_writers()
from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: E402

JSONL_NAME = 'metrics.jsonl'
EVENTS_NAME = 'tensorboard'


def _refused(kind):
    def write(self, *args, **kwargs):
        raise ValueError(
            f'{type(self).__name__} does not write {kind}; scalars and images are written.'
        )

    return write


class _Writer(metric_writers.MetricWriter):
    """The parts of clu's interface that no writer here supports."""

    write_summaries = _refused('raw summaries')
    write_videos = _refused('videos')
    write_audios = _refused('audio')
    write_texts = _refused('texts')
    write_histograms = _refused('histograms')
    write_hparams = _refused('hyperparameters')


class JsonlWriter(_Writer):
    """One JSON object per step: {"name": value, ..., "step": k}, keys sorted; NaN and infinities
    become null.

    Several writes of one step are merged into one line. Only scalars are kept. Records of steps >
    last_step are removed at the start.
    """

    def __init__(self, path, *, last_step: int = -1):
        self._path = Path(path)
        _prune_jsonl(self._path, last_step)
        self._file = open(self._path, 'ab')
        self._step, self._values, self._start = None, {}, self._file.tell()
        # the last step may be incomplete: later writes extend it
        if lines := self._path.read_bytes().splitlines():
            self._values = json.loads(lines[-1])
            self._step, self._start = self._values.pop('step'), self._start - len(lines[-1]) - 1

    def write_scalars(self, step: int, scalars: Mapping[str, float]):
        if step != self._step:
            self._step, self._values, self._start = step, {}, self._file.tell()
        self._values |= json_value({name: np.asarray(v).item() for name, v in scalars.items()})
        line = json.dumps({**self._values, 'step': int(step)}, sort_keys=True, allow_nan=False)
        # the file is in append mode: the step's line is rewritten in the same place
        with naming(self._path):
            self._file.truncate(self._start)
            self._file.write(line.encode() + b'\n')
            self._file.flush()

    def write_images(self, step, images):
        pass

    def flush(self):
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self):
        with naming(self._path):
            self._file.close()


class TensorBoardWriter(_Writer):
    """TensorBoard event files, one for each start of the run.

    A file begins with the mark of tensorboardX's `SummaryWriter(purge_step=last_step + 1)`, which
    makes TensorBoard forget later steps in earlier files. tensorboardX's `EventsWriter` writes the
    records in the calling thread, so that an error is raised where it happens. `SummaryWriter`
    would pass them to a thread: its `flush` does not wait for that thread, and once a full disk has
    ended the thread, further writes fill a queue and then wait for ever.
    """

    def __init__(self, folder, *, last_step: int = -1):
        folder = self._folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files in the order of their names. A name begins with the time in
        # seconds; the number orders two starts within one second.
        starts = len(list(folder.glob('events.out.tfevents.*')))
        self._events = tensorboardX.event_file_writer.EventsWriter(
            str(folder / 'events'), f'.{starts:05d}.{os.getpid()}'
        )
        self._write(last_step + 1, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def _write(self, step: int, **content):
        with naming(self._folder):
            self._events.write_event(Event(wall_time=time.time(), step=int(step), **content))

    def write_scalars(self, step: int, scalars: Mapping[str, float]):
        for name, value in sorted(scalars.items()):
            self._write(step, summary=tensorboardX.summary.scalar(name, float(value)))
        self.flush()

    def write_images(self, step: int, images: Mapping[str, np.ndarray]):
        """Images are uint8 [N, H, W, 3]; N images become one sheet."""
        for name, batch in images.items():
            batch = np.asarray(batch)
            if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[-1] != 3:
                raise ValueError(
                    f'Images {name!r} must be uint8 [N, H, W, 3], found {batch.dtype} '
                    f'{list(batch.shape)}.'
                )
            sheet = (
                batch[0]
                if len(batch) == 1
                else pictures.grid(batch, columns=math.ceil(math.sqrt(len(batch))))
            )
            self._write(step, summary=tensorboardX.summary.image(name, sheet, dataformats='HWC'))
        self.flush()

    def flush(self):
        with naming(self._folder):
            self._events.flush()

    def close(self):
        with naming(self._folder):
            self._events.close()


class MetricWriter(metric_writers.MultiWriter):
    """The writers of a run: ``workdir/metrics.jsonl`` and ``workdir/tensorboard/``. A context
    manager that closes them.

    Args:
      workdir: local folder, created if absent. Only the first host writes.
      resume_step: training continues after this many updates, and records of later steps no longer
        count. 0: a run begins, and no earlier record counts.
    """

    def __init__(self, workdir, *, resume_step: int = 0):
        last_step = resume_step if resume_step > 0 else -1
        writers = []
        if jax.process_index() == 0:
            workdir = Path(workdir)
            workdir.mkdir(parents=True, exist_ok=True)
            writers.append(JsonlWriter(workdir / JSONL_NAME, last_step=last_step))
            writers.append(TensorBoardWriter(workdir / EVENTS_NAME, last_step=last_step))
        super().__init__(writers)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


def _prune_jsonl(path: Path, last_step: int) -> None:
    """Keeps the lines of steps <= last_step; drops incomplete lines of JSON with a warning."""
    if not path.exists():
        return
    kept = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            if shaped(parse_json(line.decode(), 'it'), {'step': int}, 'it')['step'] <= last_step:
                kept.append(line + b'\n')
        except ValueError:
            logging.warning('%s: line %d is not a complete record and is dropped.', path, number)
    replace_file(path, b''.join(kept))

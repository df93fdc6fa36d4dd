"""Metric files: what readers see, exactly once, across kills and restarts."""

import io
import json
import resource
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.runtime import metrics
from densegrpo_jax.runtime.progress import ProgressBar


def lines(workdir):
    return [json.loads(line) for line in (workdir / metrics.JSONL_NAME).read_text().splitlines()]


def events(workdir):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    found = accumulator.EventAccumulator(
        str(workdir / metrics.EVENTS_NAME), size_guidance={'scalars': 0, 'images': 0}
    )
    return found.Reload()


def write_steps(workdir, steps, *, value=0.0, **kwargs):
    with metrics.MetricWriter(workdir, **kwargs) as writer:
        for step in steps:
            writer.write_scalars(step, {'reward': value + step})


def test_one_line_per_step_with_sorted_keys(tmp_path):
    with metrics.MetricWriter(tmp_path) as writer:
        writer.write_scalars(
            1, {'loss': jnp.float32(0.5), 'kl': np.float32(0.25), 'skipped': np.int32(2)}
        )
        assert len(lines(tmp_path)) == 1  # on disk as soon as the call returns
        writer.write_scalars(1, {'eval/ocr': float('nan'), 'kl': 1})
        writer.write_scalars(2, {'loss': float('inf')})
    text = (tmp_path / metrics.JSONL_NAME).read_text()
    assert text == (
        '{"eval/ocr": null, "kl": 1, "loss": 0.5, "skipped": 2, "step": 1}\n'
        '{"loss": null, "step": 2}\n'
    )


def test_resume_removes_later_steps_and_continues_without_duplicates(tmp_path):
    write_steps(tmp_path, range(1, 8))
    write_steps(tmp_path, range(5, 10), value=100.0, resume_step=4)
    write_steps(tmp_path, range(9, 12), value=200.0, resume_step=8)
    expected = [(s, s + (0 if s < 5 else 100 if s < 9 else 200)) for s in range(1, 12)]
    assert [(line['step'], line['reward']) for line in lines(tmp_path)] == expected
    assert [(event.step, event.value) for event in events(tmp_path).Scalars('reward')] == expected


def test_a_tensorboard_that_is_reading_forgets_what_no_longer_counts(tmp_path):
    write_steps(tmp_path, range(1, 8))
    found = events(tmp_path)
    assert [event.step for event in found.Scalars('reward')] == list(range(1, 8))
    write_steps(tmp_path, [5], value=100.0, resume_step=4)
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars('reward')] == [
        *((step, step) for step in range(1, 5)),
        (5, 105),
    ]


def test_event_files_are_added_to_and_never_rewritten(tmp_path):
    folder = tmp_path / metrics.EVENTS_NAME
    before = {}
    for start in range(3):
        write_steps(tmp_path, range(start, start + 3), resume_step=start)
        now = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert len(now) == start + 1 and now.items() >= before.items()
        before = now


def test_starts_within_one_second_are_read_in_their_order(tmp_path, monkeypatch):
    """Also where a later process has a smaller number."""
    monkeypatch.setattr('tensorboardX.event_file_writer.time.time', lambda: 1.6e9)
    for start, process in enumerate([900, 80, 7]):
        monkeypatch.setattr(metrics.os, 'getpid', lambda: process)
        write_steps(tmp_path, range(1, 5 - start), value=10.0 * start, resume_step=0)
    assert [(event.step, event.value) for event in events(tmp_path).Scalars('reward')] == [
        (1, 21),
        (2, 22),
    ]


def test_a_full_disk_is_an_error_of_the_write_that_meets_it(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    with metrics.MetricWriter(tmp_path) as writer:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            with pytest.raises(OSError, match='File too large') as caught:
                writer.write_images(1, {'large': noise})
            assert caught.value.filename == str(tmp_path / metrics.EVENTS_NAME)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        writer.write_scalars(2, {'reward': 1.0})  # and the run may go on
    writer = metrics.JsonlWriter(tmp_path / 'a.jsonl')
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match='a.jsonl'):
            writer.write_scalars(1, {'reward': 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer.close()


def test_a_run_that_begins_again_leaves_nothing_of_the_earlier_try(tmp_path):
    write_steps(tmp_path, range(0, 4))
    write_steps(tmp_path, range(0, 2), value=10.0, resume_step=0)
    assert [(line['step'], line['reward']) for line in lines(tmp_path)] == [(0, 10), (1, 11)]
    assert [(event.step, event.value) for event in events(tmp_path).Scalars('reward')] == [
        (0, 10),
        (1, 11),
    ]


def test_records_cut_off_by_a_kill_are_dropped(tmp_path, caplog):
    write_steps(tmp_path, range(1, 4))
    jsonl = tmp_path / metrics.JSONL_NAME
    jsonl.write_bytes(jsonl.read_bytes()[:-5])
    (events_file,) = (tmp_path / metrics.EVENTS_NAME).iterdir()
    events_file.write_bytes(events_file.read_bytes()[:-5])
    write_steps(tmp_path, [3, 4], resume_step=3)
    assert [line['step'] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert [event.step for event in events(tmp_path).Scalars('reward')] == [1, 2, 3, 4]
    assert 'line 3 is not a complete record' in caplog.text


def test_images(tmp_path):
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (1, 8, 24, 3), np.uint8)
    with metrics.MetricWriter(tmp_path) as writer:
        writer.write_images(1, {'one': picture, 'sheet': np.repeat(picture, 5, axis=0)})
    found = events(tmp_path)
    (event,) = found.Images('one')
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), picture[0]
    )
    (sheet,) = found.Images('sheet')
    assert sheet.width > 3 * 24 and sheet.height > 2 * 8
    assert (tmp_path / metrics.JSONL_NAME).read_text() == ''


@pytest.mark.parametrize(
    'bad',
    [
        np.zeros((1, 4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((1, 3, 4, 4), np.uint8),
    ],
)
def test_bad_images_are_named(tmp_path, bad):
    with (
        metrics.MetricWriter(tmp_path) as writer,
        pytest.raises(ValueError, match=r"Images 'grid' must be uint8 \[N, H, W, 3\], found"),
    ):
        writer.write_images(1, {'grid': bad})


def test_what_is_not_written_is_said(tmp_path):
    with (
        metrics.MetricWriter(tmp_path) as writer,
        pytest.raises(ValueError, match='does not write videos'),
    ):
        writer.write_videos(1, {'clip': np.zeros((1, 2, 4, 4, 3))})


def test_neither_tensorflow_nor_torch_is_imported():
    program = (
        'import sys, densegrpo_jax.runtime.metrics; print([m for m in ("tensorflow", "torch") if m '
        'in sys.modules])'
    )
    root = Path(__file__).parents[2]
    out = subprocess.run(
        [sys.executable, '-c', program],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert out.stdout == '[]\n'


def test_progress_in_a_log_shows_rate_and_time_left():
    now, file = [0.0], io.StringIO()
    with ProgressBar(10, start=2, label='train', file=file, clock=lambda: now[0]) as bar:
        for done, seconds in [(3, 60.0), (4, 2.0), (5, 2.0)]:
            now[0] += seconds
            bar.update(done, {'reward': 0.5, 'kl': 1e-5})
        bar.note('saved')
        now[0] += 0.2 * 5
        bar.update(10)
    assert file.getvalue().splitlines() == [
        'train 3/10  reward 0.5  kl 1e-05  60.0 s/step, compilation included',
        'train 4/10  reward 0.5  kl 1e-05  2.0 s/step  0:12 left',
        'train 5/10  reward 0.5  kl 1e-05  2.0 s/step  0:10 left',
        'saved',
        'train 10/10  1.8 s/step',
    ]


def test_progress_in_a_log_is_not_more_often_than_asked():
    now, file = [0.0], io.StringIO()
    with ProgressBar(100, file=file, every_seconds=10, unit='prompt', clock=lambda: now[0]) as bar:
        for done in range(1, 101):
            now[0] += 0.5
            bar.update(done)
    assert [line.split()[1] for line in file.getvalue().splitlines()] == [
        '1/100',
        '21/100',
        '41/100',
        '61/100',
        '81/100',
        '100/100',
    ]


def test_steps_that_end_together_are_measured_together():
    now, file = [0.0], io.StringIO()
    with ProgressBar(6, label='runs', file=file, together=2, clock=lambda: now[0]) as bar:
        for done, now[0] in [(1, 10.0), (2, 10.1), (3, 20.0), (4, 20.1), (5, 30.0)]:
            bar.update(done)
    assert [line.split('  ')[1] for line in file.getvalue().splitlines()] == [
        '10.0 s/step, compilation included',
        *['5.0 s/step'] * 4,
    ]


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')
    monkeypatch.setenv('COLUMNS', '120')
    file = io.StringIO()
    with ProgressBar(4, file=file) as bar:
        bar.update(2, {'reward': 0.25})
        bar.note('saved [checkpoint]')
    assert (
        '2/4' in file.getvalue()
        and 'reward 0.25' in file.getvalue()
        and 'saved [checkpoint]' in file.getvalue()
    )

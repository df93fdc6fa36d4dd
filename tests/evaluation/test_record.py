"""What evaluations keep on disk."""

import json

import numpy as np
import pytest

from densegrpo_jax.evaluation.record import Record


def test_records_of_other_settings_are_refused(tmp_path):
    record = Record(tmp_path, {'seed': 1, 'reward': {'ocr': {'mode': 'detect'}}})
    record.put('base', 'eval', 4, {'total': 0.5, 'clip': np.nan})
    record.put('base', 'eval', 4, {'kl': 0.25})
    with open(tmp_path / 'scores.jsonl', 'a') as file:
        file.write('{"policy": "base", "set": "ev')  # the process was killed here
    again = Record(tmp_path, {'seed': 1, 'reward': {'ocr': {'mode': 'detect'}}})
    row = again.get('base', 'eval', 4)
    assert (
        row['total'] == 0.5
        and np.isnan(row['clip'])
        and row['kl'] == 0.25
        and again.get('step 1 x', 'eval', 4) == {}
    )
    again.put('base', 'eval', 5, {'total': 1.0})
    assert all(json.loads(line) for line in (tmp_path / 'scores.jsonl').read_text().splitlines())
    with pytest.raises(
        ValueError, match=r"reward.ocr.mode: 'detect', now 'recognise'.*--out.*--restart"
    ):
        Record(tmp_path, {'seed': 1, 'reward': {'ocr': {'mode': 'recognise'}}})
    assert Record(tmp_path, {'seed': 2}, restart=True).get('base', 'eval', 4) == {}
    Record(tmp_path, {'seed': 2})
    # scores by code that was changed since are no scores, also when it is opened once more
    Record(tmp_path, {'seed': 2, 'code': 'old'}, restart=True).put(
        'base', 'eval', 4, {'total': 0.5}
    )
    with_code = lambda code: Record(tmp_path, {'seed': 2, 'code': code}, differences=lambda *_: [])
    assert with_code('new').get('base', 'eval', 4) == {}
    with_code('new').put('base', 'eval', 4, {'total': 0.25})
    assert with_code('new').get('base', 'eval', 4) == {'total': 0.25}
    assert with_code('newer').get('base', 'eval', 4) == {}


def test_images_of_an_earlier_versions_folder_are_found(tmp_path):
    """Version 0.1 called the folder `pictures`."""
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Record(tmp_path, {'seed': 1}).put('base', 'eval', 4, {'ocr': 0.5}, image)
    (tmp_path / 'images').rename(tmp_path / 'pictures')
    found = Record(tmp_path, {'seed': 1})
    np.testing.assert_array_equal(found.image('base', 'eval', 4), image)
    Record(tmp_path, {'seed': 1}, restart=True)
    assert not (tmp_path / 'images').exists() and not (tmp_path / 'pictures').exists()


@pytest.mark.parametrize('restart', [False, True])
def test_images_that_no_record_names_stay(tmp_path, restart):
    kept = [tmp_path / 'images' / 'mine.png', tmp_path / 'pictures' / 'base' / 'mine.png']
    for path in kept:
        path.parent.mkdir(parents=True)
        path.touch()
    record = Record(tmp_path, {'seed': 1}, restart=restart)
    record.put('base', 'eval', 4, {'ocr': 0.5}, np.zeros((4, 4, 3), np.uint8))
    Record(tmp_path, {'seed': 2}, restart=True)
    assert [path for path in tmp_path.rglob('*.png')] == kept

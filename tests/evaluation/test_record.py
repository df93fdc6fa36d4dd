"""What evaluations keep on disk."""

import json

import numpy as np
import pytest

from densegrpo_jax.evaluation.panel import parts, record_of
from densegrpo_jax.evaluation.record import FILE, Record
from densegrpo_jax.rewards.local.jpeg import JpegReward
from densegrpo_jax.sampling.session import check_parts
from tests.clip_folder import random_clip
from tests.training.small_run import make_config, one_device


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


def test_a_table_goes_on_with_the_weights_that_it_began_with(folder, tmp_path, monkeypatch):
    """Of the reward, of a panel's with the same name on prompts of its own, and of the embedding.
    Of a record of an earlier version nothing is known.
    """
    files = {quality: tmp_path / f'{quality}.safetensors' for quality in (95, 80)}
    named = lambda self: [files[self._quality]]
    monkeypatch.setattr(JpegReward, 'weight_files', named, raising=False)
    clip, prompts, out = random_clip(tmp_path / 'clip'), tmp_path / 'panel.txt', tmp_path / 'out'
    prompts.write_text('a lamp\n')
    panel = {'eval.panel_prompts': str(prompts), 'eval.panel': {'jpeg': {'quality': 80}}}
    config = make_config(folder, **panel, **{'eval.embedding': str(clip)})
    checked = check_parts(config, one_device(), needs=('test',))
    opened = lambda group: record_of(
        checked, parts(config, checked.test, checked.reward), group, out, f'of {group}'
    )
    changes = {
        files[95]: r'weights of rewards\.jpeg \(trained on\)',
        files[80]: r'weights of rewards\.jpeg',
        clip / 'model.safetensors': r'weights of eval\.embedding',
    }
    for file in files.values():
        file.write_bytes(b'a')
    opened(2)
    written = (out / FILE).read_text()
    for file, told in changes.items():
        before = file.read_bytes()
        file.write_bytes(before + b'!')
        with pytest.raises(ValueError, match=rf'settings \({told}: [^;]*\).*--out.*--restart'):
            opened(2)
        file.write_bytes(before)
        opened(2)
    settings = json.loads(written)
    for fact in ('weights of rewards', 'weights of eval.embedding'):
        del settings['settings'][fact]
    (out / FILE).write_text(json.dumps(settings) + '\n')
    opened(2)

import os

import pytest

from densegrpo_jax.training.files import replace_file


def test_a_file_is_the_old_one_until_the_new_one_is_on_disk(tmp_path, monkeypatch):
    path, synced = tmp_path / 'a.json', []
    replace_file(path, b'old\n')
    sync = os.fsync

    def fails(number):
        sync(number)
        synced.append((tmp_path / 'a.json.tmp').read_text())
        raise OSError('the machine stops here')

    monkeypatch.setattr(os, 'fsync', fails)
    with pytest.raises(OSError, match='stops here'):
        replace_file(path, 'new – ü\n')
    assert path.read_text() == 'old\n' and synced == ['new – ü\n']  # all of it was synced before anything was renamed
    monkeypatch.undo()
    replace_file(path, 'new – ü\n')
    assert path.read_text(encoding='utf-8') == 'new – ü\n' and sorted(p.name for p in tmp_path.iterdir()) == ['a.json']

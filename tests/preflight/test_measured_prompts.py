"""The file of the measured prompts: what is read back, and what of it is refused."""

import json

import numpy as np
import pytest

from densegrpo_jax.preflight.record import FILE, Record, joined

ROW = {
    'prompt': 0,
    'terminal': [1, None],
    'again': [1.0, 0.5],
    'twins': [[0.5, 0.5]],
    'similarity': [[0.5, 0.5], [1, 1]],
    'completions': {'0': [[0.5, None]]},
    'scores': {'ocr': [1.0, None]},
    'cost': [4.0, 2.0, 0.1, 0.2],
    'warm': True,
}


def opened(folder, *rows):
    lines = [{'settings': {'group': 2}}, *rows]
    (folder / FILE).write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return Record(folder, {'group': 2}, 0)


def test_prompts_are_read_back(tmp_path):
    found = opened(tmp_path, ROW, {**ROW, 'prompt': 1, 'terminal': [0.5, 2]})
    rewards, scores, speed = joined(found.prompts)
    np.testing.assert_array_equal(rewards.terminal, [[1, np.nan], [0.5, 2]])
    assert scores['ocr'].shape == (2, 2) and rewards.completions[0].shape == (1, 2, 2)
    assert speed.nfe == 8


@pytest.mark.parametrize(
    'changed, said',
    [
        ({'terminal': 1.0}, 'terminal is 1.0; expected a list'),
        ({'twins': [0.5]}, r'twins\[0\] is 0.5; expected a list'),
        ({'scores': {'ocr': ['x']}}, 'ocr'),
        ({'completions': []}, 'completions is .*; expected an object'),
        ({'completions': {'all': [[0.5, 0.5]]}}, 'arrays of different sizes'),
        ({'terminal': [1.0]}, 'arrays of different sizes'),
        ({'similarity': [[0.5, 0.5], [1]]}, 'arrays of different sizes'),
        ({'scores': {}}, 'arrays of different sizes'),
        ({'cost': [1, 2, 3]}, 'arrays of different sizes'),
        ({'warm': 1}, 'warm is 1; expected true or false'),
    ],
)
def test_damaged_prompts_are_named_with_the_way_out(tmp_path, changed, said):
    with pytest.raises(ValueError, match=f'{FILE}.*{said}.* give another --workdir'):
        opened(tmp_path, ROW, {**ROW, 'prompt': 1, **changed})

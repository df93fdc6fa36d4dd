"""Groups on record: which, what they say, and how large their images are."""

import json

import numpy as np
import pytest
from PIL import Image

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.training.groups import group_due, shrunk
from tests.viewing.made_run import SAMPLES, make_group


def test_a_group_says_what_each_image_scored_and_each_transition_got(tmp_path):
    (path,) = make_group(tmp_path, 20, 'a "WORD"')
    assert path.name == 'step_000020_0.json'
    group = json.loads(path.read_text())
    assert (group['step'], group['group'], group['prompt']) == (20, 0, 'a "WORD"')
    # states 2 and 3 have one completion, as the last transition is silent
    points = [[p['k'] for p in column['points']] for column in group['columns']]
    assert points == [[0], [1], [2, 3]]
    ends = [(t['k_from'], t['k_to'], t['std'], t['row']) for t in group['transitions']]
    assert ends == [(0, 1, 0.7, 0), (1, 2, 0.3, 1), (2, 3, 0.0, None)]
    second = group['samples'][1]
    assert second['scores'] == {'total': [None, 0.3, 0.4], 'ocr': [None, 0.15, 0.2]}
    assert second['advantages'] == [-1.5, 1.0] and group['samples'][3]['advantages'][0] is None


def test_its_table_of_images_has_a_row_per_sample_unchanged(tmp_path):
    (path,) = make_group(tmp_path, 20)
    group = json.loads(path.read_text())
    table = np.asarray(Image.open(path.parent / group['image']).convert('RGB'))
    width, height = group['cell']
    assert table.shape == (SAMPLES * height, 3 * width, 3) == (4 * 8, 3 * 16, 3)
    rows = table.reshape(SAMPLES, height, -1)
    assert [np.unique(row).tolist() for row in rows] == [[0], [40], [80], [120]]


@pytest.mark.parametrize(
    'shape,expected', [((32, 96), (32, 96)), ((1024, 1024), (256, 256)), ((2000, 4), (256, 1))]
)
def test_large_images_are_shrunk(shape, expected):
    assert shrunk(np.zeros((*shape, 3), np.uint8)).shape == (*expected, 3)


def test_groups_are_due_at_the_first_update_and_before_evaluations():
    config = default_config()
    config.iterations, config.eval.every = 50, 20
    due = lambda: [step for step in range(1, 51) if group_due(config, step)]
    assert due() == [1, 20, 40, 50]
    config.eval.groups = 0
    assert due() == []

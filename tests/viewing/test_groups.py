"""Groups on record: which, what they say, and how large their images are."""

import json

import numpy as np
import pytest
from PIL import Image

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.training.groups import group_due
from densegrpo_jax.viewing.groups import shrunk
from tests.viewing.made_run import PLANS, SAMPLES, make_group, make_group_of


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


@pytest.mark.parametrize(
    'name,points,transitions',
    [
        # the sample's image is the last branch with the first stride
        (
            'branch',
            ['branch 0', 'branch 1', *(f'branch by 2 {k}' for k in range(3)), 'branch 2'],
            [(0, 1, 0), (1, 3, 1), (2, 3, 2)],
        ),
        # the last step goes to the sample without noise, so the last prediction is the sample
        (
            'sdpo',
            ['x0hat 0', 'anchor 0', 'state 5, x0hat 4'],
            [(0, 1, 0), (1, 2, 1), (2, 3, 2), (3, 4, 3), (4, 5, None)],
        ),
        ('tree', ['state 5'], [(0, 1, 0), (1, 2, 1), (2, 3, 2), (3, 4, 3), (4, 5, None)]),
        (
            'every 2',
            ['state 0', 'state 2', 'state 4, state 5'],
            [(0, 1, 0), (1, 2, 1), (2, 3, 2), (3, 4, 3), (4, 5, None)],
        ),
    ],
)
def test_columns_and_transitions_are_in_the_order_of_the_plan(tmp_path, name, points, transitions):
    rollout = PLANS[name]()
    (path,) = make_group_of(tmp_path, 1, rollout)
    group = json.loads(path.read_text())
    named = lambda column: ', '.join(f'{p["kind"]} {p["k"]}' for p in column['points'])
    assert [named(column) for column in group['columns']] == points
    assert [(t['k_from'], t['k_to'], t['row']) for t in group['transitions']] == transitions
    for t in group['transitions']:
        if t['row'] is not None:  # as `make_group_of` has made them
            got = [sample['advantages'][t['row']] for sample in group['samples']]
            np.testing.assert_allclose(got, t['k_from'] + np.arange(SAMPLES) / 10)


def test_a_transition_says_how_many_samples_make_it_as_one_node(tmp_path):
    together = {}
    for step, (name, make) in enumerate(PLANS.items(), 1):
        (path,) = make_group_of(tmp_path, step, make())
        group = json.loads(path.read_text())
        together[name] = [t['together'] for t in group['transitions']]
    assert together.pop('tree') == [4, 2, 1, 1, 1]  # splits at the steps 1 and 2
    assert together.pop('branch') == [1, 1, 1]
    assert all(of == [1] * 5 for of in together.values())


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

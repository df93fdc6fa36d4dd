"""GenEval reward: prompt files, scores from an injected detector, failures."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.data.geneval import geneval_prompts
from densegrpo_jax.rewards import GenevalReward, Scorer, build_reward
from densegrpo_jax.rewards.base import check_scores
from densegrpo_jax.rewards.local import geneval_detector as D
from densegrpo_jax.rewards.local.geneval_rule import Detection
from densegrpo_jax.sampling.conditioning import load_prompts

# One row a tag, in the format of the published files.
ROWS = """\
{"tag": "single_object", "include": [{"class": "bowl", "count": 1}], "prompt": "a photo of a bowl"}
{"tag": "two_object", "include": [{"class": "bowl", "count": 1}, {"class": "skis", "count": 1}], \
"prompt": "a photo of a bowl and a skis"}
{"tag": "counting", "include": [{"class": "cup", "count": 2}], \
"exclude": [{"class": "cup", "count": 3}], "prompt": "a photo of two cups"}

{"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], \
"prompt": "a photo of a red cup"}
{"tag": "position", "include": [{"class": "cup", "count": 1}, \
{"class": "cow", "count": 1, "position": ["above", 0]}], "prompt": "p"}
{"tag": "color_attr","include": [{"class": "cup","count": 1,"color": "red"},\
{"class": "tie","count": 1,"color": "blue"}],"prompt": "c"}
"""


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / 'rows.jsonl').write_text(ROWS)
    return geneval_prompts(tmp_path / 'rows.jsonl')


def blank(count):
    return np.zeros((count, 40, 56, 3), np.uint8)


def perfect(images, metadata):
    """A detector that sees what was asked for; a picture whose first pixel is 1 makes it fail, one
    with a 2 is empty.
    """
    if (images[:, 0, 0, 0] == 1).any():
        raise RuntimeError('detector trouble')
    found = []
    for image, wanted in zip(images, metadata):
        clauses = [
            (i, clause)
            for i, clause in enumerate(wanted['include'])
            for _ in range(clause['count'])
        ]
        seen = [
            Detection(c['class'], (0, 90 - 90 * i, 20, 99 - 90 * i), 0.95, c.get('color'))
            for i, c in clauses
        ]
        found.append([] if image[0, 0, 0] == 2 else seen)
    return found


def test_rows_of_every_tag_are_read(prompts):
    assert [p.metadata['tag'] for p in prompts] == [
        'single_object',
        'two_object',
        'counting',
        'colors',
        'position',
        'color_attr',
    ]
    assert prompts[1].text == 'a photo of a bowl and a skis' and prompts[1].target is None
    assert prompts[2].metadata == json.loads(ROWS.splitlines()[2])


@pytest.mark.skipif(
    'DENSEGRPO_GENEVAL' not in os.environ, reason='DENSEGRPO_GENEVAL names no published file'
)
def test_every_row_of_a_published_file_is_read():
    path = Path(os.environ['DENSEGRPO_GENEVAL'])
    assert [p.metadata for p in geneval_prompts(path)] == [
        json.loads(line) for line in path.read_text().splitlines() if line.strip()
    ]


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('a photo of a cup', 'Expecting value'),
        ('["cup"]', 'expected an object'),
        (
            '{"tag": "colors", "include": [{"class": "mug", "count": 1}], "prompt": "a mug"}',
            r"include\[0\].class is 'mug'",
        ),
        (
            '{"tag": "colors", "include": [{"class": "cup", "count": 1}]}',
            'prompt is None; expected text',
        ),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    path = tmp_path / 'rows.jsonl'
    path.write_text(ROWS + line + '\n')
    with pytest.raises(ValueError, match=rf'rows\.jsonl:8.*{message}'):
        geneval_prompts(path)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere\.jsonl'):
        geneval_prompts(tmp_path / 'nowhere.jsonl')
    (tmp_path / 'empty.jsonl').write_text('\n')
    with pytest.raises(ValueError, match=r'empty\.jsonl: the file holds no prompt'):
        geneval_prompts(tmp_path / 'empty.jsonl')


def test_a_configuration_names_such_a_file(tmp_path):
    config = default_config()
    config.data.train = config.data.eval = str(tmp_path / 'rows.jsonl')
    config.data.eval_prompts = 2
    (tmp_path / 'rows.jsonl').write_text(ROWS)
    assert len(load_prompts(config, 'train')) == 6
    assert [p.text for p in load_prompts(config, 'eval')] == [
        'a photo of a bowl',
        'a photo of a bowl and a skis',
    ]


def test_scores_of_every_tag(prompts):
    reward = GenevalReward(make_detector=lambda: perfect, batch_size=4)
    images, texts, metadata = (
        blank(12),
        [p.text for p in prompts] * 2,
        [p.metadata for p in prompts] * 2,
    )
    images[6:] = 2
    scores = reward(images, texts, metadata)
    check_scores(scores, reward, 12)
    for name in reward.names:
        assert scores.values[name].dtype == np.float32
        assert scores.values[name].tolist() == [1.0] * 6 + [0.0] * 6
    # rows differ only in their metadata here, and are scored one by one
    with Scorer(reward) as scorer:
        assert (
            scorer.submit(images, texts, metadata).result().values['geneval'].tolist()
            == [1.0] * 6 + [0.0] * 6
        )


def test_a_failure_makes_only_its_picture_invalid(prompts, caplog):
    images = blank(6)
    images[4] = 1
    scores = GenevalReward(make_detector=lambda: perfect)(
        images, [p.text for p in prompts], [p.metadata for p in prompts]
    )
    assert scores.valid.tolist() == [True, True, True, True, False, True]
    np.testing.assert_array_equal(
        scores.values['geneval_strict'], np.float32([1, 1, 1, 1, np.nan, 1])
    )
    assert 'image 4' in caplog.text and 'detector trouble' in caplog.text


def test_build_from_a_config(monkeypatch, prompts):
    asked = {}
    seen = lambda images, metadata: (
        [[Detection('cup', (0, 0, 9, 9), 1.0), Detection('cow', (0, 50, 9, 59), 1.0)]] * len(images)
    )
    make = lambda *names, **options: asked.update(names=names, **options) or seen
    monkeypatch.setattr('densegrpo_jax.rewards.local.geneval.GenevalDetector', make)
    spec = {
        'geneval': {
            'weight': 2.0,
            'clip': 'my/clip',
            'torch_device': 'cpu',
            'half_for_wrong_position': False,
        }
    }
    reward = build_reward(ConfigDict(spec))
    assert asked == {'names': (D.MASK2FORMER, 'my/clip'), 'torch_device': 'cpu', 'side': 800}
    assert reward.names == ('total', *GenevalReward.names)
    assert reward.range == (-28.0, 2.0)
    scores = reward(blank(1), ['p'], [prompts[4].metadata])
    assert scores.values['total'][0] == pytest.approx(2 * 2 / 3)  # a cow below, not above
    with pytest.raises(
        ValueError, match=r"prompt 1, 'a sign', is not a GenEval prompt \(tag is None.*\.jsonl"
    ):
        reward.check(['p', 'a sign'], [prompts[4].metadata, {}])
    with pytest.raises(
        ValueError,
        match=(
            "no option 'make_detector'; known options: weight.* mask2former, clip, torch_device, "
            'side'
        ),
    ):
        build_reward({'geneval': {'make_detector': perfect}})
    with pytest.raises(ValueError, match='batch_size 0'):
        GenevalReward(batch_size=0)

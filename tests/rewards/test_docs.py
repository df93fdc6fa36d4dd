"""docs/rewards.md: the examples run as they stand, and the table lists every reward with its
options.
"""

import http.server
import inspect
import pathlib
import re
import threading

import numpy as np
import pytest

from densegrpo_jax.rewards import REWARDS, build_reward
from densegrpo_jax.rewards.build import resolve
from densegrpo_jax.rewards.remote import protocol

PAGE = (pathlib.Path(__file__).parents[2] / 'docs' / 'rewards.md').read_text()
OWN, SERVER = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)


def pictures():
    """Red, blue and blank."""
    images = np.zeros((3, 8, 8, 3), np.uint8)
    images[0, :, :4, 0] = images[1, :, :4, 2] = 255
    return images, ['a', 'b', 'c'], [{}] * 3


def test_the_reward_of_twenty_lines(tmp_path, monkeypatch):
    assert len([line for line in OWN.splitlines() if line.strip()]) <= 20
    (tmp_path / 'my_rewards.py').write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    reward = build_reward(
        {'warmth': {'kind': 'my_rewards:WarmthReward', 'weight': 2.0, 'gain': 0.5}}
    )
    assert reward.names == ('total', 'warmth', 'brightness')
    scores = reward(*pictures())
    np.testing.assert_allclose(scores.values['total'], [0.5, -0.5, np.nan])
    np.testing.assert_allclose(scores.values['brightness'], [1 / 6, 1 / 6, np.nan])
    assert scores.valid.tolist() == [True, True, False]
    assert build_reward({'my_rewards:WarmthReward': {}}).names == reward.names
    with pytest.raises(
        ValueError, match="reward 'mine' has no option 'gian'; known options: weight, kind, gain"
    ):
        build_reward({'mine': {'kind': 'my_rewards:WarmthReward', 'gian': 0.5}})


@pytest.mark.parametrize(
    'kind, message',
    [
        (
            'nowhere.rewards:Mine',
            "'nowhere.rewards:Mine': there is no module 'nowhere' on the import path",
        ),
        ('json:Mine', "the module 'json' has no 'Mine'"),
        ('json:JSONDecoder', "'json:JSONDecoder' has no 'name'; a reward class has name, "),
        ('warmth', r"unknown reward 'warmth'; known rewards: ocr, .*package\.module:Class"),
    ],
)
def test_rewards_that_cannot_be_imported(kind, message):
    with pytest.raises(ValueError, match=message):
        build_reward({'mine': {'kind': kind}})


def test_the_server_beside_a_torch_model(monkeypatch):
    # the page's copy beside the model
    monkeypatch.setitem(__import__('sys').modules, 'protocol', protocol)
    model = lambda picture, prompt: (
        np.nan if prompt == 'c' else picture.getpixel((0, 0))[0] / 255 + len(prompt)
    )
    code = {'model': model}
    exec(SERVER, code)
    code['Handler'].log_message = lambda *_: None
    with http.server.HTTPServer(('127.0.0.1', 0), code['Handler']) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        try:
            spec = {
                'urls': f'http://127.0.0.1:{server.server_port}',
                'names': 'imagereward',
                'batch_size': 2,
            }
            reward = build_reward({'remote': spec})
            images, prompts, metadata = pictures()
            reward.check(prompts, metadata)
            scores = reward(images, prompts, metadata)
        finally:
            server.shutdown()
            thread.join()
    np.testing.assert_allclose(scores.values['imagereward'], [2, 1, np.nan])
    assert scores.valid.tolist() == [True, True, False]


def test_the_table_lists_every_reward_and_option():
    rows = dict(
        re.findall(
            r'^\| `(\w+)` \| .* \| ([^|]*) \|$', PAGE[: PAGE.index('## Several')], re.MULTILINE
        )
    )
    assert list(rows) and set(rows) == set(REWARDS)
    for name, options in rows.items():
        known = [
            key
            for key in inspect.signature(resolve(name)).parameters
            if not key.startswith('make_')
        ]
        assert re.findall(r'`(\w+)`', options) == known, name

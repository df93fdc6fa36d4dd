"""A reward of one's own is tried before a run loads anything."""

import re

import numpy as np
import pytest

from densegrpo_jax.rewards.base import RewardError, RewardsGone, Scores
from densegrpo_jax.rewards.build import build_reward
from densegrpo_jax.rewards.composite import CompositeReward
from densegrpo_jax.rewards.trial import try_own

PROMPTS, METADATA, SIZE = ['a red cat', 'a dog', 'a sign'], [{}, {}, {'target': 'x'}], (8, 24)


class Own:
    name, names, range = 'mine', ('mine', 'other'), (0.0, 1.0)

    def __init__(self, returns):
        self.returns, self.calls = returns, []

    def check(self, prompts, metadata):
        pass

    def __call__(self, images, prompts, metadata):
        self.calls.append((images, prompts, metadata))
        return self.returns(len(images))


def scores(count, **changed):
    values = {'mine': np.zeros(count, np.float32), 'other': np.ones(count, np.float32)}
    return Scores(values | changed, np.ones(count, bool))


def tried(returns):
    own = Own(returns)
    try_own(CompositeReward([(own, 1.0)]), PROMPTS, METADATA, SIZE)
    return own


def test_it_scores_two_images_of_noise_of_the_runs_size():
    ((images, prompts, metadata),) = tried(scores).calls
    assert images.shape == (2, *SIZE, 3) and images.dtype == np.uint8
    assert images.std() > 50 and (images[0] != images[1]).any()
    assert prompts == PROMPTS[:2] and metadata == METADATA[:2]


def test_a_single_prompt_is_one_image():
    own = Own(scores)
    try_own(own, PROMPTS[:1], METADATA[:1], SIZE)
    assert own.calls[0][0].shape == (1, *SIZE, 3)


def test_sums_within_sums_are_tried_part_by_part():
    own = Own(scores)
    inner = CompositeReward([(own, 1.0)])
    inner.names, inner.range = ('inner',), (0.0, 1.0)  # as of a sum under another name
    try_own(CompositeReward([(inner, 2.0)]), PROMPTS, METADATA, SIZE)
    assert len(own.calls) == 1


class Writes(Own):
    """Changes what it is given in place."""

    def __call__(self, images, prompts, metadata):
        found = super().__call__(images.copy(), [*prompts], metadata)
        images[:] = 0
        prompts.clear()
        for each in metadata:
            each['words'] = []
        return found


def test_what_a_reward_changes_is_its_own():
    first, second = Writes(scores), Writes(scores)
    second.name = 'second'
    second.returns = lambda n: Scores({'second': np.zeros(n, np.float32)}, np.ones(n, bool))
    second.names = ('second',)
    metadata = [{'words': ['x']}, {'words': ['y']}]
    try_own(CompositeReward([(first, 1.0), (second, 1.0)]), PROMPTS[:2], metadata, SIZE)
    assert metadata == [{'words': ['x']}, {'words': ['y']}]
    assert second.calls[0][0].any() and second.calls[0][1] == PROMPTS[:2]


def test_the_range_of_a_score_is_not_judged_by_noise(caplog):
    tried(lambda n: scores(n, mine=np.full(n, 9.0)))
    assert 'beyond its range' not in caplog.text


@pytest.mark.parametrize(
    ('returns', 'message'),
    [
        (lambda n: np.zeros(n), 'expected rewards.Scores'),
        (lambda n: scores(n, mine=np.zeros((n, 1))), "'mine' has shape (2, 1); expected (2,)"),
        (lambda n: scores(n, mine=np.float32(0)), "'mine' has shape (); expected (2,)"),
        (lambda n: scores(n, third=np.zeros(n)), "declares ['mine', 'other']"),
        (lambda n: scores(n, mine=np.full(n, np.nan)), "'mine' is not finite but marked valid"),
        (lambda n: [][0], 'failed on 2 images of noise: IndexError: list index out of range ('),
    ],
)
def test_what_it_returns_is_checked(returns, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        tried(returns)
    assert "reward 'mine'" in str(error.value) and '2 images of noise' in str(error.value)


def test_one_that_exits_is_an_error_as_any_other():
    def leave(count):
        raise SystemExit(3)

    with pytest.raises(ValueError, match=r"'mine' failed .*SystemExit: 3.*must return valid False"):
        tried(leave)


@pytest.mark.parametrize('kind', [RewardError, RewardsGone])
def test_one_that_has_no_scores_now_says_so_itself(kind):
    def away(count):
        raise kind('away')

    with pytest.raises(kind, match='away'):
        tried(away)


def test_rewards_of_the_package_and_those_that_wait_for_servers_are_not_tried(monkeypatch):
    def never(*_):
        raise AssertionError('tried')

    jpeg = build_reward({'jpeg': {}})
    monkeypatch.setattr(type(jpeg.parts[0][0]), '__call__', never)
    try_own(jpeg, PROMPTS, METADATA, SIZE)
    waiting = Own(never)
    waiting.interrupt = lambda: None
    try_own(waiting, PROMPTS, METADATA, SIZE)

"""What a guard needs of a configuration, which is said before a run, and what it will measure."""

import pytest

from densegrpo_jax.guard.check import check_guard, planned, unseen_of
from densegrpo_jax.guard.guard import Guard
from densegrpo_jax.rewards.build import REWARDS
from densegrpo_jax.sampling.session import check
from tests.training.small_run import Brightness, one_device

pytestmark = pytest.mark.usefixtures('exact_runs')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'guard.images': 1}, 'has nothing to measure: name rewards .* in eval.panel'),
        ({'guard.prompts': 7}, 'on 7 different prompts, and on .* raise guard.prompts=7'),
        (
            {'data.eval_prompts': 7},
            'on 7 different prompts, and .* finds no fall: give it more by data.eval and',
        ),
        ({'guard.images': 9}, 'guard.images=9: all images .* eval.batch=8 holds fewer'),
        ({'guard.action': 'brake', 'guard.brake': 'beta'}, "use guard.brake='rate'"),
        ({'guard.level': 1.0}, 'guard.level=1.0: expected a finite number above 0 and below 1'),
        ({'eval.embedding': 'nowhere'}, "eval.embedding='nowhere'"),
    ],
)
def test_what_a_guard_cannot_do_is_said_first(config, changes, message):
    config.eval.panel = {}
    config.update_from_flattened_dict(changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check_guard(check(config, one_device(), needs=('test',)))


def test_a_score_that_is_only_logged_is_unseen(config):
    config.eval.panel, config.guard.images = {}, 1
    config.reward = {'brightness': {'weight': 1.0}, 'darkness': {'weight': 0.0}}
    checked = check(config, one_device(), needs=('test',))
    check_guard(checked)
    assert unseen_of(checked.reward) == ['darkness']


class Choosy(Brightness):
    """Scores no prompt of the panel."""

    def check(self, prompts, metadata):
        if not all('"' in prompt for prompt in prompts):
            raise ValueError('no word in quotes')


def test_on_the_panels_prompts_the_training_reward_is_measured_too(config, monkeypatch, caplog):
    """And what of it is only logged; if it cannot be, that is said or refused."""
    config.eval.panel_prompts = 'panel'
    config.reward = {'brightness': {'weight': 1.0}, 'same': {'weight': 0.0}}

    def guarded():
        checked = check(config, one_device(), needs=('test',))
        return check_guard(checked), checked

    part, checked = guarded()
    assert [reward.name for reward in part.rewards] == ['composite', 'darkness']
    assert part.rewards[0] is checked.reward and len(part.prompts) == 8
    config.eval.panel = {'same': {}}  # the panel's alone
    part, _ = guarded()
    assert [reward.name for reward in part.rewards] == ['same']
    assert "(eval.panel has ['same'] too)" in caplog.text
    monkeypatch.setitem(REWARDS, 'brightness', Choosy)
    config.eval.panel = {'darkness': {}}
    with pytest.raises(
        ValueError, match=r'watches same, of weight 0 .*no word in quotes.*eval.panel'
    ):
        guarded()
    config.reward = {'brightness': {'weight': 1.0}}
    part, _ = guarded()
    assert [reward.name for reward in part.rewards] == ['darkness']
    assert 'the trained score is not measured' in caplog.text and 'no word' in caplog.text


def test_the_evaluations_of_a_run_are_counted(config):
    config.update_from_flattened_dict({'iterations': 60, 'eval.every': 10, 'guard.every': 1})
    assert planned(config) == 6
    config.update_from_flattened_dict({'iterations': 61, 'guard.every': 2})
    assert planned(config) == 4
    guard = object.__new__(Guard)
    guard._config = config
    assert [step for step in (0, 10, 20, 30, 40, 50, 60, 61) if guard.due(step)] == [
        0,
        20,
        40,
        60,
        61,
    ]

"""Credits of a preflight are those of training."""

import pathlib

import numpy as np
import pytest

from densegrpo_jax.config.method import kernel_of
from densegrpo_jax.config.methods import METHODS, apply_method
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.core.dense_reward import dense_reward
from densegrpo_jax.preflight.credits import Credit, candidates, not_measured, own_credit
from densegrpo_jax.preflight.signal import Rewards

T, P, G = 4, 3, 5
DOCS = pathlib.Path(__file__).parents[2] / 'docs' / 'preflight.md'
RNG = np.random.default_rng(0)
REWARDS = Rewards(
    RNG.random((P, G)),
    RNG.random((P, G)),
    RNG.random((T, P, G)),
    {n: RNG.random((T, P, G)) for n in (0, 1)},
    np.append(RNG.random((T, P, G)).cumsum(0) / T, np.ones((1, P, G)), axis=0),
)


def test_sparse_and_dense_are_written_out():
    values = np.append(REWARDS.completions[1], REWARDS.terminal[None], axis=0)
    np.testing.assert_allclose(Credit('dense', 1).of(REWARDS), np.diff(values, axis=0), rtol=1e-5)
    sparse = Credit('sparse').of(REWARDS)
    np.testing.assert_allclose(sparse, np.broadcast_to(REWARDS.terminal, (T, P, G)), rtol=1e-6)


def test_shares_are_of_the_terminal_advantage():
    found = candidates((0, 1))['coca'].of(REWARDS)
    advantage = REWARDS.terminal - REWARDS.terminal.mean(1, keepdims=True)
    whole = np.broadcast_to(advantage, (T + 1, P, G)).reshape(T + 1, -1)
    want = dense_reward(
        whole, 'coca_to_go', similarity=REWARDS.similarity.reshape(T + 1, -1), window=1, alpha=0.0
    )
    np.testing.assert_allclose(found.reshape(T, -1), want, rtol=1e-5)
    np.testing.assert_allclose(found[0], advantage, rtol=1e-4, atol=1e-5)  # all that is to go


@pytest.mark.parametrize(
    ('changes', 'name'),
    [
        ({'credit.rule': 'sparse', 'credit.completion_steps': 0}, 'sparse'),
        ({'credit.rule': 'dense'}, 'dense'),
        ({'credit.rule': 'dense', 'credit.completion_steps': 3}, 'dense 3'),
        ({'credit.rule': 'gae'}, 'gae 0.5'),
        ({'credit.rule': 'coca_to_go', 'credit.coca_signed': True}, 'coca'),
        ({'credit.rule': 'gae', 'credit.gae_lambda': 0.9}, 'gae own'),
        ({'credit.rule': 'coca_to_go'}, 'coca_to_go own'),
        ({'credit.rule': 'turning'}, 'turning own'),
    ],
)
def test_the_credit_of_a_configuration_has_its_name(changes, name):
    config = default_config()
    config.update_from_flattened_dict(changes)
    found, credit = own_credit(config)
    assert found == name
    assert credit.of(
        REWARDS._replace(completions={0: REWARDS.completions[0], 3: REWARDS.completions[1]})
    ).shape == (T, P, G)


@pytest.mark.parametrize(
    ('method', 'key'),
    [
        ('g2rpo', "plan.kind='branch'"),
        ('branch', "plan.kind='tree'"),
        ('sdpo', "credit.rule='sdpo'"),
        ('mix', "moving.steps='"),
    ],
)
def test_what_is_not_measured_is_refused(method, key):
    with pytest.raises(ValueError, match=f'{key}.*along whole trajectories of the model alone'):
        own_credit(apply_method(default_config(), method))


def test_several_seeds_of_a_prompt_are_refused():
    """Preflight starts a group from one noise, or every sample from its own."""
    config = default_config()
    config.plan.seeds, config.rollout.shared_noise = 4, True
    with pytest.raises(ValueError, match='plan.seeds=4: preflight measures'):
        own_credit(config)


def test_rollouts_that_drift_are_refused():
    config = default_config()
    config.guide.source = 'probe'
    with pytest.raises(ValueError, match="guide.source='probe'"):
        own_credit(config)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'credit.completion_every': 2}, 'interpolates rewards between'),
        ({'credit.combine': 'advantages'}, 'the weighted sum of raw scores'),
        ({'budget.by': 'random'}, 'groups of two sizes'),
        ({'loss.kind': 'nft', 'credit.rule': 'sparse'}, 'learns from finished samples'),
    ],
)
def test_what_training_does_otherwise_is_said(changes, words):
    config = default_config()
    config.reward = {'jpeg': {'weight': 1.0}, 'ocr': {'weight': 0.5}}
    assert not_measured(config) == []
    config.update_from_flattened_dict(changes)
    (line,) = not_measured(config)
    assert words in line and line.startswith(next(iter(changes)))


def test_what_changes_nothing_is_not_said():
    config = default_config()
    config.reward = {'jpeg': {'weight': 1.0}, 'ocr': {'weight': 0.0}}
    config.update_from_flattened_dict({'credit.combine': 'normalised', 'credit.rule': 'sparse'})
    config.credit.completion_every = 2
    assert not_measured(config) == []


def test_the_page_says_which_methods_are_measured():
    rows = [line.split('|')[1:4] for line in DOCS.read_text().splitlines() if line[:3] == '| `']
    told = {
        name.strip(' `'): answer.strip() for names, answer, _ in rows for name in names.split(',')
    }
    assert told.keys() == METHODS.keys()
    for name, answer in told.items():
        config = apply_method(default_config(), name)
        try:
            own_credit(config)
            measured = kernel_of(config).noisy
        except ValueError:
            measured = False
        assert answer == ('yes' if measured else 'no'), name

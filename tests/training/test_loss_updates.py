"""Shipped losses through credit and update: the step is minus the gradient of their formula, here
once more in float64; and it does not depend on the mesh.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.formulas import TRAINED, Steps, follows, group_advantages, velocity
from tests.training.one_update import BASE, GROUP, PROMPTS, SAMPLES, START, one_iteration

GUARD = {'loss.kind': 'guard', 'loss.clip_range': 2e-3, 'credit.rule': 'sparse'}

LIST = {
    'loss.kind': 'list',
    'loss.list_temperature': 0.01,
    'loss.list_reward_temperature': 0.5,
    'credit.rule': 'sparse',
}

PAIR = {
    'loss.kind': 'pair',
    'loss.clip_range': 2e-3,
    'loss.step_decay': 0.9,
    'credit.rule': 'sparse',
}
NFT = {'loss.kind': 'nft', 'loss.nft_strength': 0.5, 'credit.rule': 'sparse'}


@pytest.mark.parametrize('invalid, updates', [(None, 1), (7, 2)])
def test_guard(invalid, updates):
    """The second update trains other prompts with the policy that the first has made: it is off
    policy, and its ratio compares with the means that the rollout kept.
    """
    changes = GUARD | {'optim.updates': updates}
    c, rollout, rewards, valid, new, metrics = one_iteration(invalid, **changes)
    steps, keep = Steps(rollout), valid.all(0)
    advantage = group_advantages(c, rewards[-1], keep)

    def loss(policy, used):
        total = 0.0
        for k in range(TRAINED):
            moved = steps.mean(policy, k) - steps.mean(np.float64(START), k)
            z = (steps.x_next[k] - steps.mean(np.float64(START), k)) / steps.std[k]
            ratio = jnp.exp((z * moved).mean((1, 2)))
            clipped = jnp.clip(ratio, 1 - c.loss.clip_range, 1 + c.loss.clip_range)
            worse = jnp.maximum(-ratio * advantage, -clipped * advantage) / steps.gap[k]
            total += jnp.where(used, worse, 0).sum()
        return total / (TRAINED * used.sum())

    follows(c, loss, keep, new, tolerance=1e-4)
    assert metrics['transitions'] == TRAINED * keep.sum()
    assert metrics['ratio_deviation_first'] <= 2e-7
    assert (metrics['clip_fraction'] > 0.04) == (updates == 2)


@pytest.mark.parametrize('invalid, updates', [(None, 1), (7, 2)])
def test_list(invalid, updates):
    """In microbatches of two lists; the second update is off policy."""
    changes = LIST | {'optim.updates': updates, 'optim.microbatch': 12}
    c, rollout, rewards, valid, new, metrics = one_iteration(invalid, **changes)
    steps, keep = Steps(rollout), valid.all(0)
    lists = lambda a: a.reshape(PROMPTS, GROUP)
    powers = np.where(keep, np.exp(group_advantages(c, rewards[-1], keep) / 0.5), 0)
    r = lists(powers) / lists(powers).sum(1, keepdims=True)

    def loss(policy, used):
        total, count = 0.0, lists(used).sum(1)
        for k in range(TRAINED):
            moved = steps.log_prob(policy, k) - steps.log_prob(np.float64(START), k)
            p = lists(jnp.where(keep, jnp.exp(moved / 0.01), 0))
            p /= p.sum(1, keepdims=True)
            total -= (count * (p * r).sum(1)).sum()
        return total / (TRAINED * used.sum())

    follows(c, loss, keep, new, tolerance=2e-4)
    assert metrics['transitions'] == TRAINED * keep.sum()
    assert metrics['ratio_deviation_first'] <= 1e-6
    if updates == 1:  # next to uniform, all six
        assert metrics['list_effective'] == pytest.approx(GROUP, rel=1e-6)
        assert metrics['list_logit_max'] <= 1e-6 / 0.01
    else:
        assert metrics['list_effective'] < 5.9 and metrics['list_logit_max'] > 0.1


def test_list_trajectory():
    """One list of a prompt, whose logits are sums over the transitions; off policy at the end."""
    changes = LIST | {'loss.kind': 'list_trajectory', 'optim.updates': 2, 'optim.microbatch': 24}
    c, rollout, rewards, valid, new, metrics = one_iteration(7, **changes)
    steps, keep = Steps(rollout), valid.all(0)
    lists = lambda a: a.reshape(PROMPTS, GROUP)
    powers = np.where(keep, np.exp(group_advantages(c, rewards[-1], keep) / 0.5), 0)
    r = lists(powers) / lists(powers).sum(1, keepdims=True)

    def loss(policy, used):
        moved = sum(
            steps.log_prob(policy, k) - steps.log_prob(np.float64(START), k) for k in range(TRAINED)
        )
        p = lists(jnp.where(keep, jnp.exp(moved / 0.01), 0))
        p /= p.sum(1, keepdims=True)
        return -(lists(used).sum(1) * (p * r).sum(1)).sum() / used.sum()

    follows(c, loss, keep, new, tolerance=2e-4)
    assert metrics['transitions'] == TRAINED * keep.sum()


@pytest.mark.parametrize('pairs', ['all', 'neighbours'])
def test_pair(pairs):
    """With a sample that does not count; the second update is off policy."""
    changes = PAIR | {'loss.pairs': pairs, 'optim.updates': 2, 'optim.microbatch': 12}
    c, rollout, rewards, valid, new, metrics = one_iteration(7, **changes)
    steps, keep = Steps(rollout), valid.all(0)
    advantage = group_advantages(c, rewards[-1], keep).reshape(PROMPTS, GROUP)
    beside = {
        'all': [(i, j) for j in range(GROUP) for i in range(j)],
        'neighbours': [(i, i + 1) for i in range(0, GROUP, 2)],
    }[pairs]
    i, j = np.transpose(beside)
    gap = advantage[:, i] - advantage[:, j]

    def loss(policy, used):
        total, there = 0.0, used.reshape(PROMPTS, GROUP)
        both = there[:, i] & there[:, j]
        share = there.sum(1) / np.maximum(both.sum(1), 1)  # of a prompt, to each of its pairs
        for k in range(TRAINED):
            moved = steps.log_prob(policy, k) - steps.log_prob(np.float64(START), k)
            moved = moved.reshape(PROMPTS, GROUP)
            held = jnp.clip(moved, -c.loss.clip_range, c.loss.clip_range)
            free = (0.9**k * (moved[:, i] - moved[:, j]) - gap) ** 2
            bound = (0.9**k * (held[:, i] - held[:, j]) - gap) ** 2
            total += (share * jnp.where(both, jnp.maximum(free, bound), 0).sum(1)).sum()
        return total / (TRAINED * used.sum())

    follows(c, loss, keep, new, tolerance=2e-4)
    assert metrics['transitions'] == TRAINED * keep.sum()
    assert metrics['ratio_deviation_first'] <= 1e-6 and metrics['clip_fraction'] > 0.04


@pytest.mark.parametrize('draws, beta', [(1, 0.0), (3, 0.3)])
def test_nft(draws, beta):
    """The old policy, which is elsewhere here, is read and then follows: d = .02 after 20."""
    old = 3 * START
    changes = NFT | {'loss.draws': draws, 'loss.beta': beta, 'optim.microbatch': 12}
    c, rollout, rewards, valid, new, metrics = one_iteration(7, ema=old, **changes)
    keep = valid.all(0)
    r = np.clip(group_advantages(c, rewards[-1], keep) / 10 + 0.5, 0, 1)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(42), 6), 20)
    x0 = np.where(keep[:, None, None], np.asarray(rollout.latents[-1], np.float64), 0)
    rows = [jax.random.fold_in(key, i) for i in range(draws * SAMPLES)]
    s = np.array([jax.random.uniform(jax.random.fold_in(k, 0)) for k in rows])
    noise = [jax.random.normal(jax.random.fold_in(k, 1), x0.shape[1:]) for k in rows]
    s, noise = s.reshape(draws, SAMPLES, 1, 1), np.reshape(noise, (draws, *x0.shape))
    x = (1 - s) * x0 + s * noise

    def loss(policy, used):
        total = 0.0
        for d in range(draws):
            v, v_old, v_ref = (
                velocity(BASE + np.float64(1) * p, x[d], s[d]) for p in (policy, old, 0 * old)
            )
            for share, sign in ((r, 1), (1 - r, -1)):
                error = x[d] - s[d] * (v_old + sign * 0.5 * (v - v_old)) - x0
                size = jnp.maximum(jnp.abs(jax.lax.stop_gradient(error)).mean((1, 2)), 1e-5)
                each = 5 / 0.5 * share * (error**2).mean((1, 2)) / size
                total += jnp.where(used, each, 0).sum()
            total += beta * jnp.where(used, ((v - v_ref) ** 2).mean((1, 2)), 0).sum()
        return total / (draws * used.sum())

    follows(c, loss, keep, new, tolerance=1e-4)
    assert metrics['samples'] == draws * keep.sum()
    kept = 0.02 * old + 0.98 * np.asarray(new.policy['a'])
    np.testing.assert_allclose(new.roles['old']['a'], kept, rtol=1e-5)


CASES = {'guard': GUARD, 'list': LIST, 'pair': PAIR, 'nft': NFT | {'loss.draws': 4}}
# Groups stay whole for pairs as for lists; the guard's rows are those of test_meshes.py.
SLOW = ('guard', 'pair')


@pytest.mark.parametrize(
    'changes',
    [
        pytest.param(changes, id=name, marks=[pytest.mark.slow] * (name in SLOW))
        for name, changes in CASES.items()
    ],
)
def test_eight_devices_move_as_one_does(changes):
    changes = changes | {'optim.microbatch': 24, 'optim.updates': 2}
    *_, alone, before = one_iteration(7, **changes)
    *_, split, metrics = one_iteration(7, sizes=(2, 2, 2), **changes)
    for role in alone.roles:
        moved = np.asarray(alone.roles[role]['a']) - START
        found = np.asarray(split.roles[role]['a']) - START
        np.testing.assert_allclose(found, moved, atol=2e-5 * np.abs(moved).max(), err_msg=role)
    for name in before:
        np.testing.assert_allclose(metrics[name], before[name], rtol=1e-3, atol=1e-6, err_msg=name)

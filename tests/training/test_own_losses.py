"""Losses of one's own through the update: the gradient is that of their formula, on the batch and
the roles that they declare.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.validation import validate
from densegrpo_jax.core.clean_samples import CleanSamples, NoisedSamples, best_weights
from densegrpo_jax.core.losses import winners_loss
from densegrpo_jax.core.masks import step_masks
from densegrpo_jax.core.rollout_plan import trajectory_plan
from densegrpo_jax.sampling.schedule import Schedule
from densegrpo_jax.training import learner
from densegrpo_jax.training.batches import BATCHES, Credited, microbatches
from densegrpo_jax.training.geometry import check_geometry
from densegrpo_jax.training.trial import try_parts
from tests.meshes import one_device
from tests.training.one_update import (
    BASE,
    CHANNELS,
    GROUP,
    PROMPT,
    PROMPTS,
    SAMPLES,
    SIGMAS,
    START,
    STEPS,
    TOKENS,
    Network,
    one_iteration,
)

OWN = """
import jax.numpy as jnp
from densegrpo_jax.core.losses import CLEAN, Loss, loss_sums
from densegrpo_jax.core.roles import EMA, POLICY, moving_average

def weighted_regression(outputs, batch, *, clip_range, temperature=2.0):
    assert set(outputs) <= {'policy', 'ref'}, set(outputs)
    error = ((outputs[POLICY] - (batch.noise - batch.x0)) ** 2).mean((1, 2))
    weight = batch.advantage['outcome'] + batch.reward / temperature
    return loss_sums((weight + clip_range) * error, batch.mask)

def towards_average(outputs, batch):
    step, average = outputs[POLICY], outputs[EMA]
    return loss_sums(((step.mean - average.mean) ** 2).mean((1, 2)), batch.mask)

def of_groups(outputs, batch):
    ids = batch.prompt_id.reshape(-1, 6)
    alike = (ids == ids[:, :1]).all() & (jnp.ptp(batch.s.reshape(-1, 6), 1) == 0).all()
    return loss_sums(jnp.where(alike, 1.0, -1.0) + 0 * outputs[POLICY].std, batch.mask)

regression = Loss(weighted_regression, CLEAN)
average = Loss(towards_average, needs=(EMA,))
follow = moving_average(lambda step: jnp.where(step == 20, 0.25, 1.0))
old = lambda outputs, batch: towards_average({**outputs, EMA: outputs['old']}, batch)
followed = Loss(old, needs=('old',), follows={'old': follow})
blown_up = lambda outputs, batch: loss_sums(jnp.inf * outputs[POLICY].mean.sum((1, 2)), batch.mask)
broken = Loss(blown_up, follows={'old': follow})
late = lambda outputs, batch: loss_sums(
    jnp.where(batch.prompt_id < 2, 1.0, jnp.inf) * outputs[POLICY].mean.sum((1, 2)), batch.mask)
broken_late = Loss(late, follows={'old': follow})
groups = Loss(of_groups, groups=True)
sums = Loss(lambda outputs, batch: batch.mask.sum())
share = lambda outputs, batch: loss_sums(batch.weight, batch.mask)._replace(sums={'share': 1.0})
telling = Loss(share)
lacking = Loss(lambda outputs, batch, *, horizon: None)
"""
CLEAN = {'credit.rule': 'sparse'}


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    (tmp_path / 'own_loss.py').write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


def fresh(step):
    """(s [B], noise [B, ...]) of an iteration's samples: keys by seed, stream, step, place."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(42), 6), step)
    places = [jax.random.fold_in(key, i) for i in range(SAMPLES)]
    s = [jax.random.uniform(jax.random.fold_in(k, 0)) for k in places]
    shape = (TOKENS, CHANNELS)
    return np.array(s), np.array(
        [jax.random.normal(jax.random.fold_in(k, 1), shape) for k in places]
    )


def velocity(matrix, x, s):
    return (
        jnp.tanh(x @ matrix)
        + s[:, None, None] * x
        + np.repeat(PROMPT, GROUP, 0)[: len(x)][:, None, :]
    )


@pytest.mark.parametrize(
    'invalid, changes', [(None, {}), (7, {'loss.beta': 0.3, 'optim.updates': 2})]
)
def test_a_regression_on_clean_samples(invalid, changes):
    changes = {'loss.kind': 'own_loss:regression', 'optim.microbatch': 4, **CLEAN, **changes}
    c, rollout, rewards, valid, new, metrics = one_iteration(invalid, **changes)
    keep, (s, noise) = valid.all(0), fresh(20)
    terminal = rewards[-1].astype(np.float64)
    advantage = np.zeros(SAMPLES)
    for group in np.arange(SAMPLES).reshape(PROMPTS, GROUP):
        kept = terminal[group[keep[group]]]
        advantage[group] = (terminal[group] - kept.mean()) / (kept.std() + c.credit.std_eps)
    x0 = np.asarray(rollout.latents[-1], np.float64)
    x = (1 - s[:, None, None]) * x0 + s[:, None, None] * noise

    def loss(policy, rows):
        error = jnp.mean((velocity(BASE + policy, x, s) - (noise - x0)) ** 2, (1, 2))
        moved = velocity(BASE + policy, x, s) - velocity(BASE, x, s)
        total = (advantage + terminal / 2 + c.loss.clip_range) * error
        total += c.loss.beta * jnp.mean(moved**2, (1, 2))
        return jnp.where(keep & rows, total, 0).sum() / (keep & rows).sum()

    with jax.enable_x64(True):
        policy = np.asarray(START, np.float64)
        for share in np.split(np.arange(SAMPLES), c.optim.updates):
            rows = np.isin(np.arange(SAMPLES), share)
            policy = policy - np.asarray(jax.grad(loss)(policy, rows))
    moved = np.abs(policy - START).max()
    np.testing.assert_allclose(new.policy['a'] - START, policy - START, atol=3e-5 * moved)
    assert metrics['samples'] == keep.sum() and metrics['finite'] and moved > 1e-2
    assert 'transitions' not in metrics and 'clip_fraction' not in metrics
    assert (metrics['kl'] > 0) == (c.loss.beta > 0)


def test_a_sample_has_the_advantage_of_its_trained_transitions():
    _, rollout, rewards, *_ = one_iteration()
    late = dataclasses.replace(rollout, plan=trajectory_plan(step_masks(SIGMAS, first=2)))
    advantages = np.full((STEPS, SAMPLES), np.nan, np.float32)
    advantages[2:4] = np.arange(SAMPLES)
    ids, valid = np.repeat(np.arange(PROMPTS), GROUP), np.ones(SAMPLES, bool)
    named = {'outcome': advantages}
    credited = Credited(late, rewards[-1], named, np.ones(STEPS), ids, valid)
    record = BATCHES['clean'].record(credited)
    np.testing.assert_array_equal(record.advantage['outcome'], np.arange(SAMPLES))
    np.testing.assert_array_equal(record.reward, rewards[-1])


def test_a_loss_reads_the_roles_that_it_needs():
    """With the mean's distance from the average's as the loss, and the average elsewhere."""
    ema = 3 * START
    _, rollout, *_, new, metrics = one_iteration(ema=ema, **{'loss.kind': 'own_loss:average'})
    x, x_next = (np.asarray(rollout.latents[i : i + 4], np.float64) for i in (0, 1))
    s = SIGMAS.astype(np.float64)[:, None]
    level = 0.7 * np.sqrt(s[:4] / (1 - np.where(s[:4] == 1, s[1], s[:4])))

    def loss(policy):
        total = 0.0
        for k in range(4):
            at = np.full(SAMPLES, s[k, 0])
            v = velocity(BASE + policy, x[k], at) - velocity(BASE + ema, x[k], at)
            dt = s[k] - s[k + 1]
            total += ((dt * (1 + level[k] ** 2 * (1 - s[k]) / (2 * s[k])) * v) ** 2).mean((1, 2))
        return total.sum() / (4 * SAMPLES)

    with jax.enable_x64(True):
        gradient = np.asarray(jax.grad(loss)(np.asarray(START, np.float64)))
    np.testing.assert_allclose(
        new.policy['a'] - START, -gradient, atol=1e-4 * np.abs(gradient).max()
    )
    assert metrics['transitions'] == 4 * SAMPLES and metrics['kl'] == 0


def test_a_loss_brings_a_role_that_follows_as_it_says():
    """The role begins at `ema` here, is what the loss reads, and keeps a quarter of itself."""
    ema = 3 * START
    _, *_, towards, _ = one_iteration(ema=ema, **{'loss.kind': 'own_loss:average'})
    _, *_, new, _ = one_iteration(ema=ema, **{'loss.kind': 'own_loss:followed'})
    assert set(new.roles) == {'policy', 'ema', 'old'}
    np.testing.assert_array_equal(new.policy['a'], towards.policy['a'])
    old = ema / 4 + 3 / 4 * np.asarray(new.policy['a'])
    np.testing.assert_allclose(new.roles['old']['a'], old, rtol=1e-5)
    np.testing.assert_array_equal(new.ema['a'], towards.ema['a'])
    assert np.abs(old - new.ema['a']).max() > 1e-3


def test_an_update_that_is_not_finite_leaves_every_role():
    ema = 3 * START
    _, *_, new, metrics = one_iteration(ema=ema, **{'loss.kind': 'own_loss:broken'})
    assert not metrics['finite'] and new.skipped == 1 and new.step == 21
    np.testing.assert_array_equal(new.policy['a'], START)
    for role in ('ema', 'old'):
        np.testing.assert_array_equal(new.roles[role]['a'], ema)


def test_of_two_updates_the_one_that_is_not_finite_is_left_out():
    """The second, of the later prompts: the followers follow the first."""
    ema = 3 * START
    changes = {'loss.kind': 'own_loss:broken_late', 'optim.updates': 2}
    _, *_, new, metrics = one_iteration(ema=ema, **changes)
    assert not metrics['finite'] and new.skipped == 1 and not np.isfinite(metrics['grad_norm'])
    moved = np.asarray(new.policy['a'])
    assert np.isfinite(moved).all() and np.abs(moved - START).max() > 1e-3
    np.testing.assert_allclose(new.roles['old']['a'], ema / 4 + 3 / 4 * moved, rtol=1e-5)


def test_groups_stay_whole():
    """In every microbatch six neighbours are the samples of a prompt at one step."""
    *_, metrics = one_iteration(
        **{'loss.kind': 'own_loss:groups', 'optim.microbatch': 12, 'optim.updates': 2}
    )
    assert metrics['loss'] == 1
    # the same of the function that makes them: update, microbatch, group
    ids = np.tile(np.repeat(np.arange(PROMPTS), GROUP), 4)
    parts = microbatches({'mask': ids, 'step': np.repeat(np.arange(4), SAMPLES)}, SAMPLES, 2, 12)
    assert parts['mask'].shape == (2, 4, 12)
    assert set(np.unique(parts['mask'][0])) == {0, 1}
    for name in parts:
        assert (np.ptp(parts[name].reshape(2, 4, 2, GROUP), axis=3) == 0).all()
    # and of whole trajectories: one prompt, all transitions, its samples
    places = np.arange(4 * SAMPLES).reshape(4, PROMPTS, GROUP)
    found = microbatches(places.reshape(-1), SAMPLES, 2, 4 * GROUP, GROUP)
    np.testing.assert_array_equal(found.reshape(PROMPTS, 4, GROUP), places.swapaxes(0, 1))


def geometry(**changes):
    c = default_config()
    c.rollout.update(steps=STEPS, prompts=PROMPTS, group=GROUP, prompts_per_batch=PROMPTS)
    c.update_from_flattened_dict(changes)
    masks = step_masks(SIGMAS)
    schedule = Schedule(SIGMAS, np.zeros(STEPS, np.float32), masks, trajectory_plan(masks))
    mesh = one_device()
    return check_geometry(c, schedule, mesh)


def test_microbatches_that_a_loss_can_use():
    assert geometry(**{'optim.microbatch': 8}) == 4 * SAMPLES // 8
    assert geometry(**{'optim.microbatch': 12, 'loss.kind': 'own_loss:groups'}) == 8
    assert geometry(**{'optim.microbatch': 48, 'loss.kind': 'list_trajectory'}) == 2
    with pytest.raises(
        ValueError, match=r'rollout.group=6 samples with all 4 transitions of each, .*\[24,'
    ):
        geometry(**{'optim.microbatch': 12, 'loss.kind': 'list_trajectory'})
    clean = {'loss.kind': 'own_loss:regression', **CLEAN}
    assert geometry(**{'optim.microbatch': 8, **clean}) == 3
    with pytest.raises(
        ValueError,
        match=r'microbatch=8 does not hold whole groups of rollout.group=6 samples, which '
        r"loss.kind='own_loss:groups' compares; near it: \[6, 12, 24, 48\]",
    ):
        geometry(**{'optim.microbatch': 8, 'loss.kind': 'own_loss:groups'})
    drawn = {'loss.kind': 'nft', 'loss.draws': 3, 'credit.rule': 'sparse'}
    assert geometry(**{'optim.microbatch': 8, **drawn}) == 9
    with pytest.raises(ValueError, match=r'does not divide the 24 samples of an update \(1 a samp'):
        geometry(**{'optim.microbatch': 16, **clean})
    with pytest.raises(
        ValueError, match=r'=5 does not divide the 96 transitions .*near it: \[4, 6, 3, 2\]'
    ):
        geometry(**{'optim.microbatch': 5})


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'loss.kind': 'own_loss:absent'}, "loss.kind='own_loss:absent': the module"),
        (
            {'loss.kind': 'ppo'},
            "loss.kind='ppo': expected one of 'grpo', 'guard', .*'winners', or 'package",
        ),
        ({'loss.kind': 'own_loss:of_groups'}, 'of the kind function; expected a Loss'),
        ({'loss.kind': 'own_loss:lacking'}, "'own_loss:lacking' has the option 'horizon'"),
        (
            {'loss.kind': 'own_loss:regression'},
            "credit.rule='dense' gives every transition its own: use credit.rule='sparse'",
        ),
    ],
)
def test_what_cannot_be_used_is_named(changes, message):
    c = default_config()
    c.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        validate(c)


@pytest.mark.parametrize(
    'kind, message',
    [
        ('telling', r"'own_loss:telling' gave the metrics \['share'\] and \[\]; it declares \[\]"),
        ('sums', r"loss.kind='own_loss:sums' gave a .*; expected LossSums"),
    ],
)
def test_a_loss_of_another_form_is_named_before_anything_is_loaded(kind, message):
    c = default_config()
    c.update_from_flattened_dict({'loss.kind': f'own_loss:{kind}', 'rollout.steps': STEPS})
    masks = step_masks(SIGMAS)
    levels = np.full(STEPS, 0.7, np.float32)
    with pytest.raises(ValueError, match=message):
        try_parts(c, Schedule(SIGMAS, levels, masks, trajectory_plan(masks)))


@pytest.mark.parametrize('invalid', [None, 7])
def test_winners_learn_the_best_sample_of_each_group(invalid):
    """The gradient is that of the regression on it, a mean over the groups."""
    changes = {'loss.kind': 'winners', 'optim.microbatch': 4, **CLEAN}
    _, rollout, rewards, valid, new, metrics = one_iteration(invalid, **changes)
    keep, (s, noise) = valid.all(0), fresh(20)
    terminal = np.where(keep, rewards[-1], -np.inf).reshape(PROMPTS, GROUP)
    best = terminal.argmax(1) + GROUP * np.arange(PROMPTS)
    x0 = np.asarray(rollout.latents[-1], np.float64)
    x = (1 - s[:, None, None]) * x0 + s[:, None, None] * noise

    def loss(policy):
        error = jnp.mean((velocity(BASE + policy, x, s) - (noise - x0)) ** 2, (1, 2))
        counts = keep.reshape(PROMPTS, GROUP).sum(1)  # a group weighs by its samples that count
        return (counts * error[best]).sum() / keep.sum()

    with jax.enable_x64(True):
        gradient = np.asarray(jax.grad(loss)(np.asarray(START, np.float64)))
    moved = np.abs(gradient).max()
    np.testing.assert_allclose(new.policy['a'] - START, -gradient, atol=3e-5 * moved)
    assert metrics['samples'] == keep.sum() and moved > 1e-2


def test_winners_that_tie_share_their_groups_weight():
    ones, zeros = jnp.ones((4, 2)), jnp.zeros((4, 2))
    samples = CleanSamples(
        x0=zeros,
        reward=jnp.float32([1, 1, 0, 5]),
        advantage={},
        mask=jnp.array([True, True, True, False]),
        prompt_id=jnp.int32([0, 0, 0, 0]),
    )
    weight = best_weights(samples)
    batch = NoisedSamples(x=zeros, s=jnp.zeros(4), noise=zeros, weight=weight, **samples._asdict())
    slope = jax.grad(lambda v: winners_loss(v, batch).policy_sum)(ones)
    np.testing.assert_allclose(slope, [[1.5, 1.5], [1.5, 1.5], [0, 0], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize('sizes', [(1, 1, 1), (2, 2, 2)])
def test_rows_that_carry_no_loss_are_not_evaluated(monkeypatch, sizes):
    """Of 24 samples with 3 draws, in two updates, the winners of 2 groups: 6 rows, in two
    microbatches of 4 of the 9. The step is that of an update which evaluates all.
    """
    evaluated, velocity_fn = [], Network.velocity_fn

    def watched(self, *args, **options):
        velocity = velocity_fn(self, *args, **options)

        def counted(x, s):
            jax.debug.callback(lambda rows: evaluated.append(len(rows)), s)
            return velocity(x, s)

        return counted

    changes = {'loss.kind': 'winners', 'loss.draws': 3, 'optim.updates': 2, **CLEAN}
    changes |= {'optim.microbatch': 4}
    all_rows = lambda config: False
    *_, new, metrics = one_iteration(7, sizes=sizes, **changes)
    with monkeypatch.context() as m:
        m.setattr(learner, 'skips_rows', all_rows)
        *_, whole, of_all = one_iteration(7, sizes=sizes, **changes)
    moved = np.abs(whole.policy['a'] - START).max()
    np.testing.assert_allclose(new.policy['a'], whole.policy['a'], atol=1e-6 * moved)
    for name in of_all:
        np.testing.assert_allclose(metrics[name], of_all[name], rtol=1e-5, err_msg=name)
    assert moved > 1e-2 and metrics['samples'] == 3 * (SAMPLES - 1)
    if sizes != (1, 1, 1):
        return
    monkeypatch.setattr(Network, 'velocity_fn', watched)
    for skips, expected in ((learner.skips_rows, 2 * 2), (all_rows, 2 * 9)):
        monkeypatch.setattr(learner, 'skips_rows', skips)
        evaluated.clear()
        jax.block_until_ready(one_iteration(7, **changes)[-2:])
        jax.effects_barrier()
        assert evaluated.count(4) == expected

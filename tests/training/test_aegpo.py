"""AEGPO as this package reconstructs it: the probe along the path, groups of two sizes, and runs
that continue with the same bits.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny_ocr
from densegrpo_jax.config.validation import validate
from densegrpo_jax.pipelines.folder import load_pipeline
from densegrpo_jax.pipelines.inside import probe_fn
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.streams import key_data
from densegrpo_jax.sampling.cost import probed
from densegrpo_jax.sampling.probe import make_probe
from densegrpo_jax.sampling.sampler import normal_rows, sample_keys
from densegrpo_jax.sampling.schedule import make_schedule
from densegrpo_jax.training import rounds
from densegrpo_jax.training.rounds import check_rounds, group_sizes, paired
from tests import compiled
from tests.training.small_run import (
    SMOOTH,
    after_one_iteration,
    equal,
    final_state,
    make_config,
    moved_alike,
    one_device,
    trained,
)

pytestmark = pytest.mark.usefixtures('exact_runs')

BASE = {
    **SMOOTH,
    'credit.rule': 'sparse',
    'credit.std': 'group',
    'rollout.steps': 4,  # three of them are trained
    'rollout.shared_noise': True,
    'rollout.group': 4,
    'optim.microbatch': 8,
    'iterations': 1,
    'eval.every': 50,
}
# groups of 2 and 6 samples, two of the three transitions
AEGPO = {
    **BASE,
    'iterations': 3,
    'moving.steps': 'entropy',
    'moving.width': 2,
    'budget.by': 'entropy',
    'budget.ratio': 3.0,
    'budget.warmup': 1,
}


def test_prompts_are_paired():
    config = tiny_ocr.get_config()
    config.rollout.update(prompts=8, group=12, prompts_per_batch=4)
    sizes = np.array([16, 8, 8, 16, 16, 16, 8, 8])
    # of groups of 16 three fit where four of 12 do, and four divide by two
    assert paired(sizes, config, 1) == ([1, 2, 6, 7, 0, 3, 4, 5], 2)
    config.optim.updates = 2  # every update has as many of both
    assert paired(sizes, config, 1) == ([1, 2, 0, 3, 6, 7, 4, 5], 2)
    config.rollout.prompts_per_batch = 3
    assert paired(sizes, config, 8)[1] == 2
    config.optim.updates = 4
    assert paired(sizes, config, 8)[1] == 1


def test_the_random_budget_is_the_same_but_for_whom_it_goes_to():
    """Groups of 8 and 16, half of the prompts each, after as many equal iterations as by entropy;
    every prompt has the larger group in half of the iterations (within five standard errors),
    without a relation between iterations, and in a run that continues the same.
    """
    config = tiny_ocr.get_config('method=aegpo')
    config.budget.by = 'random'
    validate(config)
    control = config.copy_and_resolve_references()
    config.budget.by = 'entropy'
    change = np.arange(8.0)
    by_entropy = [group_sizes(config, i, 8, change) for i in range(6)]
    at_random = [group_sizes(control, i, 8) for i in range(605)]
    warmup = config.budget.warmup
    assert by_entropy[:warmup] == at_random[:warmup] == [None] * warmup
    assert by_entropy[warmup].tolist() == [8, 8, 8, 8, 16, 16, 16, 16]
    drawn = np.array(at_random[warmup:])
    assert (np.sort(drawn, 1) == [8] * 4 + [16] * 4).all()
    large = drawn == 16
    assert np.abs(large.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(len(large))
    again = (large[1:] & large[:-1]).sum(1).mean()  # of four, two by chance
    assert abs(again - 2) < 5 * np.sqrt(4 / 7 / len(large))
    np.testing.assert_array_equal(group_sizes(control, 77, 8), drawn[77 - warmup])
    control.seed += 1
    assert any((group_sizes(control, i, 8) != drawn[i - warmup]).any() for i in range(5, 15))


class Asked(Exception):
    """How many samples prompts get, by the change of their entropy."""


@pytest.mark.parametrize('relative, largest', [(False, 0), (True, 1)])
def test_budgets_follow_the_change_or_the_relative_one(monkeypatch, relative, largest):
    config = tiny_ocr.get_config('method=aegpo')
    config.budget.relative = relative
    policy, base = np.float32([[0.9, 0.2]]), np.float32([[0.7, 0.1]])
    found = SimpleNamespace(policy=policy, base=base)

    def asked(config, iteration, count, change):
        raise Asked(change)

    monkeypatch.setattr(rounds, 'group_sizes', asked)
    made = object.__new__(rounds.Rounds)
    vars(made).update(
        _session=SimpleNamespace(config=config),
        _schedule=SimpleNamespace(moving=None),
        _probe=True,
        _key=lambda iteration: None,
        _entropies=lambda *_: found,
        _of_steps=lambda steps: (None, None, {}),
        _credit=lambda fixed: dict,
    )
    with pytest.raises(Asked) as told:
        made.sample(7, None, ['a', 'b'], None)
    assert np.argmax(told.value.args[0]) == largest


def test_what_is_probed_and_what_divides_over_the_devices(folder):
    pipeline, _ = load_pipeline(folder, text_length=16)
    eight = make_mesh({'data': 8, 'fsdp': 1, 'tensor': 1}, jax.devices())
    for steps, by, expected in (
        ('entropy', 'entropy', (True, True)),
        ('entropy', 'none', (True, False)),
        ('none', 'entropy', (True, True)),
        ('random', 'random', (False, False)),  # the controls
        ('none', 'none', (False, False)),
    ):
        config = make_config(folder, **{**AEGPO, 'budget.by': by, 'moving.steps': steps})
        schedule = make_schedule(pipeline, config)
        assert probed(config, schedule) == expected
        check_rounds(config, pipeline, schedule, one_device())
        if by != 'none':
            with pytest.raises(ValueError, match='of 2 and 6 samples.*do not divide over 8 dev'):
                check_rounds(config, pipeline, schedule, eight)
    everything = make_config(folder, **{**AEGPO, 'budget.by': 'none', 'moving.width': 3})
    assert probed(everything, make_schedule(pipeline, everything)) == (False, False)


# test_meshes.py compares the network over eight devices.
eight = pytest.param((2, 2, 2), marks=pytest.mark.slow)


@pytest.mark.parametrize('sizes', [(1, 1, 1), eight])
def test_the_probe_follows_the_policys_ode(folder, sizes):
    """Against a loop over single evaluations; the base model at the policy's states."""
    pipeline, params = load_pipeline(folder, text_length=16)
    config = make_config(folder, **AEGPO)
    mesh = make_mesh(dict(zip(('data', 'fsdp', 'tensor'), sizes)), jax.devices()[: np.prod(sizes)])
    sigmas = pipeline.sigmas(4, 16, 32)
    text = compiled.encode(pipeline, params, ['a sign', 'a red star', 'a dog', 'a cat'])
    full = jax.tree.map(lambda a: a + 0.02 * np.ones_like(a), params['transformer'])
    key, places = key_data(jax.random.key(3)), np.array([2, 0, 5, 1])
    probe = make_probe(pipeline, config, sigmas, mesh, base=True)
    found, there = probe(params, full, text, None, key, places)
    assert found.shape == there.shape == (4, 4)
    options = text, config.model.guidance, 16, 32
    asked = jax.jit(lambda weights, *at: probe_fn(pipeline, weights, None, *options)(*at))
    keys = sample_keys(jax.random.wrap_key_data(key), places, 6).reshape(4, 6)[:, 0]
    x = normal_rows(keys, 0, pipeline.latent_shape(16, 32))  # of the group's first sample
    for k in range(4):
        s = jnp.full(4, sigmas[k])
        v, entropy = asked(full, x, s)
        np.testing.assert_allclose(found[k], entropy, rtol=1e-4)
        np.testing.assert_allclose(there[k], asked(params['transformer'], x, s)[1], rtol=1e-4)
        x = x + (sigmas[k + 1] - sigmas[k]) * v
    assert np.abs(np.asarray(found) - there).min() > 1e-6
    same, unmoved = probe(params, None, text, None, key, places)
    np.testing.assert_array_equal(same, unmoved)  # the base model has not moved from itself


@pytest.mark.slow
def test_a_run_and_its_continuation(folder, tmp_path, monkeypatch):
    made = []

    def kept(make):
        def making(*args, **options):
            made.append(make(*args, **options))
            return made[-1]

        return making

    for name in ('make_probe', 'make_rollout', 'make_credit'):
        monkeypatch.setattr(rounds, name, kept(getattr(rounds, name)))
    (_, whole, meta), metrics = trained(folder, tmp_path / 'whole', **AEGPO)
    # the probe, credit for equal groups and for two sizes, rollouts of 4, 2 and 6 samples
    assert sorted(program._cache_size() for program in made) == [1, 1, 1, 1, 2]
    assert metrics[0]['train/entropy_change'] == 0  # the policy begins as the base model
    assert metrics[2]['train/entropy_change'] > 0
    # 16 samples of 4 evaluations, and twice 4 for each of 4 prompts
    assert [row['train/nfe'] for row in metrics] == [96, 192, 288]
    for row in metrics:
        chosen = [k for k in range(4) if f'advantage_abs/step_{k}' in row]
        assert len(chosen) == 2 and 3 not in chosen
        assert all(0 < row[f'entropy/step_{k}'] < 1 for k in range(4))
    now = [[row[f'entropy/step_{k}'] for k in range(4)] for row in metrics]
    average = now[0]
    for later in now[1:]:
        average = 0.9 * np.array(average) + 0.1 * np.array(later)
    np.testing.assert_allclose(meta['entropy'], average, rtol=1e-6)
    trained(folder, tmp_path / 'parts', **{**AEGPO, 'iterations': 1})
    (_, again, its), _ = trained(folder, tmp_path / 'parts', **AEGPO)
    equal(again, whole)
    assert its['entropy'] == meta['entropy']


@pytest.mark.slow
def test_groups_of_two_sizes_on_eight_devices_move_as_on_one(folder, tmp_path, monkeypatch):
    """The second iteration, from one policy that has moved from the base: groups of 4 and 8 by the
    change of entropy, the two transitions of the highest.
    """
    sizes = []

    def kept(*arguments):
        sizes.append(group_sizes(*arguments))
        return sizes[-1]

    monkeypatch.setattr(rounds, 'group_sizes', kept)
    groups = {'rollout.group': 6, 'rollout.prompts_per_batch': 4, 'budget.ratio': 2.0}
    changes = {**AEGPO, **groups, 'optim.microbatch': 16, 'ema.every': 8, 'iterations': 2}
    mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}, jax.devices())
    (_, alone, _), before = trained(folder, tmp_path / 'alone', **changes)
    _, start, _ = final_state(after_one_iteration(tmp_path / 'alone', tmp_path / 'split'))
    (_, split, _), metrics = trained(folder, tmp_path / 'split', mesh, **changes)
    began = {n.replace('policy', 'ema', 1): a for n, a in start.items() if n.startswith('policy')}
    moved_alike(split, {**alone, **began}, 2e-2)
    first, of_one, of_eight = sizes
    assert first is None and sorted(of_one) == [4, 4, 8, 8]
    np.testing.assert_array_equal(of_eight, of_one)
    found, wanted = metrics[-1], before[-1]
    names = [n for n in wanted if n.startswith('entropy/')] + ['train/entropy_change']
    assert len(names) == 5 and wanted['train/entropy_change'] > 1e-6
    for name in names:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-3, err_msg=name)
    chosen = {n for n in wanted if n.startswith('advantage_abs/')}
    assert len(chosen) == 2 and chosen == {n for n in found if n.startswith('advantage_abs/')}

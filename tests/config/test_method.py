"""Parts of a method that a configuration names: what ships, what a user's own module has, and what
is said of a name that stands for nothing usable.
"""

import sys

import numpy as np
import pytest

from densegrpo_jax.config import identity, method
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.validation import validate
from densegrpo_jax.core.credit_rules import CREDIT_RULES
from densegrpo_jax.core.kernels import KERNELS
from densegrpo_jax.core.noise_tables import NOISE_TABLES
from densegrpo_jax.sampling.noise import own_table

OWN = """
import numpy as np
from densegrpo_jax.core.credit_rules import CreditRule
from densegrpo_jax.core.kernels import KERNELS, SIGMA, Kernel
from densegrpo_jax.core.noise_tables import NoiseTable

def assign(rewards, *, gae_lambda, scale=2.0):
    return scale * gae_lambda * rewards[1:]

rule = CreditRule(assign)
lacking = CreditRule(lambda rewards, *, horizon: rewards[1:])
kernel = Kernel(KERNELS['cps'].coefficients, 'angle', max_level=1.0)
silent = Kernel(KERNELS['ode'].coefficients, noisy=False)
angles = NoiseTable(lambda sigmas, level: level * np.linspace(1, 0.5, len(sigmas) - 1), 'angle')
short = NoiseTable(lambda sigmas, level: np.full(2, level))
"""
SIGMAS = np.float32([1, 0.8, 0.4, 0])


@pytest.mark.parametrize('key', ['loss.kind', 'credit.rule', 'rollout.kernel', 'plan.kind'])
def test_a_part_that_is_none_is_refused_by_its_key(key):
    config = default_config()
    config.update_from_flattened_dict({key: None})
    assert method.own_parts(config) == {}
    with pytest.raises(ValueError, match=f'{key}=None'):
        validate(config)


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / 'own_method.py').write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'own_method', raising=False)  # of another test


def changed(**values):
    config = default_config()
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in values.items()})
    return config


def test_names_of_what_ships():
    for name, rule in CREDIT_RULES.items():
        assert method.credit_rule_of(changed(credit__rule=name)) is rule
    for name, kernel in KERNELS.items():
        assert method.kernel_of(changed(rollout__kernel=name)) is kernel
        assert method.search_kernel_of(changed(search__kernel=name)) is kernel
    for name, table in NOISE_TABLES.items():
        assert method.noise_table_of(changed(rollout__noise=name)) is table
    assert method.search_kernel_of(changed(rollout__kernel='sde')) is KERNELS['sde']


def test_options_come_from_the_keys_of_the_configuration(own):
    options = lambda rule: method.credit_options(
        changed(credit__rule=rule, credit__coca_window=3, credit__coca_alpha=0.2)
    )
    assert options('coca_to_go') == {'window': 3, 'alpha': 0.2}
    assert options('coca_share') == {'window': 3}
    assert options('gae') == {'gae_lambda': 0.5} and options('dense') == {}
    assert options('own_method:rule') == {'gae_lambda': 0.5}  # `scale` keeps its default


def test_parts_of_ones_own(own):
    config = changed(
        credit__rule='own_method:rule',
        rollout__kernel='own_method:kernel',
        rollout__noise='own_method:angles',
        search__kernel='own_method:silent',
    )
    validate(config)
    assert method.kernel_of(config).level == 'angle'
    assert not method.search_kernel_of(config).noisy
    np.testing.assert_allclose(own_table(config, SIGMAS), [0.8, 0.6, 0.4], rtol=1e-6)


NOT_THERE = "there is no module 'nowhere' on the import path"


@pytest.mark.parametrize(
    'values, message',
    [
        ({'credit__rule': 'nowhere:x'}, f"credit.rule='nowhere:x': {NOT_THERE}"),
        ({'rollout__kernel': 'nowhere:x'}, f"rollout.kernel='nowhere:x': {NOT_THERE}"),
        ({'rollout__noise': 'nowhere:x'}, f"rollout.noise='nowhere:x': {NOT_THERE}"),
        ({'search__kernel': 'nowhere:x'}, f"search.kernel='nowhere:x': {NOT_THERE}"),
        (
            {'credit__rule': 'own_method:x'},
            "credit.rule='own_method:x': the module 'own_method' has no 'x'",
        ),
        ({'credit__rule': 'own_method:'}, "'own_method:': expected package.module:object"),
        ({'credit__rule': '.own_method:rule'}, 'expected package.module:object'),
        (
            {'credit__rule': 'lib/own.py:rule'},
            "is a file; expected the module's name, as lib.own:rule",
        ),
        ({'credit__rule': '/a/own.py:rule'}, 'as own:rule, with /a on the import path'),
        ({'credit__rule': 'own_method:kernel'}, 'is of the kind Kernel; expected a CreditRule'),
        ({'rollout__kernel': 'own_method:rule'}, 'is of the kind CreditRule; expected a Kernel'),
        ({'rollout__noise': 'own_method:assign'}, 'is of the kind function; expected a NoiseTable'),
        (
            {'credit__rule': 'own_method:lacking'},
            "credit.rule='own_method:lacking' has the option 'horizon', which no key",
        ),
        ({'rollout__kernel': 'own_method:silent'}, "'own_method:silent' adds no noise"),
        (
            {'rollout__noise': 'own_method:angles'},
            r"kind 'angle', and rollout.kernel='cps' takes 'eta': use .*\['constant', 'ddim', 'dd",
        ),
        (
            {'rollout__kernel': 'own_method:kernel', 'loss__kl_form': 'flow_grpo'},
            "with rollout.kernel='own_method:kernel' use 'gaussian'",
        ),
        (
            {'rollout__kernel': 'own_method:kernel', 'rollout__level': 1.5},
            "rollout.kernel='own_method:kernel'.* expected 0 < rollout.level <= 1",
        ),
        ({'search__kernel': 'oed'}, "search.kernel='oed': expected one of '', 'cps', 'ode', 'sde'"),
        ({'credit__centre': 'joint'}, "credit.centre and credit.std: .* use std 'joint'"),
        ({'rollout__noise': 'pink'}, r"'ddim_like', 'flow_grpo', or 'package\.module:object'"),
    ],
)
def test_what_cannot_be_used_is_named(own, values, message):
    with pytest.raises(ValueError, match=message):
        validate(changed(**values))


def test_a_module_that_fails_says_so_itself(tmp_path, monkeypatch):
    (tmp_path / 'own_broken.py').write_text('import absent_of_ones_own')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="'own_broken' cannot be imported: .*absent_of_ones_own"):
        validate(changed(credit__rule='own_broken:rule'))


def test_a_table_that_is_none(own):
    """Known when the grid is."""
    config = changed(rollout__noise='own_method:short')
    validate(config)
    with pytest.raises(
        ValueError, match=r"rollout.noise='own_method:short' at rollout.level=0.8: .*\(2,\); .*\(3,"
    ):
        own_table(config, SIGMAS)
    config = changed(
        rollout__kernel='own_method:kernel', rollout__noise='own_method:angles', rollout__level=1.2
    )
    with pytest.raises(ValueError, match=r'finite and in \[0, 1\]'):
        own_table(config, SIGMAS)


def test_options_of_a_rule_are_keys_of_the_credit():
    config = default_config()
    config.credit.update(coca_window=3, coca_alpha=0.25, gae_lambda=0.75)
    for rule, options in (
        ('coca_to_go', {'window': 3, 'alpha': 0.25}),
        ('coca_share', {'window': 3}),
        ('gae', {'gae_lambda': 0.75}),
        ('dense', {}),
    ):
        config.credit.rule = rule
        assert method.credit_options(config) == options


def test_code_of_ones_own_that_changed_is_another_run(tmp_path, monkeypatch):
    file = tmp_path / 'own_edited.py'
    file.write_text('rule = 1')
    monkeypatch.syspath_prepend(tmp_path)
    config = changed(credit__rule='own_edited:rule')
    record = lambda: identity.record(
        'training', config, {'code of your own': method.own_code(config)}
    )
    before = record()
    assert identity.differences('training', before, record()) == []
    file.write_text('rule = 2')
    [(key, old, new)] = identity.differences('training', before, record())
    assert key == 'code of your own.credit.rule' and old != new and len(new) == 12
    # a record of before there was this fact continues
    untold = {k: v for k, v in before.items() if k != 'code of your own'}
    assert identity.differences('training', untold, record()) == []
    assert method.own_code(changed()) == {}

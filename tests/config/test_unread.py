"""Keys that no chosen part of the method reads: which they are, what is said, and when."""

import pytest

from configs import tiny_ocr
from densegrpo_jax.config.methods import METHODS
from densegrpo_jax.config.schema import KEYS, default_config
from densegrpo_jax.config.unread import CALIBRATION, SEARCH, check_unread, reset_unread, unread
from densegrpo_jax.config.validation import validate
from densegrpo_jax.config.variants import apply

OWN = """
import jax.numpy as jnp
from densegrpo_jax.core.credit_rules import CreditRule
from densegrpo_jax.core.losses import Loss, loss_sums

def surrogate(outputs, batch, *, clip_range):
    return loss_sums(jnp.zeros(3), batch.mask)

def failing(masks):
    raise RuntimeError('only with real masks')

loss = Loss(surrogate)
rule = CreditRule(lambda rewards, *, gae_lambda=0.5: rewards[1:], failing)
"""


def changed(**values):
    config = default_config()
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in values.items()})
    return config


@pytest.mark.parametrize(
    'values, message',
    [
        ({'credit__gae_lambda': 0.3}, "credit.rule='dense' .*: choose 'gae', which reads it, or"),
        ({'credit__coca_signed': True}, "choose 'coca_share' or 'coca_to_go', which read it, or"),
        ({'credit__coca_alpha': 0.3, 'credit__rule': 'coca_share'}, "choose 'coca_to_go', which"),
        ({'credit__completion_steps': 2, 'credit__rule': 'sparse'}, "'sparse' does not read it"),
        ({'credit__completion_every': 2, 'credit__rule': 'coca_to_go'}, "'coca_to_go' does not"),
        ({'loss__pairs': 'neighbours'}, "loss.kind='grpo' .*: choose 'pair', which reads it"),
        ({'loss__clip_range': 1.0, 'loss__kind': 'list'}, "choose 'grpo' or 'guard' or 'pair'"),
        ({'loss__old_decay': 'none'}, "choose 'nft', which reads it, or leave .* 'rising'"),
        ({'loss__draws': 2}, "loss.draws=2 is set, and loss.kind='grpo' does not .* default 1, or"),
        ({'loss__step_decay': 0.9, 'loss__kind': 'nft'}, "loss.kind='nft' does not read it"),
        ({'loss__noise_power': 1.0, 'loss__kind': 'winners'}, "'winners' does not read it"),
        ({'loss__kl_form': 'flow_grpo', 'loss__kind': 'nft'}, "'nft' does not read it"),
        ({'rollout__log_prob': 'unscaled', 'loss__kind': 'guard'}, "choose 'grpo' or 'pair', wh"),
        ({'plan__strides': [1, 2]}, r"plan.strides=\(1, 2\) .*: choose 'branch', which reads it"),
        ({'plan__splits': (0, 2)}, "choose 'tree', which reads it"),
        ({'rollout__kernel': 'ode', 'rollout__level': 0.5}, "choose 'sde' or 'cps', which read"),
        ({'noise__psi_path': 'x', 'rollout__kernel': 'ode'}, "'ode' does not read it"),
        ({'moving__steps': 'subset', 'moving__width': 3}, "moving.steps='subset' does not read"),
        ({'moving__steps': 'random_window', 'moving__stay': 3}, "choose 'window', which reads it"),
        ({'moving__steps': 'window', 'moving__stay_least': 3}, "stay_rule='constant' does not"),
        ({'budget__warmup': 3}, "budget.by='none' .*: choose 'entropy' or 'random', which read"),
        ({'budget__by': 'random', 'budget__relative': True}, "choose 'entropy', which reads it"),
        ({'guide__share': 0.5}, "choose 'probe' or 'value' or 'spsa', which read it"),
        ({'guide__source': 'value', 'guide__file': 'x'}, "choose 'probe', which reads it"),
        ({'credit__process_weight': 2.0}, "credit.process='none' does not read it"),
    ],
)
def test_what_is_not_read_is_refused_if_it_was_given(values, message):
    config, given = changed(**values), {k.replace('__', '.') for k in values}
    with pytest.raises(ValueError, match=message):
        check_unread(config, given)
    check_unread(config, ())  # a shared recipe may set it: the run says so and goes on
    assert [found.key for found in unread(config)] == [str(unread(config)[0]).split('=')[0]]


def test_what_is_read_or_at_its_default_is_not_refused():
    for values in (
        {'credit__gae_lambda': 0.5},
        {'credit__rule': 'gae', 'credit__gae_lambda': 0.3, 'credit__completion_steps': 2},
        {'credit__rule': 'coca_to_go', 'credit__coca_alpha': 0.1, 'credit__coca_window': 2},
        {'loss__kind': 'pair', 'loss__clip_range': 1e-3, 'rollout__log_prob': 'unscaled'},
        {'loss__kind': 'nft', 'loss__old_decay': 'late', 'loss__draws': 3},
        {'moving__steps': 'window', 'moving__stay_rule': 'linear', 'moving__stay_least': 3},
    ):
        config = changed(**values)
        assert unread(config) == []
        check_unread(config, {k.replace('__', '.') for k in values})


@pytest.mark.parametrize(
    'values, message',
    [
        ({'calibration__window': 3}, 'noise.calibrate=False does not read it: choose True, which'),
        (
            {'calibration__eps1': 3, 'noise__calibrate': True},
            "calibration.rule='scaled' does not read it: choose 'paper', which",
        ),
        ({'rollout__level': 0.5, 'noise__psi_path': 'x'}, "psi_path='x' does not .* choose '', w"),
        ({'eval__embedding': 'x'}, 'eval.embedding=.x. is set, and guard.on=False does not read'),
        ({'lora__rank': 3, 'full': True}, 'full=True does not read it: choose False, which reads'),
        ({'d2__omega': 2.0}, "d2.file='' does not read it: choose a file, which"),
        ({'data__scenes': 9, 'data__train': 'x', 'data__eval': 'y'}, "data.train='x' does not"),
        ({'loss__kl_form': 'flow_grpo'}, 'loss.measure_kl=False does not read it: choose True'),
    ],
)
def test_what_a_recipe_may_set_for_others_is_refused_if_it_was_given(values, message):
    config, given = changed(**values), {k.replace('__', '.') for k in values}
    with pytest.raises(ValueError, match=message):
        check_unread(config, given)
    check_unread(config, ())
    assert not unread(config)  # the start of a run does not speak of it


def test_rewards_of_a_panel_are_read_by_the_guard_alone(capsys):
    config = changed(eval__panel={'jpeg': {'quality': 5}})
    for given in ('eval.panel', 'eval.panel.jpeg.quality'):
        with pytest.raises(ValueError, match='eval.panel=.*guard.on=False does not read it'):
            check_unread(config, {given})
    check_unread(config, {'eval.panel'}, then='warn')
    assert capsys.readouterr().err.startswith('note: eval.panel=')
    check_unread(config, {'eval.panel'}, of=SEARCH)
    config.guard.on = True
    check_unread(config, {'eval.panel'})


def test_a_calibration_is_told_of_keys_of_another_rule():
    config = changed(calibration__rule='paper', calibration__z=2.0, calibration__eps1=3)
    with pytest.raises(ValueError, match="calibration.rule='paper' does not read it"):
        check_unread(config, {'calibration.z'}, of=CALIBRATION)
    check_unread(config, {'calibration.eps1', 'loss.pairs'}, of=CALIBRATION)


def test_parts_of_ones_own_read_what_they_declare(tmp_path, monkeypatch):
    (tmp_path / 'own_reader.py').write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = {'loss__kind': 'own_reader:loss', 'credit__rule': 'own_reader:rule'}
    reads = {'loss__clip_range': 0.1, 'credit__gae_lambda': 0.1, 'credit__completion_steps': 2}
    assert unread(changed(**own, **reads, rollout__log_prob='unscaled')) == []
    others = {'loss__pairs': 'neighbours', 'credit__sdpo_gamma': 0.5}
    found = unread(changed(**own, **others))
    assert [each.key for each in found] == ['credit.sdpo_gamma', 'loss.pairs']
    assert "loss.kind='own_reader:loss' does not read it: choose 'pair'" in str(found[1])


def test_a_method_takes_back_what_a_recipe_set_for_its_own_parts():
    """Kernel, plan, rule and loss of the recipe give way, and so do their options."""
    config = tiny_ocr.get_config()
    config.credit.update(rule='gae', gae_lambda=0.9, completion_steps=2)
    config.plan.strides = (1, 3)
    config.loss.kl_form = 'flow_grpo'
    apply(config, 'method=nft', samples=8, transitions=8, devices=None)
    validate(config)
    assert unread(config) == []
    for key in ('credit.gae_lambda', 'plan.strides', 'loss.kl_form', 'rollout.level'):
        group, name = key.split('.')
        assert config[group][name] == KEYS[key].default
    assert config.loss.beta == METHODS['nft'].overrides['loss.beta']


def test_a_search_is_told_of_keys_of_another_method_and_a_training_is_not():
    config = changed(search__method='svdd', search__beta=1.0, search__candidates=2)
    assert not unread(config)
    with pytest.raises(ValueError, match="choose 'smc' or 'pg' or 'psi', which read it"):
        check_unread(config, {'search.beta'}, of=SEARCH)
    check_unread(config, {'search.candidates', 'loss.pairs'}, of=SEARCH)


def test_a_method_leaves_the_guard_of_a_recipe_alone():
    config = changed(guard__level=0.01, credit__gae_lambda=0.3)
    reset_unread(config)
    default = KEYS['credit.gae_lambda'].default
    assert config.guard.level == 0.01 and config.credit.gae_lambda == default

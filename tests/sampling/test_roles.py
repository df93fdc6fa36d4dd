"""A training state holds roles by name: what follows the policy and how, and under which names a
checkpoint has them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.core.losses import LOSSES, Loss, loss_sums
from densegrpo_jax.core.roles import moving_average, warm_decay
from densegrpo_jax.runtime.checkpoint_errors import CheckpointMismatch
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.flat_state import flatten
from densegrpo_jax.sampling.state import TrainState, follow_rules


class Fields(NamedTuple):
    """The state of versions before 0.2, whose roles were fields."""

    policy: dict
    ema: dict
    opt: Any
    step: jax.Array
    skipped: jax.Array


def leaf(value):
    return {'block': {'to_q': {'a': jnp.full((3, 2), value)}}}


REST = (({'mu': leaf(3.0)}, jnp.int32(7)), jnp.int32(5), jnp.int32(1))
OLD = Fields(leaf(1.0), leaf(2.0), *REST)


def state(**further):
    return TrainState({'policy': leaf(1.0), 'ema': leaf(2.0), **further}, *REST)


def test_names_are_those_of_states_whose_roles_were_fields():
    found, wanted = flatten(state()), flatten(OLD)
    assert list(found) == list(wanted)
    assert {'policy/block/to_q/a', 'ema/block/to_q/a', 'opt/0/mu/block/to_q/a', 'step'} <= {*found}
    for name in found:
        np.testing.assert_array_equal(found[name], wanted[name])
    assert 'old/block/to_q/a' in flatten(state(old=leaf(4.0)))


def test_a_checkpoint_of_earlier_versions_restores(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, OLD, {'updates': 5})
        checkpoints.wait_until_finished()
        empty = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state())
        restored = checkpoints.restore_latest(empty)
        assert isinstance(restored.state, TrainState) and restored.step == 5
        jax.tree.map(np.testing.assert_array_equal, restored.state, state())
        assert restored.state.policy['block']['to_q']['a'][0, 0] == 1
        assert restored.state.ema['block']['to_q']['a'][0, 0] == 2
        with pytest.raises(CheckpointMismatch, match='it lacks old/block/to_q/a'):
            checkpoints.restore(5, state(old=leaf(4.0)))


def test_a_state_is_a_pytree_whatever_the_order_of_its_roles():
    """A program gives the structure that it takes, or it would be compiled again."""
    given = TrainState(
        {'zeta': leaf(5.0), 'ema': leaf(2.0), 'average': leaf(6.0), 'policy': leaf(1.0)}, *REST
    )
    sorted_roles = TrainState(dict(sorted(given.roles.items())), *REST)  # as jax.tree.map has them
    assert jax.tree.structure(sorted_roles) == jax.tree.structure(given)
    assert list(flatten(given))[:4] == [
        f'{r}/block/to_q/a' for r in ('policy', 'ema', 'average', 'zeta')
    ]
    back = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s))(given)
    assert jax.tree.structure(back) == jax.tree.structure(given)
    assert {role: float(tree['block']['to_q']['a'][0, 0]) for role, tree in back.roles.items()} == {
        'policy': 2,
        'ema': 3,
        'average': 7,
        'zeta': 6,
    }
    assert (int(back.step), int(back.skipped), int(back.opt[1])) == (6, 2, 8)


def test_the_moving_average():
    follow = moving_average(warm_decay(0.5, every=3))
    average = lambda step: float(follow({'a': jnp.float32(4)}, {'a': jnp.float32(8)}, step)['a'])
    assert average(jnp.int32(0)) == average(jnp.int32(1)) == 4  # not yet
    assert average(jnp.int32(2)) == 8 - 4 * 3 / 12  # (1 + 2) / (10 + 2) is below the decay
    assert average(jnp.int32(80)) == 6


def test_roles_of_a_state_are_those_of_the_configuration(monkeypatch):
    config = default_config()
    config.ema.update(decay=0.5, every=1)
    assert list(follow_rules(config)) == ['ema']
    newest = moving_average(lambda step: jnp.float32(0))
    of_samples = Loss(loss_sums, needs=('old',), follows={'old': newest})
    monkeypatch.setitem(LOSSES, 'own', of_samples)
    config.loss.kind = 'own'
    rules = follow_rules(config)
    assert list(rules) == ['ema', 'old']
    moved = {name: float(rule(1.0, 2.0, jnp.int32(80))) for name, rule in rules.items()}
    assert moved == {'ema': 1.5, 'old': 2.0}


@pytest.mark.parametrize('name', ['policy', 'ref', 'ema', 'opt', 'step', 'skipped', 'a/b', ''])
def test_names_that_a_role_cannot_have(name):
    with pytest.raises(ValueError, match=f"follows has '{name}'; expected a Python name other"):
        Loss(loss_sums, follows={name: moving_average(jnp.sin)})

"""The weights of a reward that scores predicted images inside the rollouts: every device keeps them
from phase to phase, and plan and announcement count them.
"""

import jax
import numpy as np
import pytest

from densegrpo_jax.planning import plan as planning
from densegrpo_jax.planning.topology import parse
from densegrpo_jax.rewards.build import REWARDS
from densegrpo_jax.rewards.local.pixels import PixelsReward
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.sampling.session import check
from densegrpo_jax.sampling.state import optimiser, state_shapes
from densegrpo_jax.training import announce
from tests.planning.planned import small


class Towers(PixelsReward):
    """Has weights, of which the images see one: as CLIP's, whose text tower they do not pass."""

    name, names = 'towers', ('towers',)

    def __init__(self, floats: int, halves: int = 0):
        super().__init__()
        self._shapes = {'text': ((floats,), np.float32), 'picture': ((halves,), np.float16)}

    def __call__(self, *given):
        scores = super().__call__(*given)
        return scores._replace(values={'towers': scores.values['pixels']})

    def params(self):
        return {name: jax.numpy.zeros(*of) for name, of in self._shapes.items()}

    def shapes(self, count):
        held = {name: jax.ShapeDtypeStruct(*of) for name, of in self._shapes.items()}
        return held, jax.ShapeDtypeStruct((count, 0), np.float32)


@pytest.fixture(autouse=True)
def towers(monkeypatch):
    monkeypatch.setitem(REWARDS, 'towers', Towers)


def configured(source, **options):
    config = small()
    config.update_from_flattened_dict({'credit.rule': 'sparse', 'guide.source': source})
    if source != 'none':
        config.guide.steps = (0,)
    config.reward = {'towers': {'weight': 1.0, **options}}
    return config


# The weights of both are placed alike; the announcement below counts those of both.
@pytest.mark.parametrize('source', ['value', pytest.param('spsa', marks=pytest.mark.slow)])
def test_every_phase_of_a_plan_has_them_on_every_device(source, monkeypatch):
    """Nothing is compiled: programs that need no memory of their own stand in."""
    alone = lambda phase, topology, resident, *_: planning.Row(resident / 2**30, 1, 0, 1, 0, 0)
    monkeypatch.setattr(planning, 'compiled_row', alone)
    topology = parse('v5e:2x4')._replace(compiler='no_such_compiler')
    of = lambda floats: planning.plan(configured(source, floats=floats), topology, utilisation=0.5)
    few, many = of(8), of(8 + 2**18)
    mib = pytest.approx(2**20 / 2**30, rel=1e-6)
    assert many['resident_gib'] - few['resident_gib'] == mib
    for phase in ('rollout', 'update', 'evaluation'):
        assert many['phases'][phase]['gib'] - few['phases'][phase]['gib'] == mib, phase


@pytest.mark.parametrize('source', ['value', 'spsa'])
def test_the_announcement_counts_what_a_rollout_is_given(source, tmp_path, monkeypatch):
    mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 1}, jax.devices()[:4])
    said = []
    monkeypatch.setattr(announce, 'too_much', lambda need, *_: said.append(need) or '')

    def need(config):
        checked = check(config, mesh, needs=('train', 'test', 'schedule'))
        shapes = state_shapes(checked.pipeline, optimiser(config, checked.pipeline.transformer))
        announce.announce(checked, shapes, 1, tmp_path)
        return checked, said.pop()

    checked, found = need(configured(source, floats=1000, halves=30))
    given = checked.process_reward.inputs(['a sign'])['weights']
    pieces = [p for a in jax.tree.leaves(given) for p in a.addressable_shards]
    for device in mesh.devices.flat:
        held = sum(p.data.nbytes for p in pieces if p.device == device)
        assert found[announce.PROCESS] == held == 4 * 1000 + 2 * 30
    _, without = need(configured('none', floats=1000))
    assert announce.PROCESS not in without
    assert {name: found[name] for name in without} == without

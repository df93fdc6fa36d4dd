"""benchmarks/phases.py on a small network: what it times is what training runs, and its operations
are those of the plan.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import phases, timing
from benchmarks.accelerator.options import with_remat
from benchmarks.accelerator.setting import configuration, session_of
from benchmarks.bases import inputs, random_weights
from densegrpo_jax.planning import lowering
from densegrpo_jax.sampling.sampler import EXACT
from densegrpo_jax.sampling.schedule import make_schedule
from tests.meshes import one_device


@pytest.fixture(scope='module')
def session():
    return session_of(configuration('sd35', 512, small=True), small=True)


def test_weights_keep_the_size_of_activations():
    """Small ones would let every comparison of roundings pass."""
    tree = {
        'norm': {'scale': jax.ShapeDtypeStruct((8,), jnp.float32)},
        'dense': {
            'kernel': jax.ShapeDtypeStruct((3, 256, 128), jnp.float32),
            'bias': jax.ShapeDtypeStruct((3, 128), jnp.float32),
        },
    }
    made = random_weights(tree, jnp.bfloat16)
    kernel = np.asarray(made['dense']['kernel'], np.float32)
    assert made['norm']['scale'].dtype == jnp.bfloat16 and (made['norm']['scale'] == 1).all()
    assert (made['dense']['bias'] == 0).all()
    np.testing.assert_allclose(kernel.std((1, 2)), 256**-0.5, rtol=0.02)
    alike = np.corrcoef(kernel.reshape(3, -1))
    assert abs(alike - np.eye(3)).max() < 0.02
    assert inputs((3, 3, 16, 32)) == 3 * 3 * 16 and inputs((2, 3, 3, 16, 32)) == 3 * 3 * 16


@pytest.mark.slow
def test_the_operations_are_those_of_the_plan(session):
    config, bench = session.config, phases.Bench(session, 1)
    schedule = make_schedule(session.pipeline, config)
    planned = lowering.phases(config, session.pipeline, schedule, session.mesh)
    assert planned['rollout'].flops == bench.work.rollout(schedule) > 0
    assert planned['update'].flops == bench.work.update(schedule) > 0
    # no reference is read: torch's update has none
    assert bench.work.update(schedule) == 2 * bench.work.forward(schedule)


def test_an_update_is_compiled_as_training_compiles_it(monkeypatch):
    """With the options of `make_update`: a program jitted anew would round otherwise."""
    made, compiled = [], []
    real = phases.make_update

    def make(*arguments, **options):
        made.append(real(*arguments, **options))
        return made[-1]

    def take(function, *arguments):
        compiled.append(function)
        raise InterruptedError

    bench = SimpleNamespace(_tx=None, _state=None, _text=None, record=None, _schedule=str)
    monkeypatch.setattr(phases, 'make_update', make)
    monkeypatch.setattr(phases, 'compiled', take)
    mesh = one_device()
    config = configuration('sd35', 512, small=True)
    session = SimpleNamespace(config=config, pipeline=None, mesh=mesh, params=None, negative=None)
    with pytest.raises(InterruptedError):
        phases.Bench.update(bench, session)
    assert compiled == made and len(made) == 1


def test_a_jitted_function_keeps_its_options():
    seen = {}
    real = timing.jax.jit(lambda x: x + 1, compiler_options=EXACT)

    class Lowered:
        def compile(self):
            seen['compiled'] = True
            return 'program'

    class Jitted:
        def lower(self, *arguments):
            seen['lowered'] = arguments
            return Lowered()

    assert timing.compiled(Jitted(), 1.0).call == 'program'
    assert seen == {'lowered': (1.0,), 'compiled': True}
    program = timing.compiled(real, 1.0)
    assert program.call(1.0) == 2.0 and program.bytes > 0 and not program.cached


@pytest.mark.slow
def test_another_rematerialisation_has_the_same_weights(session):
    other = with_remat(session, 'none', small=True)
    assert other.params is session.params and other.pipeline is not session.pipeline
    assert (other.config.model.remat, session.config.model.remat) == ('none', 'full')


def test_repeats_stop_where_a_program_takes_long():
    calls = []
    t = timing.timed(lambda: calls.append(1), 5, most=0.0)
    assert t.runs == 1 and len(calls) == 2
    t = timing.timed(lambda: calls.append(1), 5, warm=True)
    assert t.runs == 5 and len(calls) == 7 and t.least <= t.seconds

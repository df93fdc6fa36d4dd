"""Programs that are compiled while the first evaluation runs."""

import threading

import jax
import pytest

from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.training import ahead
from densegrpo_jax.training.run import run
from tests.programs import shared_programs  # noqa: F401
from tests.training.small_run import make_config, one_device, rows

BRAKE = {'guard.on': True, 'guard.action': 'brake', 'guard.kl_prompts': 0}
WINDOW = {'credit.rule': 'sparse', 'moving.steps': 'random_window', 'moving.width': 1}
PROGRAMS = ('jit(rollout)', 'jit(credit)', 'jit(update)')


@pytest.fixture
def compiled():
    """(thread, name) of each program that is compiled."""
    found = []

    def listen(event, _, fun_name='', **rest):
        if event.endswith('backend_compile_duration'):
            found.append((threading.current_thread().name, fun_name))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize('changes', [{}, {**BRAKE, **WINDOW}], ids=['plain', 'more arguments'])
def test_each_is_compiled_once_and_ahead(folder, tmp_path, compiled, changes):
    """The iteration then calls it with arguments of those very shapes and places."""
    config = make_config(folder, **{**changes, 'iterations': 1})
    run(config, tmp_path, one_device(), StopRequest())
    of_iteration = [(thread, name) for thread, name in compiled if name in PROGRAMS]
    assert of_iteration == [('compile_0', name) for name in PROGRAMS]


@pytest.mark.usefixtures('shared_programs')
def test_a_program_that_does_not_compile_ahead_compiles_when_it_is_called(
    folder, tmp_path, monkeypatch
):
    def fails(*_):
        raise RuntimeError('out of memory')

    monkeypatch.setattr(ahead, '_rollout', fails)
    summary = run(make_config(folder, iterations=1), tmp_path, one_device(), StopRequest())
    assert summary['updates'] == 1 and rows(tmp_path)[-1]['train/finite'] == 1


@pytest.mark.usefixtures('shared_programs')
def test_nothing_is_compiled_for_a_run_that_is_complete(folder, tmp_path, compiled):
    config = make_config(folder, iterations=1)
    run(config, tmp_path, one_device(), StopRequest())
    compiled.clear()
    run(config, tmp_path, one_device(), StopRequest())
    assert not [name for _, name in compiled if name in PROGRAMS]

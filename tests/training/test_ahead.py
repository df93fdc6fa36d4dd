"""Programs that are compiled while the first evaluation runs."""

import math
import signal
import threading

import jax
import pytest

from densegrpo_jax.networks.names import FLUX_TARGETS
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.training import ahead
from densegrpo_jax.training.run import run
from tests.compiler import QUICK
from tests.programs import shared_programs  # noqa: F401
from tests.training.small_run import command, make_config, one_device, rows

BRAKE = {'guard.on': True, 'guard.action': 'brake', 'guard.kl_prompts': 0}
WINDOW = {'credit.rule': 'sparse', 'moving.steps': 'random_window', 'moving.width': 1}
ALL = {'lora.targets': FLUX_TARGETS}
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


@pytest.mark.parametrize(
    'changes, sizes',
    [
        pytest.param({'optim.updates': 2}, (2, 2, 2), id='mesh', marks=pytest.mark.slow),
        pytest.param({**BRAKE, **WINDOW, **ALL}, (1, 1, 1), id='more arguments'),
    ],
)
def test_each_is_compiled_once_and_ahead(folder, tmp_path, compiled, changes, sizes):
    """The iteration then calls it with arguments of those very shapes and places."""
    config = make_config(folder, **{**changes, 'iterations': 1})
    mesh = make_mesh(
        dict(zip(('data', 'fsdp', 'tensor'), sizes)), jax.devices()[: math.prod(sizes)]
    )
    run(config, tmp_path, mesh, StopRequest())
    of_iteration = [(thread, name) for thread, name in compiled if name in PROGRAMS]
    assert of_iteration == [('compile_0', name) for name in PROGRAMS]


@pytest.mark.usefixtures('shared_programs')
@pytest.mark.slow
def test_a_program_that_does_not_compile_ahead_compiles_when_it_is_called(
    folder, tmp_path, monkeypatch
):
    def fails(*_):
        raise RuntimeError('out of memory')

    monkeypatch.setattr(ahead, '_rollout', fails)
    summary = run(make_config(folder, iterations=1), tmp_path, one_device(), StopRequest())
    assert summary['updates'] == 1 and rows(tmp_path)[-1]['train/finite'] == 1


SLOW = """
import threading
from densegrpo_jax.training import ahead
from tests.training.tiny_jpeg import get_config

ahead._rollout = lambda foreseen: (print('compiling', flush=True), threading.Event().wait())
"""


def test_a_stop_does_not_wait_for_what_is_compiled(folder, tmp_path):
    (tmp_path / 'slow.py').write_text(SLOW)
    process = command(folder, tmp_path / 'run', config=tmp_path / 'slow.py', flags=QUICK)
    assert process.stdout.readline() == 'compiling\n'
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=600)  # it would never end
    assert process.returncode == 75, log


@pytest.mark.usefixtures('shared_programs')
def test_nothing_is_compiled_for_a_run_that_is_complete(folder, tmp_path, compiled):
    config = make_config(folder, iterations=1)
    run(config, tmp_path, one_device(), StopRequest())
    compiled.clear()
    run(config, tmp_path, one_device(), StopRequest())
    assert not [name for _, name in compiled if name in PROGRAMS]

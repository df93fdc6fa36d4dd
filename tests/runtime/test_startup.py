"""What a process finds when it starts: its cores, and the device that was asked for; and what it
imports before it says so.
"""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from densegrpo_jax import main
from densegrpo_jax.__main__ import COMMANDS
from densegrpo_jax.rewards import Scorer
from densegrpo_jax.runtime.startup import check_device, cpu_devices, start_devices, start_processes
from densegrpo_jax.sampling import execution
from tests.process_flags import process_flags


def test_a_device_that_is_not_there_is_not_replaced_by_the_cpu(monkeypatch):
    check_device('')
    check_device('cpu')
    with pytest.raises(
        ValueError, match=r'--device=cuda, but JAX found cpu \(cpu\): nvidia-smi must list'
    ):
        check_device('cuda')
    with pytest.raises(ValueError, match=r'--device=tpu, .*requirements-tpu.txt'):
        check_device('tpu')
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    check_device('cuda')
    with pytest.raises(ValueError, match='--device=cpu, .*JAX_PLATFORMS=cpu'):
        check_device('cpu')


def test_a_run_ends_before_anything_is_loaded(tmp_path):
    flag = process_flags(tmp_path, device='tpu')
    with pytest.raises(ValueError, match='--device=tpu, but JAX found'):
        execution.execute(flag, 8, lambda *_: pytest.fail('it has begun'), command='train')


def test_devices_that_a_module_of_ones_own_has_started_are_named(tmp_path, monkeypatch):
    jax.devices()
    monkeypatch.delenv('XLA_FLAGS', raising=False)
    flag = process_flags(tmp_path, cpu_devices=3)
    with pytest.raises(ValueError, match='computes when it is imported.*set in the recipe'):
        execution.execute(flag, 8, lambda *_: pytest.fail('it has begun'), command='train')


@pytest.mark.parametrize('key', [None, 'XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'])
def test_a_gpu_is_shared_as_plans_assume_unless_told(monkeypatch, key):
    told = {'XLA_FLAGS': '--xla_force_host_platform_device_count=1'}  # no device is set up here
    monkeypatch.setattr(os, 'environ', told | ({} if key is None else {key: '0.5'}))
    start_devices(1)
    shares = {name: value for name, value in os.environ.items() if name.endswith('FRACTION')}
    assert shares == ({'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.93'} if key is None else {key: '0.5'})


def test_who_waited_in_vain_for_the_others_says_so_and_starts_no_device(
    tmp_path, monkeypatch, caplog
):
    def initialize(**_):
        raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: Barrier timed out.\nMore of it')

    monkeypatch.setattr(jax.distributed, 'initialize', initialize)
    # JAX has its client by then
    monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
    for name in ('process_index', 'process_count', 'default_backend'):
        monkeypatch.setattr(jax, name, lambda: pytest.fail('a device was started'))
    left = []
    monkeypatch.setattr(execution, 'leave_at_once', left.append)
    joins = dict(heartbeat=9, distributed='on', coordinator='a:1', num_processes=2, process_id=1)
    flag = process_flags(tmp_path, **joins)
    execution.execute(flag, 8, lambda *_: pytest.fail('it has begun'), command='train')
    assert left == [69]  # a supervisor would wait in vain after 75
    assert (
        'not all processes of the run joined in time (DEADLINE_EXCEEDED: Barrier timed out): the '
        'logs of the others say why'
    ) in caplog.text


def test_a_process_that_cannot_join_is_not_told_that_others_are_late(monkeypatch):
    def initialize(**_):
        raise jax.errors.JaxRuntimeError('ALREADY_EXISTS: task 1 has connected before.')

    monkeypatch.setattr(jax.distributed, 'initialize', initialize)
    with pytest.raises(ValueError, match='cannot join the run .ALREADY_EXISTS.*--process_id'):
        start_processes('on', 'a:1', 2, 1)


def test_cores_are_counted_where_the_system_knows_no_affinity(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 1, 5}, raising=False)
    assert cpu_devices(12) == 3
    monkeypatch.delattr(os, 'sched_getaffinity')  # macOS
    monkeypatch.setattr(os, 'cpu_count', lambda: 4)
    assert cpu_devices(12) == 4
    with Scorer(None) as scorer:
        assert scorer.workers == 4
    monkeypatch.setattr(os, 'cpu_count', lambda: None)
    assert cpu_devices(12) == 1
    package = pathlib.Path(main.__file__).parent
    assert [p.name for p in package.rglob('*.py') if 'sched_getaffinity' in p.read_text()] == [
        'cores.py'
    ]


# Imports the commands, as far as their flags need; then begins a training, up to the imports of its
# work.
EARLY = """
import importlib, sys, types
for name in sys.argv[2:]:
    importlib.import_module(f'densegrpo_jax.{name}')
print([name for name in ('jax', 'PIL') if name in sys.modules])
from absl import flags
from densegrpo_jax import main
from densegrpo_jax.config import command_line
command_line.define_config('', reads='main')
flags.FLAGS(['train', '--config=tiny_ocr'])
flag = types.SimpleNamespace(
    config=flags.FLAGS.config, workdir=sys.argv[1], unread='refuse', profile=None
)
command_line.console.start()
sys.modules['densegrpo_jax.planning.utilisation'] = None
try:
    main.main(flag)
except ModuleNotFoundError as error:
    print(error.name)
print([name for name in ('jax', 'flax', 'orbax', 'optax', 'PIL') if name in sys.modules])
"""


def test_mistakes_and_the_first_line_do_not_wait_for_large_imports(tmp_path):
    package = pathlib.Path(main.__file__).parent
    whole = lambda name: f'{name}.__main__' if (package / name).is_dir() else name
    modules = [whole(name) for name, _ in COMMANDS.values()]
    done = subprocess.run(
        [sys.executable, '-c', EARLY, str(tmp_path), *modules], capture_output=True, text=True
    )
    assert done.stderr == f'train with --config=tiny_ocr, results go to {tmp_path}\n'
    assert done.stdout.splitlines() == ['[]', 'densegrpo_jax.planning.utilisation', "['jax']"]

"""What a process finds when it starts: its cores, and the device that was asked for."""

import os
import pathlib
import types

import jax
import pytest

from densegrpo_jax import main
from densegrpo_jax.rewards import Scorer
from densegrpo_jax.runtime.startup import check_device, cpu_devices
from densegrpo_jax.sampling import execution


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
    flag = types.SimpleNamespace(
        config=None,
        workdir=str(tmp_path),
        device='tpu',
        cpu_devices=0,
        heartbeat=0,
        distributed='off',
        coordinator='',
        num_processes=0,
        process_id=-1,
    )
    with pytest.raises(ValueError, match='--device=tpu, but JAX found'):
        execution.execute(flag, 8, lambda *_: pytest.fail('it has begun'), command='train')


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
    flag = types.SimpleNamespace(
        config=None,
        workdir=str(tmp_path),
        device='',
        cpu_devices=0,
        heartbeat=9,
        distributed='on',
        coordinator='a:1',
        num_processes=2,
        process_id=1,
    )
    execution.execute(flag, 8, lambda *_: pytest.fail('it has begun'), command='train')
    assert left == [2]
    assert (
        'not all processes of the run joined in time (DEADLINE_EXCEEDED: Barrier timed out): the '
        'logs of the others say why'
    ) in caplog.text


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

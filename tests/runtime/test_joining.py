"""How a process learns that it is one of several, and joins the others."""

import jax
import pytest

from densegrpo_jax.runtime.startup import alone_on_host, detect_cluster, start_processes


@pytest.mark.parametrize(
    ('environ', 'tpu', 'found'),
    [
        ({}, False, None),
        ({}, True, 'TPU'),
        ({'SLURM_JOB_ID': '1', 'SLURM_NTASKS': '4'}, False, None),
        ({'SLURM_STEP_NUM_TASKS': '4'}, False, 'Slurm'),
        ({'SLURM_STEP_NUM_TASKS': '1'}, False, None),
        ({'OMPI_COMM_WORLD_SIZE': '2'}, False, 'Open MPI'),
        ({'JAX_COORDINATOR_ADDRESS': 'a:1'}, False, 'JAX_COORDINATOR_ADDRESS'),
    ],
)
def test_launchers_are_recognised(environ, tpu, found):
    assert detect_cluster(environ, tpu) == found


SLURM = {'SLURM_STEP_NUM_TASKS': '2', 'SLURM_STEP_NUM_NODES': '2'}


@pytest.mark.parametrize(
    ('environ', 'devices'),
    [
        (SLURM, []),
        ({**SLURM, 'SLURM_STEP_NUM_TASKS': '16'}, None),  # a process per GPU: JAX gives it one
        ({**SLURM, 'JAX_LOCAL_DEVICE_IDS': '0,1'}, None),
        ({'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_LOCAL_SIZE': '1'}, []),
        ({'OMPI_COMM_WORLD_SIZE': '8', 'OMPI_COMM_WORLD_LOCAL_SIZE': '4'}, None),
        ({**SLURM, 'OMPI_COMM_WORLD_LOCAL_SIZE': '4'}, None),  # mpirun in a shell of srun
        ({}, None),
    ],
)
def test_the_only_process_of_a_host_uses_all_of_its_devices(environ, devices, monkeypatch):
    """An empty list keeps JAX from giving it the device of its index on the host alone."""
    asked = {}
    monkeypatch.setattr(jax.distributed, 'initialize', lambda **given: asked.update(given))
    for name in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_LOCAL_SIZE', 'JAX_LOCAL_DEVICE_IDS'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    start_processes('on')
    assert asked.get('local_device_ids') == devices
    assert alone_on_host(environ) == (devices == [] or 'JAX_LOCAL_DEVICE_IDS' in environ)
    start_processes('on', 'a:1', 2, 0)  # named by hand: JAX takes all devices
    assert 'cluster_detection_method' in asked


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('auto', 'a:1'), 'belong together'),
        (('auto', 'a:1', 2), 'belong together'),
        (('on', 'a:1', 2, 2), 'counted from 0'),
    ],
)
def test_processes_that_cannot_be_joined(options, message):
    with pytest.raises(ValueError, match=message):
        start_processes(*options)

"""Two real processes with two fake devices each, on loopback: the same run as one process with
four, stopped and killed.
"""

import contextlib
import csv
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from densegrpo_jax.evaluation.evaluate import evaluate
from densegrpo_jax.evaluation.panel import choose
from densegrpo_jax.preflight.run import run as preflight
from densegrpo_jax.rewards.build import REWARDS
from densegrpo_jax.runtime.checkpoint_store import Store
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.loading import load_policy
from densegrpo_jax.sampling.session import check
from densegrpo_jax.sampling.session import load as load_session
from densegrpo_jax.search.run import open_results, search
from densegrpo_jax.training.progress import Progress
from densegrpo_jax.training.run import run
from tests.compiler import QUICK
from tests.training.small_run import final_state, moved_alike, rows, wait_for_checkpoint

ROOT = pathlib.Path(__file__).parents[2]

# A group of four samples per batch, one on each piece of the data axis: it is spread over both
# processes. SPOILED names a checkpoint that the second process alone cannot read, STOPPED one after
# whose save it gets a SIGTERM.
CONFIG = """
import os, signal, sys, time
from densegrpo_jax.rewards.build import REWARDS
from densegrpo_jax.runtime.checkpoint_store import Store
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.training.progress import Progress
from tests.training.small_run import SMOOTH, Brightness, make_config

def arrays(self, step, *args, _arrays=Store.arrays):
    if str(step) == os.environ.get('SPOILED') and '--process_id=1' in sys.argv:
        raise ValueError('spoiled')
    return _arrays(self, step, *args)

def save(self, step, *args, _save=Checkpoints.save, **kwargs):
    _save(self, step, *args, **kwargs)
    if str(step) == os.environ.get('STOPPED') and '--process_id=1' in sys.argv:
        time.sleep(1)  # the other one is ahead
        os.kill(os.getpid(), signal.SIGTERM)

def check(self, max_bad, _check=Progress.check):
    _check(self, max_bad)
    if os.environ.get('FAILED') and '--process_id=1' in sys.argv:
        raise ValueError('failed')

Store.arrays, Checkpoints.save, Progress.check = arrays, save, check

def get_config():
    REWARDS['brightness'] = Brightness
    batches = {{'rollout.prompts_per_batch': 1, 'optim.microbatch': 8, 'eval.report': True}}
    config = make_config({folder!r}, **{{'mesh.data': 4}}, **batches, **SMOOTH)
    config.reward = {{'brightness': {{'weight': 1.0}}}}
    return config
"""


@pytest.fixture(scope='module', autouse=True)
def nothing_left_behind():
    """The configuration is also run in this process, which other files' tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, 'arrays', Store.arrays)
        patch.setattr(Checkpoints, 'save', Checkpoints.save)
        patch.setattr(Progress, 'check', Progress.check)
        patch.setitem(REWARDS, 'brightness', None)
        yield


@pytest.fixture(scope='module')
def config_file(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp('processes') / 'two.py'
    path.write_text(CONFIG.format(folder=str(folder)))
    return path


def load(config_file, **overrides):
    scope = {}
    exec(config_file.read_text(), scope)  # noqa: S102 (the file above)
    config = scope['get_config']()
    config.update_from_flattened_dict(overrides)
    return config


def mesh_of(config):
    """The mesh of both processes together, in this one."""
    return make_mesh(config.mesh, jax.devices()[:4])


@contextlib.contextmanager
def processes(
    config_file, workdir, *options, command='main', heartbeat=60, spoiled='', stopped='', failed=''
):
    """Both processes of a command that writes to `workdir`, started; whatever happens they are gone
    afterwards.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    # Compiled as the run in this process that they are compared with (see tests/conftest.py).
    flags = f'{QUICK} {os.environ["TESTS_XLA_FLAGS"]}'
    environment = {
        **os.environ,
        'XLA_FLAGS': flags,
        'JAX_PLATFORMS': 'cpu',
        'JAX_DEFAULT_MATMUL_PRECISION': 'highest',
    }
    environment |= {'SPOILED': spoiled, 'STOPPED': stopped, 'FAILED': failed}
    folder = '--out' if command in ('evaluate', 'search') else '--workdir'
    common = [
        sys.executable,
        '-m',
        f'densegrpo_jax.{command}',
        f'--config={config_file}',
        f'{folder}={workdir}',
        '--cpu_devices=2',
        f'--coordinator=127.0.0.1:{port}',
        '--num_processes=2',
        f'--heartbeat={heartbeat}',
        *options,
    ]
    started = []
    try:
        for i in range(2):
            log = open(f'{workdir}.{i}.log', 'wb')  # noqa: SIM115 (the process keeps it)
            started.append(
                subprocess.Popen(
                    [*common, f'--process_id={i}'],
                    cwd=ROOT,
                    env=environment,
                    stderr=log,
                    stdout=log,
                )
            )
        yield started
    finally:
        for process in started:
            process.kill()


def ended(started, workdir, seconds=1200):
    """Exit codes; the logs are shown where one is not 0 or 75."""
    codes = [process.wait(timeout=seconds) for process in started]
    for i, code in enumerate(codes):
        if code not in (0, 75):
            print(pathlib.Path(f'{workdir}.{i}.log').read_text()[-4000:])
    return codes


def same_run(found, expected):
    """States and metrics agree up to the order of sums."""
    (step, arrays, _), (want_step, want, _) = final_state(found), final_state(expected)
    assert step == want_step
    # Three updates of Adam enlarge rounding: 2.1 % of the largest move was seen beside other work.
    # A process whose share is lost moves what it should by about half.
    moved_alike(arrays, want, 0.1)
    for row, other in zip(rows(found), rows(expected), strict=True):
        assert row['step'] == other['step'] and set(row) == set(other)
        for key in (
            'train/reward',
            'eval/total',
            'train/grad_norm',
            'gain/step_0',
            'advantage_abs/step_1',
            'guard/diversity',
            'guard/kl',
        ):
            if key in other:
                # An update enlarges the rounding of the one before.
                rtol = 5e-4 if row['step'] <= 1 else 3e-3
                # A pixel that rounds the other way moves a picture's reward by 2.6e-6.
                np.testing.assert_allclose(row[key], other[key], rtol=rtol, atol=5e-6, err_msg=key)


@pytest.fixture(scope='module')
def alone(config_file, tmp_path_factory):
    """Work directory of the same run in this process."""
    config = load(config_file)
    workdir = tmp_path_factory.mktemp('alone')
    run(config, workdir, mesh_of(config), StopRequest())
    return workdir


def test_two_processes_are_one_run(config_file, alone, tmp_path):
    workdir = tmp_path / 'two'
    with processes(config_file, workdir) as started:
        assert ended(started, workdir) == [0, 0]
    same_run(workdir, alone)
    assert (workdir / 'summary.json').is_file() and (workdir / 'before_after.png').is_file()
    assert list((workdir / 'groups').glob('*.json')) and (workdir / 'report').is_dir()
    assert 'reward' not in pathlib.Path(f'{workdir}.1.log').read_text()  # one of them reports


@pytest.mark.slow
def test_two_processes_stop_and_continue_as_one(config_file, alone, tmp_path):
    """SIGTERM to one of them stops both after the same update; started again, where one of them
    cannot read the newest checkpoint both take the one before it, and end as one process does."""
    workdir = tmp_path / 'two'
    with processes(config_file, workdir, stopped='2') as started:
        assert ended(started, workdir) == [75, 75]
    newest = max(
        (path.name for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit()), key=int
    )
    assert newest == '2'
    with processes(config_file, workdir, spoiled=newest) as started:
        assert ended(started, workdir) == [0, 0]
    found = (
        f'CHECKPOINT OF STEP {newest} IS DAMAGED and is skipped: ValueError: process 1 of the run: '
        'ValueError: spoiled'
    )
    assert (
        found in pathlib.Path(f'{workdir}.0.log').read_text()
        and (workdir / 'checkpoints_corrupt' / f'{newest}.0').is_dir()
    )
    same_run(workdir, alone)


@pytest.mark.slow
def test_two_processes_evaluate_as_one(config_file, alone, tmp_path):
    """A checkpoint, with diversity and KL; one of them writes."""
    out = tmp_path / 'two'
    options = [
        f'--workdir={alone}',
        '--checkpoint=latest',
        '--nobase',
        '--group=2',
        '--kl_prompts=3',
    ]
    with processes(config_file, out, *options, command='evaluate') as started:
        assert ended(started, out) == [0, 0]
    config = load(config_file)
    [policy] = choose(['latest'], alone, base=False)
    evaluated = evaluate(
        config, [policy], tmp_path / 'one', group=2, kl_prompts=3, mesh=mesh_of(config)
    )
    expected, table = (
        evaluated['eval'][policy.label].scores,
        list(csv.DictReader((out / 'scores.csv').read_text().splitlines())),
    )
    for name in ('total', 'diversity', 'kl'):
        np.testing.assert_allclose(
            [float(row[name]) for row in table], expected[name], rtol=1e-3, atol=1e-5, err_msg=name
        )
    assert {path.name for path in (tmp_path / 'one').iterdir()} == {
        path.name for path in out.iterdir()
    } - {'compiled', 'lock'}
    assert 'prompts' not in pathlib.Path(f'{out}.1.log').read_text()


@pytest.mark.slow
def test_two_processes_guard_as_one(config_file, tmp_path):
    guard = {'guard.on': True, 'guard.prompts': 8, 'guard.images': 2, 'guard.kl_prompts': 2}
    workdir, options = tmp_path / 'two', [f'--config.{key}={value}' for key, value in guard.items()]
    with processes(config_file, workdir, *options) as started:
        assert ended(started, workdir) == [0, 0]
    config = load(config_file, **guard)
    run(config, tmp_path / 'one', mesh_of(config), StopRequest())
    same_run(workdir, tmp_path / 'one')
    assert {'guard/diversity', 'guard/kl'} < {*rows(workdir)[-1]}
    assert (workdir / 'guard' / 'scores.jsonl').is_file()


@pytest.mark.slow
def test_two_processes_preflight_as_one(config_file, tmp_path):
    workdir, size = tmp_path / 'two', {'prompts': 4, 'group': 4}
    options = [f'--{name}={value}' for name, value in size.items()]
    with processes(config_file, workdir, *options, command='preflight') as started:
        assert ended(started, workdir) == [0, 0]
    found = json.loads((workdir / 'preflight.json').read_text())
    config = load(config_file)
    mesh = mesh_of(config)
    preflight(config, tmp_path / 'one', mesh, StopRequest(), **size)
    expected = json.loads((tmp_path / 'one' / 'preflight.json').read_text())
    for name in ('decided', 'signal', 'reward', 'rank_correlation', 'gains'):
        ours, theirs = (jax.tree.flatten(document[name]) for document in (found, expected))
        assert ours[1] == theirs[1]
        for value, want in zip(ours[0], theirs[0]):
            assert value == pytest.approx(want, rel=2e-2, abs=1e-3), name
    assert (workdir / 'index.html').is_file()
    assert 'signal' not in pathlib.Path(f'{workdir}.1.log').read_text()


@pytest.mark.slow
def test_two_processes_search_as_one(config_file, alone, tmp_path):
    """With a trained policy. SIGTERM to one of them stops both between prompts; started again, they
    end with what one process finds."""
    out, changes = tmp_path / 'two', {'method': 'smc', 'nfe': 12, 'prompts': 1, 'beta': 0.05}
    options = [f'--config.search.{key}={value}' for key, value in changes.items()]
    options += [f'--workdir={alone}', '--checkpoint=latest', '--count=6']
    found = out / 'search.jsonl'
    with processes(config_file, out, *options, command='search') as started:
        while not (found.exists() and '"prompt"' in found.read_text()):
            assert started[0].poll() is None
            time.sleep(0.05)
        started[1].send_signal(signal.SIGTERM)
        assert ended(started, out) == [75, 75]
    assert 0 < found.read_text().count('"prompt"') < 6
    with processes(config_file, out, *options, command='search') as started:
        assert ended(started, out) == [0, 0]
    config = load(config_file, **{f'search.{key}': value for key, value in changes.items()})
    mesh = mesh_of(config)
    checked = check(config, mesh, needs=('schedule', 'test'))
    prompts = list(checked.test)[:6]
    session = load_session(checked, [p.text for p in prompts])
    policy, _ = load_policy(session.pipeline, config, mesh, alone, 'latest')
    results = open_results(session, policy, prompts, tmp_path / 'one')
    expected = search(session, policy, prompts, results)
    for line in map(json.loads, found.read_text().splitlines()):
        if 'prompt' in line:
            want = expected[line['prompt']]
            ours, theirs = (np.array(row['candidates'], float) for row in (line, want))
            np.testing.assert_allclose(ours, theirs, atol=2e-3)
    assert 'evaluations a prompt' not in pathlib.Path(f'{out}.1.log').read_text()


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped(config_file, alone, tmp_path):
    """After the last save, where both wait for each other next."""
    workdir = tmp_path / 'two'
    with processes(config_file, workdir, '--config.iterations=2', stopped='2') as started:
        assert ended(started, workdir) == [75, 75]
    config = load(config_file)
    run(config, workdir, mesh_of(config), StopRequest())
    assert [row['step'] for row in rows(workdir)] == [0, 1, 2, 3]
    same_run(workdir, alone)


@pytest.mark.slow
def test_an_error_of_one_process_lets_both_save_the_last_update_and_ends_both(
    config_file, tmp_path
):
    """The other one is about to save too, where it waits for this one."""
    workdir = tmp_path / 'two'
    options = ['--config.checkpoint.every=1', '--config.eval.every=10']
    with processes(config_file, workdir, *options, failed='yes') as started:
        assert ended(started, workdir) == [1, 2]
    assert final_state(workdir)[0] == 1
    other, log = (pathlib.Path(f'{workdir}.{i}.log').read_text() for i in range(2))
    assert 'ended by an error, saved after iteration 1 of 3' in log and 'error: failed' in log
    assert 'process 1 of the run failed: ValueError: failed' in other


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_a_dead_process_ends_the_other_with_a_message(config_file, tmp_path, victim):
    workdir = tmp_path / 'two'
    with processes(config_file, workdir, '--config.iterations=1000', heartbeat=10) as started:
        wait_for_checkpoint(workdir, 1, started[0])
        started[victim].kill()
        began = time.monotonic()
        assert started[1 - victim].wait(timeout=120) not in (0, 75)
        print(f'noticed after {time.monotonic() - began:.0f} s')
    log = pathlib.Path(f'{workdir}.{1 - victim}.log').read_text()
    assert 'another task died' in log or 'stop when they notice' in log


def test_nobody_to_join_is_said(config_file, tmp_path):
    command = [
        sys.executable,
        '-m',
        'densegrpo_jax.main',
        f'--config={config_file}',
        f'--workdir={tmp_path}',
        '--distributed=on',
    ]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(('SLURM_', 'OMPI_'))
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and 'no cluster was found' in done.stderr
        and '--coordinator=HOST:PORT' in done.stderr
    )

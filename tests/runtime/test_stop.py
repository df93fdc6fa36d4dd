"""Real signals: a stop request is seen between and during waits, and a second signal kills."""

import concurrent.futures
import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import pytest

from densegrpo_jax.runtime import stop as preemption
from densegrpo_jax.runtime.communicator import Communicator
from tests import fake_hosts


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_sets_the_flag_and_the_old_handler_returns(number):
    before = signal.getsignal(number)
    with preemption.handle_stop_signals() as stop:
        stop.check()
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.signal_name == signal.Signals(number).name
        assert signal.getsignal(number) == signal.SIG_DFL  # the next one ends the process
        with pytest.raises(preemption.Preempted, match=stop.signal_name):
            stop.check()
    assert signal.getsignal(number) == before


def test_the_last_completed_update_is_what_gets_saved():
    completed = []
    with preemption.handle_stop_signals() as stop:
        try:
            for step in range(100):
                if step == 3:
                    os.kill(os.getpid(), signal.SIGTERM)  # arrives during the rollout of step 3
                stop.wait(jnp.ones(2) + step)
                completed.append(step)
        except preemption.Preempted:
            pass
    assert completed == [0, 1, 2]


def test_wait_returns_arrays_and_results():
    stop = preemption.StopRequest()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        out = stop.wait(
            {
                'x': jax.jit(lambda: jnp.arange(3.0).sum())(),
                'scores': pool.submit(lambda: 7),
                'plain': 5,
            }
        )
        assert out['x'] == 3 and out['scores'] == 7 and out['plain'] == 5
        with pytest.raises(ZeroDivisionError):
            stop.wait([pool.submit(lambda: 1 / 0)])


def test_a_slow_future_does_not_hold_up_a_stop():
    release = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool, preemption.handle_stop_signals() as stop:
        future = pool.submit(release.wait, 60)
        asked = []

        def done():
            """The first look at the future: the signal arrives while it is waited for."""
            asked.append(1)
            if len(asked) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return False

        future.done = done
        with pytest.raises(preemption.Preempted):
            stop.wait(future)
        assert asked and not release.is_set()
        release.set()


def test_a_process_that_leaves_for_its_own_reason_stops_the_others_in_the_same_round():
    def loop(hosts):
        stop, rounds = preemption.StopRequest(Communicator(hosts)), []
        with pytest.raises(preemption.Preempted) if hosts.index else contextlib.nullcontext():
            while True:
                if hosts.primary and len(rounds) == 2:
                    stop.leave('its rewards are gone')
                    break
                rounds.append(stop.communicator.exchange(str(hosts.index).encode()))
        if hosts.index:
            with pytest.raises(preemption.Preempted):
                stop.check()
        return rounds, stop.signal_name

    (ours, why), (theirs, heard) = fake_hosts.on_hosts(loop)
    assert ours == theirs == [[b'0', b'1']] * 2
    assert why == 'its rewards are gone' and heard == 'another process of the run'


# What runs the tests may ignore signals, as nohup and a shell's background jobs do, and what it
# starts then ignores them too.
LISTENING = ['env', '--default-signal=HUP,INT']

PROGRAM = """
import sys, time
from densegrpo_jax.runtime import stop as preemption
from densegrpo_jax.runtime.communicator import Communicator
with preemption.handle_stop_signals() as stop:
    print('ready', flush=True)
    while not (stop.requested and sys.argv[1] == 'once'):
        time.sleep(0.01)
sys.exit(preemption.RESUMABLE)
"""


@pytest.mark.parametrize('times, code', [('once', 75), ('twice', -signal.SIGTERM)])
def test_exit_status_of_a_real_process(times, code):
    child = subprocess.Popen(
        [*LISTENING, sys.executable, '-c', PROGRAM, times],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == 'ready\n'
    child.send_signal(signal.SIGTERM)
    assert 'SIGTERM: saving what is complete, then exit 75' in child.stderr.readline()
    if times == 'twice':
        child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    assert child.returncode == code


SIGNALS = """
import os, signal, sys
from densegrpo_jax.runtime import stop as preemption
from densegrpo_jax.runtime.communicator import Communicator
with preemption.handle_stop_signals() as stop:
    for name in sys.argv[1:]:
        os.kill(os.getpid(), getattr(signal, name))
    assert stop.requested
os.kill(os.getpid(), signal.SIGUSR1)  # a late one
sys.exit(preemption.RESUMABLE)
"""


@pytest.mark.parametrize(
    'names, code',
    [
        (['SIGTERM', 'SIGHUP', 'SIGUSR1'], 75),  # the end of a session, under a supervisor
        (['SIGUSR1', 'SIGHUP', 'SIGHUP', 'SIGTERM'], 75),
        # Ctrl-C twice, under a supervisor
        (['SIGUSR1', 'SIGINT', 'SIGUSR1', 'SIGINT'], -signal.SIGINT),
    ],
)
def test_hangup_and_a_supervisors_signal_ask_for_a_stop_and_never_end_the_process(names, code):
    done = subprocess.run(
        [*LISTENING, sys.executable, '-c', SIGNALS, *names],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert f'{names[0]}: saving what is complete, then exit 75.' in done.stderr


def test_an_ignored_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    try:
        with preemption.handle_stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_gone_does_not_change_the_exit_status():
    program = PROGRAM.replace('sys.exit', "print('saved', file=sys.stderr, flush=True)\nsys.exit")
    ours, terminal = pty.openpty()
    with subprocess.Popen(
        [*LISTENING, sys.executable, '-c', program, 'once'],
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
    ) as child:
        assert child.stdout.readline() == 'ready\n'
        os.close(terminal)
        os.close(ours)
        child.send_signal(signal.SIGHUP)
        assert child.wait(timeout=60) == 75

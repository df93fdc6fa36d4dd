"""supervise.sh restarts what can be resumed, and hands signals on."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from tests.launch.stand_ins import ROOT


def test_the_supervisor_restarts_what_can_be_resumed_and_nothing_else(tmp_path):
    job = (
        'n=$(cat n 2>/dev/null || echo 0); echo $((n + 1)) >n; if [ "$n" -lt 2 ]; then exit 75; '
        'fi; exit "$0"'
    )
    for wanted in (0, 3):
        (tmp_path / 'n').unlink(missing_ok=True)
        command = ['bash', str(ROOT / 'launch/supervise.sh'), 'bash', '-c', job, str(wanted)]
        done = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE)
        assert done.returncode == wanted and (tmp_path / 'n').read_text() == '3\n'


STOPPABLE = """
import sys, time
from densegrpo_jax.runtime.stop import RESUMABLE, handle_stop_signals
with handle_stop_signals() as stop:
    print('ready', flush=True)
    while not stop.requested:
        time.sleep(0.01)
    time.sleep(0.5)
    print('saved', flush=True)
sys.exit(RESUMABLE)
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
# as `kill` does, and as the terminal or systemd: to the trainer too
@pytest.mark.parametrize('send', [os.kill, os.killpg])
def test_the_supervisor_hands_a_stop_signal_on_and_waits_for_the_save(send, number):
    # What runs the tests may ignore signals, as nohup and a shell's background jobs do, and what it
    # starts then ignores them too.
    command = [
        'env',
        '--default-signal=HUP,INT',
        'bash',
        str(ROOT / 'launch/supervise.sh'),
        sys.executable,
        '-c',
        STOPPABLE,
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline() == 'ready\n'
        send(process.pid, number)
        assert process.communicate(timeout=60)[0] == 'saved\n' and process.returncode == 75
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    'job, asked, wanted',
    [('echo; exec sleep 60', True, 75), ('echo; kill -USR1 $$', False, 128 + signal.SIGUSR1)],
)
def test_what_the_supervisors_own_signal_ends_was_asked_to_stop(job, asked, wanted):
    process = subprocess.Popen(
        ['bash', str(ROOT / 'launch/supervise.sh'), 'bash', '-c', job],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == '\n'
    if asked:
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == wanted

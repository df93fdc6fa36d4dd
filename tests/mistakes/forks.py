"""Runs commands in forked copies of one process that has imported them all: as real as a call from
a shell, without seconds of imports for each.

    python tests/mistakes/forks.py COMMAND ... < cases.json

Reads [[name, command, arguments, folder, environment]] and prints a line [name, status] for each
when it has ended; its output is in FOLDER/output.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import sys
import time
import traceback

# What commands import at work, and a fork would import again.
WORK = ('sampling.draw', 'sampling.export', 'evaluation.evaluate', 'training.run', 'preflight.run')
WORK += ('calibration.direction', 'calibration.process_reward', 'planning.plan', 'planning.cards')
WORK += ('planning.search', 'planning.utilisation', 'search.run', 'viewing.server')
WORK += ('rewards.remote.serve',)
SLOW = ('transformers.models.clip.tokenization_clip', 'transformers.models.t5.tokenization_t5')
SLOW += ('rapidocr', 'onnxruntime', 'tensorboardX', 'PIL.Image', 'orbax.checkpoint')
SECONDS = 120  # none of the cases should begin any work
TOGETHER = 2


def start(command, arguments, folder, environment):
    """Forks a process for a case; returns its id."""
    if pid := os.fork():
        return pid
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    output = os.open('output', os.O_CREAT | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = [command, *arguments]
    del sys.modules[command]  # runpy runs it anew
    status = 0
    try:
        runpy.run_module(command, run_name='__main__', alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # as the interpreter would
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main():
    cases = json.load(sys.stdin)
    for module in (*sys.argv[1:], *(f'densegrpo_jax.{name}' for name in WORK), *SLOW):
        importlib.import_module(module)
    # a collection in a fork would copy most of the memory, and none of them lives long
    gc.disable()
    gc.freeze()
    running = {}
    while cases or running:
        while cases and len(running) < TOGETHER:
            name, *case = cases.pop(0)
            running[start(*case)] = name, time.monotonic()
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            print(json.dumps([running.pop(pid)[0], os.waitstatus_to_exitcode(status)]), flush=True)
            continue
        for pid, (_, began) in running.items():
            if time.monotonic() - began > SECONDS:
                os.killpg(pid, signal.SIGKILL)
        time.sleep(0.01)


if __name__ == '__main__':
    main()

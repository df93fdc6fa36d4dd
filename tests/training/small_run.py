"""A training run of seconds, for the tests of what trains, stops, continues and measures."""

import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from configs import tiny_ocr
from densegrpo_jax.rewards.base import Scores
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.mesh import make_mesh

ROOT = pathlib.Path(__file__).parents[2]
OVERRIDES = {
    'iterations': 3,
    'rollout.prompts': 4,
    'rollout.group': 4,
    'rollout.prompts_per_batch': 2,
    'rollout.steps': 3,
    'optim.microbatch': 16,
    'lora.rank': 2,
    'lora.alpha': 4.0,
    'eval.every': 2,
    'eval.batch': 8,
    'eval.steps': 2,
    'eval.shown': 4,
    'data.eval_prompts': 8,
    'checkpoint.every': 1,
    'credit.std': 'global',
    'model.height': 16,
    'model.width': 32,
}


def make_config(folder, **overrides):
    """tiny_ocr on a folder's pipeline, small, with `overrides` by their dotted keys."""
    config = tiny_ocr.get_config()
    config.model.path = str(folder)
    config.update_from_flattened_dict({**OVERRIDES, **overrides})
    config.reward = {'jpeg': {'weight': 1.0}}  # a fast reward that differs between any two pictures
    return config


def final_state(workdir):
    """(step, name -> array, meta) of a run's newest checkpoint."""
    checkpoints = Checkpoints(workdir / 'checkpoints', read_only=True)
    step = checkpoints.latest_step()
    path = workdir / 'checkpoints' / str(step)
    reader = ocp.PyTreeCheckpointer()
    names = reader.metadata(path / 'state').item_metadata.tree
    # whatever devices of whatever processes wrote them
    args = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    return step, reader.restore(path / 'state', restore_args=args), checkpoints.meta(step)


def one_device():
    return make_mesh({'data': 1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:1])


def rows(workdir):
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


class Brightness:
    """Mean of the picture: smooth, where the size of a JPEG jumps by a byte when rounding moves one
    pixel.
    """

    name, names, range, device, needs_metadata = (
        'brightness',
        ('brightness',),
        (0.0, 1.0),
        'host',
        False,
    )

    def check(self, prompts, metadata):
        pass

    def __call__(self, images, prompts, metadata):
        return Scores(
            {'brightness': (images.mean((1, 2, 3)) / 255).astype(np.float32)},
            np.ones(len(images), bool),
        )


def command(folder, workdir, *extra, flags=''):
    """The process of such a run, started from the command line; `flags` for XLA."""
    arguments = [f'--config.{k}={v}' for k, v in OVERRIDES.items()] + [
        f'--config.model.path={folder}',
        '--config.reward={}',
        *extra,
    ]
    # dictionaries cannot be given on the command line: the OCR reward is used
    del arguments[-1 - len(extra)]
    python = [
        sys.executable,
        '-m',
        'densegrpo_jax.main',
        '--config=configs/tiny_ocr.py',
        f'--workdir={workdir}',
        '--cpu_devices=1',
    ]
    # No compilation cache: XLA:CPU rounds differently in a program that it reads back than in the
    # one it has just compiled.
    environment = {
        **os.environ,
        'XLA_FLAGS': flags,
        'JAX_PLATFORMS': 'cpu',
        'JAX_ENABLE_COMPILATION_CACHE': 'false',
    }
    return subprocess.Popen(
        python + arguments, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )


def wait_for_checkpoint(workdir, step, process, seconds=240):
    """Until the checkpoint of a step is there; the process must be alive meanwhile."""
    deadline = time.monotonic() + seconds
    while not (workdir / 'checkpoints' / str(step)).is_dir():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, 'no checkpoint appeared'
        time.sleep(0.02)

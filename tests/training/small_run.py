"""A training run of seconds, for the tests of what trains, stops, continues and measures."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp

from configs import tiny_ocr
from densegrpo_jax.rewards.base import Scores
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.training.run import run
from tests.meshes import one_device

ROOT = pathlib.Path(__file__).parents[2]
FEW = str(pathlib.Path(__file__).with_name('prompts.txt'))  # of the 20,000 that tiny_ocr has
JPEG = 'tests/training/tiny_jpeg.py'  # with a reward that starts at once
# Three layers of a small FLUX, which move its pictures most. Recipes adapt all fifteen, which take
# much longer to compile: test_ahead.py has such a run, and test_meshes.py compares such an
# iteration part by part.
FEW_LAYERS = ('attn.to_v', 'attn.to_out.0')
OVERRIDES = {
    'iterations': 3,
    'rollout.prompts': 4,
    'rollout.group': 4,
    'rollout.prompts_per_batch': 2,
    'rollout.steps': 3,
    'optim.microbatch': 16,
    'optim.decay': 'constant',  # runs of other lengths share their update
    'lora.rank': 2,
    'lora.alpha': 4.0,
    'lora.targets': FEW_LAYERS,
    'eval.every': 2,
    'eval.batch': 8,
    'eval.steps': 2,
    'eval.shown': 4,
    'eval.report': False,
    'data.train': FEW,
    'data.eval_prompts': 8,
    'checkpoint.every': 1,
    'credit.std': 'global',
    'model.height': 16,
    'model.width': 32,
}

# For runs that are compared across meshes and processes. Adam's step is the gradient over its size
# plus eps: with an eps far above the gradients it is smooth in them. With the usual 1e-8 the first
# steps are signs, which rounding decides where a gradient is next to zero. The rate does not decay,
# so that it is the same in a run that was shorter at first.
SMOOTH = {'optim.eps': 1.0, 'optim.learning_rate': 0.1, 'optim.decay': 'constant'}

# What makes the first update of a recipe small, whatever its family; it keeps its own task, method
# and layers. `rollout.steps` is left to each.
RECIPE = {
    'iterations': 1,
    'rollout.prompts': 2,
    'rollout.group': 2,
    'rollout.prompts_per_batch': 2,
    'optim.microbatch': 4,
    'eval.batch': 2,
    'eval.steps': 2,
    'eval.shown': 2,
    'data.train': FEW,
    'data.eval': 'tiny',
    'data.eval_prompts': 2,
    'model.height': 32,
    'model.width': 64,
    'model.dtype': 'float32',
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


def moved_alike(found, want, tolerance):
    """Asserts that two states' policies moved alike, to `tolerance` of each array's largest move.

    Their moving averages hold where they began, in runs of fewer updates than `ema.every`.
    """
    names = [name for name in want if name.startswith('policy/')]
    moves = {name: want[name] - want['ema' + name.removeprefix('policy')] for name in names}
    assert (
        max(np.abs(move).max() for move in moves.values()) > 1e-3
    )  # or there is nothing to compare
    for name, move in moves.items():
        error = np.abs(found[name] - want[name]).max()
        assert error <= tolerance * np.abs(move).max() + 1e-6, (
            f'{name}: {error} of {np.abs(move).max()}'
        )


def trained(folder, workdir, mesh=None, **changes):
    """Runs with the reward Brightness, by default on one device: (`final_state`, lines of its
    iterations). For tests with the fixture `exact_runs`.
    """
    config = make_config(folder, **changes)
    config.reward = {'brightness': {'weight': 1.0}}
    run(config, workdir, mesh or one_device(), StopRequest())
    return final_state(workdir), [row for row in rows(workdir) if 'train/reward' in row]


def first_update(recipe, folder, workdir, mesh=None, reward='jpeg', **changes):
    """The metrics of a recipe's first update, made small by RECIPE, on a folder's pipeline, by
    default on one device. Without `reward` the recipe keeps its own.
    """
    config = recipe.get_config()
    config.model.path = str(folder)
    config.update_from_flattened_dict({**RECIPE, **changes})
    if reward:
        config.reward = {reward: {'weight': 1.0}}
    run(config, workdir, mesh or one_device(), StopRequest())
    return rows(workdir)[1]


def after_one_iteration(path, copy):
    """A copy of a run of two iterations as it was after the first; returns its folder."""
    shutil.copytree(path, copy)
    shutil.rmtree(copy / 'checkpoints' / '2')
    return copy


def equal(found, expected):
    """Asserts that two states have the same bits."""
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


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


def command(folder, workdir, *extra, flags='', config=JPEG):
    """The process of such a run, started from the command line; `flags` for XLA."""
    arguments = [f'--config.{k}={v}' for k, v in OVERRIDES.items()] + [
        f'--config.model.path={folder}',
        *extra,
    ]
    python = [
        sys.executable,
        '-m',
        'densegrpo_jax.main',
        f'--config={config}',
        f'--workdir={workdir}',
        '--cpu_devices=1',
    ]
    # No compilation cache: XLA:CPU rounds differently in a program that it reads back than in the
    # one it has just compiled.
    environment = {
        **os.environ,
        'XLA_FLAGS': f'{flags} {os.environ["TESTS_XLA_FLAGS"]}'.strip(),
        'JAX_PLATFORMS': 'cpu',
        'JAX_ENABLE_COMPILATION_CACHE': 'false',
    }
    return subprocess.Popen(
        python + arguments,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_checkpoint(workdir, step, process, seconds=1200):
    """Until the checkpoint of a step is there, made by a process that is under way."""
    deadline = time.monotonic() + seconds
    while True:
        alive = process.poll() is None  # before the look: what ends in between has made it
        if (workdir / 'checkpoints' / str(step)).is_dir():
            return
        assert alive, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, 'no checkpoint appeared'
        time.sleep(0.02)


def finished(process):
    """Waits for the process, which must succeed."""
    _, log = process.communicate()
    assert process.returncode == 0, log

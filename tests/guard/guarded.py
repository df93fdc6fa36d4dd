"""Rewards that tell a guard something, and the run that it guards."""

import zlib

import numpy as np

from densegrpo_jax.rewards.base import Scores
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.training.run import run
from tests.training.small_run import Brightness, one_device


class Darkness(Brightness):
    """Falls whenever brightness rises."""

    name, names, range = 'darkness', ('darkness',), (-1.0, 0.0)

    def __call__(self, images, prompts, metadata):
        bright = super().__call__(images, prompts, metadata).values['brightness']
        return Scores({'darkness': -bright}, np.ones(len(images), bool))


class Same(Brightness):
    """Never changes."""

    name, names, range = 'same', ('same',), (0.0, 1.0)

    def __call__(self, images, prompts, metadata):
        return Scores({'same': np.ones(len(images), np.float32)}, np.ones(len(images), bool))


class Chance(Brightness):
    """Changes with every pixel, and means nothing."""

    name, names, range = 'chance', ('chance',), (0.0, 1.0)

    def __call__(self, images, prompts, metadata):
        found = [zlib.crc32(image.tobytes()) / 2**32 for image in images]
        return Scores({'chance': np.array(found, np.float32)}, np.ones(len(images), bool))


def trained(config, workdir):
    return run(config, workdir, one_device(), StopRequest())

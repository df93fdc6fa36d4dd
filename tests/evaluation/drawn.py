"""Evaluations of pictures that no network draws."""

import numpy as np

from densegrpo_jax.data.prompts import Prompt, PromptSet
from densegrpo_jax.rewards import Scorer
from densegrpo_jax.runtime.communicator import Communicator
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.session import Session
from tests.meshes import data_mesh

PROMPTS = PromptSet(tuple(Prompt(f'prompt {i}') for i in range(10)))


class At(Scorer):
    """Scores at once, so that a test knows when."""

    def submit(self, *batch, **how):
        future = super().submit(*batch, **how)
        future.exception()
        return future


class Sampler:
    """Pictures that depend on the noise alone, and a list of what was drawn; fails at call number
    `fail`.
    """

    def __init__(self, fail=None):
        self.calls, self.drawn, self.fail = 0, [], fail

    def __call__(self, params, policy, conditioning, negative, keys):
        self.calls += 1
        if self.calls == self.fail:
            raise KeyboardInterrupt
        self.drawn += [tuple(key) for key in keys]
        images = [
            np.random.default_rng([*key]).integers(0, 256, (16, 16, 3), np.uint8)
            // (1 + int(key[1]) % 3)
            for key in keys
        ]
        return np.stack(images) // 8 * 8, np.ones(len(keys), bool)


def session(config, conditioning, devices=1, pipeline=None, hosts=None):
    """A session without weights."""
    return Session(
        config=config,
        mesh=data_mesh(devices),
        stop=StopRequest(Communicator(hosts)),
        folder=None,
        pipeline=pipeline,
        params={'transformer': None},
        conditioning=conditioning,
        negative=None,
    )

"""What tests of the search command share."""

import jax
import pytest

from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.sampling.session import check, load
from tests.search.small_search import EVEN
from tests.training.small_run import make_config


@pytest.fixture(scope='session')
def session(folder):
    config = make_config(folder)
    with config.unlocked():
        config.reward = {'pixels': {'weight': 1.0}}
    config.search.update(method='pg', nfe=18, particles=3, prompts=2, temperature=0.5)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    return load(check(config, mesh, needs=('schedule', 'reward')), [p.text for p in EVEN])

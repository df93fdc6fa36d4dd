"""The page that a run makes of itself when an error ends it."""

import pytest

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.runtime.hosts import Hosts
from densegrpo_jax.training.report import Reporter
from tests.viewing.made_run import make_run


@pytest.mark.parametrize(('hosts', 'made'), [(Hosts(), 1), (Hosts(0, 4), 1), (Hosts(3, 4), 0)])
def test_the_primary_process_makes_it_alone(tmp_path, monkeypatch, hosts, made):
    run = make_run(tmp_path / 'run', updates=2, iterations=6)
    monkeypatch.setattr(Reporter, 'flush', lambda self: None)
    Reporter(default_config(), run, hosts, 0, 0.0).failed()
    assert len([*run.glob('report/index.html')]) == made

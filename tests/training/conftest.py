"""What tests of training share: runs whose bits are compared, and the order of what is written."""

import json

import jax
import pytest

from densegrpo_jax.rewards.build import REWARDS
from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.metrics import JsonlWriter
from tests.training.small_run import Brightness


@pytest.fixture
def exact_runs(monkeypatch):
    """Runs by `small_run.trained`, of which equal ones have equal bits."""
    monkeypatch.setitem(REWARDS, 'brightness', Brightness)
    # XLA:CPU rounds differently in a program that it reads back than in one it has just compiled
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update('jax_enable_compilation_cache', False)
    yield
    jax.config.update('jax_enable_compilation_cache', enabled)


@pytest.fixture
def metrics_before(monkeypatch):
    """From here on every call of a method of `Checkpoints` has all metrics of its run on disk, as
    nothing would write them again; returns a list of (its step, the last line of the metrics).
    """
    synced, flush = {}, JsonlWriter.flush

    def noting(self):
        flush(self)
        synced[self._path] = self._path.read_bytes()

    def metrics_before(name):
        calls, method = [], getattr(Checkpoints, name)

        def checking(self, step, *args, **kwargs):
            path = self.directory.parent / 'metrics.jsonl'
            found = path.read_bytes()
            assert synced.get(path) == found, f'step {step}: {name} before its metrics'
            calls.append((step, json.loads(found.splitlines()[-1])))
            method(self, step, *args, **kwargs)

        monkeypatch.setattr(JsonlWriter, 'flush', noting)
        monkeypatch.setattr(Checkpoints, name, checking)
        return calls

    return metrics_before

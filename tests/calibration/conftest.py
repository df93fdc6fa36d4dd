"""What tests of calibration share: a reward that is smooth in the pixels."""

import pytest

from densegrpo_jax.rewards.build import REWARDS
from tests.training.small_run import Brightness


@pytest.fixture(autouse=True)
def brightness(monkeypatch):
    monkeypatch.setitem(REWARDS, 'brightness', Brightness)

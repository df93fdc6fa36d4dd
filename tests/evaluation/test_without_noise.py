"""Recipes whose samples have no noise, such as those of nft: what needs noise says so."""

import pathlib
import types

import jax
import pytest

from configs import tiny_ocr
from densegrpo_jax.calibration.loop import prepare
from densegrpo_jax.evaluation.evaluate import _measured
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.sampling.session import check

BASE = types.SimpleNamespace(workdir=None)
TRAINED = types.SimpleNamespace(workdir=pathlib.Path('run'))


def test_the_kl_is_left_out_with_a_warning(caplog):
    config = tiny_ocr.get_config('method=nft')
    assert _measured(config, [BASE, TRAINED], 32) == 0
    assert "rollout.kernel='ode' adds no noise" in caplog.text
    caplog.clear()
    config.rollout.kernel = 'sde'
    assert _measured(config, [BASE, TRAINED], 32) == 32
    assert _measured(config, [BASE], 32) == _measured(config, [TRAINED], 0) == 0
    assert not caplog.text


def test_there_is_no_noise_to_calibrate():
    config = tiny_ocr.get_config('method=nft')
    checked = check(config, make_mesh(config.mesh, jax.devices()[:1]), needs=('schedule',))
    with pytest.raises(ValueError, match="rollout.kernel='ode' adds no noise, so there is none"):
        prepare(checked)

"""Recipes whose samples have no noise, such as those of nft: what needs noise says so."""

import pathlib
import types

import jax
import numpy as np
import pytest

from configs import tiny_ocr
from densegrpo_jax.calibration.loop import prepare
from densegrpo_jax.evaluation.evaluate import _measured
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.sampling.schedule import check_clean
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


def test_losses_on_clean_samples_need_a_grid_from_noise_to_image():
    config = tiny_ocr.get_config('method=nft')
    check_clean(config, np.float32([1, 0.5, 0]))
    for grid in ([0.936, 0.5, 0], [1, 0.5, 0.028]):
        with pytest.raises(ValueError, match="'nft' trains at noise levels of 0 to 1.* use a loss"):
            check_clean(config, np.float32(grid))
    config.loss.kind = 'grpo'
    check_clean(config, np.float32([0.936, 0.5, 0.028]))

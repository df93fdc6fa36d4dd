"""The figure of a calibration names the noise level as its kernel means it."""

import numpy as np
import pytest

from densegrpo_jax.calibration.figure import draw


@pytest.mark.parametrize('kernel, symbol', [('sde', 'ψ'), ('cps', 'η')])
def test_the_symbol_of_the_noise_level(kernel, symbol, tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    seen = []
    monkeypatch.setattr(plt, 'close', lambda figure: seen.append(figure.axes[0].get_ylabel()))
    rewards = np.random.default_rng(0).random((4, 5)).tolist()
    document = {
        'geometry': {'calibrated': [True, True, False]},
        'settings': {'rollout': {'kernel': kernel, 'noise': 'constant', 'level': 0.7}},
        'start': [0.7, 0.7, 0.0],
        'psi': [0.8, 0.6, 0.0],
        'history': [[0.8, 0.6, 0.0]],
        'settled': True,
        'before': rewards,
        'after': rewards,
    }
    assert draw(document, tmp_path / 'psi.png').stat().st_size > 0
    monkeypatch.undo()
    plt.close('all')
    assert seen == [f'noise level {symbol}(t)']

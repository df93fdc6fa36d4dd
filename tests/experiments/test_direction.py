"""Gradients' directions: the statistics on draws with known answers, the sketch, and one small
measurement.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny_ocr
from densegrpo_jax.runtime.stop import Preempted, StopRequest
from experiments.reproduction import direction as module
from experiments.reproduction.direction import CREDITS, direction, direction_rows, sketch
from experiments.reproduction.probe_drawing import draw_direction
from tests.meshes import one_device


def draws(mean, noise, count=200, seed=0):
    return mean + noise * np.random.default_rng(seed).normal(size=(count, len(mean)))


def test_columns_equal_the_closed_forms():
    """g = m + noise: alignment is |m| / sqrt(|m|^2 + d noise^2); bias the cosine of the means;
    progress their product.
    """
    d = 20
    h, g = np.zeros(d), np.zeros(d)
    h[0], g[:2] = 2.0, 1.0
    rows = {
        r['credit']: r
        for r in direction_rows({'sparse': draws(h, 1.0), 'dense': draws(g, 0.5, seed=1)}, 24)
    }
    sparse, dense = rows['sparse'], rows['dense']
    assert sparse['alignment'] == pytest.approx(2 / np.sqrt(4 + d), abs=0.03)
    assert sparse['bias'] == pytest.approx(1, abs=1e-9) and sparse['progress'] == pytest.approx(
        sparse['alignment']
    )
    assert dense['alignment'] == pytest.approx(np.sqrt(2 / (2 + d / 4)), abs=0.03)
    assert dense['bias'] == pytest.approx(np.sqrt(0.5), abs=0.03)
    assert dense['progress'] == pytest.approx(np.sqrt(0.5) * np.sqrt(2 / (2 + d / 4)), abs=0.03)
    for row in rows.values():
        assert row['progress_low'] < row['progress'] < row['progress_high']


def test_noise_alone_is_no_signal():
    """Without a mean the products over pairs vanish, where those over all batches would not."""
    rows = direction_rows(
        {'sparse': draws(np.eye(30)[0] * 3, 1.0), 'noise': draws(np.zeros(30), 1.0, seed=2)}, 24
    )
    assert abs(rows[1]['progress']) < 0.03


def test_intervals_cover():
    inside = 0
    for seed in range(40):
        mean = np.eye(10)[0]
        row = direction_rows({'sparse': draws(mean, 1.0, count=24, seed=seed)}, 24)[0]
        inside += row['alignment_low'] < 1 / np.sqrt(11) < row['alignment_high']
    assert inside >= 32


def test_a_sketch_keeps_inner_products():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30000)).astype(np.float32)
    b = 0.5 * a + b
    tree = lambda x: {'w': jnp.asarray(x[:20000].reshape(100, 200)), 'b': jnp.asarray(x[20000:])}
    sa, sb = sketch(tree(a), 1 << 14), sketch(tree(b), 1 << 14)
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    assert abs(float(sa @ sb) - a @ b) < 4 * scale / np.sqrt(1 << 14)
    np.testing.assert_allclose(sketch(tree(2 * a), 1 << 14), 2 * sa, rtol=1e-5, atol=1e-4)


def test_credits_are_those_that_need_no_other_trajectories():
    assert {'dense', 'sparse', 'coca_to_go', 'dense_baseline', 'gae_0.5', 'std_pooled'} <= set(
        CREDITS
    )
    assert not {'psi', 'noise_0.5', 'n_1'} & set(CREDITS)


@pytest.mark.slow
def test_measured_on_a_random_miniature_and_continued(folder, tmp_path, monkeypatch):
    config = tiny_ocr.get_config()
    config.update_from_flattened_dict(
        {
            'rollout.prompts': 2,
            'rollout.group': 4,
            'rollout.prompts_per_batch': 2,
            'rollout.steps': 3,
            'lora.rank': 2,
            'model.height': 16,
            'model.width': 32,
            'reward_workers': 1,
            'optim.microbatch': 8,
            'model.path': str(folder),
        }
    )
    config.reward = {'jpeg': {'weight': 1.0}}
    few = {name: CREDITS[name] for name in ('sparse', 'dense', 'gae_1')}
    monkeypatch.setattr(module, 'CREDITS', few)
    mesh, stop, put = one_device(), StopRequest(), module.BatchStore.put

    def stopping(store, start, **arrays):
        put(store, start, **arrays)
        stop.signal_name = 'SIGTERM'

    with monkeypatch.context() as patch:
        patch.setattr(module.BatchStore, 'put', stopping)
        with pytest.raises(Preempted):
            direction(config, tmp_path, mesh, stop, updates=3)
    kept = {
        path: path.stat().st_mtime_ns for path in (tmp_path / 'direction').glob('*/batch_*.npz')
    }
    assert len(kept) == 1
    rows = direction(config, tmp_path, mesh, StopRequest(), updates=3)
    assert (
        [row['credit'] for row in rows] == list(few)
        and rows[0]['batches'] == 3
        and rows[0]['samples'] == 8
    )
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    with np.load(next(iter(kept))) as arrays:
        # three rules, three gradients
        assert len({float(np.square(arrays[name]).sum()) for name in few}) == 3
    draw_direction(rows, tmp_path / 'direction.png')
    assert (tmp_path / 'direction.png').stat().st_size > 10_000

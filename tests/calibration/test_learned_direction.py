"""Stage 1 of D2-Align: the fit finds the closed form, and the command's file guides a run."""

import jax
import numpy as np
import pytest

from configs import tiny_scene
from densegrpo_jax.calibration import direction
from densegrpo_jax.core.direction import guided_text
from densegrpo_jax.rewards.directional import read_direction
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.training.run import run as train
from tests.closed_forms import orthogonal_optimum
from tests.meshes import data_mesh, one_device

OMEGA = 1.5


def embeddings(count=300, size=6, spread=0.2, seed=0):
    """Pictures around one mean, and one text for all."""
    rng = np.random.default_rng(seed)
    text = np.eye(size)[0]
    mean = np.concatenate([[0.6], 0.4 * rng.standard_normal(size - 1)])
    images = mean + spread * rng.standard_normal((count, size))
    return images.astype(np.float32), np.tile(text, (count, 1)).astype(np.float32)


def fit(images, texts, **options):
    options = {'steps': 1500, 'batch': 64, 'learning_rate': 5e-3, **options}
    return direction.fit_direction(images, texts, omega=OMEGA, key=jax.random.key(0), **options)


def reached(images, texts, b):
    return float((images * np.asarray(guided_text(texts, b, OMEGA))).sum(1).mean())


def test_the_fit_converges_to_the_closed_form():
    images, texts = embeddings()
    across = lambda b: b.at[0].set(0)  # orthogonal to the text
    b, history = fit(images, texts, project=across)
    expected, value = orthogonal_optimum(images.mean(0), texts[0], OMEGA)
    assert b[0] == 0 and history.shape == (1500,) and history[-50:].mean() > history[0]
    np.testing.assert_allclose(b, expected, atol=0.05 * np.linalg.norm(expected))
    assert reached(images, texts, b) == pytest.approx(value, rel=1e-3)
    free, _ = fit(images, texts)
    assert reached(images, texts, free) > value - 1e-3


def test_the_length_is_bounded():
    images, texts = embeddings()
    free, bounded = fit(images, texts)[0], fit(images, texts, radius=0.3)[0]
    assert np.linalg.norm(free) > 0.5 and np.linalg.norm(bounded) == pytest.approx(0.3, abs=1e-4)
    without = reached(images, texts, np.zeros(6))
    assert without < reached(images, texts, bounded) < reached(images, texts, free)


def test_no_direction_is_the_result_where_none_helps():
    images, texts = embeddings(spread=0.0)
    images[:] = texts  # the pictures are the text: every b loses
    b, _ = fit(images, texts, steps=20)
    np.testing.assert_array_equal(b, 0)


@pytest.fixture(scope='module')
def config(folder):
    c = tiny_scene.get_config()
    c.update_from_flattened_dict(
        {
            'model.path': str(folder),
            'model.height': 32,
            'model.width': 32,
            'full': False,
            'lora.rank': 2,
            'lora.alpha': 4.0,
            'iterations': 1,
            'rollout.prompts': 2,
            'rollout.group': 4,
            'rollout.prompts_per_batch': 2,
            'rollout.steps': 3,
            'optim.microbatch': 16,
            'credit.rule': 'sparse',
            'eval.every': 5,
            'eval.batch': 4,
            'eval.steps': 2,
            'eval.shown': 4,
            'data.eval_prompts': 4,
            'd2.pictures': 6,
            'd2.steps': 40,
            'd2.batch': 8,
        }
    )
    c.reward = {'scene_embedding': {'weight': 1.0}}
    return c


@pytest.mark.slow
def test_the_command_makes_a_file_that_guides_a_run(config, tmp_path):
    made = {}
    for devices in (1, 2):
        mesh = data_mesh(devices)
        out = tmp_path / f'{devices}.npz'
        given = config.copy_and_resolve_references()
        found = direction.run(given, tmp_path / str(devices), out, mesh, StopRequest())
        made[devices] = read_direction(out)
        np.testing.assert_array_equal(made[devices].vector, found.vector)
    one, two = made[1], made[2]
    np.testing.assert_allclose(two.vector, one.vector, atol=1e-3)
    assert one.facts['pictures'] == 6 and one.history.shape == (40,)
    assert one.facts['objective'] > one.facts['objective_without']
    assert one.facts['share_of_text'] + one.facts['share_of_direction'] == pytest.approx(1)

    # stopped after a batch, the same command goes on
    _, *later = (tmp_path / '1' / 'batches').glob('*/batch_*.npz')
    for path in later:
        path.unlink()
    given, on = config.copy_and_resolve_references(), tmp_path / 'on.npz'
    direction.run(given, tmp_path / '1', on, one_device(), StopRequest())
    np.testing.assert_array_equal(read_direction(on).vector, one.vector)

    guided = config.copy_and_resolve_references()
    guided.d2.file = str(tmp_path / '1.npz')
    train(guided, tmp_path / 'run', one_device(), StopRequest())
    # the same path with another direction, and another path with the same one
    (tmp_path / 'moved.npz').write_bytes((tmp_path / '1.npz').read_bytes())
    guided.iterations = 2
    guided.d2.file = str(tmp_path / 'moved.npz')
    train(guided, tmp_path / 'run', one_device(), StopRequest())
    direction.write_direction(
        tmp_path / 'moved.npz', direction.Direction(**{**vars(one), 'vector': 2 * one.vector})
    )
    guided.iterations = 3
    with pytest.raises(ValueError, match='directions of rewards'):
        train(guided, tmp_path / 'run', one_device(), StopRequest())


def test_what_has_no_direction_to_learn(config, tmp_path):
    for reward, message in (
        ({'jpeg': {}}, r"none of \['jpeg'\] has one"),
        ({'scene_embedding': {'direction': 'b.npz'}}, 'direction is set, .* remove it'),
        ({'clipscore': {}, 'pickscore': {}}, r"\['clipscore', 'pickscore'\] of"),
    ):
        c = config.copy_and_resolve_references()
        c.reward = reward
        with pytest.raises(ValueError, match=message):
            direction.run(c, tmp_path, tmp_path / 'b.npz', one_device(), StopRequest())
    c = config.copy_and_resolve_references()
    c.d2.file = str(tmp_path / 'absent.npz')
    with pytest.raises(
        FileNotFoundError, match='there is no file .*densegrpo_jax.direction makes one'
    ):
        train(c, tmp_path / 'run', one_device(), StopRequest())

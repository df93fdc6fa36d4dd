"""The pool of encoded pictures: what it holds, and that the file of another one is never taken for
it.
"""

import jax
import ml_collections
import numpy as np
import pytest

from densegrpo_jax.pipelines.folder import load_pipeline
from densegrpo_jax.runtime.mesh import make_mesh
from tools.make_miniature import pool

AUTOENCODER = {'encoder': {'kernel': np.arange(6, dtype=np.float32)}}


def config(**changes):
    base = dict(
        dataset='words',
        height=32,
        width=96,
        flow_fonts=('DejaVuSans', 'DejaVuSerif'),
        render_seed=1,
        clip_length=24,
        t5_length=16,
    )
    vae = dict(block_out_channels=(8, 32), norm_num_groups=8)
    return ml_collections.ConfigDict(
        base | dict(vae=vae, stages=dict(flow=dict(pool=2048))) | changes
    )


@pytest.fixture
def stored(tmp_path):
    """The path of a pool file and the arrays in it."""
    arrays = {
        'latents': np.random.default_rng(0).standard_normal((2048, 2, 2, 16)).astype(np.float16),
        'clip_ids': np.arange(2048 * 3, dtype=np.int32).reshape(2048, 3),
        't5_ids': np.arange(2048 * 2, dtype=np.int32).reshape(2048, 2),
    }
    pool.write(tmp_path / 'pool.npz', arrays, pool.origin(config(), AUTOENCODER))
    return tmp_path / 'pool.npz', arrays


def test_a_pool_is_read_as_it_was_written(stored):
    path, arrays = stored
    found = pool.read(path, pool.origin(config(), AUTOENCODER))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert [p.name for p in path.parent.iterdir()] == ['pool.npz']  # nothing half-written beside it
    assert pool.read(path.with_name('none.npz'), {}) is None


@pytest.mark.parametrize(
    'changes, line',
    [
        (dict(render_seed=2), 'render_seed: 1 there, 2 here'),
        (dict(stages=dict(flow=dict(pool=1024))), 'stages.flow.pool: 2048 there, 1024 here'),
        (dict(dataset='shapes'), "dataset: 'words' there, 'shapes' here"),
        (dict(width=48), 'width: 96 there, 48 here'),
        (
            dict(flow_fonts=('DejaVuSans',)),
            r"flow_fonts: \['DejaVuSans', 'DejaVuSerif'\] there, \['DejaVuSans'\] here",
        ),
        (
            dict(vae=dict(block_out_channels=(8, 32), norm_num_groups=4)),
            'vae.norm_num_groups: 8 there, 4 here',
        ),
        (dict(t5_length=12), 't5_length: 16 there, 12 here'),
    ],
)
def test_a_pool_of_another_configuration_is_refused(stored, changes, line):
    with pytest.raises(
        ValueError,
        match=(
            rf'pool\.npz was made from something else:\n'
            rf'  {line}\n'
            rf'Use the configuration it was made with'
        ),
    ):
        pool.read(stored[0], pool.origin(config(**changes), AUTOENCODER))


def test_a_pool_of_another_autoencoder_is_refused(stored):
    other = jax.tree.map(lambda x: np.nextafter(x, np.float32(9)), AUTOENCODER)
    with pytest.raises(
        ValueError,
        match="(?s)the autoencoder: '[0-9a-f]{12}' there, '[0-9a-f]{12}' here.*remove it",
    ):
        pool.read(stored[0], pool.origin(config(), other))


def test_a_pool_that_does_not_say_what_it_is_is_made_anew_with_a_warning(stored, caplog):
    path, arrays = stored
    np.savez(path, **arrays)  # as the file was before it said so
    assert pool.read(path, pool.origin(config(), AUTOENCODER)) is None
    assert 'pool.npz does not say what it was made from' in caplog.text


@pytest.mark.parametrize('keep', [0, 100, 5000])
def test_a_damaged_pool_is_refused(stored, keep):
    path, _ = stored
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r'pool\.npz is damaged .*; remove it'):
        pool.read(path, pool.origin(config(), AUTOENCODER))


@pytest.mark.parametrize(
    'size, such', [(0, 1024), (-1024, 1024), (1023, 1024), (1600, 2048), (65537, 65536)]
)
def test_pictures_are_drawn_in_whole_chunks(size, such):
    with pytest.raises(
        ValueError,
        match=(
            f'stages.flow.pool={size} images: expected a positive multiple of 1024, such as {such}'
        ),
    ):
        pool.check_size(size)
    pool.check_size(such)


@pytest.mark.slow
def test_encoding_draws_chunk_after_chunk(folder, monkeypatch):
    monkeypatch.setattr(pool, 'CHUNK', 8)
    pipeline, params = load_pipeline(folder, text_length=16)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 16, 32, 3), np.uint8)
    texts = [[f'A neon sign that says "{letter * n}"' for n in range(1, 9)] for letter in 'AB']

    def draw(seed, step, size):
        assert (seed, size) == (7, 8)
        return images[step], texts[step]

    made = pool.encode(
        pipeline, params['vae'], draw, 7, 16, make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
    )
    assert made['latents'].shape == (16, 2, 4, 16) and made['latents'].dtype == np.float16
    encode = jax.jit(lambda x: pipeline.vae.apply({'params': params['vae']}, x, method='encode')[0])
    mean = encode(images.reshape(16, 16, 32, 3) / np.float32(127.5) - 1)
    np.testing.assert_allclose(made['latents'], mean, rtol=2e-3, atol=2e-3)
    for name, ids in zip(('clip_ids', 't5_ids'), pipeline.tokenize(texts[0] + texts[1])):
        np.testing.assert_array_equal(made[name], ids)

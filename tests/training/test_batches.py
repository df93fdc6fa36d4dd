"""The rows that a loss on clean samples gets: their prompts, and the distance to the reference."""

import jax.numpy as jnp
import numpy as np

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.core.clean_samples import CleanSamples, noised_rows
from densegrpo_jax.core.losses import CLEAN
from densegrpo_jax.runtime.streams import STREAM_UPDATE, stream_key
from densegrpo_jax.training.batches import BATCHES

MASK = np.array([True, False, True, True])
SAMPLES = CleanSamples(
    x0=jnp.arange(24.0).reshape(4, 3, 2),
    reward=jnp.arange(4.0),
    advantage={'outcome': jnp.arange(4.0)},
    mask=jnp.asarray(MASK),
    prompt_id=jnp.array([0, 0, 1, 1], jnp.int32),
)


def config():
    c = default_config()
    c.loss.update(kind='nft', draws=2)
    return c


def test_every_draw_of_a_sample_keeps_its_prompt_and_mask():
    rows = BATCHES[CLEAN].rows_of(config(), SAMPLES)
    assert rows.prompt_id.tolist() == [0, 0, 1, 1] * 2 and rows.number.tolist() == [*range(8)]
    assert rows.mask.tolist() == MASK.tolist() * 2
    made = BATCHES[CLEAN].made(config(), SAMPLES, rows, jnp.int32(3))
    np.testing.assert_array_equal(made.prompt_id, rows.prompt_id)
    np.testing.assert_array_equal(made.x0, jnp.concatenate([SAMPLES.x0] * 2))


def test_the_distance_to_the_reference_counts_valid_rows_alone():
    batch = noised_rows(SAMPLES, jnp.arange(4), stream_key(0, STREAM_UPDATE, 0))
    v = jnp.arange(4.0)[:, None, None] * jnp.ones((4, 3, 2))
    total, count = BATCHES[CLEAN].kl(config(), v, jnp.zeros_like(v), batch)
    assert (float(total), float(count)) == (0 + 4 + 9, 3)  # without the 1 of the second

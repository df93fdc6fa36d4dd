"""Shapes of the released checkpoints against their published sizes, and of the conditioning against
what the encoders return.
"""

import jax
import jax.numpy as jnp
import pytest

from densegrpo_jax.pipelines.released import released, released_pipeline
from densegrpo_jax.pipelines.sd15 import Sd15Pipeline

# Parameters in billions, as the model cards and files have them.
SIZES = {
    'black-forest-labs/FLUX.1-dev': dict(
        transformer=11.901, vae=0.0838, text_encoder=0.1231, text_encoder_2=4.762
    ),
    'black-forest-labs/FLUX.1-schnell': dict(transformer=11.891),
    'black-forest-labs/FLUX.2-klein-4B': dict(transformer=3.876, vae=0.0840, text_encoder=4.022),
    'black-forest-labs/FLUX.2-klein-base-4B': dict(transformer=3.876),
    # 8.191 with the head, which is not tied to the embedding
    'black-forest-labs/FLUX.2-klein-9B': dict(transformer=9.079, text_encoder=7.568),
    'black-forest-labs/FLUX.2-klein-base-9B': dict(transformer=9.079),
    'Tongyi-MAI/Z-Image': dict(transformer=6.155, vae=0.0838, text_encoder=4.022),
    'Tongyi-MAI/Z-Image-Turbo': dict(transformer=6.155),
    'stabilityai/stable-diffusion-3.5-medium': dict(
        transformer=2.470, vae=0.0838, text_encoder_2=0.6947, text_encoder_3=4.762
    ),
    # 8.057 without its position table
    'stabilityai/stable-diffusion-3.5-large': dict(transformer=8.146),
    'stable-diffusion-v1-5/stable-diffusion-v1-5': dict(
        transformer=0.8595, vae=0.08365, text_encoder=0.1231
    ),
}


@pytest.mark.parametrize('name', released())
def test_sizes_are_the_published_ones(name):
    scan = released()[name][0] is not Sd15Pipeline
    pipeline = released_pipeline(name, text_length=128, scan=scan)
    for component, shapes in pipeline.abstract_params(list(SIZES[name])).items():
        billions = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e9
        assert billions == pytest.approx(SIZES[name][component], rel=2e-3), component


@pytest.mark.parametrize(
    'name, masked',
    [
        ('black-forest-labs/FLUX.1-dev', False),
        ('black-forest-labs/FLUX.2-klein-base-4B', False),
        ('stabilityai/stable-diffusion-3.5-medium', False),
        ('Tongyi-MAI/Z-Image', True),
    ],
)
def test_only_z_image_computes_a_mask(name, masked):
    """What one family's texts need costs the others neither time nor a bit: nothing in their
    velocity is boolean.
    """
    pipeline = released_pipeline(name, text_length=128)
    text = pipeline.conditioning_shapes(2)
    velocity = lambda base, text, x, s: pipeline.velocity_fn(base, None, text, 1.0, 64, 64)(x, s)
    program = jax.make_jaxpr(velocity)(
        pipeline.abstract_params(['transformer'])['transformer'],
        text,
        jax.ShapeDtypeStruct((2, *pipeline.latent_shape(64, 64)), jnp.float32),
        jax.ShapeDtypeStruct((2,), jnp.float32),
    )
    assert ('mask' in text) == ('bool[' in str(program)) == masked


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match='FLUX.1-dev'):
        released_pipeline('some/model', text_length=128)

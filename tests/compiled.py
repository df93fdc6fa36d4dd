"""Parts of a pipeline as one program each, which compiles sooner than operation after operation."""

import jax


def encode(pipeline, params, prompts):
    """Conditioning of texts; a pipeline is traced once for each number of them."""
    program = vars(pipeline).setdefault(
        '_encode_of_tests', jax.jit(lambda p, ids: pipeline.encode(p, *ids))
    )
    return program(params, pipeline.tokenize(prompts))


def decode(pipeline, params, latents, height, width):
    """Pictures [B, H, W, 3] uint8, and which of them are finite [B]."""
    return jax.jit(lambda p, z: pipeline.decode(p, z, height, width))(params, latents)

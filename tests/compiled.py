"""Parts of a pipeline as one program each, which compiles sooner than operation after operation."""

import json

import jax

_encoders, _decoders = {}, {}


def key_of(pipeline, names=None):
    """A hashable value that tells apart pipelines whose programs, of the modules `names`, differ;
    their weights may.
    """
    configs = json.dumps([pipeline.configs, pipeline.scheduler], sort_keys=True)
    modules = {name: pipeline.modules[name] for name in names or pipeline.modules}
    return type(pipeline), pipeline.text_length, configs, repr(modules)


def encode(pipeline, params, prompts):
    """Conditioning of texts; pipelines of one kind are traced once for each number of them."""
    names = pipeline.text_encoders
    encode = jax.jit(lambda p, ids: pipeline.encode(p, *ids))
    program = _encoders.setdefault(key_of(pipeline, names), encode)
    return program({name: params[name] for name in names}, pipeline.tokenize(prompts))


def decode(pipeline, params, latents, height, width):
    """Pictures [B, H, W, 3] uint8, and which of them are finite [B]; traced once as `encode`."""
    decode = jax.jit(lambda p, z: pipeline.decode(p, z, height, width))
    key = key_of(pipeline, ['vae']), height, width
    return _decoders.setdefault(key, decode)({'vae': params['vae']}, latents)

"""Trains the miniature FLUX that draws coloured shapes and writes a Diffusers folder.

    python -m tools.pretrain --config=configs/tiny_shapes_pretrain.py \\
        --workdir=runs/tiny_shapes_pretrain

Hardware: two CPU cores, 4 GiB of memory, about an hour; every stage resumes where it stopped.
Stages: `vae` (starts from the autoencoder of the miniature that spells), `flow` (transformer and
text encoders together), `distil` (guidance). There is no stage for the text encoders alone: every
word of a prompt is one token. The flow stops early on purpose: its errors are left to reinforcement
learning.
"""

import ml_collections

from densegrpo_jax.configs import tiny_pretrain


def get_config() -> ml_collections.ConfigDict:
    c = tiny_pretrain.get_config()
    del c.flow_fonts, c.stages['text']
    c.dataset = 'shapes'
    c.height = c.width = c.vae.sample_size = 48
    c.t5_length = 12  # tokens; the longest prompt has as many
    c.clip_length = 16
    c.transformer.update(num_layers=1, num_attention_heads=5)
    c.text_encoder.update(intermediate_size=128, num_hidden_layers=1)
    c.text_encoder_2.num_layers = 2
    c.stages.vae.update(
        steps=800, lr=1e-3, warmup=50, ema=0.99, kl_weight=2e-3, init='builtin:tiny'
    )
    c.stages.flow.update(
        steps=5000, lr=1e-3, pool=32768, grid_steps=6, eval_every=500, eval_prompts=300
    )
    c.stages.distil.update(steps=400, eval_prompts=300)
    return c

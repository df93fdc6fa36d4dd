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


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.dataset = 'shapes'
    c.height, c.width = 48, 48
    c.t5_length = 12  # tokens; the longest prompt has as many
    c.clip_length = 16
    c.keep_checkpoints = 2
    c.save_seconds = 120.0
    c.log_every = 25
    c.render_seed = 1

    c.transformer = ml_collections.ConfigDict(
        dict(
            patch_size=1,
            in_channels=64,
            num_layers=1,
            num_single_layers=4,
            attention_head_dim=32,
            num_attention_heads=5,
            joint_attention_dim=128,
            pooled_projection_dim=64,
            guidance_embeds=True,
            axes_dims_rope=(8, 12, 12),
        )
    )
    c.vae = ml_collections.ConfigDict(
        dict(
            in_channels=3,
            out_channels=3,
            latent_channels=16,
            block_out_channels=(8, 32, 64, 64),
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=48,
            mid_block_add_attention=True,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    )
    c.text_encoder = ml_collections.ConfigDict(
        dict(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=4,
            projection_dim=64,
            hidden_act='quick_gelu',
        )
    )
    c.text_encoder_2 = ml_collections.ConfigDict(
        dict(
            d_model=128,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=32,
        )
    )

    c.stages = ml_collections.ConfigDict()
    c.stages.vae = ml_collections.ConfigDict(
        dict(steps=800, batch=16, lr=1e-3, warmup=50, ema=0.99, kl_weight=2e-3, init='builtin:tiny')
    )
    c.stages.flow = ml_collections.ConfigDict(
        dict(steps=5000, batch=64, lr=1e-3, warmup=200, ema=0.998, text_dropout=0.1, pool=32768)
        | dict(grid_steps=6, eval_every=500, eval_prompts=300)
    )
    c.stages.distil = ml_collections.ConfigDict(
        dict(steps=400, batch=64, lr=3e-4, warmup=20, ema=0.99, guidance_max=4.0)
        | dict(grid_steps=6, eval_every=200, eval_prompts=300, eval_guidance=2.0)
    )
    return c

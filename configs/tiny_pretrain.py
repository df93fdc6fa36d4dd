"""Trains the miniature FLUX from scratch on rendered words and writes a Diffusers folder.

    python -m tools.pretrain --config=configs/tiny_pretrain.py --workdir=runs/tiny_pretrain

Hardware: two CPU cores, 4 GiB of memory, several hours; every stage resumes where it stopped.
Stages: `vae` (autoencoder), `text` (both text encoders, on what the prompt says), `flow`
(transformer and text encoders together, rectified flow with text dropout), `distil`
(classifier-free guidance distilled into the guidance embedding, as FLUX.1-dev was made).
`GLIBC_TUNABLES=glibc.malloc.hugetlb=1` in the environment (large pages) saves memory and page
faults.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.dataset = 'words'
    c.height, c.width = 32, 96
    c.t5_length = 16  # tokens; the longest prompt of densegrpo_jax.data fits
    c.clip_length = 24
    c.keep_checkpoints = 2
    c.save_seconds = 120.0
    c.log_every = 25
    c.render_seed = 1
    # The autoencoder sees all sixteen faces of tools/make_miniature/render.py, the flow five
    # upright ones: fewer ways to draw a letter, sooner legible.
    c.flow_fonts = (
        'DejaVuSans',
        'DejaVuSans-Bold',
        'DejaVuSansMono-Bold',
        'DejaVuSerif',
        'DejaVuSerif-Bold',
    )

    c.transformer = ml_collections.ConfigDict(
        dict(
            patch_size=1,
            in_channels=64,
            num_layers=2,
            num_single_layers=4,
            attention_head_dim=32,
            num_attention_heads=8,
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
            sample_size=96,
            mid_block_add_attention=True,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    )
    c.text_encoder = ml_collections.ConfigDict(
        dict(
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
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
            num_layers=3,
            num_heads=4,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=32,
        )
    )

    c.stages = ml_collections.ConfigDict()
    c.stages.vae = ml_collections.ConfigDict(
        dict(steps=4000, batch=16, lr=2e-3, warmup=100, ema=0.995, kl_weight=5e-4, init='')
    )
    c.stages.text = ml_collections.ConfigDict(
        dict(steps=500, batch=128, lr=2e-3, warmup=50, ema=0.99)
    )
    c.stages.flow = ml_collections.ConfigDict(
        dict(steps=8500, batch=64, lr=8e-4, warmup=200, ema=0.998, text_dropout=0.1, pool=65536)
        | dict(grid_steps=8, eval_every=1000, eval_prompts=128)
    )
    c.stages.distil = ml_collections.ConfigDict(
        dict(steps=600, batch=64, lr=3e-4, warmup=20, ema=0.99, guidance_max=4.0)
        | dict(grid_steps=6, eval_every=200, eval_prompts=128, eval_guidance=2.0)
    )
    return c

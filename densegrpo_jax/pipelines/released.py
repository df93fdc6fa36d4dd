"""Component configurations of the released checkpoints, for plans and benchmarks that need shapes
but no weights.

The values are those of the config.json files of the Hugging Face repositories; values that equal a
class's default are left out.
"""

from __future__ import annotations

import copy
from typing import Any

import jax.numpy as jnp

from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.pipelines.flux import FluxPipeline
from densegrpo_jax.pipelines.flux2 import Flux2KleinPipeline
from densegrpo_jax.pipelines.folder import build_pipeline
from densegrpo_jax.pipelines.sd3 import Sd3Pipeline
from densegrpo_jax.pipelines.sd15 import Sd15Pipeline
from densegrpo_jax.pipelines.zimage import ZImagePipeline

_VAE = dict(
    in_channels=3,
    out_channels=3,
    latent_channels=16,
    block_out_channels=[128, 256, 512, 512],
    layers_per_block=2,
    norm_num_groups=32,
    use_quant_conv=False,
    use_post_quant_conv=False,
    down_block_types=['DownEncoderBlock2D'] * 4,
    up_block_types=['UpDecoderBlock2D'] * 4,
)
_CLIP_L = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_attention_heads=12,
    eos_token_id=2,
    projection_dim=768,
)
_CLIP_G = _CLIP_L | dict(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    hidden_act='gelu',
    projection_dim=1280,
)
_T5_XXL = dict(
    vocab_size=32128,
    d_model=4096,
    d_kv=64,
    d_ff=10240,
    num_layers=24,
    num_heads=64,
    feed_forward_proj='gated-gelu',
)
_FLUX_VAE = _VAE | dict(scaling_factor=0.3611, shift_factor=0.1159)
_SD3_PARTS = dict(
    vae=_VAE | dict(scaling_factor=1.5305, shift_factor=0.0609),
    text_encoder=_CLIP_L,
    text_encoder_2=_CLIP_G,
    text_encoder_3=_T5_XXL,
)
_SD35 = dict(sample_size=128, pos_embed_max_size=192, qk_norm='rms_norm')
_DYNAMIC_SHIFT = dict(
    base_image_seq_len=256,
    base_shift=0.5,
    max_image_seq_len=4096,
    max_shift=1.15,
    shift=3.0,
    use_dynamic_shifting=True,
)

_SD1_SCHEDULER = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule='scaled_linear',
    num_train_timesteps=1000,
    set_alpha_to_one=False,
    steps_offset=1,
    clip_sample=False,
    skip_prk_steps=True,
)


_QWEN3_4B = dict(
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_key_value_heads=8,
    rope_theta=1000000,
)


def _zimage(shift: float) -> tuple[type[Pipeline], dict, dict[str, dict]]:
    """Z-Image or, with another shift of the grid, Z-Image-Turbo."""
    parts = dict(
        transformer=dict(axes_lens=[1536, 512, 512]), vae=_FLUX_VAE, text_encoder=_QWEN3_4B
    )
    return ZImagePipeline, dict(shift=shift, use_dynamic_shifting=False), parts


def _klein(size: str, distilled: bool) -> tuple[type[Pipeline], dict, dict[str, dict]]:
    """FLUX.2 [klein] of 4B, with Qwen3-4B, or of 9B, with Qwen3-8B."""
    transformer, sizes = {
        '4B': (dict(num_layers=5, num_single_layers=20, num_attention_heads=24), {}),
        '9B': (
            dict(num_layers=8, num_single_layers=24, num_attention_heads=32),
            dict(hidden_size=4096, intermediate_size=12288),
        ),
    }[size]
    text = _QWEN3_4B | sizes
    joint = dict(joint_attention_dim=3 * text['hidden_size'], guidance_embeds=False)
    return (
        Flux2KleinPipeline,
        _DYNAMIC_SHIFT,
        dict(
            transformer=transformer | joint,
            vae={},
            text_encoder=text,
            pipeline=dict(is_distilled=distilled),
        ),
    )


#: Hugging Face id -> (pipeline class, scheduler_config.json, config.json of every component).
RELEASED: dict[str, tuple[type[Pipeline], dict, dict[str, dict]]] = {
    'black-forest-labs/FLUX.1-dev': (
        FluxPipeline,
        _DYNAMIC_SHIFT,
        dict(
            transformer=dict(guidance_embeds=True),
            vae=_FLUX_VAE,
            text_encoder=_CLIP_L,
            text_encoder_2=_T5_XXL,
        ),
    ),
    'black-forest-labs/FLUX.1-schnell': (
        FluxPipeline,
        dict(shift=1.0, use_dynamic_shifting=False),
        dict(
            transformer=dict(guidance_embeds=False),
            vae=_FLUX_VAE,
            text_encoder=_CLIP_L,
            text_encoder_2=_T5_XXL,
        ),
    ),
    'black-forest-labs/FLUX.2-klein-4B': _klein('4B', distilled=True),
    'black-forest-labs/FLUX.2-klein-base-4B': _klein('4B', distilled=False),
    'black-forest-labs/FLUX.2-klein-9B': _klein('9B', distilled=True),
    'black-forest-labs/FLUX.2-klein-base-9B': _klein('9B', distilled=False),
    'Tongyi-MAI/Z-Image': _zimage(shift=6.0),
    'Tongyi-MAI/Z-Image-Turbo': _zimage(shift=3.0),
    'stabilityai/stable-diffusion-3.5-medium': (
        Sd3Pipeline,
        dict(shift=3.0),
        _SD3_PARTS
        | dict(
            transformer=_SD35
            | dict(
                num_layers=24,
                num_attention_heads=24,
                caption_projection_dim=1536,
                pos_embed_max_size=384,
                dual_attention_layers=list(range(13)),
            )
        ),
    ),
    'stabilityai/stable-diffusion-3.5-large': (
        Sd3Pipeline,
        dict(shift=3.0),
        _SD3_PARTS
        | dict(
            transformer=_SD35
            | dict(num_layers=38, num_attention_heads=38, caption_projection_dim=2432)
        ),
    ),
    'stable-diffusion-v1-5/stable-diffusion-v1-5': (
        Sd15Pipeline,
        _SD1_SCHEDULER,
        dict(
            transformer=dict(cross_attention_dim=768),
            vae=_VAE
            | dict(
                latent_channels=4,
                scaling_factor=0.18215,
                use_quant_conv=True,
                use_post_quant_conv=True,
            ),
            text_encoder=_CLIP_L,
        ),
    ),
}


def released_pipeline(
    name: str, *, scan: bool = True, dtype: Any = jnp.bfloat16, **options
) -> Pipeline:
    """The pipeline of a released checkpoint without weights and tokenizers: for shapes, compilation
    and random weights.

    options: those of `build_pipeline`; text_length is required.

    Raises ValueError for a name that is not in RELEASED.
    """
    if name not in RELEASED:
        raise ValueError(f'{name!r} is not one of the known checkpoints {sorted(RELEASED)}')
    kind, scheduler, configs = RELEASED[name]
    tokenizers = (None,) * len(kind.TEXT_ENCODERS)
    return build_pipeline(
        copy.deepcopy(configs), scheduler, tokenizers, kind=kind, scan=scan, dtype=dtype, **options
    )

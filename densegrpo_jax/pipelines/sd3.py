"""Stable Diffusion 3 and 3.5: latents as images, three text encoders in one sequence,
classifier-free guidance.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.core.schedules import sigmas_from_scheduler
from densegrpo_jax.networks import clip_text, sd3, t5, vae
from densegrpo_jax.pipelines import parts
from densegrpo_jax.pipelines.base import Conditioning, Pipeline
from densegrpo_jax.pipelines.packing import token_grid
from densegrpo_jax.pipelines.text_encoder import TextEncoder


def _sd35(**transformer) -> tuple[dict, dict[str, dict]]:
    """Stable Diffusion 3.5 with a transformer of the given size."""
    common = dict(sample_size=128, pos_embed_max_size=192, qk_norm='rms_norm')
    return dict(shift=3.0), dict(
        transformer=common | transformer,
        vae=parts.VAE | dict(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=parts.CLIP_L,
        text_encoder_2=parts.CLIP_G,
        text_encoder_3=parts.T5_XXL,
    )


class Sd3Pipeline(Pipeline):
    """Latents are [B, height / 8, width / 8, 16]."""

    CLASS_NAME = 'StableDiffusion3Pipeline'
    INDEX = {
        'transformer': ('diffusers', sd3.CLASS_NAME),
        'vae': ('diffusers', 'AutoencoderKL'),
        'text_encoder': ('transformers', 'CLIPTextModelWithProjection'),
        'text_encoder_2': ('transformers', 'CLIPTextModelWithProjection'),
        'text_encoder_3': ('transformers', 'T5EncoderModel'),
    }
    TEXT_ENCODERS = (
        TextEncoder('text_encoder', 'tokenizer', 'CLIPTokenizer'),
        TextEncoder('text_encoder_2', 'tokenizer_2', 'CLIPTokenizer'),
        TextEncoder('text_encoder_3', 'tokenizer_3', 'T5TokenizerFast', chosen_length=True),
    )
    GUIDANCE = 'cfg'
    RELEASED = {
        'stabilityai/stable-diffusion-3.5-medium': _sd35(
            num_layers=24,
            num_attention_heads=24,
            caption_projection_dim=1536,
            pos_embed_max_size=384,
            dual_attention_layers=list(range(13)),
        ),
        'stabilityai/stable-diffusion-3.5-large': _sd35(
            num_layers=38, num_attention_heads=38, caption_projection_dim=2432
        ),
    }

    @classmethod
    def build_modules(cls, configs, *, lora, scan, remat, dtype, attend):
        clip = lambda name: clip_text.ClipTextModel(
            clip_text.ClipTextConfig.from_json(configs[name]), projected=True, penultimate=True
        )
        return {
            'transformer': sd3.Sd3Transformer(
                sd3.Sd3Config.from_json(configs['transformer']),
                scan=scan,
                remat=remat,
                lora=lora,
                dtype=dtype,
                attend=attend,
            ),
            'vae': vae.AutoencoderKL(vae.VaeConfig.from_json(configs['vae'])),
            'text_encoder': clip('text_encoder'),
            'text_encoder_2': clip('text_encoder_2'),
            'text_encoder_3': t5.T5Encoder(t5.T5Config.from_json(configs['text_encoder_3'])),
        }

    def sigmas(self, num_steps, height, width):
        tokens = int(np.prod(token_grid(height, width)))
        return sigmas_from_scheduler(self.scheduler, num_steps, tokens, own_range=True)

    def latent_shape(self, height, width):
        token_grid(height, width)  # both sides must be divisible by 16
        factor = self.vae.config.downscale
        return height // factor, width // factor, self.transformer.config.in_channels

    @property
    def text_tokens(self):
        return self.modules['text_encoder'].config.max_position_embeddings + self.text_length

    @property
    def token_lengths(self):
        length = self.tokenizers[0].model_max_length  # of both CLIPs, as in Diffusers
        return length, length, self.text_length

    def encode(
        self, params: dict, clip_ids: jax.Array, clip_ids_2: jax.Array, t5_ids: jax.Array
    ) -> Conditioning:
        """The CLIPs' penultimate states side by side, zero-padded to T5's width, then T5's states;
        no mask, as in Diffusers.
        """
        apply = lambda name, ids: self.modules[name].apply({'params': params[name]}, ids)
        states, pooled = apply('text_encoder', clip_ids)
        states_2, pooled_2 = apply('text_encoder_2', clip_ids_2)
        text = apply('text_encoder_3', t5_ids)
        clip = jnp.concatenate([states, states_2], axis=-1).astype(text.dtype)
        clip = jnp.pad(clip, ((0, 0), (0, 0), (0, text.shape[-1] - clip.shape[-1])))
        return {
            'context': jnp.concatenate([clip, text], axis=1),
            'pooled': jnp.concatenate([pooled, pooled_2], axis=-1),
        }

    def network_fn(self, base, adapters, conditioning, guidance, height, width):
        del guidance, height, width
        return lambda x, s: self.apply_transformer(
            base, adapters, x, conditioning['context'], conditioning['pooled'], s
        )

    def image_tokens(self, height, width):
        rows, columns, _ = self.latent_shape(height, width)
        return rows * columns // self.transformer.config.patch_size**2

    def example_inputs(self, name):
        if name != 'transformer':
            return super().example_inputs(name)
        c = self.transformer.config
        x, text = (
            jnp.zeros((1, c.patch_size, c.patch_size, c.in_channels)),
            jnp.zeros((1, 1, c.joint_attention_dim)),
        )
        return x, text, jnp.zeros((1, c.pooled_projection_dim)), jnp.zeros(1)

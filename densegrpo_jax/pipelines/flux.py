"""FLUX.1 (and the miniature): packed latents, CLIP's pooled state and T5's states, guidance as an
input of the network.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.networks import clip_text, flux, t5, vae
from densegrpo_jax.pipelines import parts
from densegrpo_jax.pipelines.base import Conditioning
from densegrpo_jax.pipelines.packed import PackedPipeline
from densegrpo_jax.pipelines.packing import latent_image_ids
from densegrpo_jax.pipelines.text_encoder import TextEncoder
from densegrpo_jax.pipelines.weights import originals

_PARTS = dict(vae=parts.FLUX_VAE, text_encoder=parts.CLIP_L, text_encoder_2=parts.T5_XXL)


class FluxPipeline(PackedPipeline):
    """Latents are packed: [B, (height / 16) (width / 16), 64]."""

    CLASS_NAME = 'FluxPipeline'
    INDEX = {
        'transformer': ('diffusers', flux.CLASS_NAME),
        'vae': ('diffusers', 'AutoencoderKL'),
        'text_encoder': ('transformers', 'CLIPTextModel'),
        'text_encoder_2': ('transformers', 'T5EncoderModel'),
    }
    TEXT_ENCODERS = (
        TextEncoder('text_encoder', 'tokenizer', 'CLIPTokenizer'),
        TextEncoder('text_encoder_2', 'tokenizer_2', 'T5TokenizerFast', chosen_length=True),
    )
    ORIGINAL = originals.FLUX
    GUIDANCE = 'embedding'
    RELEASED = {
        'black-forest-labs/FLUX.1-dev': (
            parts.DYNAMIC_SHIFT,
            _PARTS | dict(transformer=dict(guidance_embeds=True)),
        ),
        'black-forest-labs/FLUX.1-schnell': (
            dict(shift=1.0, use_dynamic_shifting=False),
            _PARTS | dict(transformer=dict(guidance_embeds=False)),
        ),
    }

    @classmethod
    def build_modules(cls, configs, *, lora, scan, remat, dtype, attend):
        return {
            'transformer': flux.FluxTransformer(
                flux.FluxConfig.from_json(configs['transformer']),
                scan=scan,
                remat=remat,
                lora=lora,
                dtype=dtype,
                attend=attend,
            ),
            'vae': vae.AutoencoderKL(vae.VaeConfig.from_json(configs['vae'])),
            'text_encoder': clip_text.ClipTextModel(
                clip_text.ClipTextConfig.from_json(configs['text_encoder'])
            ),
            'text_encoder_2': t5.T5Encoder(t5.T5Config.from_json(configs['text_encoder_2'])),
        }

    def encode(self, params: dict, clip_ids: jax.Array, t5_ids: jax.Array) -> Conditioning:
        """T5 sees the padding, as in Diffusers, which passes no mask."""
        _, pooled = self.modules['text_encoder'].apply({'params': params['text_encoder']}, clip_ids)
        context = self.modules['text_encoder_2'].apply({'params': params['text_encoder_2']}, t5_ids)
        return {'context': context, 'pooled': pooled}

    def distilled(self, guidance, steps):
        """FLUX.1-schnell, whose grid does not depend on the size either."""
        dynamic = self.scheduler.get('use_dynamic_shifting', False)
        return not (self.transformer.config.guidance_embeds or dynamic)

    def network_fn(self, base, adapters, conditioning, guidance, height, width):
        img_ids = latent_image_ids(height, width)
        txt_ids = np.zeros((conditioning['context'].shape[1], 3), np.float32)

        def velocity(x, s):
            scale = (
                jnp.broadcast_to(jnp.asarray(guidance, jnp.float32), s.shape)
                if self.transformer.config.guidance_embeds
                else None
            )
            return self.apply_transformer(
                base,
                adapters,
                x,
                conditioning['context'],
                conditioning['pooled'],
                s,
                scale,
                img_ids,
                txt_ids,
            )

        return velocity

    def example_inputs(self, name):
        if name != 'transformer':
            return super().example_inputs(name)
        c = self.transformer.config
        x, text = jnp.zeros((1, 1, c.in_channels)), jnp.zeros((1, 1, c.joint_attention_dim))
        pooled, s, position = (
            jnp.zeros((1, c.pooled_projection_dim)),
            jnp.zeros(1),
            jnp.zeros((1, len(c.axes_dims_rope))),
        )
        return x, text, pooled, s, s if c.guidance_embeds else None, position, position

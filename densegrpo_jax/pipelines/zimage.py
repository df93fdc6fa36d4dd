"""Z-Image: latents as images, the last but one layer of Qwen3 with a mask, classifier-free
guidance; the network's time and sign are the opposite of FLUX's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from densegrpo_jax.networks import attention, qwen3, vae, zimage
from densegrpo_jax.pipelines import parts
from densegrpo_jax.pipelines.base import Conditioning, Pipeline
from densegrpo_jax.pipelines.packing import token_grid
from densegrpo_jax.pipelines.text_encoder import TextEncoder
from densegrpo_jax.pipelines.weights import originals

TEXT_LAYER = -2  # of the text encoder's hidden states
_PARTS = dict(
    transformer=dict(axes_lens=[1536, 512, 512]), vae=parts.FLUX_VAE, text_encoder=parts.QWEN3_4B
)


class ZImagePipeline(Pipeline):
    """Latents are [B, height / 8, width / 8, 16].

    `guidance` w is that of the other families, v_negative + w (v - v_negative). ZImagePipeline of
    Diffusers counts from 0: its `guidance_scale` is w - 1.
    """

    CLASS_NAME = 'ZImagePipeline'
    INDEX = {
        'transformer': ('diffusers', zimage.CLASS_NAME),
        'vae': ('diffusers', 'AutoencoderKL'),
        'text_encoder': ('transformers', 'Qwen3Model'),
    }
    TEXT_ENCODERS = (
        TextEncoder(
            'text_encoder', 'tokenizer', 'Qwen2Tokenizer', chosen_length=True, thinking=True
        ),
    )
    ORIGINAL = originals.Z_IMAGE
    GUIDANCE = 'cfg'
    RELEASED = {
        'Tongyi-MAI/Z-Image': (dict(shift=6.0, use_dynamic_shifting=False), _PARTS),
        'Tongyi-MAI/Z-Image-Turbo': (dict(shift=3.0, use_dynamic_shifting=False), _PARTS),
    }

    @classmethod
    def build_modules(cls, configs, *, lora, scan, remat, dtype, attend):
        transformer = zimage.ZImageConfig.from_json(configs['transformer'])
        autoencoder = vae.VaeConfig.from_json(configs['vae'])
        text = qwen3.Qwen3Config.from_json(configs['text_encoder'])
        for key, value, of in (
            ('cap_feat_dim', text.hidden_size, "the text encoder's hidden_size"),
            ('in_channels', autoencoder.latent_channels, "the autoencoder's latent_channels"),
        ):
            if (found := getattr(transformer, key)) != value:
                raise ValueError(f'transformer config: {key}={found!r}, expected {value!r}: {of}')
        attention.check_prefix(attend)
        return {
            'transformer': zimage.ZImageTransformer(
                transformer, scan=scan, remat=remat, lora=lora, dtype=dtype, attend=attend
            ),
            'vae': vae.AutoencoderKL(autoencoder),
            'text_encoder': qwen3.Qwen3Encoder(text, (TEXT_LAYER,), dtype=dtype),
        }

    def latent_shape(self, height, width):
        zimage.check_positions(
            self.transformer.config, self.text_tokens, *token_grid(height, width)
        )
        factor = self.vae.config.downscale
        return height // factor, width // factor, self.transformer.config.in_channels

    def conditioning_shapes(self, batch):
        shape = batch, self.text_tokens, self.transformer.config.cap_feat_dim
        return {
            'context': jax.ShapeDtypeStruct(shape, self.transformer.dtype),
            'mask': jax.ShapeDtypeStruct(shape[:2], jnp.bool_),
        }

    def encode(self, params: dict, ids: jax.Array, mask: jax.Array) -> Conditioning:
        """The prompt's tokens first, whatever side the tokenizer pads."""
        states = self.modules['text_encoder'].apply({'params': params['text_encoder']}, ids, mask)
        order = jnp.argsort(~mask, axis=1, stable=True)
        context = jnp.take_along_axis(states[:, :, 0], order[..., None], axis=1)
        return {'context': context, 'mask': jnp.take_along_axis(mask, order, axis=1)}

    def distilled(self, guidance, steps):
        """Files of Z-Image-Turbo differ from the base's by their weights alone."""
        return guidance == 1 and steps <= 8

    def diffusers_guidance(self, guidance):
        return guidance - 1

    def network_fn(self, base, adapters, conditioning, guidance, height, width):
        """The network predicts x_0 - ε from the time 1 - s."""
        del guidance, height, width
        text = conditioning['context'], conditioning['mask']
        return lambda x, s: -self.apply_transformer(base, adapters, x, *text, 1 - s)

    def example_inputs(self, name):
        if name != 'transformer':
            return super().example_inputs(name)
        c = self.transformer.config
        x, text = jnp.zeros((1, 2, 2, c.in_channels)), jnp.zeros((1, 2, c.cap_feat_dim))
        return x, text, jnp.ones((1, 2), bool), jnp.zeros(1)

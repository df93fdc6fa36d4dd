"""Stable Diffusion 1: a diffusion model with a U-Net that predicts noise, brought to flow variables
(core/diffusion_path.py).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from densegrpo_jax.core import diffusion_path
from densegrpo_jax.networks import attention, clip_text, unet, unet_config, vae
from densegrpo_jax.pipelines import parts
from densegrpo_jax.pipelines.base import Conditioning, Pipeline
from densegrpo_jax.pipelines.text_encoder import TextEncoder
from densegrpo_jax.pipelines.weights import originals

_SCHEDULER = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule='scaled_linear',
    num_train_timesteps=1000,
    set_alpha_to_one=False,
    steps_offset=1,
    clip_sample=False,
    skip_prk_steps=True,
)


class Sd15Pipeline(Pipeline):
    """Latents are z = x / (alpha + sigma), [B, height / 8, width / 8, 4]; x are the U-Net's own
    latents.
    """

    CLASS_NAME = 'StableDiffusionPipeline'
    INDEX = {
        'transformer': ('diffusers', unet_config.CLASS_NAME),
        'vae': ('diffusers', 'AutoencoderKL'),
        'text_encoder': ('transformers', 'CLIPTextModel'),
    }
    DENOISER = 'unet'
    ORIGINAL = originals.SD15
    SCHEDULER = 'DDIMScheduler'
    TEXT_ENCODERS = (TextEncoder('text_encoder', 'tokenizer', 'CLIPTokenizer'),)
    GUIDANCE = 'cfg'
    RELEASED = {
        'stable-diffusion-v1-5/stable-diffusion-v1-5': (
            _SCHEDULER,
            dict(
                transformer=dict(cross_attention_dim=768),
                vae=parts.VAE
                | dict(
                    latent_channels=4,
                    scaling_factor=0.18215,
                    use_quant_conv=True,
                    use_post_quant_conv=True,
                ),
                text_encoder=parts.CLIP_L,
            ),
        )
    }

    @classmethod
    def build_modules(cls, configs, *, lora, scan, remat, dtype, attend):
        if scan or remat != 'none':
            raise ValueError(
                "Stable Diffusion 1's U-Net has blocks of different shapes: set model.scan=False "
                "and model.remat='none'"
            )
        if attention.kernel(attend) is not attention.xla:
            raise ValueError(
                "Stable Diffusion 1's U-Net has attention over few tokens only: set "
                "model.attention='xla'"
            )
        return {
            'transformer': unet.Unet(
                unet_config.UnetConfig.from_json(configs['transformer']), lora=lora, dtype=dtype
            ),
            'vae': vae.AutoencoderKL(vae.VaeConfig.from_json(configs['vae'])),
            'text_encoder': clip_text.ClipTextModel(
                clip_text.ClipTextConfig.from_json(configs['text_encoder'])
            ),
        }

    def sigmas(self, num_steps, height, width):
        """The grid of Diffusers' DDIMScheduler as noise levels; it starts below 1 and may end above
        0.
        """
        return diffusion_path.ddim_grid(self.scheduler, num_steps)

    def initial_scale(self, sigmas):
        return float(diffusion_path.scale(sigmas[0]))

    def latent_shape(self, height, width):
        unit = self.vae.config.downscale * self.transformer.config.downscale
        for name, value in (('height', height), ('width', width)):
            if value <= 0 or value % unit:
                raise ValueError(
                    f'{name}={value} is not a positive multiple of {unit}; nearest: '
                    f'{max(1, round(value / unit)) * unit}'
                )
        factor = self.vae.config.downscale
        return height // factor, width // factor, self.transformer.config.in_channels

    def encode(self, params: dict, clip_ids: jax.Array) -> Conditioning:
        """CLIP's last states; the pooled state is not used."""
        context, _ = self.modules['text_encoder'].apply(
            {'params': params['text_encoder']}, clip_ids
        )
        return {'context': context}

    @property
    def text_tokens(self):
        return self.modules['text_encoder'].config.max_position_embeddings

    def conditioning_shapes(self, batch):
        shape = batch, self.text_tokens, self.modules['text_encoder'].config.hidden_size
        return {'context': jax.ShapeDtypeStruct(shape, self.transformer.dtype)}

    def network_fn(self, base, adapters, conditioning, guidance, height, width):
        del guidance, height, width
        noise = lambda x, timestep: self.apply_transformer(
            base, adapters, x, conditioning['context'], timestep
        )
        return diffusion_path.velocity_from_noise(noise, self.scheduler)

    def spatial(self, latents, height, width):
        return latents / self.end_scale

    def from_spatial(self, z, height, width):
        return z * self.end_scale

    @property
    def end_scale(self):
        """The scheduler's grid may end above s = 0, where z = scale(s) x (core/diffusion_path)."""
        return diffusion_path.scale(float(diffusion_path.ddim_grid(self.scheduler, 1)[-1]))

    def example_inputs(self, name):
        if name != 'transformer':
            return super().example_inputs(name)
        c = self.transformer.config
        x = jnp.zeros((1, c.downscale, c.downscale, c.in_channels))
        return x, jnp.zeros((1, 1, c.cross_attention_dim)), jnp.zeros(1)

"""FLUX.2 [klein]: packed and normalised latents, three layers of Qwen3 side by side;
classifier-free guidance for base models, none for distilled ones.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.core.schedules import sigmas_from_scheduler
from densegrpo_jax.networks import flux2, qwen3, vae_flux2
from densegrpo_jax.pipelines import parts
from densegrpo_jax.pipelines.base import Conditioning
from densegrpo_jax.pipelines.packed import PackedPipeline
from densegrpo_jax.pipelines.packing import latent_image_ids, token_grid
from densegrpo_jax.pipelines.text_encoder import TextEncoder
from densegrpo_jax.pipelines.weights import originals


def shift_mu(num_tokens: int, num_steps: int) -> float:
    """Shift of FLUX.2, which depends on the resolution and on the number of steps
    (`compute_empirical_mu` of Flux2KleinPipeline).

    Two lines in the number of image tokens were fitted at 10 and at 200 steps; others lie on the
    line through their values. Above 4,300 tokens that of 200 steps holds for all.

    Args:
        num_tokens: number of packed image tokens, e.g. 1024 at 512 x 512 px.
        num_steps: T.

    Returns:
        mu, a float: 2.03 at 1024 tokens and 4 steps.
    """
    at_200 = 0.00016927 * num_tokens + 0.45666666
    if num_tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * num_tokens + 1.89833333
    slope = (at_200 - at_10) / 190
    return slope * num_steps + (at_200 - 200 * slope)


def _klein(size: str, distilled: bool) -> tuple[dict, dict[str, dict]]:
    """FLUX.2 [klein] of 4B, with Qwen3-4B, or of 9B, with Qwen3-8B."""
    transformer, sizes = {
        '4B': (dict(num_layers=5, num_single_layers=20, num_attention_heads=24), {}),
        '9B': (
            dict(num_layers=8, num_single_layers=24, num_attention_heads=32),
            dict(hidden_size=4096, intermediate_size=12288),
        ),
    }[size]
    text = parts.QWEN3_4B | sizes
    joint = dict(joint_attention_dim=3 * text['hidden_size'], guidance_embeds=False)
    return parts.DYNAMIC_SHIFT, dict(
        transformer=transformer | joint,
        vae={},
        text_encoder=text,
        pipeline=dict(is_distilled=distilled),
    )


class Flux2KleinPipeline(PackedPipeline):
    """Latents are packed: [B, (height / 16) (width / 16), 128].

    The transformer gets no mask: it attends to the padding of a prompt, as in Diffusers, so the
    number of tokens (512 there) is part of the conditioning.
    """

    CLASS_NAME = 'Flux2KleinPipeline'
    INDEX = {
        'transformer': ('diffusers', flux2.CLASS_NAME),
        'vae': ('diffusers', vae_flux2.CLASS_NAME),
        'text_encoder': ('transformers', 'Qwen3ForCausalLM'),
    }
    TEXT_ENCODERS = (
        TextEncoder(
            'text_encoder', 'tokenizer', 'Qwen2TokenizerFast', chosen_length=True, thinking=False
        ),
    )
    ORIGINAL = originals.FLUX2
    OPTIONS = {'is_distilled': False}
    GUIDANCE = 'cfg'
    RELEASED = {
        'black-forest-labs/FLUX.2-klein-4B': _klein('4B', distilled=True),
        'black-forest-labs/FLUX.2-klein-base-4B': _klein('4B', distilled=False),
        'black-forest-labs/FLUX.2-klein-9B': _klein('9B', distilled=True),
        'black-forest-labs/FLUX.2-klein-base-9B': _klein('9B', distilled=False),
    }
    # whose states are the conditioning: a quarter, half and three quarters of Qwen3's 36
    TEXT_LAYERS = (9, 18, 27)

    @classmethod
    def build_modules(cls, configs, *, lora, scan, remat, dtype, attend):
        transformer = flux2.Flux2Config.from_json(configs['transformer'])
        autoencoder = vae_flux2.Flux2VaeConfig.from_json(configs['vae'])
        text = qwen3.Qwen3Config.from_json(configs['text_encoder'])
        count = len(cls.TEXT_LAYERS)
        wanted = {
            'joint_attention_dim': (
                count * text.hidden_size,
                f"{count} layers of the text encoder's hidden_size={text.hidden_size}",
            ),
            'in_channels': (
                autoencoder.packed_channels,
                f"2x2 of the autoencoder's latent_channels={autoencoder.latent_channels}",
            ),
            'guidance_embeds': (False, 'the guidance of klein is no input of the network'),
        }
        for key, (value, reason) in wanted.items():
            if (found := getattr(transformer, key)) != value:
                raise ValueError(
                    f'transformer config: {key}={found!r}, expected {value!r}: {reason}'
                )
        encoder = qwen3.Qwen3Encoder(text, cls.TEXT_LAYERS, dtype=dtype)
        encoder.chosen()  # that there are as many layers
        return {
            'transformer': flux2.Flux2Transformer(
                transformer, scan=scan, remat=remat, lora=lora, dtype=dtype, attend=attend
            ),
            'vae': vae_flux2.AutoencoderKLFlux2(autoencoder),
            'text_encoder': encoder,
        }

    def sigmas(self, num_steps, height, width):
        rows, cols = token_grid(height, width)
        return sigmas_from_scheduler(self.scheduler, num_steps, rows * cols, shift_mu=shift_mu)

    def conditioning_shapes(self, batch):
        shape = batch, self.text_tokens, self.transformer.config.joint_attention_dim
        return {'context': jax.ShapeDtypeStruct(shape, self.transformer.dtype)}

    def takes_negative(self, guidance):
        """A distilled model ignores guidance."""
        return super().takes_negative(guidance) and not self.options['is_distilled']

    def distilled(self, guidance, steps):
        return self.options['is_distilled']

    def encode(self, params: dict, ids: jax.Array, mask: jax.Array) -> Conditioning:
        """The chosen layers' states of a token, side by side."""
        states = self.modules['text_encoder'].apply({'params': params['text_encoder']}, ids, mask)
        return {'context': states.reshape(*states.shape[:2], -1)}

    def network_fn(self, base, adapters, conditioning, guidance, height, width):
        del guidance
        text = conditioning['context']
        # Positions are (time, row, column, place in the text).
        places = np.zeros((text.shape[1], 4))
        places[:, 3] = np.arange(text.shape[1])
        image = np.pad(latent_image_ids(height, width), ((0, 0), (0, 1)))
        rope = flux2.rope_tables(np.concatenate([places, image]), self.transformer.config)
        return lambda x, s: self.apply_transformer(base, adapters, x, text, s, None, rope)

    def _statistics(self, params: dict) -> tuple[jax.Array, jax.Array]:
        return self.vae.apply({'params': params['vae']}, method='statistics')

    def to_vae(self, params, latents, height, width):
        mean, deviation = self._statistics(params)
        return self.spatial(latents * deviation + mean, height, width)

    def from_vae(self, params, z, height, width):
        mean, deviation = self._statistics(params)
        return (self.from_spatial(z, height, width) - mean) / deviation

    def example_inputs(self, name):
        if name != 'transformer':
            return super().example_inputs(name)
        c = self.transformer.config
        x, text = jnp.zeros((1, 1, c.in_channels)), jnp.zeros((1, 1, c.joint_attention_dim))
        return x, text, jnp.zeros(1), None, (jnp.zeros((2, c.attention_head_dim)),) * 2

"""A whole family with a network of its own, as small as they get: what `CONTRIBUTING.md` lists, and
nothing else. In the package the network would be a file of networks/, the pipeline one of
pipelines/.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from densegrpo_jax.networks import clip_text, layers, t5, vae
from densegrpo_jax.networks import lora as lora_lib
from densegrpo_jax.networks.config_json import read_config
from densegrpo_jax.networks.mmdit import LayerTable, Stack, StackedNetwork, stack
from densegrpo_jax.pipelines import parts
from densegrpo_jax.pipelines.flux import FluxPipeline

NETWORK = 'PlainTransformer'  # its class in model_index.json
LORA_TARGETS = ('widen', 'narrow')  # where adapters are trained
OUTSIDE = ('prompt', 'enter', 'leave')


@dataclasses.dataclass(frozen=True)
class PlainConfig:
    """The network's config.json."""

    in_channels: int = 64
    width: int = 64
    num_layers: int = 2
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768

    @classmethod
    def from_json(cls, config):
        return read_config(
            cls, 'transformer config', config, only={'_class_name': [NETWORK]}, ignored=()
        )


class Stage(nn.Module):
    """Two layers per token; the prompt is added."""

    adapters: lora_lib.Adapters | None
    dtype: Any

    @nn.compact
    def __call__(self, x, prompt):
        dense = lambda n, name: layers.Dense(n, self.adapters, self.dtype, name=name)
        hidden = nn.silu(dense(2 * x.shape[-1], 'widen')(x + prompt[:, None]))
        return x + dense(x.shape[-1], 'narrow')(hidden), None


class PlainTransformer(StackedNetwork):
    """The velocity network."""

    config: PlainConfig

    COLUMN = ('prompt', 'enter', 'widen')
    ROW = ('narrow', 'leave')
    BLOCKS = ('stages',)

    def table(self):
        """Its layers, by their names in the checkpoint."""
        stages = Stack('stages', 'stages', range(self.config.num_layers), LORA_TARGETS)
        return LayerTable({name: name for name in OUTSIDE}, [stages])

    @nn.compact
    def __call__(self, latents, text, pooled, timestep):
        c, compiled = self.config, dict(scan=self.scan, remat=self.remat)
        adapters = lora_lib.resolve(self.lora, self.module_paths())
        block = dict(adapters=adapters, dtype=self.dtype)
        dense = lambda features, name: layers.Dense(features, **block, name=name)
        time = layers.timestep_embedding(1000 * timestep)
        prompt = dense(c.width, 'prompt')(jnp.concatenate([text.mean(1), pooled, time], -1))
        x = dense(c.width, 'enter')(latents)
        x = stack(Stage, c.num_layers, 'stages', block, x, prompt, **compiled)
        return dense(c.in_channels, 'leave')(x).astype(jnp.float32)


class PlainPipeline(FluxPipeline):
    """FLUX.1's latents, grid, text encoders and autoencoder, with that network."""

    CLASS_NAME = 'PlainPipeline'
    INDEX = FluxPipeline.INDEX | {'transformer': ('diffusers', NETWORK)}
    ORIGINAL = None
    GUIDANCE = 'cfg'
    RELEASED = {
        'somebody/plain': (
            parts.DYNAMIC_SHIFT,
            dict(
                transformer=dict(width=2048),
                vae=parts.FLUX_VAE,
                text_encoder=parts.CLIP_L,
                text_encoder_2=parts.T5_XXL,
            ),
        )
    }

    @classmethod
    def build_modules(cls, configs, *, lora, scan, remat, dtype, attend):
        return {
            'transformer': PlainTransformer(
                PlainConfig.from_json(configs['transformer']), scan, remat, lora, dtype
            ),
            'vae': vae.AutoencoderKL(vae.VaeConfig.from_json(configs['vae'])),
            'text_encoder': clip_text.ClipTextModel(
                clip_text.ClipTextConfig.from_json(configs['text_encoder'])
            ),
            'text_encoder_2': t5.T5Encoder(t5.T5Config.from_json(configs['text_encoder_2'])),
        }

    def network_fn(self, base, adapters, conditioning, guidance, height, width):
        text = conditioning['context'], conditioning['pooled']
        return lambda x, s: self.apply_transformer(base, adapters, x, *text, s)

    def example_inputs(self, name):
        if name != 'transformer':
            return super().example_inputs(name)
        c = self.transformer.config
        x, text = jnp.zeros((1, 1, c.in_channels)), jnp.zeros((1, 1, c.joint_attention_dim))
        return x, text, jnp.zeros((1, c.pooled_projection_dim)), jnp.zeros(1)

"""What CLIP's two towers share: the transformer block and its rows of the weight tables (Radford et
al., arXiv:2103.00020).
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from densegrpo_jax.networks.config_json import check_positive
from densegrpo_jax.networks.encoder_layers import attention
from densegrpo_jax.networks.layers import Dense, LayerNorm
from densegrpo_jax.networks.weight_rules import WeightRule, linear_rules, norm_rules

# As in `Network`.
COLUMN = ('[qkv]_proj', 'fc1')
ROW = ('out_proj', 'fc2')

ACTIVATIONS = {
    'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),
    'gelu': lambda x: nn.gelu(x, approximate=False),
}


def check_tower(config, name: str) -> None:
    """Raises ValueError unless a tower's config can be built."""
    check_positive(config, name, zero=('eos_token_id',))
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f'{name}: hidden_size={config.hidden_size} must be a multiple of '
            f'num_attention_heads={config.num_attention_heads}'
        )
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(
            f'{name}: hidden_act={config.hidden_act!r} is not supported, expected one of '
            f'{sorted(ACTIVATIONS)}'
        )


class SelfAttention(nn.Module):
    """Multi-head attention on [B * L, D]; `bias` says which tokens attend to which."""

    config: Any
    batch: int
    dtype: Any

    @nn.compact
    def __call__(self, x, bias):
        c = self.config
        q, k, v = (Dense(c.hidden_size, dtype=self.dtype, name=f'{n}_proj')(x) for n in 'qkv')
        scale = (c.hidden_size // c.num_attention_heads) ** -0.5
        out = attention(q, k, v, bias, batch=self.batch, heads=c.num_attention_heads, scale=scale)
        return Dense(
            c.hidden_size, dtype=self.dtype, kernel_init=_residual_init(c), name='out_proj'
        )(out)


class Mlp(nn.Module):
    """Linear, activation, linear."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x):
        c = self.config
        hidden = ACTIVATIONS[c.hidden_act](
            Dense(c.intermediate_size, dtype=self.dtype, name='fc1')(x)
        )
        return Dense(c.hidden_size, dtype=self.dtype, kernel_init=_residual_init(c), name='fc2')(
            hidden
        )


class Block(nn.Module):
    """Pre-norm attention and MLP. Carry: [B * L, D] float32, the residual stream. config: either
    tower's.
    """

    config: Any
    batch: int
    dtype: Any

    @nn.compact
    def __call__(self, x, bias):
        norm = lambda name: LayerNorm(self.config.layer_norm_eps, name=name)(x)
        x = x + SelfAttention(self.config, self.batch, self.dtype, name='self_attn')(
            norm('layer_norm1'), bias
        ).astype(jnp.float32)
        x = x + Mlp(self.config, self.dtype, name='mlp')(norm('layer_norm2')).astype(jnp.float32)
        return x, None


def _residual_init(config):
    return nn.initializers.variance_scaling(
        1 / (2 * config.num_hidden_layers), 'fan_in', 'truncated_normal'
    )


def block_rules(scan: bool) -> list[WeightRule]:
    """The rows of a tower's blocks in Transformers' names; scanned blocks stack over their
    index.
    """
    source, target = 'encoder.layers.{i}', 'layers' if scan else 'layers_{i}'
    rules = norm_rules(f'{source}.{{p:layer_norm[12]}}', f'{target}/{{p}}')
    for name in ('self_attn.{p:[qkv]_proj|out_proj}', 'mlp.{p:fc[12]}'):
        rules += linear_rules(f'{source}.{name}', f'{target}/{name.replace(".", "/")}')
    return rules

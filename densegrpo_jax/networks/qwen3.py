"""Qwen3 (arXiv:2505.09388) as a text encoder: port of Transformers' Qwen3ForCausalLM, without its
head, which returns the states of chosen layers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from densegrpo_jax.networks.config_json import IGNORED_KEYS, check_positive, read_config
from densegrpo_jax.networks.encoder_layers import attention
from densegrpo_jax.networks.layers import Dense, RMSNorm
from densegrpo_jax.networks.network import Network
from densegrpo_jax.networks.weight_rules import WeightRule

NAME = 'Qwen3 config'


@dataclasses.dataclass(frozen=True)
class Qwen3Config:
    """The encoder's config.json; names and defaults are Transformers'. `num_attention_heads *
    head_dim` need not equal `hidden_size`, and each key and value serves
    `num_attention_heads / num_key_value_heads` heads.
    """

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    def __post_init__(self):
        check_positive(self, NAME)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f'{NAME}: num_attention_heads={self.num_attention_heads} must be a multiple of '
                f'num_key_value_heads={self.num_key_value_heads}'
            )
        if self.head_dim % 2:
            raise ValueError(
                f'{NAME}: head_dim={self.head_dim} must be even: its channels turn in pairs'
            )

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> 'Qwen3Config':
        """Reads a parsed config.json; an unknown key or an unsupported value is a ValueError that
        names it.
        """
        only = {
            'model_type': ['qwen3'],
            'hidden_act': ['silu'],
            'attention_bias': [False],
            'use_sliding_window': [False],
            'rope_scaling': [None],
        }
        kinds = config.get('layer_types') or []
        if other := sorted({str(kind) for kind in kinds} - {'full_attention'}):
            raise ValueError(
                f"{NAME}: layer_types holds {other[0]!r}; only 'full_attention' is supported"
            )
        # The window has no effect without use_sliding_window, and the positions no upper bound.
        unused = (
            'layer_types',
            'eos_token_id',
            'sliding_window',
            'max_window_layers',
            'max_position_embeddings',
        )
        return read_config(
            cls, NAME, _with_theta(config), only=only, ignored=(*IGNORED_KEYS, *unused)
        )


def _with_theta(config: Mapping[str, Any]) -> dict[str, Any]:
    """The file with `rope_theta` at its old place; Transformers 5 writes it into `rope_parameters`,
    beside the kind of the rotation.
    """
    config = dict(config)
    rope = config.pop('rope_parameters', None)
    if rope is None:
        return config
    known = {'rope_theta', 'rope_type'}
    if not isinstance(rope, dict) or set(rope) - known or rope.get('rope_type') != 'default':
        raise ValueError(
            f"{NAME}: rope_parameters={rope!r} is not supported, expected rope_type 'default' and "
            'rope_theta'
        )
    return config | {'rope_theta': rope.get('rope_theta', Qwen3Config.rope_theta)}


def rotary_tables(length: int, head_dim: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin), each float32 [L, d], of positions 0 to L - 1. Channel i and channel i + d/2 turn
    together (arXiv:2104.09864).
    """
    # float32 frequencies and products, as in the reference
    frequencies = (theta ** (-np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies
    angles = np.concatenate([angles, angles], axis=-1).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: jax.Array, cos: np.ndarray, sin: np.ndarray) -> jax.Array:
    """x [B, L, H, d] turned by tables [L, d], in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return x * cos[:, None] + turned * sin[:, None]


def causal_bias(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What tokens may attend to: themselves and earlier ones, of the prompt.

    Args:
      mask: bool [B, L], which tokens belong to the prompt; the others are padding.

    Returns:
      (bias float32 [B, 1, L, L] for the logits; bool [B, L], whether a token sees any: padding on
      the left sees none).
    """
    length = mask.shape[1]
    seen = np.tril(np.ones((length, length), bool)) & mask[:, None, :]
    lowest = jnp.finfo(jnp.float32).min
    return jnp.where(seen, 0.0, lowest)[:, None], seen.any(-1)


class SelfAttention(nn.Module):
    """Grouped-query attention with RMS-normalised queries and keys."""

    config: Qwen3Config
    dtype: Any

    @nn.compact
    def __call__(self, x, bias, sees, tables):
        c, (batch, length) = self.config, sees.shape

        def project(name, heads, norm=None):
            out = Dense(heads * c.head_dim, dtype=self.dtype, use_bias=False, name=name)(x)
            out = out.reshape(batch, length, heads, c.head_dim)
            if norm is None:
                return out
            return rotate(RMSNorm(c.rms_norm_eps, name=norm)(out), *tables).astype(self.dtype)

        q = project('q_proj', c.num_attention_heads, 'q_norm')
        k = project('k_proj', c.num_key_value_heads, 'k_norm')
        v = project('v_proj', c.num_key_value_heads)
        each = c.num_attention_heads // c.num_key_value_heads
        q, k, v = (
            part.reshape(batch * length, -1)
            for part in (q, jnp.repeat(k, each, axis=2), jnp.repeat(v, each, axis=2))
        )
        out = attention(
            q, k, v, bias, batch=batch, heads=c.num_attention_heads, scale=c.head_dim**-0.5
        )
        out = jnp.where(sees.reshape(-1, 1), out, 0)
        return Dense(c.hidden_size, dtype=self.dtype, use_bias=False, name='o_proj')(out)


class FeedForward(nn.Module):
    """SwiGLU: (silu(x gate) * x up) down."""

    config: Qwen3Config
    dtype: Any

    @nn.compact
    def __call__(self, x):
        dense = lambda features, name: Dense(features, dtype=self.dtype, use_bias=False, name=name)
        width = self.config.intermediate_size
        hidden = nn.silu(dense(width, 'gate_proj')(x)) * dense(width, 'up_proj')(x)
        return dense(self.config.hidden_size, 'down_proj')(hidden)


class Block(nn.Module):
    """Pre-norm attention and feed-forward. Carry: [B * L, D] float32, the residual stream."""

    config: Qwen3Config
    dtype: Any

    @nn.compact
    def __call__(self, x, *inputs):
        norm = lambda name: RMSNorm(self.config.rms_norm_eps, name=name)(x)
        x = x + SelfAttention(self.config, self.dtype, name='self_attn')(
            norm('input_layernorm'), *inputs
        ).astype(jnp.float32)
        return x + FeedForward(self.config, self.dtype, name='mlp')(
            norm('post_attention_layernorm')
        ).astype(jnp.float32)


class Qwen3Encoder(Network):
    """Token ids to the states of chosen layers.

    Attributes:
      config: the checkpoint's constants.
      layers: which states to return, as indices of Transformers' `hidden_states`: 0 is the
        embedding, k the result of k blocks, and the last one, num_hidden_layers, is normalised.
        Negative ones count from the end. What no chosen state depends on is not computed.
      dtype: of matrix products and of the result; norms, softmax, rotation and the residual stream
        are float32.
    """

    config: Qwen3Config
    layers: tuple[int, ...] = (-1,)
    dtype: Any = jnp.float32

    COLUMN = ('[qkv]_proj', 'gate_proj', 'up_proj')
    ROW = ('o_proj', 'down_proj')
    # Of the keys of Qwen3ForCausalLM but for its head; some folders of Qwen3Model hold its file.
    PREFIX = 'model.'
    BARE = ('Qwen3Model',)

    def chosen(self) -> tuple[int, ...]:
        """`layers`, none of them negative.

        Raises ValueError for an index beyond the number of blocks.
        """
        count = self.config.num_hidden_layers
        if beyond := [k for k in self.layers if not -count - 1 <= k <= count]:
            raise ValueError(
                f'{NAME}: the states of layers {list(self.layers)} are wanted, but '
                f'num_hidden_layers={count}: there is no {beyond[0]}'
            )
        return tuple(k % (count + 1) for k in self.layers)

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """ids int32 [B, L], mask bool [B, L] (False: padding) -> [B, L, len(layers), hidden_size]
        in `dtype`.

        Positions count from the first column, padding or not, as in Transformers.
        """
        c, chosen = self.config, self.chosen()
        batch, length = ids.shape
        x = nn.Embed(
            c.vocab_size,
            c.hidden_size,
            embedding_init=nn.initializers.normal(1.0),
            name='embed_tokens',
        )(ids.reshape(-1)).astype(jnp.float32)
        inputs = (*causal_bias(mask.astype(bool)), rotary_tables(length, c.head_dim, c.rope_theta))
        states = {0: x}
        for i in range(c.num_hidden_layers):
            states[i + 1] = x = Block(c, self.dtype, name=f'layers_{i}')(x, *inputs)
        states[c.num_hidden_layers] = RMSNorm(c.rms_norm_eps, name='norm')(x)
        found = jnp.stack([states[k] for k in chosen], axis=1)
        return found.reshape(batch, length, len(chosen), c.hidden_size).astype(self.dtype)

    def weight_rules(self) -> list[WeightRule]:
        source, target = 'layers.{i}', 'layers_{i}'
        return [
            WeightRule('embed_tokens.weight', 'embed_tokens/embedding', 'embedding'),
            WeightRule('lm_head.weight', None),  # may be tied to the embedding; not read
            WeightRule('norm.weight', 'norm/scale'),
            WeightRule(
                f'{source}.self_attn.{{p:[qkvo]_proj}}.weight',
                f'{target}/self_attn/{{p}}/kernel',
                'linear',
            ),
            WeightRule(
                f'{source}.mlp.{{p:gate_proj|up_proj|down_proj}}.weight',
                f'{target}/mlp/{{p}}/kernel',
                'linear',
            ),
            WeightRule(
                f'{source}.self_attn.{{n:[qk]_norm}}.weight', f'{target}/self_attn/{{n}}/scale'
            ),
            WeightRule(
                f'{source}.{{n:input_layernorm|post_attention_layernorm}}.weight',
                f'{target}/{{n}}/scale',
            ),
        ]

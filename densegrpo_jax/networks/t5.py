"""T5 encoder (Raffel et al., arXiv:1910.10683; v1.1 with gated GELU): port of Transformers'
T5EncoderModel.
"""

import dataclasses
import math
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

_FEED_FORWARD = ('relu', 'gated-gelu')


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The encoder's config.json; names and defaults are Transformers'. `num_heads * d_kv` need not
    equal `d_model`.
    """

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = 'relu'

    def __post_init__(self):
        check_positive(self, 'T5 config')
        if self.feed_forward_proj not in _FEED_FORWARD:
            raise ValueError(
                f'T5 config: feed_forward_proj={self.feed_forward_proj!r} is not supported, '
                f'expected one of {_FEED_FORWARD}'
            )
        if (
            self.relative_attention_num_buckets % 4
            or self.relative_attention_max_distance <= self.relative_attention_num_buckets // 4
        ):
            raise ValueError(
                f'T5 config: relative_attention_num_buckets={self.relative_attention_num_buckets} '
                'must be a multiple of 4, and '
                f'relative_attention_max_distance={self.relative_attention_max_distance} more than '
                'a quarter of it'
            )

    @classmethod
    def from_json(cls, config: dict) -> 'T5Config':
        """Reads a parsed config.json; an unknown key or an unsupported value is a ValueError that
        names it.
        """
        only = {'model_type': ['t5'], 'is_decoder': [False], 'feed_forward_proj': _FEED_FORWARD}
        # Transformers derives these two from feed_forward_proj and ignores what the file says.
        return read_config(
            cls,
            'T5 config',
            config,
            only=only,
            ignored=(*IGNORED_KEYS, 'dense_act_fn', 'eos_token_id', 'is_gated_act'),
        )


def relative_position_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of every (query, key) pair, int32 [L, L], on the host.

    Half of the buckets are for keys after the query. Of each half, the first half counts single
    positions and the rest grows logarithmically up to max_distance, beyond which all distances
    share the last bucket.
    """
    relative = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = num_buckets // 2
    exact = half // 2
    distance = np.abs(relative)
    # float32 in this order, because a boundary such as log(2) / log(16) * 8 = 2 must be truncated
    # as the reference does. The logarithm alone is rounded from float64: the last bit of NumPy's
    # float32 depends on the CPU.
    times = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    logarithm = np.log(times.astype(np.float64)).astype(np.float32)
    ratio = logarithm / np.float32(math.log(max_distance / exact))
    large = np.minimum(exact + (ratio * np.float32(half - exact)).astype(np.int32), half - 1)
    return (np.where(distance < exact, distance, large) + half * (relative > 0)).astype(np.int32)


def _dense(features: int, std: float, dtype: Any, name: str) -> Dense:
    """x W without bias; Gaussian initialisation of the given std."""
    return Dense(
        features, dtype=dtype, kernel_init=nn.initializers.normal(std), use_bias=False, name=name
    )


class SelfAttention(nn.Module):
    """Multi-head attention without 1/sqrt(d): T5 folds that factor into the initialisation of q."""

    config: T5Config
    dtype: Any

    @nn.compact
    def __call__(self, x, bias, batch):
        c = self.config
        inner = c.num_heads * c.d_kv
        q = _dense(inner, (c.d_model * c.d_kv) ** -0.5, self.dtype, 'q')(x)
        k, v = (_dense(inner, c.d_model**-0.5, self.dtype, name)(x) for name in ('k', 'v'))
        out = attention(q, k, v, bias, batch=batch, heads=c.num_heads, scale=1.0)
        return _dense(c.d_model, inner**-0.5, self.dtype, 'o')(out)


class FeedForward(nn.Module):
    """relu(x wi) wo, or (gelu(x wi_0) * x wi_1) wo with the tanh approximation."""

    config: T5Config
    dtype: Any

    @nn.compact
    def __call__(self, x):
        c = self.config
        expand = lambda name: _dense(c.d_ff, c.d_model**-0.5, self.dtype, name)(x)
        if c.feed_forward_proj == 'relu':
            hidden = nn.relu(expand('wi'))
        else:
            hidden = nn.gelu(expand('wi_0'), approximate=True) * expand('wi_1')
        return _dense(c.d_model, c.d_ff**-0.5, self.dtype, 'wo')(hidden)


class Block(nn.Module):
    """Pre-norm attention and feed-forward. Carry: [B * L, D] float32, the residual stream."""

    config: T5Config
    batch: int
    dtype: Any

    @nn.compact
    def __call__(self, x, bias):
        norm = lambda name: RMSNorm(self.config.layer_norm_epsilon, name=name)(x)
        x = x + SelfAttention(self.config, self.dtype, name='SelfAttention')(
            norm('layer_norm_0'), bias, self.batch
        ).astype(jnp.float32)
        x = x + FeedForward(self.config, self.dtype, name='DenseReluDense')(
            norm('layer_norm_1')
        ).astype(jnp.float32)
        return x


class T5Encoder(Network):
    """Token ids to the states of the last layer.

    Attributes:
      config: the checkpoint's constants.
      dtype: of matrix products and of the result; norms, biases, softmax and the residual stream
        are float32.

    Fresh weights follow T5's own initialisation: embeddings of unit variance, every product
    variance-preserving.
    """

    config: T5Config
    dtype: Any = jnp.float32

    COLUMN = ('SelfAttention/[qkv]', 'wi(_[01])?')
    ROW = ('SelfAttention/o', 'wo')

    @staticmethod
    def layout(tensors: dict) -> dict:
        """The stored tensors with the embedding under the name that the rules know: some files hold
        it under the encoder's name alone.
        """
        alone, shared = 'encoder.embed_tokens.weight', 'shared.weight'
        if shared in tensors or alone not in tensors:
            return tensors
        return {shared if key == alone else key: value for key, value in tensors.items()}

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """ids [B, L] int32 -> [B, L, d_model] in `dtype`. Padding is attended to, as in Diffusers'
        pipelines.
        """
        c = self.config
        batch, length = ids.shape
        x = nn.Embed(
            c.vocab_size, c.d_model, embedding_init=nn.initializers.normal(1.0), name='shared'
        )(ids.reshape(-1))

        # One bias for all layers: [1, H, L, L].
        buckets = relative_position_buckets(
            length, c.relative_attention_num_buckets, c.relative_attention_max_distance
        )
        table = nn.Embed(
            c.relative_attention_num_buckets,
            c.num_heads,
            embedding_init=nn.initializers.normal(c.d_model**-0.5),
            name='relative_attention_bias',
        )
        bias = table(buckets).astype(jnp.float32).transpose(2, 0, 1)[None]

        x = x.astype(jnp.float32)
        for i in range(c.num_layers):
            x = Block(c, batch, self.dtype, name=f'block_{i}')(x, bias)
        x = RMSNorm(c.layer_norm_epsilon, name='final_layer_norm')(x)
        return x.reshape(batch, length, c.d_model).astype(self.dtype)

    def weight_rules(self) -> list[WeightRule]:
        source, target = 'encoder.block.{i}.layer', 'block_{i}'
        return [
            WeightRule('shared.weight', 'shared/embedding', 'embedding'),
            # tied to shared.weight; some files hold both
            WeightRule('encoder.embed_tokens.weight', None),
            WeightRule(
                'encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
                'relative_attention_bias/embedding',
                'embedding',
            ),
            WeightRule(
                f'{source}.0.SelfAttention.{{p:[qkvo]}}.weight',
                f'{target}/SelfAttention/{{p}}/kernel',
                'linear',
            ),
            WeightRule(
                f'{source}.1.DenseReluDense.{{p:wi|wi_0|wi_1|wo}}.weight',
                f'{target}/DenseReluDense/{{p}}/kernel',
                'linear',
            ),
            WeightRule(
                f'{source}.{{n:[01]}}.layer_norm.weight', f'{target}/layer_norm_{{n}}/scale'
            ),
            WeightRule('encoder.final_layer_norm.weight', 'final_layer_norm/scale'),
        ]

"""CLIP's text encoder (Radford et al., arXiv:2103.00020): port of Transformers' CLIPTextModel."""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.models import weights
from densegrpo_jax.models.config_json import check_positive, read_config
from densegrpo_jax.models.layers import Dense, layer_norm
from densegrpo_jax.models.text_layers import IGNORED_KEYS, attention, run_blocks

_ACTIVATIONS = {
    'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),
    'gelu': lambda x: nn.gelu(x, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
    """The text encoder's config.json; names and defaults are Transformers'."""
    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = 'quick_gelu'
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    projection_dim: int = 512

    def __post_init__(self):
        check_positive(self, 'CLIP text config', 'vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers',
                       'num_attention_heads', 'max_position_embeddings', 'projection_dim')
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f'CLIP text config: hidden_size={self.hidden_size} must be a multiple of '
                             f'num_attention_heads={self.num_attention_heads}')
        if self.hidden_act not in _ACTIVATIONS:
            raise ValueError(f'CLIP text config: hidden_act={self.hidden_act!r} is not supported, expected one of {sorted(_ACTIVATIONS)}')
        if not isinstance(self.eos_token_id, int):
            raise ValueError(f'CLIP text config: eos_token_id={self.eos_token_id!r} is not supported, expected one integer')

    @classmethod
    def from_json(cls, config: dict) -> 'ClipTextConfig':
        """Reads a parsed config.json; an unknown key or an unsupported value is a ValueError that names it."""
        return read_config(cls, 'CLIP text config', config, only={'model_type': ['clip_text_model']}, ignored=IGNORED_KEYS)


class LayerNorm(nn.Module):
    """Layer normalisation with scale and bias over the last axis. Returns float32."""
    eps: float

    @nn.compact
    def __call__(self, x):
        scale = self.param('scale', nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return layer_norm(x, self.eps) * scale.astype(jnp.float32) + bias.astype(jnp.float32)


class SelfAttention(nn.Module):
    """Causal multi-head attention on [B * L, D]."""
    config: ClipTextConfig
    batch: int
    dtype: Any

    @nn.compact
    def __call__(self, x, bias):
        c = self.config
        q, k, v = (Dense(c.hidden_size, dtype=self.dtype, name=f'{n}_proj')(x) for n in 'qkv')
        scale = (c.hidden_size // c.num_attention_heads) ** -0.5
        out = attention(q, k, v, bias, batch=self.batch, heads=c.num_attention_heads, scale=scale)
        return Dense(c.hidden_size, dtype=self.dtype, kernel_init=_residual_init(c), name='out_proj')(out)


class Mlp(nn.Module):
    """Linear, activation, linear."""
    config: ClipTextConfig
    dtype: Any

    @nn.compact
    def __call__(self, x):
        c = self.config
        hidden = _ACTIVATIONS[c.hidden_act](Dense(c.intermediate_size, dtype=self.dtype, name='fc1')(x))
        return Dense(c.hidden_size, dtype=self.dtype, kernel_init=_residual_init(c), name='fc2')(hidden)


class Block(nn.Module):
    """Pre-norm attention and MLP. Carry: [B * L, D] float32, the residual stream."""
    config: ClipTextConfig
    batch: int
    dtype: Any

    @nn.compact
    def __call__(self, x, bias):
        norm = lambda name: LayerNorm(self.config.layer_norm_eps, name=name)(x)
        x = x + SelfAttention(self.config, self.batch, self.dtype, name='self_attn')(norm('layer_norm1'), bias).astype(jnp.float32)
        x = x + Mlp(self.config, self.dtype, name='mlp')(norm('layer_norm2')).astype(jnp.float32)
        return x, None


class ClipTextModel(nn.Module):
    """Token ids to (states of a layer, pooled state).

    Attributes:
      config: the checkpoint's constants.
      projected: the pooled state goes through the text projection (CLIPTextModelWithProjection).
      penultimate: return the states that enter the last block, not normalised, which is what SD3 reads.
      scan: blocks as one scanned stack (parameters with a leading block axis) instead of one subtree per block.
      remat: recompute blocks in the backward pass.
      dtype: of matrix products and of the result; norms, softmax and the residual stream are float32.

    Fresh weights are made for training from scratch: token plus position embedding of unit variance, products that preserve variance,
    and outputs into the residual stream divided by sqrt(2 layers).
    """
    config: ClipTextConfig
    scan: bool = False
    remat: bool = False
    dtype: Any = jnp.float32
    projected: bool = False
    penultimate: bool = False

    @nn.compact
    def __call__(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """ids [B, L <= max_position_embeddings] int32 -> (states [B, L, D], pooled [B, D or projection_dim]).

        pooled is the state at the first eos_token_id (at position 0 if there is none). A config with eos_token_id 2, as those of FLUX.1
        and SD3 have, is older than that rule: there it is the state at the largest id.
        """
        c = self.config
        batch, length = ids.shape
        if length > c.max_position_embeddings:
            raise ValueError(f'{length} tokens exceed max_position_embeddings={c.max_position_embeddings} of the CLIP text encoder; '
                             f'truncate the ids to that')
        embed = lambda count, name: nn.Embed(count, c.hidden_size, embedding_init=nn.initializers.normal(0.5 ** 0.5), name=name)
        x = embed(c.vocab_size, 'token_embedding')(ids) + embed(c.max_position_embeddings, 'position_embedding')(np.arange(length))
        causal = np.where(np.tril(np.ones((length, length), bool)), np.float32(0), np.finfo(np.float32).min)
        x, before = run_blocks(Block, c.num_hidden_layers, 'layers', x.reshape(batch * length, -1).astype(jnp.float32), causal,
                               scan=self.scan, remat=self.remat, config=c, batch=batch, dtype=self.dtype)
        x = LayerNorm(c.layer_norm_eps, name='final_layer_norm')(x).reshape(batch, length, -1).astype(self.dtype)
        index = jnp.argmax(ids if c.eos_token_id == 2 else ids == c.eos_token_id, axis=-1)
        pooled = jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]
        if self.projected:
            kernel = self.param('text_projection', nn.initializers.lecun_normal(), (c.hidden_size, c.projection_dim), jnp.float32)
            pooled = pooled @ kernel.astype(self.dtype)
        return (before.reshape(batch, length, -1).astype(self.dtype) if self.penultimate else x), pooled


def _residual_init(config: ClipTextConfig):
    return nn.initializers.variance_scaling(1 / (2 * config.num_hidden_layers), 'fan_in', 'truncated_normal')


def weight_rules(config: ClipTextConfig, scan: bool) -> list[weights.Rule]:
    """The table of Transformers' CLIPTextModel checkpoint (model.safetensors); scanned blocks stack over their index.

    Released checkpoints carry the prefix 'text_model.' before every key and Transformers 5 saves without it: give
    `prefix='text_model.'` to `load_weights`, which takes both, and to `save_weights` for files that old readers open too.
    """
    del config  # the same names for every shape
    source, target = 'encoder.layers.{i}', 'layers' if scan else 'layers_{i}'
    rules = [
        weights.Rule('text_projection.weight', 'text_projection', 'linear', prefixed=False),
        weights.Rule('embeddings.position_ids', None),  # an index buffer of old files
        weights.Rule('embeddings.{p:token_embedding|position_embedding}.weight', '{p}/embedding', 'embedding'),
        weights.Rule('final_layer_norm.weight', 'final_layer_norm/scale'),
        weights.Rule('final_layer_norm.bias', 'final_layer_norm/bias'),
        weights.Rule(f'{source}.{{p:layer_norm[12]}}.weight', f'{target}/{{p}}/scale'),
        weights.Rule(f'{source}.{{p:layer_norm[12]}}.bias', f'{target}/{{p}}/bias'),
    ]
    for name in ('self_attn.{p:[qkv]_proj|out_proj}', 'mlp.{p:fc[12]}'):
        rules += weights.linear_rules(f'{source}.{name}', f'{target}/{name.replace(".", "/")}')
    return rules

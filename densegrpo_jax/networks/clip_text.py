"""CLIP's text encoder (Radford et al., arXiv:2103.00020): port of Transformers' CLIPTextModel."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from densegrpo_jax.networks import clip_layers
from densegrpo_jax.networks.clip_layers import Block, block_rules, check_tower
from densegrpo_jax.networks.config_json import IGNORED_KEYS, read_config
from densegrpo_jax.networks.layers import LayerNorm
from densegrpo_jax.networks.mmdit import stack
from densegrpo_jax.networks.network import Network
from densegrpo_jax.networks.weight_rules import WeightRule, norm_rules


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
        check_tower(self, 'CLIP text config')

    @classmethod
    def from_json(cls, config: dict) -> 'ClipTextConfig':
        """Reads a parsed config.json; an unknown key or an unsupported value is a ValueError that
        names it.
        """
        return read_config(
            cls,
            'CLIP text config',
            config,
            only={'model_type': ['clip_text_model']},
            ignored=IGNORED_KEYS,
        )


class ClipTextModel(Network):
    """Token ids to (states of a layer, pooled state).

    Attributes:
      config: the checkpoint's constants.
      projected: the pooled state goes through the text projection (CLIPTextModelWithProjection).
      penultimate: return the states that enter the last block, not normalised, which is what SD3
        reads; not of scanned blocks.
      scan: blocks as one scanned stack (parameters with a leading block axis) instead of one
        subtree per block.
      remat: recompute blocks in the backward pass.
      dtype: of matrix products and of the result; norms, softmax and the residual stream are
        float32.

    Fresh weights are made for training from scratch: token plus position embedding of unit
    variance, products that preserve variance, and outputs into the residual stream divided by
    sqrt(2 layers).
    """

    config: ClipTextConfig
    scan: bool = False
    remat: bool = False
    dtype: Any = jnp.float32
    projected: bool = False
    penultimate: bool = False

    COLUMN, ROW = clip_layers.COLUMN, clip_layers.ROW
    MATRICES = ('text_projection',)
    PREFIX = 'text_model.'  # in released folders; Transformers before 5 opens no others

    @nn.compact
    def __call__(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """ids [B, L <= max_position_embeddings] int32 -> (states [B, L, D], pooled [B, D or
        projection_dim]).

        pooled is the state at the first eos_token_id (at position 0 if there is none). Configs with
        eos_token_id 2, such as those of FLUX.1 and SD3, are older than that rule: for them it is
        the state at the largest id.
        """
        c = self.config
        batch, length = ids.shape
        if length > c.max_position_embeddings:
            raise ValueError(
                f'{length} tokens exceed max_position_embeddings={c.max_position_embeddings} of '
                'the CLIP text encoder; truncate the ids to that'
            )
        embed = lambda count, name: nn.Embed(
            count, c.hidden_size, embedding_init=nn.initializers.normal(0.5**0.5), name=name
        )
        x = embed(c.vocab_size, 'token_embedding')(ids) + embed(
            c.max_position_embeddings, 'position_embedding'
        )(np.arange(length))
        causal = np.where(
            np.tril(np.ones((length, length), bool)), np.float32(0), np.finfo(np.float32).min
        )
        run = functools.partial(
            stack, Block, scan=self.scan, remat='full' if self.remat else 'none'
        )
        kwargs = dict(config=c, batch=batch, dtype=self.dtype)
        last = int(self.penultimate)  # blocks after the states that are wanted
        first = c.num_hidden_layers - last
        x = x.reshape(batch * length, -1).astype(jnp.float32)
        before = run(first, 'layers', kwargs, x, causal)
        x = run(last, 'layers', kwargs, before, causal, first=first)
        x = (
            LayerNorm(c.layer_norm_eps, name='final_layer_norm')(x)
            .reshape(batch, length, -1)
            .astype(self.dtype)
        )
        index = jnp.argmax(ids if c.eos_token_id == 2 else ids == c.eos_token_id, axis=-1)
        pooled = jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]
        if self.projected:
            kernel = self.param(
                'text_projection',
                nn.initializers.lecun_normal(),
                (c.hidden_size, c.projection_dim),
                jnp.float32,
            )
            pooled = pooled @ kernel.astype(self.dtype)
        return (
            before.reshape(batch, length, -1).astype(self.dtype) if self.penultimate else x
        ), pooled

    def weight_rules(self) -> list[WeightRule]:
        """Released files carry PREFIX before every key and Transformers 5 saves without it: give it
        to `load_weights`, which takes both, and to `save_weights` for files that old readers open
        too.
        """
        return [
            WeightRule('text_projection.weight', 'text_projection', 'linear', prefixed=False),
            WeightRule('embeddings.position_ids', None),  # an index buffer of old files
            WeightRule(
                'embeddings.{p:token_embedding|position_embedding}.weight',
                '{p}/embedding',
                'embedding',
            ),
            *norm_rules('final_layer_norm', 'final_layer_norm'),
            *block_rules(self.scan),
        ]

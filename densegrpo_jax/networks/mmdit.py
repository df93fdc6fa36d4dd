"""What the multimodal diffusion transformers of FLUX.1 and SD3.5 share: adaLN-zero modulation,
joint attention, stacks and their tables.

Scalable interpolant transformers with one set of weights per modality (arXiv:2403.03206, section
4). Submodules carry the names of the checkpoints, so that the tables below are rules over names.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from densegrpo_jax.networks import attention, layers
from densegrpo_jax.networks import lora as lora_lib
from densegrpo_jax.networks.attention import Attend
from densegrpo_jax.networks.names import REMAT_POLICIES
from densegrpo_jax.networks.network import Network
from densegrpo_jax.networks.weight_rules import WeightRule, linear_rules

# Of the layers below, as in `Network`.
COLUMN = ('to_[qkv]', 'add_[qkv]_proj', 'net_0/proj', r'norm\w*/linear', 'linear_1')
ROW = ('to_out_0', 'to_add_out', 'net_2', 'linear_2')


@functools.partial(jax.checkpoint, static_argnums=3)
def modulated_norm(x, shift, scale, dtype):
    """LayerNorm(x) (1 + scale) + shift; x [B, N, D], shift and scale [B, D] -> `dtype`. float32
    inside, recomputed in the backward pass.
    """
    x = (
        layers.layer_norm(x) * (1 + scale.astype(jnp.float32))[:, None]
        + shift.astype(jnp.float32)[:, None]
    )
    return x.astype(dtype)


class Embedder(nn.Module):
    """Linear, SiLU, linear: [B, in] -> [B, features], all float32 (one vector per sample: precision
    costs nothing here).
    """

    features: int
    adapters: lora_lib.Adapters | None
    bias: bool = True

    @nn.compact
    def __call__(self, x):
        dense = lambda name: layers.Dense(
            self.features, self.adapters, use_bias=self.bias, name=name
        )
        return dense('linear_2')(nn.silu(dense('linear_1')(x)))


class TimeTextEmbed(nn.Module):
    """Sum of the embeddings of time, guidance and pooled text: [B, features] float32. The last two
    are None if the network has none.

    channels: of the sinusoidal embeddings of time and guidance.
    """

    features: int
    adapters: lora_lib.Adapters | None
    channels: int = 256
    bias: bool = True

    @nn.compact
    def __call__(self, timestep, guidance, pooled=None):
        def embed(x, name):
            return Embedder(self.features, self.adapters, self.bias, name=name)(x)

        def waves(t):
            return layers.timestep_embedding(t.astype(jnp.float32) * 1000, self.channels)

        total = embed(waves(timestep), 'timestep_embedder')
        if guidance is not None:
            total += embed(waves(guidance), 'guidance_embedder')
        return total if pooled is None else total + embed(pooled, 'text_embedder')


class Modulation(nn.Module):
    """n shift / scale / gate vectors from the activated conditioning: [B, D] -> n arrays [B, D].
    Zero at the start (adaLN-zero).
    """

    count: int
    adapters: lora_lib.Adapters | None
    dtype: Any
    bias: bool = True

    @nn.compact
    def __call__(self, cond):
        out = layers.Dense(
            self.count * cond.shape[-1],
            self.adapters,
            self.dtype,
            nn.initializers.zeros,
            self.bias,
            name='linear',
        )(cond)
        return jnp.split(out, self.count, axis=-1)


class FeedForwardIn(nn.Module):
    """First layer of the feed-forward, with its tanh-approximated GELU."""

    features: int
    adapters: lora_lib.Adapters | None
    dtype: Any

    @nn.compact
    def __call__(self, x):
        return layers.gelu(layers.Dense(self.features, self.adapters, self.dtype, name='proj')(x))


class FeedForward(nn.Module):
    """D -> 4 D -> D with tanh-approximated GELU."""

    adapters: lora_lib.Adapters | None
    dtype: Any

    @nn.compact
    def __call__(self, x):
        hidden = FeedForwardIn(4 * x.shape[-1], self.adapters, self.dtype, name='net_0')(x)
        return layers.Dense(x.shape[-1], self.adapters, self.dtype, name='net_2')(hidden)


class Attention(nn.Module):
    """Self-attention of one stream, or joint attention over text then image tokens, each stream
    with its own projections.

    Attributes:
      heads: number of heads.
      qk_norm: RMS-normalise queries and keys per head.
      out: the stream x has an output layer.
      text_out: the text stream has an output layer; False if its result is not used (the last block
        of SD3.5).
      attend: the implementation, see `networks.attention`.
      bias: projections and output layers have one.
    """

    heads: int
    adapters: lora_lib.Adapters | None
    dtype: Any
    qk_norm: bool = True
    out: bool = True
    text_out: bool = True
    attend: Attend = attention.xla
    bias: bool = True

    @nn.compact
    def __call__(self, x, text=None, rope=None):
        """x [B, N, D], text [B, L, D] or None, rope (cos, sin) of [L + N, d] or None -> x's result;
        with text, (x's, text's or None).
        """

        def dense(x, name):
            return layers.Dense(
                x.shape[-1], self.adapters, self.dtype, use_bias=self.bias, name=name
            )(x)

        def heads(x, name, norm=None):
            x = dense(x, name)
            x = x.reshape(*x.shape[:2], self.heads, -1)
            return layers.RMSNorm(name=norm)(x) if norm and self.qk_norm else x

        q, k, v = heads(x, 'to_q', 'norm_q'), heads(x, 'to_k', 'norm_k'), heads(x, 'to_v')
        if text is not None:
            q = jnp.concatenate([heads(text, 'add_q_proj', 'norm_added_q'), q], axis=1)
            k = jnp.concatenate([heads(text, 'add_k_proj', 'norm_added_k'), k], axis=1)
            v = jnp.concatenate([heads(text, 'add_v_proj'), v], axis=1)
        if rope is not None:
            q, k = (layers.apply_rope(t, *rope) for t in (q, k))
        if self.is_mutable_collection(attention.PROBE) and not self.is_initializing():
            self.sow(attention.PROBE, 'entropy', attention.row_entropy(q, k))
        result = checkpoint_name(
            self.attend(q.astype(self.dtype), k.astype(self.dtype), v), 'attention'
        )

        if text is None:
            return dense(result, 'to_out_0') if self.out else result
        text_result = dense(result[:, : text.shape[1]], 'to_add_out') if self.text_out else None
        return dense(result[:, text.shape[1] :], 'to_out_0'), text_result


class JointBlock(nn.Module):
    """Image and text streams with their own weights and one joint attention. Carry: (image [B, N,
    D], text [B, L, D]).

    Attributes:
      qk_norm: as in `Attention`.
      dual: a second self-attention of the image alone, in parallel (SD3.5-M).
      last: the text is only read: no text output, no text feed-forward (SD3.5).
    """

    heads: int
    adapters: lora_lib.Adapters | None
    dtype: Any
    qk_norm: bool = True
    dual: bool = False
    last: bool = False
    attend: Attend = attention.xla

    @nn.compact
    def __call__(self, carry, cond, rope=None):
        x, text = carry

        def modulation(count, name):
            return Modulation(count, self.adapters, self.dtype, name=name)(cond)

        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate, *second = modulation(
            9 if self.dual else 6, 'norm1'
        )
        if self.last:
            text_scale, text_shift = modulation(2, 'norm1_context')
        else:
            text_shift, text_scale, text_gate, text_mlp_shift, text_mlp_scale, text_mlp_gate = (
                modulation(6, 'norm1_context')
            )

        def attend(name, **kwargs):
            return Attention(
                self.heads,
                self.adapters,
                self.dtype,
                self.qk_norm,
                **kwargs,
                attend=self.attend,
                name=name,
            )

        out, text_out = attend('attn', text_out=not self.last)(
            modulated_norm(x, shift, scale, self.dtype),
            modulated_norm(text, text_shift, text_scale, self.dtype),
            rope,
        )
        result = x + gate[:, None] * out
        if self.dual:
            shift2, scale2, gate2 = second
            result += gate2[:, None] * attend('attn2')(
                modulated_norm(x, shift2, scale2, self.dtype)
            )

        def feed_forward(x, shift, scale, gate, name):
            normed = modulated_norm(attention.pin(self.attend, x), shift, scale, self.dtype)
            return x + gate[:, None] * FeedForward(self.adapters, self.dtype, name=name)(normed)

        x = feed_forward(result, mlp_shift, mlp_scale, mlp_gate, 'ff')
        if not self.last:
            text = feed_forward(
                text + text_gate[:, None] * text_out,
                text_mlp_shift,
                text_mlp_scale,
                text_mlp_gate,
                'ff_context',
            )
        return (x, text), None


def stack(
    block: type[nn.Module],
    length: int,
    name: str,
    kwargs: dict,
    carry,
    *inputs,
    scan: bool,
    remat: str,
    first: int = 0,
):
    """Applies `length` equal blocks `(carry, *inputs) -> (carry, None)`; call it inside a compact
    method.

    scan: one traced block over parameters with a leading axis, at '<name>'; otherwise subtrees
    '<name>_<first>', '<name>_<first + 1>', ... remat: 'none', or a key of REMAT_POLICIES: what the
    backward pass keeps of each block.
    """
    if remat != 'none':
        if remat not in REMAT_POLICIES:
            raise ValueError(f'remat is {remat!r}, expected one of {["none", *REMAT_POLICIES]}')
        block = nn.remat(block, policy=REMAT_POLICIES[remat], prevent_cse=not scan)
    if scan and length:
        block = nn.scan(
            block,
            variable_axes={'params': 0, lora_lib.COLLECTION: 0, attention.PROBE: 0},
            split_rngs={'params': True},
            length=length,
            in_axes=(nn.broadcast,) * len(inputs),
        )
        return block(**kwargs, name=name)(carry, *inputs)[0]
    for i in range(first, first + length):
        carry, _ = block(**kwargs, name=f'{name}_{i}')(carry, *inputs)
    return carry


def path(name: str) -> str:
    """Path in the parameter tree of a module's name in the checkpoint: 'attn.to_out.0' ->
    'attn/to_out_0'.
    """
    return re.sub(r'\.(\d+)', r'_\1', name).replace('.', '/')


class Stack(NamedTuple):
    """The table of equal blocks.

    source, target: names of the stack in the checkpoint and, scanned, in the tree; blocks that are
      not scanned are '<source>_<index>' there. indices: of its blocks in the checkpoint. linears,
      norms: names of a block's layers.
    """

    source: str
    target: str
    indices: range
    linears: Sequence[str]
    norms: Sequence[str] = ()


class LayerTable(NamedTuple):
    """The table of a network: its linear layers outside the blocks (name in the checkpoint -> path
    in the tree), and its stacks.
    """

    outside: dict[str, str]
    stacks: Sequence[Stack]

    def paths(self, scan: bool) -> dict[str, str]:
        """Checkpoint name -> path of every linear layer, e.g. 'blocks.0.attn.to_q' ->
        'blocks_0/attn/to_q' (scanned: 'blocks/...').
        """
        return self.outside | {
            f'{s.source}.{i}.{n}': f'{s.target if scan else f"{s.source}_{i}"}/{path(n)}'
            for s in self.stacks
            for i in s.indices
            for n in s.linears
        }

    def rules(self, scan: bool) -> list[WeightRule]:
        """The rules of all layers; scanned blocks stack over their index, counted from the stack's
        first. A layer without a bias has a rule for it that matches nothing.
        """
        rules = [rule for pair in self.outside.items() for rule in linear_rules(*pair)]
        for s in self.stacks:
            if not s.indices:
                continue
            source = f'{s.source}.{{i:{"|".join(map(str, s.indices))}}}'
            target = s.target if scan else f'{s.source}_{{i}}'
            found = [
                rule
                for n in s.linears
                for rule in linear_rules(f'{source}.{n}', f'{target}/{path(n)}')
            ] + [WeightRule(f'{source}.{n}.weight', f'{target}/{path(n)}/scale') for n in s.norms]
            first = s.indices[0] if scan else 0
            rules += [dataclasses.replace(rule, first=first) for rule in found]
        return rules


class StackedNetwork(Network):
    """A transformer of stacks of equal blocks, whose table makes its rules and its paths.

    Attributes:
      config: the checkpoint's constants.
      scan: blocks as scanned stacks (parameters with a leading block axis) instead of one subtree
        per block.
      remat: what the backward pass keeps of each block: 'none' (no rematerialisation), 'full' (keep
        nothing), 'dots' (keep the products with weights), 'attention' (keep the attention output).
      lora: adapters, or None.
      dtype: of matrix products and of the residual stream.
      attend: the implementation of attention, see `networks.attention`.
    """

    config: Any
    scan: bool = False
    remat: str = 'none'
    lora: lora_lib.LoraConfig | None = None
    dtype: Any = jnp.float32
    attend: Attend = attention.xla

    def table(self) -> LayerTable:
        """Its layers, by their names in the checkpoint."""
        raise NotImplementedError

    def weight_rules(self):
        return self.table().rules(self.scan)

    def module_paths(self):
        return self.table().paths(self.scan)

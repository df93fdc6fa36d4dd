"""Z-Image's transformer: refiners for image and text, then one stream of both (port of Diffusers'
ZImageTransformer2DModel, arXiv:2511.22699). Texts have different lengths.

Both modalities are filled up to a multiple of 32 tokens with a learned token that takes part in
attention; a text's padding beyond that does not.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from densegrpo_jax.networks import attention, layers
from densegrpo_jax.networks import lora as lora_lib
from densegrpo_jax.networks.attention import Attend
from densegrpo_jax.networks.config_json import check_positive, read_config
from densegrpo_jax.networks.mmdit import LayerTable, Stack, StackedNetwork, stack
from densegrpo_jax.networks.weight_rules import WeightRule

CLASS_NAME = 'ZImageTransformer2DModel'
STACKS = ('noise_refiner', 'context_refiner', 'layers')
NAME = 'transformer config'
UNIT = 32  # tokens of a modality come in multiples of this
COND = 256  # width of the conditioning, at most
QK_EPS = 1e-5  # of the norms of queries and keys
TIME = 1024  # hidden width of the embedding of time


@dataclasses.dataclass(frozen=True)
class ZImageConfig:
    """The transformer's config.json; fields, names and defaults are Diffusers'."""

    in_channels: int = 16
    dim: int = 3840
    n_layers: int = 30
    n_refiner_layers: int = 2
    n_heads: int = 30
    n_kv_heads: int = 30
    norm_eps: float = 1e-5
    cap_feat_dim: int = 2560
    rope_theta: float = 256.0
    t_scale: float = 1000.0
    axes_dims: tuple[int, ...] = (32, 48, 48)
    axes_lens: tuple[int, ...] = (1024, 512, 512)

    def __post_init__(self):
        check_positive(self, NAME)
        if self.n_kv_heads != self.n_heads or self.dim % self.n_heads:
            raise ValueError(
                f'{NAME}: n_kv_heads={self.n_kv_heads} must equal n_heads={self.n_heads}, which '
                f'must divide dim={self.dim}'
            )
        if len(self.axes_dims) != 3 or any(d < 2 or d % 2 for d in self.axes_dims):
            raise ValueError(
                f'{NAME}: axes_dims={list(self.axes_dims)} must be three even numbers: of place, '
                'row and column'
            )
        if sum(self.axes_dims) != self.dim // self.n_heads or len(self.axes_lens) != 3:
            raise ValueError(
                f'{NAME}: axes_dims={list(self.axes_dims)} must sum to dim / n_heads = '
                f'{self.dim // self.n_heads}, and axes_lens={list(self.axes_lens)} be three numbers'
            )

    @property
    def hidden_dim(self) -> int:
        return self.dim

    @property
    def cond_dim(self) -> int:
        return min(self.dim, COND)

    @classmethod
    def from_json(cls, config: dict) -> 'ZImageConfig':
        """Reads a parsed config.json; an unknown key or an unsupported value is a ValueError that
        names it.
        """
        only = {
            '_class_name': [CLASS_NAME],
            'all_patch_size': [[2], (2,)],
            'all_f_patch_size': [[1], (1,)],
            'qk_norm': [True],
            'siglip_feat_dim': [None],
        }
        return read_config(cls, NAME, config, only=only, ignored=())


def filled(count: int) -> int:
    """`count` rounded up to a multiple of UNIT."""
    return -(-count // UNIT) * UNIT


def _angles(positions, dim: int, theta: float) -> np.ndarray:
    """Angles [..., dim] of positions [...], every frequency twice in a row; rounded to float32, as
    in the reference, and then float64.
    """
    frequencies = theta ** (-np.arange(0, dim, 2) / dim)
    angles = np.multiply.outer(np.asarray(positions, np.float64), frequencies)
    return np.repeat(angles.astype(np.float32).astype(np.float64), 2, axis=-1)


def _turns(angles) -> tuple[np.ndarray, np.ndarray]:
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def check_positions(config: ZImageConfig, text: int, rows: int, columns: int) -> None:
    """Raises ValueError if a text of `text` tokens (of which one may follow the image's place) or a
    grid of image tokens has positions beyond the network's.
    """
    wanted = (filled(text) + 2, rows, columns)
    if any(size > limit for size, limit in zip(wanted, config.axes_lens)):
        raise ValueError(
            f'{text} tokens of text and {rows} x {columns} of the image need positions '
            f'{list(wanted)}, and the network has axes_lens={list(config.axes_lens)}'
        )


class Attention(nn.Module):
    """Self-attention with RMS-normalised queries and keys, without biases."""

    heads: int
    adapters: lora_lib.Adapters | None
    dtype: Any
    attend: Attend = attention.xla

    @nn.compact
    def __call__(self, x, rope, *lengths):
        """x [B, N, D], rope (cos, sin), lengths int32 [B] if not all keys count: the first do."""

        def dense(x, name):
            return layers.Dense(x.shape[-1], self.adapters, self.dtype, use_bias=False, name=name)(
                x
            )

        q, k, v = (
            dense(x, name).reshape(*x.shape[:2], self.heads, -1)
            for name in ('to_q', 'to_k', 'to_v')
        )
        q, k = (
            layers.apply_rope(layers.RMSNorm(QK_EPS, name=name)(part), *rope)
            for name, part in (('norm_q', q), ('norm_k', k))
        )
        out = self.attend(q.astype(self.dtype), k.astype(self.dtype), v, *lengths)
        return dense(checkpoint_name(out, 'attention'), 'to_out_0')


class FeedForward(nn.Module):
    """D -> 8/3 D -> D with SwiGLU: (silu(x w1) * x w3) w2."""

    adapters: lora_lib.Adapters | None
    dtype: Any

    @nn.compact
    def __call__(self, x):
        dense = lambda features, name: layers.Dense(
            features, self.adapters, self.dtype, use_bias=False, name=name
        )
        width = int(x.shape[-1] / 3 * 8)
        return dense(x.shape[-1], 'w2')(nn.silu(dense(width, 'w1')(x)) * dense(width, 'w3')(x))


class Block(nn.Module):
    """Attention and feed-forward, each between two norms. Carry: [B, N, D].

    modulated: scales and gates come from the conditioning; else they are 1.
    """

    heads: int
    eps: float
    adapters: lora_lib.Adapters | None
    dtype: Any
    attend: Attend = attention.xla
    modulated: bool = True

    @nn.compact
    def __call__(self, x, cond, rope, *lengths):
        scales = gates = (None, None)
        if self.modulated:
            modulation = layers.Dense(
                4 * x.shape[-1],
                self.adapters,
                kernel_init=nn.initializers.zeros,
                name='adaLN_modulation_0',
            )(cond)
            scale, gate, mlp_scale, mlp_gate = jnp.split(modulation[:, None], 4, axis=-1)
            scales, gates = (1 + scale, 1 + mlp_scale), (jnp.tanh(gate), jnp.tanh(mlp_gate))

        def norm(x, name, factor):
            x = layers.RMSNorm(self.eps, name=name)(x)
            return (x if factor is None else x * factor).astype(self.dtype)

        attend = Attention(self.heads, self.adapters, self.dtype, self.attend, name='attention')
        out = attend(norm(x, 'attention_norm1', scales[0]), rope, *lengths)
        x = x + norm(out, 'attention_norm2', gates[0])
        normed = attention.pin(self.attend, norm(x, 'ffn_norm1', scales[1]))
        out = FeedForward(self.adapters, self.dtype, name='feed_forward')(normed)
        return x + norm(out, 'ffn_norm2', gates[1]), None


class TimeEmbed(nn.Module):
    """Embedding of time, [B] -> [B, features] float32."""

    features: int
    adapters: lora_lib.Adapters | None

    @nn.compact
    def __call__(self, time):
        x = layers.Dense(TIME, self.adapters, name='mlp_0')(layers.timestep_embedding(time))
        return layers.Dense(self.features, self.adapters, name='mlp_2')(nn.silu(x))


class ZImageTransformer(StackedNetwork):
    """The network of Z-Image, which predicts x_0 - eps from a time that runs from noise, 0, to the
    image, 1.

    `attend` must take a prefix of the keys (`attention.check_prefix`).
    """

    config: ZImageConfig

    COLUMN = (
        'to_[qkv]',
        'w[13]',
        'adaLN_modulation_0',
        'x_embedder',
        'cap_embedder_1',
        'mlp_0',
        'final_modulation',
    )
    ROW = ('to_out_0', 'w2', 'mlp_2', 'final_layer')
    BLOCKS = STACKS

    @nn.compact
    def __call__(self, latents, text, mask, time):
        """Predicts x_0 - eps.

        Args:
          latents: [B, h, w, in_channels]; both sides are even.
          text: [B, L, cap_feat_dim], states of the text encoder.
          mask: bool [B, L], which of them belong to the prompt: the first ones, one at least.
          time: [B] float32 in [0, 1], 0 = noise (multiplied by t_scale inside).
        Returns:
          [B, h, w, in_channels] float32.
        """
        c = self.config
        adapters = lora_lib.resolve(self.lora, self.module_paths())
        zeros = nn.initializers.zeros
        batch, height, width, channels = latents.shape
        rows, columns, length = height // 2, width // 2, filled(text.shape[1])
        check_positions(c, length, rows, columns)
        dense = lambda features, name, init=layers.kernel_init: layers.Dense(
            features, adapters, self.dtype, init, name=name
        )
        cond = TimeEmbed(c.cond_dim, adapters, name='t_embedder')(
            time.astype(jnp.float32) * c.t_scale
        )

        # Tokens of both modalities, filled up with the learned ones.
        x = latents.reshape(batch, rows, 2, columns, 2, channels).transpose(0, 1, 3, 2, 4, 5)
        x = dense(c.dim, 'x_embedder')(x.reshape(batch, rows * columns, 4 * channels))
        tokens, image = rows * columns, filled(rows * columns)
        token = lambda name: self.param(name, nn.initializers.normal(0.02), (1, c.dim), jnp.float32)
        rest = jnp.broadcast_to(
            token('x_pad_token').astype(x.dtype), (batch, image - tokens, c.dim)
        )
        x = jnp.concatenate([x, rest], axis=1)
        text = jnp.pad(text, ((0, 0), (0, length - text.shape[1]), (0, 0)))
        counts = mask.sum(-1, dtype=jnp.int32)[:, None]  # [B, 1]
        units = -(-counts // UNIT)
        text = layers.RMSNorm(c.norm_eps, name='cap_embedder_0')(text)
        text = dense(c.dim, 'cap_embedder_1')(text)
        places = jnp.arange(length)
        fill = (places >= counts)[..., None]
        text = jnp.where(fill, token('cap_pad_token').astype(text.dtype), text)
        text = jnp.where((places < units * UNIT)[..., None], text, 0)

        # A text's places count from 1, and the image's is the next one after them; tokens that fill
        # it up have the place 0.
        first = lambda place: _angles(place, c.axes_dims[0], c.rope_theta)
        grid = np.indices((rows, columns)).reshape(2, tokens)
        inner = np.concatenate(
            [_angles(p, d, c.rope_theta) for p, d in zip(grid, c.axes_dims[1:])], axis=-1
        )
        inner = _turns(np.pad(inner, ((0, image - tokens), (0, 0))))
        blank = np.zeros((length, sum(c.axes_dims[1:])))
        text_rope = _turns(np.concatenate([first(1 + np.arange(length)), blank], axis=-1))
        starts = _turns(first(1 + UNIT * np.arange(length // UNIT + 1)))
        real = (np.arange(image) < tokens)[:, None]
        image_rope = tuple(
            jnp.concatenate(
                [
                    jnp.where(real, jnp.asarray(table)[units[:, 0], None], neutral),
                    jnp.broadcast_to(rest, (batch, *rest.shape)),
                ],
                axis=-1,
            )
            for table, neutral, rest in zip(starts, (1.0, 0.0), inner)
        )

        block = dict(
            heads=c.n_heads, eps=c.norm_eps, adapters=adapters, dtype=self.dtype, attend=self.attend
        )
        compiled = dict(scan=self.scan, remat=self.remat)
        x = stack(
            Block, c.n_refiner_layers, 'noise_refiner', block, x, cond, image_rope, **compiled
        )
        text = stack(
            Block,
            c.n_refiner_layers,
            'context_refiner',
            block | dict(modulated=False),
            text,
            None,
            text_rope,
            units[:, 0] * UNIT,
            **compiled,
        )
        rope = tuple(
            jnp.concatenate([one, jnp.broadcast_to(other, (batch, *other.shape))], axis=1)
            for one, other in zip(image_rope, text_rope)
        )
        both = stack(
            Block,
            c.n_layers,
            'layers',
            block,
            jnp.concatenate([x, text], axis=1),
            cond,
            rope,
            image + units[:, 0] * UNIT,
            **compiled,
        )
        x = both[:, :tokens]
        layers.keep_hidden(self, x)

        scale = layers.Dense(c.dim, adapters, kernel_init=zeros, name='final_modulation')(
            nn.silu(cond)
        )
        x = (layers.layer_norm(x) * (1 + scale[:, None])).astype(self.dtype)
        x = dense(4 * channels, 'final_layer', zeros)(x)
        x = x.reshape(batch, rows, columns, 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(latents.shape).astype(jnp.float32)

    def table(self) -> LayerTable:
        c = self.config
        lengths = (c.n_refiner_layers, c.n_refiner_layers, c.n_layers)
        linears = lambda name: _BLOCK_LINEARS + (_MODULATION,) * (name != 'context_refiner')
        return LayerTable(
            _OUTSIDE,
            [
                Stack(name, name, range(n), linears(name), _BLOCK_NORMS)
                for name, n in zip(STACKS, lengths)
            ],
        )

    def weight_rules(self) -> list[WeightRule]:
        return [
            WeightRule('cap_embedder.0.weight', 'cap_embedder_0/scale'),
            WeightRule('{t:x_pad_token|cap_pad_token}', '{t}'),
            *super().weight_rules(),
        ]


_BLOCK_LINEARS = (
    *(f'attention.{name}' for name in ('to_q', 'to_k', 'to_v', 'to_out.0')),
    *(f'feed_forward.w{i}' for i in (1, 2, 3)),
)
# Where adapters are trained: attention and feed-forward of all blocks.
LORA_TARGETS = _BLOCK_LINEARS
_MODULATION = 'adaLN_modulation.0'
_BLOCK_NORMS = (
    *(f'{part}_norm{i}' for part in ('attention', 'ffn') for i in (1, 2)),
    'attention.norm_q',
    'attention.norm_k',
)
# Layers outside the blocks: name in the checkpoint -> path here.
_OUTSIDE = {
    'all_x_embedder.2-1': 'x_embedder',
    'cap_embedder.1': 'cap_embedder_1',
    't_embedder.mlp.0': 't_embedder/mlp_0',
    't_embedder.mlp.2': 't_embedder/mlp_2',
    'all_final_layer.2-1.adaLN_modulation.1': 'final_modulation',
    'all_final_layer.2-1.linear': 'final_layer',
}

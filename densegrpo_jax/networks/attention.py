"""Attention without mask, softmax(q k^T / sqrt(d)) v, in three implementations that agree up to
rounding.

    xla      plain matrix products; anywhere. The weights [B, H, N, N] are the largest arrays of a
             long sequence
    cudnn    cuDNN's fused kernel through `jax.nn.dot_product_attention`; NVIDIA GPUs, bfloat16 or
             float16
    splash   the Pallas "splash" kernel that ships with JAX, under shard_map; TPUs

All take q, k, v [B, N, H, d] and return [B, N, H * d] in v's dtype, with the softmax in float32.
None of them keeps the weights for the backward pass. xla and cudnn also take lengths int32 [B]: a
sample attends to that many first keys. What follows is padding; its own results mean nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from densegrpo_jax.runtime.mesh import BATCH_AXES, batch_shards

Attend = Callable[..., jax.Array]  # of q, k, v and maybe lengths
IMPLEMENTATIONS = ('xla', 'cudnn', 'splash')
PLATFORM = {'cudnn': ('gpu', 'cuda'), 'splash': ('tpu',)}
PROBE = 'probe'  # collection of the rows' entropies, filled only where it is mutable
SPLASH_BLOCK = 512  # upper bound on the queries, and on the keys, of one step of the kernel
TPU_LANES = 128  # block sizes are multiples of this


@jax.checkpoint
def xla(q, k, v, lengths=None):
    """Plain matrix products; the weights are recomputed in the backward pass instead of kept."""
    logits = (
        jnp.einsum('bqhd,bkhd->bhqk', q, k, preferred_element_type=jnp.float32)
        * q.shape[-1] ** -0.5
    )
    if lengths is not None:
        seen = jnp.arange(k.shape[1]) < lengths[:, None]
        logits = jnp.where(seen[:, None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum('bhqk,bkhd->bqhd', weights, v)
    return out.reshape(*out.shape[:2], -1)


def check_prefix(attend: Attend) -> None:
    """Raises ValueError if the implementation takes no lengths."""
    if kernel(attend) not in (xla, cudnn):
        raise ValueError(
            "model.attention='splash' attends to all tokens, and this network's texts differ in "
            "length: use 'xla'"
        )


def row_entropy(q, k):
    """Entropy of every query's attention weights, over the logarithm of the number of keys and
    averaged over the heads.

    With logits l and weights A = softmax(l) of a row, H = -sum_j A_j log A_j = logsumexp(l) -
    sum_j A_j l_j; both terms are taken relative to the largest logit. Forms all weights, in
    float32.

    Args:
      q: [B, N, H, d]. k: [B, M, H, d].

    Returns:
      float32 [B, N] in [0, 1].
    """
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    logits = jnp.einsum('bqhd,bkhd->bhqk', q, k) * q.shape[-1] ** -0.5
    logits -= logits.max(-1, keepdims=True)
    weights = jnp.exp(logits)
    total = weights.sum(-1)
    entropy = jnp.log(total) - (weights * logits).sum(-1) / total
    return entropy.mean(1) / jnp.log(k.shape[1])


def cudnn(q, k, v, lengths=None):
    """cuDNN's fused attention. q, k and v in bfloat16 or float16.

    JAX has no backward pass for an odd number of tokens (SD3.5 at 512 px: 1357). Such inputs get
    one more token, which no other token attends to.
    """
    batch, tokens, counts = *q.shape[:2], {}
    if tokens % 2:
        q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
    if tokens % 2 or lengths is not None:
        queries = jnp.full(batch, tokens, jnp.int32)
        keys = queries if lengths is None else lengths.astype(jnp.int32)
        counts = dict(query_seq_lengths=queries, key_value_seq_lengths=keys)
    out = jax.nn.dot_product_attention(q, k, v, implementation='cudnn', **counts)[:, :tokens]
    return out.reshape(batch, tokens, -1)


def padded_length(tokens: int) -> tuple[int, int]:
    """(length, block) that the splash kernel works on: 1536 tokens are three blocks of 512, and
    1357 (SD3.5 at 512 px) are padded to 1536.
    """
    block = min(SPLASH_BLOCK, -(-tokens // TPU_LANES) * TPU_LANES)
    return -(-tokens // block) * block, block


def splash(q, k, v, *, mesh: Mesh, interpret: bool = False):
    """The splash kernel on each device's own rows and heads: the batch is split over data and fsdp,
    the heads over tensor.

    If the kernel's blocks do not divide N, padding tokens are added; segment ids keep real tokens
    from attending to them.

    Args:
      mesh: the mesh of the whole program; the sizes of its axes decide the pieces.
      interpret: run the kernel's body as ordinary operations, for tests without a TPU.

    Raises:
      ValueError: the tensor axis does not divide the heads.
    """
    # Imported here: importing Pallas takes a second, and runs without a TPU do not need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    batch, tokens, heads, depth = q.shape
    if heads % mesh.shape['tensor']:
        raise ValueError(
            f'{heads} heads do not divide over config.mesh.tensor={mesh.shape["tensor"]}'
        )
    length, block = padded_length(tokens)
    here = heads // mesh.shape['tensor']
    forward, backward = (
        ('q', 'kv', 'kv_compute'),
        ('q_dkv', 'kv_dkv', 'kv_dkv_compute', 'q_dq', 'kv_dq'),
    )
    sizes = kernels.BlockSizes(**{f'block_{name}': block for name in forward + backward})

    def on_device(q, k, v):
        mask = masks.MultiHeadMask([masks.FullMask((length, length))] * here)
        kernel = kernels.make_splash_mha(
            mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
        )
        padded = lambda x: jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, length - tokens), (0, 0)))
        segments = None
        if length > tokens:
            ids = (jnp.arange(length) >= tokens).astype(jnp.int32)
            segments = kernels.SegmentIds(ids, ids)
        out = jax.vmap(lambda q, k, v: kernel(q, k, v, segments))(
            padded(q * depth**-0.5), padded(k), padded(v)
        )
        return out[:, :, :tokens].swapaxes(1, 2).astype(v.dtype)

    spec = PartitionSpec(_rows(batch, mesh), None, 'tensor', None)
    out = jax.shard_map(
        on_device, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False
    )(q, k, v)
    return out.reshape(batch, tokens, -1)


@dataclasses.dataclass(frozen=True)
class InPlace:
    """`attend` with its operands split as the splash kernel's are: rows over data and fsdp, heads
    over tensor.

    Without it the compiler may follow the split of the weights instead, and send the activations of
    the whole batch to every device. A pin applies to the gradient too. Do not pin every activation:
    with the hidden layer of the joint blocks' feed-forward pinned as well, XLA (jaxlib 0.10.2,
    data x fsdp x tensor = 2 x 2 x 2) returned wrong gradients; tests/training/test_meshes.py
    compares them.
    """

    attend: Attend
    mesh: Mesh

    def __call__(self, q, k, v, *lengths):
        q, k, v = (self.pin(x, None, 'tensor') for x in (q, k, v))
        # a kernel sees its own rows, and would take the first lengths
        return self.pin(self.attend(q, k, v, *map(self.pin, lengths)), None, 'tensor')

    def pin(self, x, *rest):
        """x [B, ...] split over its rows. `rest`: mesh axes of the other dimensions; a dimension
        without one stays whole.
        """
        return jax.lax.with_sharding_constraint(
            x, NamedSharding(self.mesh, PartitionSpec(_rows(x.shape[0], self.mesh), *rest))
        )


def pin(attend: Attend, x, *rest):
    """`InPlace.pin` if `attend` has a mesh, else x: for activations between layers, in networks
    that know their `attend` but no mesh.
    """
    return attend.pin(x, *rest) if isinstance(attend, InPlace) else x


def kernel(attend: Attend) -> Attend:
    """The implementation itself, without `InPlace`."""
    return attend.attend if isinstance(attend, InPlace) else attend


def _rows(batch: int, mesh: Mesh) -> tuple[str, ...] | None:
    """The axes that split a batch; every device computes all of a batch too small to split."""
    return BATCH_AXES if batch % batch_shards(mesh) == 0 else None


def choose(name: str, mesh: Mesh, dtype) -> Attend:
    """The implementation `config.model.attention` names, for the devices of `mesh`, which may be
    absent ones.

    Raises:
      ValueError: an unknown name, or a kind of device or a dtype that it does not support.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(f'model.attention={name!r} is not known; choose one of {IMPLEMENTATIONS}')
    platform = mesh.devices.flat[0].platform
    if platform not in PLATFORM.get(name, (platform,)):
        raise ValueError(
            f'model.attention={name!r} runs on {PLATFORM[name][0]} devices, and these are '
            f"{platform}: use 'xla'"
        )
    if name == 'cudnn' and jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"model.attention='cudnn' needs model.dtype='bfloat16', found {jnp.dtype(dtype).name!r}"
        )
    attend = {'xla': xla, 'cudnn': cudnn, 'splash': functools.partial(splash, mesh=mesh)}[name]
    return InPlace(attend, mesh) if mesh.devices.size > 1 else attend

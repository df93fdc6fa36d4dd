"""A quantised base for LoRA on small devices: the matrices of the transformer's blocks in 8 or 4
bits, everything else unchanged.

A kernel W [in, out] becomes a `qwix.QArray`, W ~ q * scale with q of 8 or 4 bits:

    int8   one float32 scale per output column, absmax / 127.5 (symmetric, round to nearest)
    nf4    4-bit NormalFloat (QLoRA, arXiv:2305.14314, section 3): 16 quantiles of a
           normal, one bfloat16 scale per block of 64 inputs

It is a pytree in the kernel's place, so that placement, scanning over blocks and checkpoint paths
do not change. The product dequantises one block's matrix at a time, again in the backward pass, and
runs in the network's own dtype.
"""

from __future__ import annotations

import functools
import re
import sys
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from densegrpo_jax.networks.names import FORMATS

if TYPE_CHECKING:
    import qwix  # two seconds of import, for a base that is quantised

NF4_BLOCK = 64  # inputs per scale


def quantize_kernel(kernel: jax.Array, form: str) -> qwix.QArray:
    """The quantised form of a kernel [..., in, out] of any float dtype; leading axes (scanned
    blocks) have scales of their own.

    Raises ValueError for an unknown format, or if nf4's blocks do not divide the inputs.
    """
    import qwix

    if form not in FORMATS:
        raise ValueError(f'quantize={form!r}: expected one of {FORMATS}')
    if kernel.ndim > 2:  # block by block, as a weight takes ten bytes while nf4 is looked for
        return jax.lax.map(functools.partial(quantize_kernel, form=form), kernel)
    inputs, kernel = len(kernel), kernel.astype(jnp.float32)
    if form == 'int8':
        return qwix.quantize(kernel, jnp.int8, channelwise_axes=[1])
    if inputs % NF4_BLOCK:
        raise ValueError(
            f'nf4 scales blocks of {NF4_BLOCK} inputs, and a kernel has {inputs}: use int8'
        )
    return qwix.quantize(
        kernel, 'nf4', channelwise_axes=[1], tiled_axes={0: NF4_BLOCK}, scale_dtype=jnp.bfloat16
    )


def dequantize(kernel: qwix.QArray, dtype: Any) -> jax.Array:
    """[..., in, out] in `dtype`; the scale is applied in float32."""
    import qwix

    return qwix.dequantize(kernel.astype(jnp.float32)).astype(dtype)


@jax.checkpoint
def _product(x, kernel):
    return x @ dequantize(kernel, x.dtype)


def matmul(x: jax.Array, kernel: jax.Array | qwix.QArray) -> jax.Array:
    """x [n, in] times a kernel [in, out], plain or quantised, in x's dtype. Gradients reach x; a
    quantised kernel is frozen.

    The dequantised matrix is not kept for the backward pass: it would undo the saving."""
    return _product(x, kernel) if _is_quantised(kernel) else x @ kernel.astype(x.dtype)


def _is_quantised(kernel) -> bool:
    """Whether it is a QArray: then somebody has imported qwix."""
    library = sys.modules.get('qwix')
    return library is not None and isinstance(kernel, library.QArray)


@functools.cache
def _kernels(blocks: tuple[str, ...]) -> re.Pattern:
    """The paths of the kernels of a network's blocks."""
    return re.compile(rf'(.*/)?({"|".join(blocks)})(_\d+)?/.*kernel')


def quantizes(path: str, ndim: int, blocks: tuple[str, ...]) -> bool:
    """Whether the parameter at a '/'-joined path of the transformer is stored in few bits: a matrix
    of a block.
    """
    return ndim >= 2 and _kernels(blocks).fullmatch(path) is not None


def quantized_shapes(tree: dict, form: str, blocks: tuple[str, ...]) -> dict:
    """A transformer's tree of shapes (scanned or not) as it will be stored: ShapeDtypeStructs, with
    QArrays of them in place of kernels.

    Args:
      form: 'none', or one of FORMATS.
      blocks: `Network.BLOCKS` of the transformer.

    Raises ValueError if the network names no blocks.
    """
    if form != 'none' and not blocks:
        raise ValueError(f'quantize={form!r}: the network has no BLOCKS to store in few bits')

    def leaf(path, shape):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        chosen = form != 'none' and quantizes(name, len(shape.shape), blocks)
        return jax.eval_shape(lambda k: quantize_kernel(k, form), shape) if chosen else shape

    return jax.tree_util.tree_map_with_path(leaf, tree)


def stored_shapes(shapes: dict, dtype, form: str, blocks: tuple[str, ...]) -> dict:
    """Weights as they will be stored, from their shapes: component -> ShapeDtypeStructs of `dtype`,
    the kernels of the transformer's `blocks` in `form`.
    """
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), shapes)
    return {**wanted, 'transformer': quantized_shapes(wanted['transformer'], form, blocks)}


def converter(shapes: dict, form: str, blocks: tuple[str, ...], shardings=None):
    """`(path, array) -> array or QArray`: quantises each parameter of a transformer as it is read
    (`weights.load_weights`).

    Args:
      shapes: the transformer's tree of shapes.
      form: one of FORMATS.
      blocks: `Network.BLOCKS` of the transformer.
      shardings: maps a tree of shapes to a tree of shardings; None leaves every array where it is.
    """
    stored = quantized_shapes(shapes, form, blocks)
    placed = {} if shardings is None else flatten_dict(shardings(stored), sep='/')
    # One program per placement and shape: the blocks of an unscanned network share them.
    compiled = functools.cache(
        lambda place: jax.jit(functools.partial(quantize_kernel, form=form), out_shardings=place)
    )

    def convert(path, array):
        if not quantizes(path, array.ndim, blocks):
            return array
        quantized = compiled(placed.get(path))(array)
        array.delete()  # do not wait for the garbage collector: the next matrix is being read
        return quantized

    return convert

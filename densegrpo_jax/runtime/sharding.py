"""The placement of parameters on the mesh: an ordered table of (regex, spec); the first match wins.

A parameter is named by its path, e.g. ``transformer_blocks/attn/to_q/kernel``. A spec is written
for the *last* dimensions of the array, so one rule serves a block's kernel [in, out] and the same
kernel of all scanned blocks [layers, in, out].

Column-parallel matrices split their outputs over ``tensor``, the row-parallel ones that follow them
split their inputs, so that a pair costs one all-reduce (Megatron-LM, arXiv:1909.08053, section 3).
``fsdp`` takes the other dimension.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MIN_SHARD_BYTES = 4 << 20  # splitting smaller arrays saves too little memory for a collective


class ShardingRule(NamedTuple):
    """``pattern`` is searched in the parameter's path; ``spec`` gives the mesh axes of its last
    dimensions.

    uneven: what to do if the axes do not divide a dimension: 'error', or 'replicate' that
    dimension.
    """

    pattern: str
    spec: tuple[str | tuple[str, ...] | None, ...]
    uneven: str = 'error'


# In both, fsdp splits a dimension that is summed over. If it split the outputs of a row-parallel
# matrix, it would collide with the rows of the batch, which fsdp splits too, and XLA (jaxlib
# 0.10.2, data x fsdp x tensor = 2 x 2 x 2, few tokens) would send some rows to the wrong device.
COLUMN = ('fsdp', 'tensor')
ROW = (('tensor', 'fsdp'), None)


@functools.cache
def rules_of(
    column: tuple[str, ...], row: tuple[str, ...], matrices: tuple[str, ...] = ()
) -> tuple[ShardingRule, ...]:
    """The table for networks with the given layers, their adapters and their quantised kernels.

    Args, all of them regular expressions for the last components of paths:
      column: layers whose outputs are split over ``tensor``.
      row: layers whose inputs are, which follow those.
      matrices: parameters outside of layers, split like a kernel that is neither.
    """
    columns, rows, others = (rf'(^|/)({"|".join(names)})' for names in (column, row, matrices))
    return (
        # Adapters: whole if an axis does not divide them. fsdp splits a dimension that is summed
        # over: from the outputs of b the split would spread to the activations, and the compiler
        # would gather those instead of the weights.
        ShardingRule(rf'{columns}/a$', ('fsdp', None), uneven='replicate'),
        ShardingRule(rf'{columns}/b$', ('fsdp', 'tensor'), uneven='replicate'),
        ShardingRule(rf'{rows}/a$', (('tensor', 'fsdp'), None), uneven='replicate'),
        ShardingRule(rf'{rows}/b$', ('fsdp', None), uneven='replicate'),
        ShardingRule(r'conv\w*/kernel$', ('fsdp', None), uneven='replicate'),
        # A quantised kernel's bits are placed like the kernel; its scales, at most a sixteenth of
        # the bytes, stay whole.
        ShardingRule(rf'{columns}/kernel(/qvalue)?$', COLUMN),
        ShardingRule(rf'{rows}/kernel(/qvalue)?$', ROW),
        # vocabularies are rarely round numbers
        ShardingRule(r'/embedding$', COLUMN, uneven='replicate'),
        ShardingRule(rf'{others}$', COLUMN, uneven='replicate'),
        ShardingRule(r'/kernel(/qvalue)?$', COLUMN, uneven='replicate'),
        ShardingRule(r'(^|/)(bias|scale|weight)(/|$)', ()),
    )


def path_name(path) -> str:
    """'a/b/kernel' for a key path of ``jax.tree_util`` (dicts, tuples and named tuples alike)."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def spec_for(
    name: str, shape: Sequence[int], mesh: Mesh, rules: Sequence[ShardingRule]
) -> PartitionSpec:
    """The PartitionSpec that the first matching rule gives an array of ``shape``.

    Raises ValueError if no rule matches, if the spec has more entries than the array has
    dimensions, or if its axes do not divide a dimension and the rule does not say
    ``uneven='replicate'``.
    """
    rule = next((rule for rule in rules if re.search(rule.pattern, name)), None)
    if rule is None:
        raise ValueError(
            f'No sharding rule matches {name!r} of shape {tuple(shape)}. Name its layer in COLUMN '
            'or ROW of its network, or the parameter in MATRICES.'
        )
    where = f'sharding rule {rule.pattern!r} -> {rule.spec}'
    if rule.uneven not in ('error', 'replicate'):
        raise ValueError(f"{where}: uneven must be 'error' or 'replicate', found {rule.uneven!r}.")
    if len(rule.spec) > len(shape):
        raise ValueError(
            f'{where} has {len(rule.spec)} entries, but {name!r} has shape {tuple(shape)}.'
        )
    entries = [None] * (len(shape) - len(rule.spec)) + list(rule.spec)
    for i, entry in enumerate(entries):
        axes = (entry,) if isinstance(entry, str) else entry or ()
        unknown = [axis for axis in axes if axis not in mesh.shape]
        if unknown:
            raise ValueError(
                f'{where} names the axes {unknown}; the mesh has {list(mesh.axis_names)}.'
            )
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if shape[i] % parts == 0:
            continue
        if rule.uneven == 'error':
            raise ValueError(
                f'{name!r}: dimension {i} of shape {tuple(shape)} does not divide over {entry!r} = '
                f'{parts} devices ({where}). '
                'Choose another size for that axis of config.mesh, or mark the rule '
                "uneven='replicate'."
            )
        entries[i] = None
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def shardings(tree, mesh: Mesh, rules: Sequence[ShardingRule], *, min_bytes: int | None = None):
    """NamedSharding of every leaf of ``tree`` (arrays or ShapeDtypeStructs), as a tree of the same
    structure.

    Works for every tree whose paths end like the parameters': optimiser moments and averages follow
    the same rules. Scalars, and arrays of fewer than ``min_bytes`` bytes, are replicated and need
    no rule.
    """

    def leaf_sharding(path, leaf):
        small = leaf.ndim == 0 or leaf.size * leaf.dtype.itemsize < (
            MIN_SHARD_BYTES if min_bytes is None else min_bytes
        )
        return NamedSharding(
            mesh, PartitionSpec() if small else spec_for(path_name(path), leaf.shape, mesh, rules)
        )

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def with_shardings(tree, tree_shardings):
    """ShapeDtypeStructs of ``tree`` that carry the given shardings: what loaders and checkpoints
    restore into.
    """
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        tree,
        tree_shardings,
    )


def init_sharded(
    init: Callable, mesh: Mesh, *args, rules: Sequence[ShardingRule], min_bytes: int | None = None
):
    """``init(*args)``, each piece computed on its own device: no device or host ever holds the
    whole tree.

    Returns the tree of arrays. Its values do not depend on the mesh (JAX's threefry bits are
    partitionable).
    """
    abstract = jax.eval_shape(init, *args)
    return jax.jit(init, out_shardings=shardings(abstract, mesh, rules, min_bytes=min_bytes))(*args)


def bytes_per_device(tree, tree_shardings) -> int:
    """Bytes that one device holds of ``tree`` (arrays or ShapeDtypeStructs) under the given
    shardings.
    """
    bits = lambda leaf, s: (
        math.prod(s.shard_shape(leaf.shape)) * jax.dtypes.itemsize_bits(leaf.dtype)
    )
    return sum(jax.tree.leaves(jax.tree.map(bits, tree, tree_shardings))) // 8

"""The device mesh, and where batches live on it.

Three named axes, always all three (a size of 1 costs nothing):

* ``data``    copies of the model, each with its own rows of the batch;
* ``fsdp``    also splits the batch, and splits every large parameter, which is
              gathered where it is used;
* ``tensor``  splits the matrix multiplications themselves.

All axes are of type Auto: programs are written for whole arrays, and the compiler (GSPMD) places
the collectives.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')


def mesh_shape(sizes: Mapping[str, int], num_devices: int) -> tuple[int, int, int]:
    """The mesh's (data, fsdp, tensor) sizes; at most one of ``sizes`` may be -1, for all remaining
    devices.

    Raises ValueError unless the sizes use exactly ``num_devices`` devices.
    """
    if set(sizes) != set(AXES):
        raise ValueError(f'config.mesh needs exactly the keys {list(AXES)}, found {sorted(sizes)}.')
    shape = [int(sizes[axis]) for axis in AXES]
    shown = ', '.join(f'{axis}={size}' for axis, size in zip(AXES, shape))
    if any(size < 1 and size != -1 for size in shape):
        raise ValueError(
            f'config.mesh ({shown}): every size must be a positive number, or -1 for all devices '
            'that are left.'
        )
    if shape.count(-1) > 1:
        raise ValueError(
            f'config.mesh ({shown}): only one axis can be -1 (all devices that are left).'
        )
    known = math.prod(size for size in shape if size != -1)
    if -1 in shape:
        if num_devices % known:
            raise ValueError(
                f'config.mesh ({shown}): the given sizes multiply to {known}, which does not '
                f'divide the {num_devices} devices found. Choose sizes whose product divides '
                f'{num_devices}.'
            )
        shape[shape.index(-1)] = num_devices // known
    elif known != num_devices:
        raise ValueError(
            f'config.mesh ({shown}) describes {known} devices, but {num_devices} were found. Set '
            f'one axis to -1 to use all of them, or choose sizes whose product is {num_devices}.'
        )
    return tuple(shape)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh over ``devices`` (default: all of every host) with the axes ('data', 'fsdp', 'tensor').

    Args:
      sizes: ``config.mesh``: one int per axis, -1 for all remaining devices.
      devices: restricts the mesh to these, e.g. ``jax.devices()[:1]`` or the devices of an absent
        topology.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(sizes, len(devices))
    axis_types = (AxisType.Auto,) * len(AXES)
    try:
        # neighbours on the chips' own network
        return jax.make_mesh(shape, AXES, axis_types=axis_types, devices=devices)
    # this physical topology has no such layout: any order is correct, only slower
    except NotImplementedError:
        return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=axis_types)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Sharding of an array whose dimension ``axis`` is the batch (``axis=1`` for time-first
    trajectories [T+1, B, ...]).
    """
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Number of pieces the batch is cut into: every batch size must be a multiple of it."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def rows_over(mesh: Mesh, rows: int) -> int:
    """The smallest number of rows, at least ``rows``, that divides over the batch axes."""
    shards = batch_shards(mesh)
    return math.ceil(rows / shards) * shards


def check_batch(mesh: Mesh, size: int, name: str, of: int = 1) -> None:
    """Raises ValueError, naming ``name``, if a batch of ``size`` rows cannot be cut into equal
    pieces.

    of: the batch is made of so many rows at a time, for the size that the message proposes.
    """
    shards = batch_shards(mesh)
    if size % shards:
        whole = math.lcm(shards, of)
        raise ValueError(
            f'{name} = {size} does not divide over the mesh: data x fsdp = {mesh.shape["data"]} x '
            f'{mesh.shape["fsdp"]} = {shards}. Use a multiple of {shards} (e.g. '
            f'{math.ceil(size / whole) * whole}), or move devices to config.mesh.tensor.'
        )


def local_rows(x: jax.Array, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows along ``axis`` that this process works on, and their indices; every row belongs to
    exactly one process.

    Args:
      x: split over the batch axes along ``axis`` and not along any other.

    Returns:
      (int [r], numpy array like ``x`` with r rows); a single process gets all rows.
    """
    if x.is_fully_addressable:
        return np.arange(x.shape[axis]), np.asarray(x)
    rows, values = [], []
    for shard in x.addressable_shards:
        if shard.replica_id == 0:
            rows.append(np.arange(*shard.index[axis].indices(x.shape[axis])))
            values.append(np.asarray(shard.data))
    if not rows:  # another process holds the first copies of all rows
        return np.arange(0), np.zeros(
            [0 if k == axis else n for k, n in enumerate(x.shape)], x.dtype
        )
    order = np.argsort([part[0] for part in rows])
    return np.concatenate([rows[i] for i in order]), np.concatenate(
        [values[i] for i in order], axis
    )

"""Meshes on 8 fake CPU devices: shapes, messages, and where batches go."""

import jax
import pytest
from jax.sharding import AxisType, PartitionSpec

from densegrpo_jax.runtime import mesh as mesh_lib


@pytest.mark.parametrize(
    'sizes, expected',
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((1, -1, 1), (1, 8, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((4, 2, 1), (4, 2, 1)),
        ((8, 1, -1), (8, 1, 1)),
    ],
)
def test_shape(sizes, expected):
    mesh = mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, sizes)))
    assert tuple(mesh.shape.values()) == expected
    assert mesh.axis_names == ('data', 'fsdp', 'tensor')
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert sorted(d.id for d in mesh.devices.flat) == list(range(8))


@pytest.mark.parametrize(
    'sizes, message',
    [
        (dict(data=3, fsdp=-1, tensor=1), 'multiply to 3, which does not divide the 8 devices'),
        (
            dict(data=2, fsdp=2, tensor=1),
            'describes 4 devices, but 8 were found.*Set one axis to -1',
        ),
        (dict(data=16, fsdp=1, tensor=1), 'describes 16 devices, but 8 were found'),
        (dict(data=-1, fsdp=-1, tensor=1), 'only one axis can be -1'),
        (dict(data=0, fsdp=-1, tensor=1), 'data=0.*positive'),
        (dict(data=-2, fsdp=-1, tensor=1), 'positive'),
        (dict(data=8, fsdp=1), "needs exactly the keys.*found \\['data', 'fsdp'\\]"),
        (dict(data=8, fsdp=1, tensor=1, model=1), "found .*'model'"),
    ],
)
def test_bad_sizes_are_explained(sizes, message):
    with pytest.raises(ValueError, match=message):
        mesh_lib.make_mesh(sizes)


def test_some_of_the_devices():
    mesh = mesh_lib.make_mesh(dict(data=1, fsdp=-1, tensor=1), jax.devices()[2:4])
    assert mesh.shape['fsdp'] == 2 and [d.id for d in mesh.devices.flat] == [2, 3]


def test_a_layout_the_topology_refuses_falls_back_to_plain_order(monkeypatch):
    def refuse(*args, **kwargs):
        raise NotImplementedError('Failed to find assignment')

    monkeypatch.setattr(jax, 'make_mesh', refuse)
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=2, tensor=2))
    assert mesh.devices.shape == (2, 2, 2) and mesh.axis_types == (AxisType.Auto,) * 3


def test_batches_are_split_over_data_and_fsdp():
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=2, tensor=2))
    rows, steps = mesh_lib.batch_sharding(mesh), mesh_lib.batch_sharding(mesh, axis=1)
    assert rows.spec == PartitionSpec(('data', 'fsdp')) and rows.shard_shape((8, 3)) == (2, 3)
    assert steps.spec == PartitionSpec(None, ('data', 'fsdp')) and steps.shard_shape((3, 8)) == (
        3,
        2,
    )
    assert mesh_lib.replicated(mesh).shard_shape((8, 3)) == (8, 3)


def test_a_batch_that_does_not_divide_is_named():
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=2, tensor=2))
    assert mesh_lib.batch_shards(mesh) == 4
    mesh_lib.check_batch(mesh, 12, 'config.rollout.batch')
    with pytest.raises(
        ValueError,
        match=r'config.rollout.batch = 10 does not divide.*2 x 2 = 4.*multiple of 4 \(e.g. 12\)',
    ):
        mesh_lib.check_batch(mesh, 10, 'config.rollout.batch')


def test_the_batch_that_is_proposed_holds_whole_groups():
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=2, tensor=2))
    with pytest.raises(ValueError, match=r'rows = 30 does not .*multiple of 4 \(e.g. 36\)'):
        mesh_lib.check_batch(mesh, 30, 'rows', of=6)

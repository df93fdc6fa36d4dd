"""Meshes of the first devices, for tests that are not about meshes."""

import jax

from densegrpo_jax.runtime.mesh import make_mesh


def data_mesh(count):
    """`count` devices, each with its own part of a batch."""
    return make_mesh({'data': count, 'fsdp': 1, 'tensor': 1}, jax.devices()[:count])


def one_device():
    return data_mesh(1)

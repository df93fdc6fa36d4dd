"""What tests of networks against torch share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densegrpo_jax.networks import lora
from tests.networks.block_stacks import stack_blocks, unstack_blocks


def reference(cls, config, folder=None, scale=0.05, move=None):
    """A torch module of this class, always the same, none of whose parameters is zero or one as
    initialisers leave them: each is moved by normal numbers of this scale, or as
    `move(name, parameter)` does. `folder` keeps a copy.
    """
    torch = pytest.importorskip('torch')  # here: other tests use the rest of this file without it
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = cls(**config).eval()
    move = move or (lambda name, p: p.add_(scale * torch.randn_like(p)))
    with torch.no_grad():
        for name, p in module.named_parameters():
            move(name, p)
    if folder is not None:
        module.save_pretrained(folder)
    return module


def move_vectors(name, p):
    """For `reference`: norms and biases start at 1 and 0, and a swap of the two would pass unseen;
    matrices stay.
    """
    import torch

    if p.ndim == 1:
        p.add_(0.3 * torch.randn_like(p))


def random_tree(shapes, seed=0):
    """Normal numbers of a tree's shapes, in numpy."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 4, shapes)


def relative_error(got, want):
    """The largest deviation, of the largest value of `want`, an array or a tensor of torch."""
    want = want.detach().numpy() if hasattr(want, 'detach') else np.asarray(want)
    assert got.shape == want.shape and got.dtype == np.float32
    return np.abs(np.asarray(got) - want).max() / np.abs(want).max()


def check_scanned_gradients(net, shapes, args, stacks, remat):
    """Adapters of an unscanned network without `remat` get the gradients of the scanned one with
    it, and none is zero. `shapes`: of its variables.
    """
    tree = random_tree(shapes)
    value_and_grad = lambda net, params, adapters: jax.jit(
        jax.value_and_grad(
            lambda a: jnp.mean(net.apply({'params': params, lora.COLLECTION: a}, *args) ** 2)
        )
    )(adapters)
    value, grad = value_and_grad(net, tree['params'], tree[lora.COLLECTION])
    assert all(np.any(g) for g in jax.tree.leaves(grad))
    scanned = dataclasses.replace(net, scan=True, remat=remat)
    stacked = [stack_blocks(tree[name], *stacks) for name in ('params', lora.COLLECTION)]
    found_value, found = value_and_grad(scanned, *stacked)
    np.testing.assert_allclose(found_value, value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()),
        unstack_blocks(found, *stacks),
        grad,
    )

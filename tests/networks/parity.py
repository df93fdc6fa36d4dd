"""What tests of networks against torch share."""

import jax
import numpy as np
import torch


def unsettled(module):
    """A torch module none of whose parameters is zero or one, as initialisers leave them."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return module


def random_tree(shapes, seed=0):
    """Normal numbers of a tree's shapes, in numpy."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 4, shapes)


def relative_error(got, want):
    """The largest deviation, of the largest value of `want`."""
    return np.abs(np.asarray(got) - want).max() / np.abs(want).max()

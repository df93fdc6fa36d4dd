"""What tests of networks against torch share."""

import jax
import numpy as np


def reference(cls, config, folder=None, scale=0.05):
    """A torch module of this class, always the same, none of whose parameters is zero or one as
    initialisers leave them; `folder` keeps a copy.
    """
    import torch  # here: other tests use the rest of this file without it

    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = cls(**config).eval()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn_like(p))
    if folder is not None:
        module.save_pretrained(folder)
    return module


def random_tree(shapes, seed=0):
    """Normal numbers of a tree's shapes, in numpy."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 4, shapes)


def relative_error(got, want):
    """The largest deviation, of the largest value of `want`."""
    return np.abs(np.asarray(got) - want).max() / np.abs(want).max()

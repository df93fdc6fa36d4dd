"""What the package asks of a network of a pipeline, besides calling it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import ClassVar

from flax import linen as nn

from densegrpo_jax.runtime.sharding import ShardingRule, rules_of


class Network(nn.Module):
    """A network of a pipeline. Its class says what shared code needs to know of its parameters and
    files.

    COLUMN, ROW, MATRICES, BLOCKS: regular expressions of names in the parameter tree. The first two
      are of the layers that are split by outputs and by inputs (`runtime.sharding.rules_of`), by
      the last components of their paths; other kernels, and the MATRICES, which are no layer's
      kernel, are split by outputs where these divide. BLOCKS are the stacks whose kernels are
      quantised; a block that is not scanned has its stack's name and number, '<name>_<i>'.
    BUFFERS: names of parameters that take no gradient; weight decay leaves them alone.
    PREFIX: of keys in files, which the weight rules know without it; they are read with and without
      it. BARE: classes in model_index.json whose files are written without it.
    """

    COLUMN: ClassVar[tuple[str, ...]] = ()
    ROW: ClassVar[tuple[str, ...]] = ()
    MATRICES: ClassVar[tuple[str, ...]] = ()
    BUFFERS: ClassVar[tuple[str, ...]] = ()
    BLOCKS: ClassVar[tuple[str, ...]] = ()
    PREFIX: ClassVar[str] = ''
    BARE: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def layout(tensors: dict) -> dict:
        """The tensors of a file, by key, under the keys that the weight rules know."""
        return tensors

    def weight_rules(self) -> list:
        """The table of its checkpoint: rows of `networks.weight_rules.WeightRule`."""
        raise NotImplementedError

    def module_paths(self) -> dict[str, str]:
        """Checkpoint name -> path of every layer that may carry an adapter; of a transformer."""
        raise NotImplementedError


def sharding_rules(networks: Iterable[Network | type[Network]]) -> tuple[ShardingRule, ...]:
    """The table that places the parameters of several networks, and states made of them."""
    tables = zip(*((network.COLUMN, network.ROW, network.MATRICES) for network in networks))
    return rules_of(*(tuple(dict.fromkeys(itertools.chain(*table))) for table in tables))

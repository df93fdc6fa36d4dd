"""What the package asks of a network of a pipeline, besides calling it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import ClassVar

from flax import linen as nn

from densegrpo_jax.runtime.sharding import Rule, rules_of


class Network(nn.Module):
    """A network of a pipeline. Its class says what shared code needs to know of its parameters and
    files.

    Regular expressions of names in the parameter tree:
    COLUMN, ROW: the last components of the paths of layers that are split by outputs and by inputs,
      see `runtime.sharding.rules_of`. Other kernels are split by outputs where these divide.
    MATRICES: names of large parameters that are no layer's kernel, split like those.
    BUFFERS: names of parameters that take no gradient: weight decay leaves them alone.
    BLOCKS: names of its stacks of blocks in the parameter tree; unscanned blocks have them with
      their number, '<name>_<i>'. Quantised are the kernels of these blocks.

    Keys in files:
    PREFIX: of the keys that the weight rules know without it; files are read with and without it.
    BARE: classes in model_index.json whose files are written without it.
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


def sharding_rules(networks: Iterable[Network | type[Network]]) -> tuple[Rule, ...]:
    """The table that places the parameters of several networks, and states made of them."""
    tables = zip(*((network.COLUMN, network.ROW, network.MATRICES) for network in networks))
    return rules_of(*(tuple(dict.fromkeys(itertools.chain(*table))) for table in tables))

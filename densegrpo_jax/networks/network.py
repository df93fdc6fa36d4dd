"""What the package asks of a network of a pipeline, besides calling it."""

from __future__ import annotations

from typing import ClassVar

from flax import linen as nn


class Network(nn.Module):
    """A network of a pipeline: facts about its parameters that shared code needs.

    BLOCKS: names of its stacks of blocks in the parameter tree, as regular expressions; unscanned
      blocks have them with their number, '<name>_<i>'. Quantised are the kernels of these blocks.
    """

    BLOCKS: ClassVar[tuple[str, ...]] = ()

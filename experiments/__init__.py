"""The figures of the paper, the probe and comparisons: evidence, not part of the product."""

import sys

from densegrpo_jax.runtime import entry

if sys.argv[:1] == ['-m']:  # perhaps a command of this package
    entry.begin(__name__)

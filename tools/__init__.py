"""Tools that make the miniatures, and checks of this repository."""

import sys

from densegrpo_jax.runtime import entry

if sys.argv[:1] == ['-m']:  # perhaps a command of this package
    entry.begin(__name__)

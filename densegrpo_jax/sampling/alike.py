"""Whether the processes of a run were started alike.

Each process compiles the same programs by itself and gives its part of every array. With another
setting, prompt or piece of code on one of them they would wait for each other for ever, or train
copies of the policy that drift apart.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping

import jax

import densegrpo_jax
from densegrpo_jax.config import identity
from densegrpo_jax.runtime.agreement import Agreement
from densegrpo_jax.runtime.hosts import Hosts
from densegrpo_jax.runtime.trees import differing

SHOWN = 3  # differences in a message


def check_alike(hosts: Hosts, config, facts: Mapping) -> None:
    """Raises ValueError in all processes if they differ in keys (`identity.common`), code, or
    `facts`, JSON values that no key tells: digests of weights, of prompts, of the user's own code.
    """
    mine = {
        **identity.common(config),
        **facts,
        'code of densegrpo_jax': package_digest(),
        'version of jax': jax.__version__,
    }
    first, *others = Agreement(hosts, 'alike').poll(mine)
    for index, other in enumerate(others, 1):
        if found := differing(first, other):
            said = '; '.join(f'{key}: {new!r}, there {old!r}' for key, old, new in found[:SHOWN])
            more = f'; and {len(found) - SHOWN} more' if len(found) > SHOWN else ''
            raise ValueError(
                f'process {index} of the run was started otherwise than process 0 ({said}{more}): '
                'start all with the same command, on equal files and code'
            )


def package_digest() -> str:
    """A short hash of this package's modules, which another clone may have otherwise. The recipes
    do not count: the configuration tells what they set.
    """
    root, total = pathlib.Path(densegrpo_jax.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob('*.py')):
        name = path.relative_to(root)
        if name.parts[0] != 'configs':
            total.update(f'{name} '.encode() + path.read_bytes())
    return total.hexdigest()[:12]

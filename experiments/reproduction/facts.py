"""Facts about the origin of a result."""

from __future__ import annotations

import pathlib
import subprocess
import sys


def device() -> str:
    """The devices that the runs will see; a separate process asks, so that this one does not hold
    them. Raises ValueError if JAX cannot start.
    """
    code = 'import jax; print(f"{jax.device_count()} x {jax.devices()[0].device_kind}")'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ['no message']
        raise ValueError(f'JAX cannot start its devices: {said[-1]}')
    return done.stdout.strip()


def commit() -> str:
    """The commit of this code, with '+' if files differ from it; 'unknown' outside a repository."""
    git = lambda *args: subprocess.run(
        ['git', '-C', str(pathlib.Path(__file__).parent), *args], capture_output=True, text=True
    )
    try:
        head, changed = (
            git('rev-parse', '--short', 'HEAD'),
            git('status', '--porcelain', '--untracked-files=no'),
        )
    except FileNotFoundError:
        return 'unknown'
    return (
        head.stdout.strip() + ('+' if changed.stdout.strip() else '')
        if head.returncode == 0
        else 'unknown'
    )

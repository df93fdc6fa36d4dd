"""One MLIR context for all programs that a test file lowers.

JAX makes a context for each program, and loads all dialects into it. For the operations that tests
call one by one that takes a third of the time of their compilation. Contexts only hold types and
attributes that are equal for all, so programs can share one; a new file gets a new one, so that the
constants of the programs before do not stay in memory.
"""

from jax._src.interpreters import mlir

_make = getattr(mlir, 'make_ir_context', None)  # no public name: another JAX may not have it
_shared = []


def _context():
    if not _shared:
        _shared.append(_make())
    return _shared[0]


def share() -> None:
    """From here on programs share a context."""
    if _make is not None:
        mlir.make_ir_context = _context


def renew() -> None:
    """The next program gets a new context, and those after it share that one."""
    _shared.clear()

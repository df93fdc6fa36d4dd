"""Options of the functions of a method: their keyword-only arguments."""

import inspect
from collections.abc import Callable


def keyword_options(fn: Callable) -> dict[str, bool]:
    """Name of each keyword-only argument -> whether the function has a default for it."""
    arguments = inspect.signature(fn).parameters.values()
    return {a.name: a.default is not a.empty for a in arguments if a.kind is a.KEYWORD_ONLY}

"""Every public function of core states its types and shapes; a wrong shape fails at the call."""

import importlib
import inspect
import pkgutil

import jax
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from densegrpo_jax import core
from densegrpo_jax.core.particles import proposal_log_ratio
from tests.shapes import unchecked


def test_a_wrong_shape_is_refused_where_it_is_passed():
    x, std = np.zeros((3, 2), np.float32), np.ones(3, np.float32)
    assert proposal_log_ratio(x, x, std, x).shape == (3,)
    with pytest.raises(TypeCheckError, match="parameter 'std'"):
        proposal_log_ratio(x, x, std[:2], x)
    with pytest.raises(TypeCheckError, match="parameter 'shift'"):
        jax.jit(proposal_log_ratio)(x, x, std, x[:, :1])


def test_every_public_function_states_its_types():
    found = {name: bare(fn) for name, fn in public_functions()}
    assert len(found) > 70 and 'sde_step.sde_step' in found and 'grpo_loss.LossSums.merge' in found
    assert {name: names for name, names in found.items() if names} == {}


def test_a_bare_argument_or_result_is_found():
    def half(x: int, *rest, y=1): ...

    assert bare(half) == ['rest', 'y', 'return']


def public_functions():
    """(name, function) of every public function and method that core defines."""
    for module in pkgutil.iter_modules(core.__path__):
        loaded = importlib.import_module(f'{core.__name__}.{module.name}')
        yield from defined(loaded, loaded.__name__, module.name)


def defined(owner, module, prefix):
    for name, value in vars(owner).items():
        value = value.fget if isinstance(value, property) else value
        value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if name.startswith('_') or getattr(value, '__module__', None) != module:
            continue
        if inspect.isclass(value):
            yield from defined(value, module, f'{prefix}.{name}')
        elif inspect.isfunction(value) and value.__name__ != '<lambda>':  # the default of a field
            yield f'{prefix}.{name}', unchecked(value)


def bare(fn):
    """Names of what the function leaves without annotation."""
    signature = inspect.signature(fn)
    named = {n: p.annotation for n, p in signature.parameters.items() if n not in ('self', 'cls')}
    named['return'] = signature.return_annotation
    return [name for name, annotation in named.items() if annotation is inspect.Signature.empty]

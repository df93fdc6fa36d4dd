"""Floating-point operations of a program, counted from its jaxpr, as the basis of utilisation.

A product of [m, k] and [k, n] is 2 m k n operations; only matrix products and convolutions count,
as is usual. XLA's own cost analysis counts the body of a scan once; here it counts `length` times.
"""

import dataclasses
import math

import jax
from jax.extend import core

from densegrpo_jax.networks import attention
from densegrpo_jax.pipelines.base import Pipeline


def count_flops(function, *args) -> int:
    """Operations of `function(*args)`. The arguments may be arrays or ShapeDtypeStructs; nothing
    runs.

    Recomputation that the program asks for (`jax.checkpoint`) is counted as often as it happens.

    Raises:
      NotImplementedError: a `while` loop contains products: the number of its iterations is unknown
        before it runs.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def countable(pipeline: Pipeline) -> Pipeline:
    """The pipeline with the plain attention, whose products are seen; of a fused kernel some or all
    are not.
    """
    network = pipeline.transformer
    if not hasattr(network, 'attend'):
        return pipeline
    modules = {**pipeline.modules, 'transformer': network.clone(attend=attention.xla)}
    return dataclasses.replace(pipeline, modules=modules)


def _count(jaxpr) -> int:
    return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == 'dot_general':
        (contracted, _), _ = params['dimension_numbers']
        return (
            2 * _size(eqn.outvars[0]) * math.prod(eqn.invars[0].aval.shape[a] for a in contracted)
        )
    if name == 'conv_general_dilated':
        kernel = eqn.invars[1].aval.shape
        outputs = kernel[params['dimension_numbers'].rhs_spec[0]]
        # the kernel holds the inputs of one group only
        return 2 * _size(eqn.outvars[0]) * math.prod(kernel) // outputs
    inner = [_count(_open(value)) for value in _nested(params)]
    if name == 'while' and sum(inner):
        raise NotImplementedError(
            'the program multiplies matrices in a while loop, which has no known number of runs'
        )
    if name == 'cond':
        return max(inner)
    return sum(inner) * (params['length'] if name == 'scan' else 1)


def _size(var) -> int:
    return math.prod(var.aval.shape)


def _nested(params):
    """The jaxprs among an equation's parameters: bodies of scan, jit, checkpoint, custom
    derivatives, the branches of cond.
    """
    values = [
        v
        for value in params.values()
        for v in (value if isinstance(value, (tuple, list)) else (value,))
    ]
    return [v for v in values if isinstance(v, (core.Jaxpr, core.ClosedJaxpr))]


def _open(jaxpr):
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr

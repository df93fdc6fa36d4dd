"""(a) The fused kernel of this device against plain attention, on the shapes of both models: values
and gradients, and seconds of each. On a CPU the kernel for TPUs runs interpreted.

The bound is the distance of plain attention in bfloat16 from plain attention in float32, times two:
the kernel may round differently, not worse.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from benchmarks.accelerator.record import Record, arguments
from benchmarks.timing import compiled, timed
from densegrpo_jax.networks import attention
from densegrpo_jax.runtime.mesh import make_mesh

# name -> (rows, tokens, heads, depth): image and text tokens of the recipes
SHAPES = {
    'SD3.5-M 512': (8, 1024 + 205, 24, 64),
    'FLUX 512': (8, 1024 + 128, 24, 128),
    'SD3.5-M 1024': (2, 4096 + 205, 24, 64),
    'FLUX 1024': (2, 4096 + 128, 24, 128),
}
SMALL = {'SD3.5-M small': (2, 77, 2, 64), 'FLUX small': (1, 128, 2, 128)}


def kernel_of(platform: str):
    """(name, the fused kernel of a platform)."""
    if platform in ('gpu', 'cuda'):
        return 'cudnn', attention.cudnn
    mesh = make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    return 'splash', functools.partial(attention.splash, mesh=mesh, interpret=platform == 'cpu')


def value_and_gradients(attend):
    """(out, gradients by q, k and v) of a weighted sum of attention's output."""

    def both(q, k, v, weight):
        def total(q, k, v):
            out = attend(q, k, v)
            return (out.astype(jnp.float32) * weight).sum(), out

        gradients, out = jax.grad(total, (0, 1, 2), has_aux=True)(q, k, v)
        return out, *gradients

    return both


def distance(found, wanted) -> float:
    """The root mean square of the difference over that of the values; the worst of the arrays."""
    size = lambda x: jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))
    return max(float(size(f.astype(jnp.float32) - w) / size(w)) for f, w in zip(found, wanted))


def main() -> None:
    given = arguments(__doc__)
    record = Record(given.record, given.step)
    repeat = 20 if given.size == 'full' else 1
    name, fused = kernel_of(jax.devices()[0].platform)
    for shape, (rows, tokens, heads, depth) in (SHAPES if given.size == 'full' else SMALL).items():
        if shape in record:
            continue
        keys = jax.random.split(jax.random.key(0), 4)
        size = rows, tokens, heads, depth
        exact = [jax.random.normal(key, size) for key in keys[:3]]
        weight = jax.random.normal(keys[3], (rows, tokens, heads * depth))
        low = [x.astype(jnp.bfloat16) for x in exact]
        # float32 of the same rounded inputs
        with jax.default_matmul_precision('highest'):
            reference = value_and_gradients(attention.xla)
            wanted = jax.jit(reference)(*(x.astype(jnp.float32) for x in low), weight)
        plain = compiled(value_and_gradients(attention.xla), *low, weight)
        kernel = compiled(value_and_gradients(fused), *low, weight)
        bound = 2 * distance(plain.call(*low, weight), wanted)
        error = distance(kernel.call(*low, weight), wanted)
        seconds = lambda program, a=low, w=weight: (
            timed(lambda: program.call(*a, w), repeat, most=2, warm=True).seconds
        )
        record.add(
            shape,
            kernel=name,
            error=error,
            bound=bound,
            equal=error <= bound,
            xla_s=seconds(plain),
            kernel_s=seconds(kernel),
            compile_s=plain.seconds + kernel.seconds,
            **({'cached': True} if plain.cached or kernel.cached else {}),
        )
    record.finish()


if __name__ == '__main__':
    main()

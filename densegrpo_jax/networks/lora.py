"""Low-rank adapters (LoRA, arXiv:2106.09685) in a variable collection of their own.

y = x W + b + (alpha / rank) (x A) B, with A Gaussian of std 1/rank (as peft's
`init_lora_weights='gaussian'`) and B zero. Adapters live in the collection 'lora' beside 'params',
at the path of the layer they adapt: {'a': [in, rank], 'b': [rank, out]}, float32.
`model.apply({'params': p, 'lora': l}, ...)` is the policy, `model.apply({'params': p}, ...)` is the
reference.
"""

import dataclasses
import difflib
import re
import zlib

import jax
import jax.numpy as jnp
from flax import traverse_util

COLLECTION = 'lora'


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which layers are adapted, and how.

    Args:
      rank: inner dimension, >= 1.
      alpha: the delta is scaled by alpha / rank.
      targets: regular expressions on checkpoint module names such as
        'transformer_blocks.0.attn.to_q'. A pattern matches the whole name or its last components
        ('attn.to_q', 'proj_out'), as peft's `target_modules` lists do.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self):
        if isinstance(self.targets, str) or not all(isinstance(t, str) for t in self.targets):
            raise ValueError(f'lora.targets must be a sequence of strings, got {self.targets!r}')
        # config files hold lists; modules need hashable fields
        object.__setattr__(self, 'targets', tuple(self.targets))
        if self.rank < 1:
            raise ValueError(f'lora.rank must be at least 1, got {self.rank}')
        if not self.targets:
            raise ValueError('lora.targets is empty: name at least one layer, or use no LoRA')
        for target in self.targets:
            try:
                re.compile(target)
            except re.error as error:
                raise ValueError(
                    f'lora.targets: {target!r} is not a regular expression: {error}'
                ) from None

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def select(self, names) -> tuple[str, ...]:
        """The module names that carry an adapter. Raises ValueError naming every pattern that
        matches none.
        """
        patterns = {target: re.compile(rf'(?:.*\.)?(?:{target})') for target in self.targets}
        unused = [t for t, p in patterns.items() if not any(p.fullmatch(n) for n in names)]
        if unused:
            kinds = sorted({re.sub(r'\.\d+\.', '.0.', name) for name in names})  # of any block
            close = difflib.get_close_matches(unused[0], kinds, 5, cutoff=0)
            raise ValueError(
                f'lora.targets match no layer: {unused}; the closest layers are named {close}'
            )
        return tuple(n for n in names if any(p.fullmatch(n) for p in patterns.values()))


@dataclasses.dataclass(frozen=True)
class Adapters:
    """A LoraConfig resolved against one network: the '/'-joined module paths that carry an
    adapter.
    """

    rank: int
    scale: float
    paths: frozenset[str]


def resolve(config: LoraConfig | None, names: dict[str, str]) -> Adapters | None:
    """Resolves target patterns.

    Args:
      config: the adapters asked for, or None.
      names: checkpoint module name -> '/'-joined path of the layer in the parameter tree; scanned
        blocks share one path.
    Raises:
      ValueError: a pattern matches nothing, or only some of the blocks that are scanned together.
    """
    if config is None:
        return None
    chosen = set(config.select(names))
    paths = frozenset(names[n] for n in chosen)
    partial = [n for n, path in names.items() if path in paths and n not in chosen]
    if partial:
        raise ValueError(
            f'lora.targets {list(config.targets)} select only some of the scanned blocks '
            f'({len(partial)} left out, first {partial[0]!r}): '
            'select all or none, or build the network with scan=False'
        )
    return Adapters(config.rank, config.scale, paths)


def gaussian(key, shape):
    """Fresh A, [in, rank] float32: normal with standard deviation 1 / rank."""
    return jax.random.normal(key, shape, jnp.float32) / shape[-1]


def init_adapters(config: LoraConfig, names: dict[str, str], params: dict, key) -> dict:
    """Fresh adapters for a network: the policy starts as the reference, because every B is zero.

    Each layer's draw depends on the key and the layer's name alone, so scanned and unscanned
    networks start from the same adapters.

    Args:
      config: the adapters asked for.
      names: checkpoint module name -> path, `model.module_paths()`.
      params: the network's parameters, real or abstract: only shapes are read.
      key: typed PRNG key.
    Returns:
      The nested dict of the collection 'lora', float32.
    """
    resolve(config, names)
    flat, blocks = {}, {}
    for name in config.select(names):
        blocks.setdefault(names[name], []).append(name)
    kernels = traverse_util.flatten_dict(params, sep='/')
    for path, layers in blocks.items():
        *stack, inputs, outputs = kernels[f'{path}/kernel'].shape
        keys = [jax.random.fold_in(key, zlib.crc32(layer.encode())) for layer in layers]
        draws = [gaussian(k, (inputs, config.rank)) for k in keys]
        flat[f'{path}/a'] = jnp.stack(draws) if stack else draws[0]
        flat[f'{path}/b'] = jnp.zeros((*stack, config.rank, outputs), jnp.float32)
    return traverse_util.unflatten_dict(flat, sep='/')


def merge(base: dict, adapters: dict, scale: float) -> dict:
    """Base parameters with W + scale A B in place of every adapted kernel; the sum is computed in
    float32, and the dtype stays.
    """
    flat = traverse_util.flatten_dict(base, sep='/')
    lora = traverse_util.flatten_dict(adapters, sep='/')
    for path in {p.rsplit('/', 1)[0] for p in lora}:
        kernel = flat[f'{path}/kernel']
        delta = scale * jnp.matmul(
            lora[f'{path}/a'], lora[f'{path}/b'], precision=jax.lax.Precision.HIGHEST
        )
        flat[f'{path}/kernel'] = (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)
    return traverse_util.unflatten_dict(flat, sep='/')

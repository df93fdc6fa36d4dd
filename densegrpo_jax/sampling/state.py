"""The training state: everything that training changes, which is the policy, the roles that follow
it, the optimiser and the step. Everything else derives from the config.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from densegrpo_jax.config.method import follows_of
from densegrpo_jax.core.losses import STATE_FIELDS
from densegrpo_jax.core.roles import EMA, POLICY, Follow, moving_average, warm_decay
from densegrpo_jax.networks.lora import LoraConfig, init_adapters
from densegrpo_jax.networks.network import Network
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.pipelines.weights.lora_files import check_layers, from_layers
from densegrpo_jax.pipelines.weights.lora_reading import layer_shapes, read_layers
from densegrpo_jax.runtime.sharding import init_sharded
from densegrpo_jax.runtime.streams import STREAM_INIT, stream_key


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class TrainState:
    """One pytree, checkpointed whole, with every role under its own name: 'policy/...', 'ema/...',
    'opt/...'.
    """

    # name -> LoRA collection, or all parameters of the transformer (`full`); float32. POLICY is
    # trained; EMA and the loss's roles follow it as `follow_rules` says.
    roles: dict[str, Any]
    opt: optax.OptState
    step: jax.Array  # int32 [], completed iterations
    skipped: jax.Array  # int32 [], updates left out for a non-finite gradient

    @property
    def policy(self) -> Any:
        """The trained policy."""
        return self.roles[POLICY]

    @property
    def ema(self) -> Any:
        """The policy's moving average (EMA), which is evaluated and exported."""
        return self.roles[EMA]

    def tree_flatten_with_keys(self):
        """The roles, then STATE_FIELDS. Static: the roles' names, policy and EMA first."""
        names = tuple(sorted(self.roles, key=lambda name: (name != POLICY, name != EMA, name)))
        parts = {name: self.roles[name] for name in names}
        parts |= {name: getattr(self, name) for name in STATE_FIELDS}
        key = jax.tree_util.GetAttrKey
        return [(key(name), part) for name, part in parts.items()], names

    @classmethod
    def tree_unflatten(cls, names, parts):
        """The state whose roles have these names."""
        parts = tuple(parts)
        return cls(dict(zip(names, parts)), *parts[len(names) :])


def follow_rules(config) -> dict[str, Follow]:
    """The roles other than the policy in a state of this configuration, and how each follows it."""
    average = moving_average(warm_decay(config.ema.decay, config.ema.every))
    return {EMA: average, **follows_of(config)}


def learning_rate(config) -> optax.Schedule:
    """Learning rate of update k = 0, 1, ...: a linear rise over `optim.warmup` iterations, then
    `optim.decay` towards 0, where the update after the run's last would be.
    """
    o = config.optim
    warm, rest = o.warmup * o.updates, (config.iterations - o.warmup) * o.updates
    after = {
        'constant': optax.constant_schedule(o.learning_rate),
        'linear': optax.linear_schedule(o.learning_rate, 0.0, rest),
        'cosine': optax.cosine_decay_schedule(o.learning_rate, max(rest, 1)),
    }[o.decay]
    if not warm:
        return after
    # The first update already uses (k + 1) / (warm + 1) of the rate.
    rise = optax.linear_schedule(o.learning_rate / (warm + 1), o.learning_rate, warm)
    return optax.join_schedules([rise, after], [warm])


def optimiser(config, network: Network | type[Network]) -> optax.GradientTransformation:
    """AdamW with global-norm clipping, at `learning_rate`, for parameters or adapters of a network,
    whose BUFFERS do not decay.
    """
    o = config.optim
    decays = lambda path, _: getattr(path[-1], 'key', None) not in network.BUFFERS
    adamw = optax.adamw(
        learning_rate(config),
        b1=o.b1,
        b2=o.b2,
        eps=o.eps,
        weight_decay=o.weight_decay,
        mask=lambda tree: jax.tree_util.tree_map_with_path(decays, tree),
    )
    return optax.chain(optax.clip_by_global_norm(o.grad_clip), adamw)


def lora_config(config) -> LoraConfig | None:
    """The adapters of a configuration; None if all weights are trained."""
    return (
        None
        if config.full
        else LoraConfig(config.lora.rank, config.lora.alpha, config.lora.targets)
    )


def init_state(
    pipeline: Pipeline,
    tx: optax.GradientTransformation,
    key: jax.Array,
    base: dict,
    followers: Iterable[str] = (EMA,),
) -> TrainState:
    """The initial state: policy and followers equal the reference. Jit it with the shardings of the
    mesh.

    Args:
      key: of the fresh adapters (Gaussian A, zero B).
      base: the transformer's parameters; with adapters only their shapes matter.
      followers: the roles other than the policy; in a run those of `follow_rules`.
    """
    lora, zero = pipeline.transformer.lora, jnp.zeros((), jnp.int32)
    if lora is None:
        policy = jax.tree.map(lambda p: p.astype(jnp.float32), base)
    else:
        policy = init_adapters(lora, pipeline.adapter_names(), base, key)
    copies = {role: jax.tree.map(jnp.copy, policy) for role in followers}
    return TrainState({POLICY: policy, **copies}, tx.init(policy), zero, zero)


def state_shapes(
    pipeline: Pipeline, tx: optax.GradientTransformation, followers: Iterable[str] = (EMA,)
) -> TrainState:
    """ShapeDtypeStructs of `init_state`; computes nothing."""
    base, roles = pipeline.abstract_params(['transformer'])['transformer'], tuple(followers)
    return jax.eval_shape(
        lambda base: init_state(pipeline, tx, jax.random.key(0), base, roles), base
    )


def start_state(
    config, pipeline: Pipeline, tx: optax.GradientTransformation, mesh: Mesh, base: dict
) -> TrainState:
    """The state at the start of a run, placed on the mesh: fresh adapters, or those of
    `lora.init_from`.
    """
    key, followers = stream_key(config.seed, STREAM_INIT, 0), tuple(follow_rules(config))
    fresh = lambda base: init_state(pipeline, tx, key, base, followers)
    state = init_sharded(fresh, mesh, base, rules=pipeline.sharding_rules)
    if not config.lora.init_from:
        return state
    names = pipeline.adapter_names()
    return start_from(state, read_layers(config.lora.init_from, names, pipeline.ORIGINAL), pipeline)


def start_digest(config, pipeline: Pipeline) -> str:
    """A short hash of the adapters of `lora.init_from`. Raises the errors of `read_layers`."""
    total, names = hashlib.sha256(), pipeline.adapter_names()
    for name, pair in sorted(read_layers(config.lora.init_from, names, pipeline.ORIGINAL).items()):
        total.update(name.encode())
        for array in pair:
            total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]


def check_start(config, pipeline: Pipeline) -> None:
    """Raises the errors of `start_state` for the adapter file `lora.init_from`, from its header
    and joined layers.
    """
    if config.lora.init_from:
        names, lora = pipeline.adapter_names(), pipeline.transformer.lora
        shapes = layer_shapes(config.lora.init_from, names, pipeline.ORIGINAL)
        tx = optimiser(config, pipeline.transformer)
        # Last: the shapes of a large network take seconds.
        check_layers(shapes, names, lora, state_shapes(pipeline, tx).policy)


def start_from(state: TrainState, layers: dict, pipeline: Pipeline) -> TrainState:
    """The fresh state with policy and followers taken from an adapter file
    (`lora_reading.read_layers`).
    """
    given = from_layers(layers, pipeline.adapter_names(), pipeline.transformer.lora, state.policy)
    placed = lambda: jax.tree.map(
        lambda value, leaf: jax.device_put(value, leaf.sharding), given, state.policy
    )
    return dataclasses.replace(state, roles={role: placed() for role in state.roles})


def count(tree) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

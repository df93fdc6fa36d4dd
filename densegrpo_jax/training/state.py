"""What training changes: adapters, their moving average, the optimiser and the step. Everything else is derived from the config."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from densegrpo_jax.models.lora import init_adapters
from densegrpo_jax.models.lora_files import from_layers
from densegrpo_jax.models.pipeline import Pipeline


class TrainState(NamedTuple):
    """One pytree, checkpointed whole. Adapters are named by their role; methods that need more roles add fields."""

    policy: dict  # LoRA collection, float32
    ema: dict  # its moving average, which is evaluated and exported
    opt: optax.OptState
    step: jax.Array  # int32 [], completed iterations
    skipped: jax.Array  # int32 [], updates left out for a non-finite gradient


def optimiser(config) -> optax.GradientTransformation:
    """AdamW with global-norm clipping; the rate warms up linearly over `optim.warmup` iterations."""
    o = config.optim
    rate = o.learning_rate
    if o.warmup:
        rate = optax.linear_schedule(0.0, o.learning_rate, o.warmup * o.updates)
    return optax.chain(optax.clip_by_global_norm(o.grad_clip), optax.adamw(rate, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay))


def init_state(pipeline: Pipeline, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """Fresh adapters (Gaussian A, zero B: the policy is the reference), to be jitted with the shardings of the mesh."""
    network = pipeline.transformer
    adapters = init_adapters(network.lora, pipeline.adapter_names(), pipeline.abstract_params()['transformer'], key)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(adapters, jax.tree.map(jnp.copy, adapters), tx.init(adapters), zero, zero)


def start_from(state: TrainState, layers: dict, pipeline: Pipeline) -> TrainState:
    """The fresh state with its policy, and moving average, taken from an adapter file (`lora_files.read_peft`)."""
    given = from_layers(layers, pipeline.adapter_names(), pipeline.transformer.lora, state.policy)
    placed = lambda: jax.tree.map(lambda value, leaf: jax.device_put(value, leaf.sharding), given, state.policy)
    return state._replace(policy=placed(), ema=placed())


def ema_update(ema: dict, policy: dict, step: jax.Array, *, decay: float, every: int) -> dict:
    """`ema <- d ema + (1 - d) policy` with d = min(decay, (1 + step) / (10 + step)), at every `every`-th step (Flow-GRPO's code)."""
    d = jnp.where((step + 1) % every == 0, jnp.minimum(decay, (1.0 + step) / (10.0 + step)), 1.0)
    return jax.tree.map(lambda e, p: d * e + (1 - d) * p, ema, policy)


def count(tree) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

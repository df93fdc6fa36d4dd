"""One resumable training stage: optimiser, EMA, prefetch, progress and checkpoints shared by every
pretraining stage.
"""

from __future__ import annotations

import concurrent.futures
import pathlib
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from densegrpo_jax.runtime.checkpoints import Checkpoints
from densegrpo_jax.runtime.progress import ProgressBar
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.runtime.trees import ABSENT, differing


def optimiser(stage) -> optax.GradientTransformation:
    """AdamW with linear warm-up, cosine decay to 2 % of the peak rate, and gradient clipping at
    global norm 1.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, stage.lr, stage.warmup, stage.steps, end_value=0.02 * stage.lr
    )
    decay_mask = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.99, weight_decay=0.01, mask=decay_mask),
    )


def ema_update(ema, params, step: jax.Array, decay: float):
    """Exponential moving average with the warm-up `min(decay, (1 + step) / (10 + step))`."""
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: e * d + p * (1 - d), ema, params)


def run_stage(
    name: str,
    stage,
    params,
    loss_fn: Callable,
    batch_fn: Callable[[int], dict],
    workdir: pathlib.Path,
    mesh: Mesh,
    *,
    seed: int,
    log_every: int,
    save_seconds: float,
    keep: int,
    made_from: Mapping = {},
    on_eval: Callable[[int, dict], str] | None = None,
    stop: StopRequest | None = None,
) -> dict:
    """Trains `params` for `stage.steps` steps and returns their EMA; a second call continues from
    the newest checkpoint.

    Args:
      name: stage name, used for the checkpoint folder and the log.
      stage: ConfigDict with steps, lr, warmup, ema and, when `on_eval` is given, eval_every.
      params: parameter tree to start from, float32.
      loss_fn: `(params, batch, key) -> (loss [], dict of scalars)`.
      batch_fn: `step -> dict of numpy arrays`; must depend on the step alone, so that a resumed
        stage sees the same data.
      workdir: checkpoints go to its checkpoints/NAME.
      mesh: its axis 'data' splits the rows of a batch; the weights are whole on every device. On a
        CPU that is one device per core (`runtime.startup.start_devices`).
      made_from: JSON values that must equal those of the checkpoint to continue.
      on_eval: called with (step, EMA parameters) every `stage.eval_every` steps; returns a line to
        show.
      stop: None: one that nothing sets.

    After an error or a stop the last completed step has been saved.

    Raises:
      Preempted: a stop was requested.
      CheckpointMismatch: the checkpoints have other settings; the message names the differences.
    """
    tx = optimiser(stage)
    root = jax.random.key(seed)

    @jax.jit
    def train_step(state, batch):
        key = jax.random.fold_in(root, state['step'])
        (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state['params'], batch, key)
        updates, opt = tx.update(grads, state['opt'], state['params'])
        new = optax.apply_updates(state['params'], updates)
        ema = ema_update(state['ema'], new, state['step'], stage.ema)
        return {'params': new, 'ema': ema, 'opt': opt, 'step': state['step'] + 1}, {
            'loss': loss,
            **aux,
        }

    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec('data'))
    state = {
        'params': params,
        'ema': params,
        'opt': tx.init(params),
        'step': jnp.zeros((), jnp.int32),
    }
    state = jax.device_put(state, whole)
    checkpoints = Checkpoints(
        workdir / 'checkpoints' / name,
        max_to_keep=keep,
        fingerprint=made_from,
        # Earlier versions recorded nothing: absent values count as equal.
        differences=lambda old, new: [d for d in differing(old, new) if d.old is not ABSENT],
    )
    restored = checkpoints.restore_latest(state)
    if restored is not None:
        state = jax.device_put(restored.state, whole)
        logging.info('%s: continuing from step %d', name, int(state['step']))
    start = done = saved = int(state['step'])
    stop = stop or StopRequest()
    last_save = time.monotonic()
    losses: list[dict] = []
    bar = ProgressBar(stage.steps, start=start, label=name)
    with checkpoints, bar, concurrent.futures.ThreadPoolExecutor(1) as pool:
        pending = pool.submit(batch_fn, start) if start < stage.steps else None
        try:
            for step in range(start, stage.steps):
                batch = pending.result()
                if step + 1 < stage.steps:
                    pending = pool.submit(batch_fn, step + 1)
                state, metrics = train_step(state, jax.device_put(batch, split))
                losses.append(metrics)
                done = step + 1
                if done % log_every == 0 or done == stage.steps:
                    means = {k: float(np.mean([float(m[k]) for m in losses])) for k in losses[0]}
                    bar.update(done, means)
                    losses = []
                if on_eval is not None and (done % stage.eval_every == 0 or done == stage.steps):
                    ema = jax.block_until_ready(state)['ema']  # see Checkpoints.save
                    bar.note(on_eval(done, ema))
                if time.monotonic() - last_save > save_seconds or done == stage.steps:
                    checkpoints.save(done, state, {'stage': name})
                    last_save, saved = time.monotonic(), done
                stop.check()
        except Exception:
            if done > saved:
                checkpoints.save(done, state, {'stage': name})
                checkpoints.wait_until_finished()
                logging.warning('%s: saved after step %d of %d', name, done, stage.steps)
            raise
    return state['ema']

"""The lines that a run prints before it loads a weight or compiles anything."""

from __future__ import annotations

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from densegrpo_jax.config.guard_keys import WARN
from densegrpo_jax.config.method import loss_of
from densegrpo_jax.config.unread import unread
from densegrpo_jax.core.branch_plan import step_spread
from densegrpo_jax.core.list_loss import list_temperature_of
from densegrpo_jax.core.losses import CLEAN, LOSSES
from densegrpo_jax.evaluation.panel import Part
from densegrpo_jax.guard.check import guard_cost, ratio_limit
from densegrpo_jax.networks.quantize import stored_shapes
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.rewards.composite import CompositeReward
from densegrpo_jax.rewards.differentiable import weights_bytes
from densegrpo_jax.runtime.mesh import batch_shards
from densegrpo_jax.runtime.sharding import bytes_per_device, shardings
from densegrpo_jax.sampling.cost import SampleCost, executed, largest, mean_process, of_sample
from densegrpo_jax.sampling.noise import describe, title
from densegrpo_jax.sampling.policy import LOG_RATIO_ROUNDING
from densegrpo_jax.sampling.schedule import Schedule
from densegrpo_jax.sampling.session import Checked
from densegrpo_jax.sampling.state import TrainState, count
from densegrpo_jax.training.batches import BATCHES
from densegrpo_jax.training.geometry import rows_of_sample, samples_at_once

GIB = 2**30
TRAINED = 'trained, optimiser, moving average'
RECORD = 'latents of the update'
PROCESS = 'weights of the process reward'
LOWERED_BY = {  # part of `memory` -> keys that make it smaller
    'weights': ('mesh.fsdp', 'mesh.tensor', 'model.quantize'),
    TRAINED: ('mesh.fsdp', 'lora.rank'),
    'latents': ('rollout.prompts_per_batch', 'rollout.prompts', 'credit.completion_every'),
    'images': ('rollout.prompts_per_batch', 'credit.completion_every'),
    RECORD: ('rollout.prompts',),
    PROCESS: ('guide.source',),
}


def memory(
    config,
    pipeline: Pipeline,
    schedule: Schedule,
    mesh: Mesh,
    shapes: dict,
    state,
    reward: CompositeReward | None = None,
) -> dict[str, float]:
    """Bytes per device of everything lasting or large: weights, adapters with optimiser and moving
    average (EMA), rollout latents, images, the latents that an update trains on, and the copy of
    the weights of `reward` that rollouts take if it scores predicted images inside them.

    Activations inside a network are not included: they depend on the compiler (and on
    `model.remat`). Nor are the weights with which a reward scores finished images.
    """
    devices, r, m = mesh.devices.size, config.rollout, config.model
    dtype = jnp.dtype(m.dtype)
    # The text encoders are freed before training starts.
    base, blocks = {n: shapes[n] for n in ('transformer', 'vae')}, pipeline.transformer.BLOCKS
    stored = stored_shapes(base, dtype, m.quantize, blocks)
    of = lambda tree: bytes_per_device(tree, shardings(tree, mesh, pipeline.sharding_rules))
    weights, trained = of(stored), of(state)
    plan, samples = largest(config, schedule).plan, r.prompts * r.group
    row = float(np.prod(pipeline.latent_shape(m.height, m.width))) * 4
    batch = samples_at_once(config)
    means = len(plan.transitions.job) if loss_of(config).mean_old else 0
    kept = (plan.kept + 1 + means) * samples * row / devices
    buffer = (plan.rows + means) * batch * row / devices
    images = len(plan.completions) * batch * m.height * m.width * 3 / devices
    if loss_of(config).batch == CLEAN:  # a microbatch at a time gets its noise
        record = samples + 3 * config.optim.microbatch
    else:  # both ends of every transition
        record = (3 if means else 2) * rows_of_sample(config, schedule) * samples
    return {
        'weights': weights,
        TRAINED: trained,
        'latents': kept + buffer,
        'images': images,
        RECORD: record * row / devices,
        **({} if reward is None else {PROCESS: weights_bytes(reward)}),
    }


def too_much(need: dict[str, float], device: jax.Device, full: bool) -> str:
    """A warning if `memory` is more than the device has; '' if it is not, or if the device (a CPU)
    does not say.
    """
    limit = (device.memory_stats() or {}).get('bytes_limit')
    if not limit or sum(need.values()) <= limit:
        return ''
    largest = sorted(need, key=need.get, reverse=True)
    keys = dict.fromkeys(
        key
        for name in largest
        for key in LOWERED_BY[name]
        if not (full and key in ('model.quantize', 'lora.rank'))
    )
    return (
        f'this needs {sum(need.values()) / GIB:.2f} GiB per device before activations, and JAX has '
        f'{limit / GIB:.2f} GiB on {device.device_kind}: it will not fit. Most are {largest[0]}, '
        f'{need[largest[0]] / GIB:.2f} GiB. Keys that lower it: {", ".join(keys)}'
    )


def near_rounding(config, elements: int) -> str:
    """A warning if the listwise loss's temperature, or in bfloat16 the clip range, is within ten
    times the rounding of log-ratios; '' otherwise. elements: of a latent.
    """
    clip, rounding = config.loss.clip_range, LOG_RATIO_ROUNDING['bfloat16']
    clips = 'clip_range' in loss_of(config).options and config.model.dtype == 'bfloat16'
    if clips and clip < 9.9 * rounding:  # 1e-4 is no warning, whatever the last bit of 1e-5
        return (
            f'loss.clip_range={clip:g} of loss.kind={config.loss.kind!r} is within ten times the '
            f'rounding of log-ratios in bfloat16, which may reach {rounding:g}: '
            'train/ratio_deviation_first is this rounding, and where it exceeds the clip range, '
            "it cuts gradients; then use a larger clip range, or model.dtype='float32'"
        )
    if loss_of(config) not in (LOSSES['list'], LOSSES['list_trajectory']):
        return ''
    rounding = LOG_RATIO_ROUNDING[config.model.dtype]
    tau = list_temperature_of(config.loss.list_temperature, elements)
    if tau >= 10 * rounding:
        return ''
    return (
        f'loss.kind={config.loss.kind!r} divides log-ratios by the temperature {tau:.2g}, and in '
        f'{config.model.dtype} they are rounded by up to {rounding:g}: train/list_logit_max of the '
        f'first updates is this rounding; if it is not far below 1, use '
        f'loss.list_temperature={10 * rounding:g}'
    )


def off_the_grid(config, pipeline: Pipeline) -> str:
    """A warning if the loss trains a distilled model at noise levels that it does not use; ''
    otherwise.
    """
    few = pipeline.distilled(config.model.guidance, config.rollout.steps)
    if loss_of(config).batch != CLEAN or not few:
        return ''
    return (
        f'loss.kind={config.loss.kind!r} trains the velocity at all noise levels, and this seems '
        'to be a model distilled to few steps: others saw images of such models blur in a training '
        'of this kind, while the score rose. Watch the held-out images, train the base that it '
        'was distilled from, or use a method that trains transitions, such as method=flow_grpo'
    )


def crowded(config, shards: int) -> str:
    """A warning if a microbatch puts more rows on a device than it is known to hold; '' otherwise.
    shards: devices that share a batch.
    """
    o, r, loss = config.optim, config.rollout, loss_of(config)
    rows = o.microbatch / shards
    if not 0 < o.rows_per_device < rows:
        return ''
    why = 'use a smaller one, or more devices'
    if loss.groups:
        of = ' with all their transitions' if loss.trajectories else ''
        why = (
            f'loss.kind={config.loss.kind!r} compares the whole groups of rollout.group={r.group} '
            f'samples{of}, which no microbatch may split: use more devices, or a smaller group'
        )
    return (
        f'optim.microbatch={o.microbatch} is {rows:g} {BATCHES[loss.batch].unit} a device, and '
        f'optim.rows_per_device={o.rows_per_device} are known to fit; {why}. '
        '`densegrpo_jax.plan` says what the update needs'
    )


def scored(config, schedule: Schedule) -> str:
    """What is scored, in words: the points of each kind, and how they are completed."""
    plan, tau = schedule.plan, config.plan.merge_tau
    kinds: dict[str, list[int]] = {}
    for point in plan.points:
        kinds.setdefault(point.kind, []).append(point.k)
    text = 'scored ' + ', '.join(f'{kind} {tuple(steps)}' for kind, steps in kinds.items())
    if config.plan.kind == 'trajectory':
        return f'{text}, completion steps {config.credit.completion_steps or "all remaining"}'
    ends = list(zip(plan.transitions.k_from, plan.transitions.k_to))
    if longer := [f'{k} to {end}' for k, end in ends if end > k + 1]:
        text += f', merged steps {", ".join(longer)}'
    spread = lambda k, end: step_spread(schedule.sigmas, schedule.noise_levels, k, end)
    if tau and (below := tuple(k for k, end in ends if spread(k, end) <= tau)):
        text += f', e^h of steps {below} is below plan.merge_tau even so'
    return text


def added(config, schedule: Schedule, each: SampleCost) -> str:
    """What the attention probe and a process reward add to a sample, in words; '' without them."""
    told = f'; attention probe: {each.probe:.3g} evaluations' if each.probe else ''
    if not schedule.guide_steps:
        return told
    c = mean_process(config, schedule)
    kind = 'of the base' if config.guide.source == 'probe' else ''
    parts = [(c.evaluations, f'evaluations {kind}'), (c.gradients, 'gradients')]
    parts.append((c.images, 'images scored on the devices'))
    text = ', '.join(f'{round(n, 2):g} {what}'.strip() for n, what in parts if n)
    return f'{told}; process reward {config.guide.source} at {schedule.guide_steps}: {text}'


def guarded_by(checked: Checked, part: Part) -> str:
    """What the guard measures, at what cost, and what it does."""
    config, g, cost = checked.config, checked.config.guard, guard_cost(checked, part)
    action = g.action if g.action == WARN else f'{g.action} after {g.patience} in a row'
    start = f' ({cost.start_nfe} at the start)' if cost.start_nfe != cost.nfe else ''
    return (
        f'{cost.evaluations} evaluations of {len(part.prompts)} prompts x {g.images} images'
        f'{f", KL on {cost.kl_prompts}" if cost.kl_prompts else ""}: {cost.images} more images at '
        f'each, {cost.nfe} evaluations of the network{start}; a fallen score: {action}'
        f'{_silent(config)}'
    )


def _silent(config) -> str:
    """The alarm of the ratio, if it cannot be given."""
    if loss_of(config).batch == CLEAN:
        return f'; no alarm of the ratio: loss.kind={config.loss.kind!r} has none'
    if config.optim.updates > 1 and ratio_limit(config):
        return ''
    why = f'optim.updates={config.optim.updates}'
    if not ratio_limit(config):
        why = f'loss.kind={config.loss.kind!r} clips none'
    return f'; an alarm of the ratio before the first update alone: {why}'


def announce(
    checked: Checked,
    state: TrainState,
    accumulation: int,
    workdir: pathlib.Path,
    guarded: Part | None = None,
) -> None:
    """Prints model, trainable parameters, geometry, expected device memory and the places of
    results. state: shapes suffice. accumulation: microbatches of an update.
    guarded: of `check_guard`.
    """
    config, pipeline, schedule = checked.config, checked.pipeline, checked.schedule
    folder, mesh = checked.folder, checked.mesh
    r, m, o = config.rollout, config.model, config.optim
    base = pipeline.abstract_params()
    process = checked.process_reward
    reward = None if process is None else process.reward
    need = memory(config, pipeline, schedule, mesh, base, state, reward)
    steps = lambda mask: ''.join('x' if on else '.' for on in mask)
    devices = mesh.devices.flatten()
    axes = ' x '.join(f'{name} {size}' for name, size in mesh.shape.items())
    each, run = of_sample(config, schedule), executed(config, schedule)
    parts = sum(map(count, base.values())) / 1e6
    samples, batches = r.prompts * r.group, r.prompts // r.prompts_per_batch
    masks = (
        f'stochastic {steps(schedule.masks.stochastic)}, trained {steps(schedule.masks.trained)}'
    )
    moved = f'; {schedule.moving.count} of them an iteration' if schedule.moving else ''
    first = f' with the first of {len(run)} choices' if len(run) > 1 else ''
    trained = f'LoRA rank {config.lora.rank}, alpha {config.lora.alpha:g}'
    if config.full:
        trained = 'all weights of the transformer (the reference policy is a frozen copy)'
    unit = BATCHES[loss_of(config).batch].unit
    total = sum(need.values())
    binary, one = ('GiB', GIB) if total >= GIB else ('MiB', 2**20)
    held = ', '.join(f'{name} {size / one:.2f}' for name, size in need.items())
    table = {
        'model': (
            f'{folder}: transformer {count(base["transformer"]) / 1e6:.1f} M, all parts '
            f'{parts:.1f} M parameters, {m.dtype}'
        )
        + (f', blocks of the transformer in {m.quantize}' if m.quantize != 'none' else ''),
        'trained': f'{trained}: {count(state.policy) / 1e6:.3f} M parameters, float32',
        'devices': (
            f'{len(devices)} x {devices[0].device_kind} ({axes}), {jax.process_count()} '
            f'process(es), attention {m.attention}'
        ),
        'images': (
            f'{m.width} x {m.height} px, guidance {m.guidance:g}; '
            f'{len(checked.train)} training prompts, {len(checked.test)} '
            'evaluation prompts'
        ),
        'rollout': f'T = {r.steps}, kernel {r.kernel}, noise {describe(config)}; {masks}{moved}',
        'iteration': (
            f'{r.prompts} prompts x {r.group} = {samples} samples in {batches} batch(es), '
            f'{each.rollout:g} evaluations and {each.images:g} images a sample'
            f'{added(config, schedule, each)}'
        ),
        'credit': f'{config.credit.rule}; {scored(config, run[0])}{first}; {config.credit.std} std'
        + (f', {config.credit.combine} of the rewards' if config.credit.combine != 'sum' else ''),
        'update': (
            f'{o.updates} per iteration, {accumulation} x {o.microbatch} {unit}, lr '
            f'{o.learning_rate:g} ({o.decay}), clip {config.loss.clip_range:g}, beta '
            f'{config.loss.beta:g}'
        ),
        'evaluation': (
            f'every {config.eval.every} iterations, {config.eval.steps} ODE steps, moving average '
            'of the '
        )
        + ('weights' if config.full else 'adapters'),
        **({'guard': guarded_by(checked, guarded)} if guarded else {}),
        'memory': f'{held} {binary} per device: {total / one:.2f} {binary} before activations',
        'results': (
            f'{workdir}: metrics.jsonl, tensorboard/, samples/, checkpoints/ (newest '
            f'{config.checkpoint.keep} and the best)'
        ),
    }
    lines = [
        title(config, pathlib.Path(folder).name),
        *(f'{name:12s} {text}' for name, text in table.items()),
    ]
    for line in lines:
        logging.info('%s', line)
    elements = math.prod(pipeline.latent_shape(m.height, m.width))
    warnings = (
        too_much(need, mesh.local_devices[0], config.full),
        near_rounding(config, elements),
        off_the_grid(config, pipeline),
        crowded(config, batch_shards(mesh)),
        *map(str, unread(config)),
    )
    for warning in filter(None, warnings):
        logging.warning('%s', warning)

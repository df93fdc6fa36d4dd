"""Times the parts of one training iteration: sampling with completions, decoding, scoring, update.

    python -m benchmarks.bench_iteration --config=configs/tiny_ocr.py [--repeat=5]
    # and Diffusers under torch.compile on the same shapes, before and after
    python -m benchmarks.bench_iteration --config=configs/tiny_ocr.py --torch

Prints the minimum and median over `repeat` runs of each phase, alone, after compilation, with the
operations per second of the networks and their share of this machine's float32 matrix product.
Operations are those of the model (`planning.flops`). Seconds of different versions compare only in
alternation, see benchmarks/README.md.

With --torch it prints what Diffusers and peft need for the network evaluations, the decoding and
the microbatches of the same iteration: seconds of one, times their number. Kernels, credit, the
optimiser and adapters while sampling come on top of torch's, and are part of ours.
"""

import jax
import numpy as np
from absl import app, flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import config_flags

from benchmarks.timing import timed
from benchmarks.torch_models import run_torch
from densegrpo_jax.config.method import roles_read
from densegrpo_jax.core.advantages import group_ids_of
from densegrpo_jax.data.prompts import columns
from densegrpo_jax.pipelines.base import take_rows
from densegrpo_jax.planning.flops import count_flops
from densegrpo_jax.planning.lowering import phases
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.startup import start_devices
from densegrpo_jax.runtime.streams import STREAM_ROLLOUT, key_data, stream_key
from densegrpo_jax.sampling.sampler import make_rollout
from densegrpo_jax.sampling.session import check, load
from densegrpo_jax.sampling.state import init_state, optimiser
from densegrpo_jax.training.learner import make_credit, make_update

CONFIG = config_flags.DEFINE_config_file(
    'config', 'configs/tiny_ocr.py', 'Configuration.', lock_config=True
)
REPEAT = flags.DEFINE_integer('repeat', 5, 'Runs per phase.')
TORCH = flags.DEFINE_bool('torch', False, 'Time Diffusers too, in a process of its own.')


def shown(name: str, function, repeat: int, flops: float = 0, peak: float = 0) -> float:
    """Prints minimum and median wall seconds, and processor seconds, of `repeat` calls after one
    that compiles; returns the median.

    flops: operations of a call; their rate is shown too, and its share of `peak`.
    """
    t = timed(function, repeat)
    rate = flops / t.seconds
    share = f'   {rate / 1e9:7.1f} GFLOP/s' if flops else ''
    share += f' {rate / peak:5.0%}' if flops and peak else ''
    print(
        f'{name:32s} min {t.least:7.3f} s   median {t.seconds:7.3f} s   '
        f'processor {t.processor:7.3f} s{share}',
        flush=True,
    )
    return t.seconds


def product_rate(mesh: Mesh, repeat: int) -> float:
    """Operations per second of float32 matrix products, one after the other on every device."""
    shards, side, chain = mesh.devices.size, 1024, 16
    x = jax.device_put(
        np.full((shards, side, side), 1e-3, np.float32),
        NamedSharding(mesh, PartitionSpec(mesh.axis_names)),
    )
    products = jax.jit(lambda x: jax.lax.fori_loop(0, chain, lambda _, y: y @ x, x))
    flops = 2 * side**3 * shards * chain
    return flops / shown(f'matrix product {side}', lambda: products(x), repeat, flops)


def of_torch(config, repeat: int) -> list[dict[str, float]]:
    """What `run_torch` measures, {phase: seconds of one}, in a list; empty without --torch."""
    if not TORCH.value:
        return []
    found = run_torch(config, small=False, repeat=repeat)
    return [{name: row['seconds'] for name, row in found.items() if isinstance(row, dict)}]


def compare(ours: dict[str, float], theirs: list[dict[str, float]], count: dict[str, int]) -> None:
    """Prints the seconds of torch for each of our phases, the lesser of its runs, and the ratio.

    count: how many of each of torch's phases ours consists of.
    """
    parts = {
        'sample, complete, decode': ('one velocity', 'decode'),
        'decode': ('decode',),
        'update': ('update of a microbatch',),
    }
    least = {name: min(found[name] for found in theirs) for name in theirs[0]}
    for phase, names in parts.items():
        if all(name in least and name in count for name in names):
            seconds = sum(least[name] * count[name] for name in names)
            print(
                f'torch: {phase:25s} {seconds:11.3f} s   torch / ours {seconds / ours[phase]:6.2f}',
                flush=True,
            )


def main(argv) -> None:
    config, repeat = CONFIG.value, REPEAT.value
    theirs = of_torch(config, repeat)
    r, m = config.rollout, config.model
    start_devices(r.prompts_per_batch * r.group)
    mesh = make_mesh(config.mesh)
    checked = check(config, mesh, needs=('train', 'schedule'))
    chosen = [checked.train[i] for i in range(r.prompts)]
    session = load(checked, [p.text for p in chosen])
    pipeline, schedule = session.pipeline, session.schedule
    tx = optimiser(config, pipeline.transformer)
    params, negative = session.params, session.negative
    state = jax.jit(lambda base: init_state(pipeline, tx, jax.random.key(0), base))(
        params['transformer']
    )
    conditioning = session.conditioning([p.text for p in chosen])
    rollout_fn, credit_fn = (
        make_rollout(pipeline, config, schedule, mesh),
        make_credit(config, schedule),
    )
    update_fn = make_update(pipeline, config, tx, mesh, donate=False)
    key = key_data(stream_key(0, STREAM_ROLLOUT, 0))
    parts_of = phases(config, pipeline, schedule, mesh)
    peak = product_rate(mesh, repeat)

    def rollouts():
        batches = [
            np.arange(i, i + r.prompts_per_batch) for i in range(0, r.prompts, r.prompts_per_batch)
        ]
        parts = [take_rows(conditioning, b) for b in batches]
        return [
            rollout_fn(params, state.policy, part, negative, key, b, schedule.noise_levels)
            for part, b in zip(parts, batches)
        ]

    results = rollouts()
    decode = jax.jit(
        lambda z: jax.lax.map(lambda x: pipeline.decode(params, x, m.height, m.width)[0], z)
    )
    pictures = np.concatenate([np.asarray(images) for _, images, _ in results], axis=1)
    states, samples = pictures.shape[:2]
    print(
        f'{jax.device_count()} x {jax.devices()[0].device_kind}; {samples} samples, {states} '
        f'states scored, T = {r.steps}'
    )
    repeated = [p for p in chosen for _ in range(r.group)] * states
    flat = pictures.reshape(-1, *pictures.shape[2:])
    with Scorer(session.reward, config.reward_workers) as scorer:
        score = lambda: scorer.submit(flat, *columns(repeated)).result()
        sampling = parts_of['rollout']
        ours = {}
        ours['sample, complete, decode'] = shown(
            'sample, complete, decode', rollouts, repeat, sampling.flops * sampling.runs, peak
        )
        latents = results[0][0].completions[-1]
        as_many = [  # the states are images already; to decode any as many takes as long
            jax.numpy.broadcast_to(rollout.completions, (states, *latents.shape))
            for rollout, *_ in results
        ]
        ours['decode'] = shown(
            f'decode alone ({len(flat)} images)',
            lambda: [decode(z) for z in as_many],
            repeat,
            states * len(results) * count_flops(lambda z: decode(z[None]), latents),
            peak,
        )
        shown(f'score alone ({len(flat)} images)', score, repeat)
        scores = score()
        values, valid = (
            scores.values['total'].reshape(states, samples),
            scores.valid.reshape(states, samples),
        )
        ids = group_ids_of([config.rollout.group] * config.rollout.prompts)
        batch, _ = credit_fn([rollout for rollout, *_ in results], values, valid, ids)
        ours['update'] = shown(
            'update',
            lambda: update_fn(state, params, conditioning, negative, batch),
            repeat,
            parts_of['update'].flops,
            peak,
        )
    if theirs := theirs + of_torch(config, repeat):
        rows = np.asarray(batch.mask).size
        count = {
            'one velocity': sum(int(rollout.nfe) for rollout, *_ in results),
            'decode': states * len(results),
        }
        if not roles_read(config):  # torch reads the policy alone
            count['update of a microbatch'] = -(-rows // config.optim.microbatch)
        compare(ours, theirs, count)


if __name__ == '__main__':
    app.run(main)

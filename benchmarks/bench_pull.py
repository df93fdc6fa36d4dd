"""Measures each transition's contribution to the gradient: python -m benchmarks.bench_pull
--config=configs/claims_ocr.py [--batches=4]

Samples an iteration, gives the samples random advantages, the same at every transition, and
computes the gradient of each transition alone under the base policy. Prints per trained transition
the std of its noise, the size of that gradient, and its share of the squared gradient with
`loss.noise_power` = 0, 1 and 2 (at other weights the sizes change in proportion). It also prints
the mean and std over the samples of CoCA's share to go, which weighs transitions too. It uses no
reward.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from ml_collections import config_flags

from densegrpo_jax.core.advantages import group_ids_of
from densegrpo_jax.core.dense_reward import dense_reward
from densegrpo_jax.core.grpo_loss import noise_weights
from densegrpo_jax.data.sampler import prompts_for_step
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.progress import ProgressBar
from densegrpo_jax.runtime.startup import start_devices
from densegrpo_jax.runtime.streams import STREAM_PROBE, key_data, stream_key
from densegrpo_jax.sampling.conditioning import place
from densegrpo_jax.sampling.sampler import make_rollout
from densegrpo_jax.sampling.session import check, load
from densegrpo_jax.sampling.state import init_state
from densegrpo_jax.training.learner import make_credit, make_update

CONFIG = config_flags.DEFINE_config_file(
    'config', 'configs/claims_ocr.py', 'Configuration.', lock_config=True
)
BATCHES = flags.DEFINE_integer('batches', 4, "Batches of an iteration's size.")
POWERS = (0.0, 1.0, 2.0)


def main(argv) -> None:
    config = CONFIG.value
    config.credit.rule, config.loss.noise_power, config.optim.updates = 'sparse', 0.0, 1
    r = config.rollout
    start_devices(r.prompts * r.group)
    mesh = make_mesh(config.mesh)
    checked = check(config, mesh, needs=('train', 'schedule'))
    chosen = [
        [p.text for p in prompts_for_step(checked.train, r.prompts, n, config.seed)]
        for n in range(BATCHES.value)
    ]
    session = load(checked, sum(chosen, []))
    pipeline, schedule = session.pipeline, session.schedule
    params, negative = session.params, session.negative
    tx = optax.sgd(1.0)  # an update is then the gradient itself
    state = jax.jit(lambda base: init_state(pipeline, tx, jax.random.key(0), base))(
        params['transformer']
    )
    rollout_fn, credit_fn = (
        make_rollout(pipeline, config, schedule, mesh),
        make_credit(config, schedule),
    )
    update_fn = make_update(pipeline, config, tx, mesh)
    trained, samples, squares, shares_to_go = (
        np.flatnonzero(schedule.masks.trained),
        r.prompts * r.group,
        [],
        [],
    )
    with ProgressBar(BATCHES.value * len(trained), label='gradients') as bar:
        for n, texts in enumerate(chosen):
            key, conditioning = (
                key_data(stream_key(config.seed, STREAM_PROBE, n)),
                place(session.conditioning, texts, mesh),
            )
            rollout = rollout_fn(
                params,
                state.policy,
                conditioning,
                negative,
                key,
                np.arange(r.prompts),
                schedule.noise_levels,
            )[0]
            # on a busy CPU, devices that wait for each other give up if another program compiles
            jax.block_until_ready(rollout)
            values = np.random.default_rng(n).random((1, samples), np.float32)
            ids = group_ids_of([r.group] * r.prompts)
            batch, _ = credit_fn([rollout], values, np.ones((1, samples), bool), ids)
            row = []
            for k in range(len(trained)):
                alone = jnp.zeros((len(trained), samples)).at[k].set(1).reshape(-1)
                after, _ = update_fn(
                    jax.tree.map(jnp.copy, state),
                    params,
                    conditioning,
                    negative,
                    batch._replace(weight=alone),
                )
                row.append(
                    float(optax.global_norm(jax.tree.map(jnp.subtract, after.policy, state.policy)))
                    ** 2
                )
                bar.update(n * len(trained) + k + 1)
            squares.append(row)
            shares_to_go.append(
                np.asarray(
                    dense_reward(
                        jnp.ones_like(rollout.similarity),
                        'coca_to_go',
                        similarity=rollout.similarity,
                    )
                )
            )
    square, std = np.mean(squares, 0), np.asarray(rollout.std[:, 0])
    weights = [
        np.asarray(noise_weights(std, schedule.masks.trained, power))[trained] for power in POWERS
    ]
    shares = [square * w**2 / np.sum(square * w**2) for w in weights]
    to_go = np.concatenate(shares_to_go, 1)
    print(
        '    s   std of the noise   size of the gradient   share of its square with noise_power '
        f'{POWERS}   CoCA to go'
    )
    for i, k in enumerate(trained):
        row = ' '.join(f'{share[i]:6.1%}' for share in shares)
        print(
            f'{schedule.sigmas[k]:.3f} {std[k]:18.3f} {np.sqrt(square[i]):22.5f}   {row}   '
            f'{to_go[k].mean():.2f} +- {to_go[k].std():.2f}'
        )


if __name__ == '__main__':
    app.run(main)

"""How hard every transition pulls at the weights: python -m benchmarks.bench_pull --config=configs/claims_ocr.py [--batches=4]

Samples an iteration, gives the samples random advantages, the same at every transition, and takes the gradient of each transition alone
under the base policy. Prints per trained transition the std of its noise, the size of that gradient, and its share of the squared
gradient with `loss.noise_power` = 0, 1 and 2 (at other weights the sizes change in proportion). No reward is asked.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from absl import app, flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags
import numpy as np
import optax

from densegrpo_jax.core.grpo_loss import noise_weights
from densegrpo_jax.data.sampler import prompt_indices_for_step
from densegrpo_jax.parallel.mesh import make_mesh
from densegrpo_jax.parallel.startup import start_devices
from densegrpo_jax.training.defaults import validate
from densegrpo_jax.training.loading import load_components, open_base
from densegrpo_jax.training.preemption import StopRequest
from densegrpo_jax.training.progress import ProgressBar
from densegrpo_jax.training.prompts import load_prompts, place, text_conditioning, with_negative
from densegrpo_jax.training.sampling import STREAM_PROBE, key_data, make_rollout, make_schedule, stream_key
from densegrpo_jax.training.state import init_state
from densegrpo_jax.training.update import make_credit, make_update

CONFIG = config_flags.DEFINE_config_file('config', 'configs/claims_ocr.py', 'Configuration.', lock_config=True)
BATCHES = flags.DEFINE_integer('batches', 4, "Batches of an iteration's size.")
POWERS = (0.0, 1.0, 2.0)


def main(argv) -> None:
    config = CONFIG.value
    config.credit.rule, config.loss.noise_power, config.optim.updates = 'sparse', 0.0, 1
    validate(config)
    r = config.rollout
    start_devices(r.prompts * r.group)
    mesh = make_mesh(config.mesh)
    folder, pipeline = open_base(config, mesh)
    train = load_prompts(config, 'train')
    chosen = [[train[int(i)].text for i in prompt_indices_for_step(len(train), r.prompts, n, config.seed)] for n in range(BATCHES.value)]
    with TemporaryDirectory() as texts:
        encoder = text_conditioning(config, folder, pipeline, ['', *sum(chosen, [])], Path(texts), mesh, StopRequest())
        encoder(['', *sum(chosen, [])])  # into memory
    params = load_components(config, folder, pipeline, mesh, ('transformer', 'vae'))
    tx, schedule = optax.sgd(1.0), make_schedule(pipeline, config)  # an update is then the gradient itself
    state = jax.jit(lambda base: init_state(pipeline, tx, jax.random.key(0), base))(params['transformer'])
    params = with_negative(pipeline, config, params, encoder)
    rollout_fn, credit_fn = make_rollout(pipeline, config, schedule, mesh), make_credit(config, schedule)
    update_fn = make_update(pipeline, config, tx, mesh)
    trained, samples, squares = np.flatnonzero(schedule.plan.trained), r.prompts * r.group, []
    with ProgressBar(BATCHES.value * len(trained), label='gradients') as bar:
        for n, texts in enumerate(chosen):
            key, conditioning = key_data(stream_key(config.seed, STREAM_PROBE, n)), place(encoder, texts, mesh)
            rollout, *_ = rollout_fn(params, state.policy, conditioning, key, np.arange(r.prompts), schedule.noise_levels)
            values = np.random.default_rng(n).random((1, samples), np.float32)
            batch, _ = credit_fn([rollout], values, np.ones((1, samples), bool))
            row = []
            for k in range(len(trained)):
                alone = jnp.zeros((len(trained), samples)).at[k].set(1).reshape(-1)
                after, _ = update_fn(jax.tree.map(jnp.copy, state), params, conditioning, batch._replace(weight=alone))
                row.append(float(optax.global_norm(jax.tree.map(jnp.subtract, after.policy, state.policy))) ** 2)
                bar.update(n * len(trained) + k + 1)
            squares.append(row)
    square, std = np.mean(squares, 0), np.asarray(rollout.std[:, 0])
    weights = [np.asarray(noise_weights(std, schedule.plan.trained, power))[trained] for power in POWERS]
    shares = [square * w**2 / np.sum(square * w**2) for w in weights]
    print('    s   std of the noise   size of the gradient   share of its square with noise_power ' + ', '.join(map(str, POWERS)))
    for i, k in enumerate(trained):
        print(f'{schedule.sigmas[k]:.3f} {std[k]:18.3f} {np.sqrt(square[i]):22.5f}   ' + ' '.join(f'{share[i]:6.1%}' for share in shares))


if __name__ == '__main__':
    app.run(main)

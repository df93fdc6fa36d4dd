"""Measures the accuracy of a base in fewer bits: bfloat16, int8 and nf4 against float32, on the
miniature.

    python -m benchmarks.bench_quantize [--prompts=320] [--config.model.guidance=1.5]

For each form: bytes of the transformer; the error of one velocity, |v - v_ref| / |v_ref| over the
batch, at three noise levels, against float32 and against bfloat16; PSNR of the sampled 8-bit
images (same noise) against those of bfloat16; and their OCR score.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from densegrpo_jax.evaluation.evaluator import Evaluator
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.startup import start_devices
from densegrpo_jax.sampling.session import check, load

CONFIG = config_flags.DEFINE_config_file(
    'config', 'configs/tiny_ocr.py', 'Model, reward and prompts.', lock_config=True
)
PROMPTS = flags.DEFINE_integer('prompts', 320, 'Evaluation prompts.')

FORMS = {
    'float32': ('float32', 'none'),
    'bfloat16': ('bfloat16', 'none'),
    'int8': ('bfloat16', 'int8'),
    'nf4': ('bfloat16', 'nf4'),
}
LEVELS = (0.9, 0.5, 0.1)  # s
ROWS = 64  # images for the error of a velocity


def measure(config, name: str, text, mesh) -> dict:
    """Velocities [levels, B, N, C], images, scores and transformer bytes of one form. `text`:
    conditioning of the first ROWS prompts from the float32 encoders, or None to return this form's
    own.
    """
    config = config.copy_and_resolve_references()
    config.model.dtype, config.model.quantize = FORMS[name]
    config.data.eval_prompts = config.eval.shown = PROMPTS.value
    checked = check(config, mesh, needs=('test',))
    prompts, m = [p.text for p in checked.test], config.model
    session = load(checked, prompts)
    pipeline, params = session.pipeline, session.params
    text = session.conditioning(prompts[:ROWS]) if text is None else text
    rows = len(text['context'])
    x = jax.random.normal(jax.random.key(1), (rows, *pipeline.latent_shape(m.height, m.width)))

    @jax.jit
    def velocities(params, text):
        velocity = pipeline.velocity_fn(
            params['transformer'], None, text, m.guidance, m.height, m.width
        )
        return jnp.stack([velocity(x, jnp.full(rows, s)) for s in LEVELS])

    with Scorer(session.reward) as scorer:
        result = Evaluator(session, session.test, scorer)(None)
    size = (
        sum(
            leaf.size * jax.dtypes.itemsize_bits(leaf.dtype)
            for leaf in jax.tree.leaves(params['transformer'])
        )
        // 8
    )
    return {
        'velocity': np.asarray(velocities(params, text), np.float64),
        'evaluation': result,
        'bytes': size,
        'text': text,
    }


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR of two stacks of 8-bit images in dB, over all pixels; infinite if they are equal."""
    error = np.mean((a.astype(float) - b) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float('inf')


def main(argv) -> None:
    del argv
    start_devices(1, 1)
    mesh = make_mesh({'data': 1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:1])
    found, text = {}, None
    for name in FORMS:
        found[name] = measure(CONFIG.value, name, text, mesh)
        text = found[name]['text']
    exact, half = found['float32'], found['bfloat16']
    error = lambda a, b: [
        np.linalg.norm(u - v) / np.linalg.norm(v) for u, v in zip(a['velocity'], b['velocity'])
    ]
    print(f'errors at s = {", ".join(map(str, LEVELS))}, against float32, then against bfloat16')
    for name, one in found.items():
        score, errors = one['evaluation'], [*error(one, exact), *error(one, half)]
        print(
            f'{name:9s} {one["bytes"] / 2**20:6.2f} MiB  '
            + ' '.join(f'{e:.5f}' for e in errors)
            + (
                f'  PSNR {psnr(score.images, half["evaluation"].images):5.1f} dB  OCR '
                f'{score.mean():.4f} +- {score.standard_error():.4f}'
            )
        )


if __name__ == '__main__':
    app.run(main)

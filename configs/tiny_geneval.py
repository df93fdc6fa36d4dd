"""A miniature FLUX learns to draw what it is told: GenEval's tasks on coloured shapes, found by
OpenCV, on a laptop.

    python -m densegrpo_jax.main --config=configs/tiny_geneval.py --workdir=runs/tiny_geneval

Hardware: two CPU cores, 4 GiB of memory, 15 minutes. Score on 600 held-out prompts
(docs/results/shapes): GenEval's accuracy 0.590 -> 0.657 (+0.067 +- 0.016 on the same prompts and
noise), Flow-GRPO's partial score, which is trained on, 0.721 -> 0.802. Variants:
`--config.credit.rule=sparse` (Flow-GRPO), `--config.seed=1`,
`--config.full=False --config.optim.learning_rate=1e-3` (adapters).
"""

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.variants import apply


def get_config(variant: str = ''):
    c = default_config()
    c.iterations = 120
    c.label = 'miniature FLUX, held-out compositions of shapes, dense credit'
    c.model.update(
        path='builtin:tiny_shapes',
        height=48,
        width=48,
        t5_length=12,
        guidance=2.0,
        dtype='float32',
        scan=False,
        remat='none',
    )
    c.full = True
    c.lora.update(rank=32, alpha=64.0)
    c.data.update(train='tiny_shapes', eval='tiny_shapes')
    c.rollout.update(
        steps=6,
        prompts=8,
        group=12,
        prompts_per_batch=4,
        kernel='sde',
        noise='flow_grpo',
        level=0.7,
    )
    c.credit.std = 'global'
    # the first transitions settle positions, and have the smallest gradients at equal weights
    c.loss.noise_power = 2.0
    c.optim.update(learning_rate=1e-4, decay='linear', microbatch=120)
    c.ema.update(decay=0.95, every=1)
    c.reward = {'shapes': {'weight': 1.0}}
    c.eval.update(every=20, steps=6, batch=100, shown=24)
    # GenEval's accuracy; the partial score that is trained on is 'shapes'
    c.eval.best = 'shapes_correct'
    return apply(c, variant, samples=24, transitions=48, devices=None)

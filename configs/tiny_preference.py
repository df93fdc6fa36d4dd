"""A miniature FLUX learns to please: a smooth score of coloured shapes in PickScore's place, the paper's third task on a laptop.

    python -m densegrpo_jax.main --config=configs/tiny_preference.py --workdir=runs/tiny_preference

Hardware: two CPU cores, 4 GiB of memory. Not trained yet. GenEval's verdicts are logged beside it: what pleases need not be right.
Variants: `--config.credit.rule=sparse` (Flow-GRPO), `--config.seed=1`.
"""

from densegrpo_jax.training.defaults import default_config


def get_config():
    c = default_config()
    c.iterations = 60
    c.label = 'miniature FLUX, held-out compositions of shapes, preference, dense credit'
    c.model.update(path='builtin:tiny_shapes', height=48, width=48, t5_length=12, guidance=2.0, dtype='float32', scan=False, remat='none')
    c.lora.update(rank=32, alpha=64.0)
    c.data.update(train='tiny_shapes', eval='tiny_shapes')
    c.rollout.update(steps=6, prompts=8, group=12, prompts_per_batch=4, kernel='sde', noise='flow_grpo', level=0.7)
    c.credit.std = 'global'
    c.optim.update(learning_rate=1e-3, microbatch=96)
    c.ema.update(decay=0.9, every=1)
    c.reward = {'preference': {'weight': 1.0}, 'shapes': {'weight': 0.0}}
    c.eval.update(every=20, steps=6, batch=100, shown=24)
    c.eval.best = 'total'  # the preference score alone: shapes has weight 0
    return c

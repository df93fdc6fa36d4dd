"""A miniature FLUX learns a preference: a smooth score of coloured shapes stands for PickScore, the
paper's third task, on a laptop.

    python -m densegrpo_jax.main --config=configs/tiny_preference.py --workdir=runs/tiny_preference

Hardware: two CPU cores, 4 GiB of memory, 15 minutes. Score on 600 held-out prompts: 1.211 -> 1.376
(+0.165 +- 0.019 on the same prompts and noise; docs/results/shapes). GenEval's verdicts are
logged beside it: a preferred image need not be correct. Variants: `--config.credit.rule=sparse`
(Flow-GRPO), `--config.seed=1`.
"""

from densegrpo_jax.config.variants import apply
from densegrpo_jax.configs import tiny_geneval


def get_config(variant: str = ''):
    c = tiny_geneval.get_config()
    c.label = 'miniature FLUX, held-out compositions of shapes, preference, dense credit'
    c.reward = {'preference': {'weight': 1.0}, 'shapes': {'weight': 0.0}}
    c.eval.best = 'total'  # the preference score alone: shapes has weight 0
    return apply(c, variant, samples=24, transitions=48, devices=None)

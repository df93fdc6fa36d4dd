"""The miniature FLUX learns to spell in five minutes, with a method of ours: sparse credit, and
transitions weighted so that all contribute gradients of equal size.

    python -m densegrpo_jax.main --config=configs/tiny_ocr_quick.py --workdir=runs/tiny_ocr_quick

All weights are trained by small updates, which alone make a part of the difference to the demo
(docs/results/demo): this is the quick way to a result and no comparison of methods; that is
docs/results/equal_cost. `bash launch/demo.sh --quick` runs it.

Hardware: two CPU cores, 4 GiB of memory. Scores and minutes: docs/results/demo. Variant:
`--config.seed=1`.
"""

from densegrpo_jax.config.methods import apply_method
from densegrpo_jax.config.variants import apply
from densegrpo_jax.configs import tiny_ocr


def get_config(variant: str = ''):
    c = apply_method(tiny_ocr.get_config(), 'flow_grpo_weighted')
    c.iterations = 80
    c.full = True
    c.rollout.update(prompts=2, prompts_per_batch=2)
    # twice that of configs/claims_ocr.py, and it falls to 0: docs/results/demo compares
    c.optim.update(learning_rate=2e-4, microbatch=24)
    c.eval.every = 40
    c.checkpoint.every = 20
    return apply(c, variant, samples=24, transitions=24, devices=None)

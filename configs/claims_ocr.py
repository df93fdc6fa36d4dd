"""The base of the runs of `experiments.reproduce`: the demo, with all weights trained by small
updates, and more evaluations.

    python -m experiments.reproduce --figure=4,6b

- All weights at 1e-4 instead of the demo's adapters at 1e-3: the score rises farther in the same
  number of updates. The rate falls to 0 by the end, so that the last evaluations show what was
  learned and not the direction of the last step.
- 24 samples per update instead of 96. The rate alone sets the length of Adam's steps, whatever the
  gradient. With many samples per update all credit rules estimate its direction well enough
  (configs/claims_ocr_96.py shows it); with few, their difference shows: the noise of the direction.
"""

from densegrpo_jax.config.variants import apply
from densegrpo_jax.configs import tiny_ocr


def get_config(variant: str = ''):
    c = tiny_ocr.get_config()
    c.label = 'miniature FLUX, held-out OCR, the claims of the paper'
    c.full = True
    c.rollout.update(prompts=2, prompts_per_batch=2)
    c.optim.update(learning_rate=1e-4, decay='linear', microbatch=24)
    # as the paper; other weights are a figure of their own
    c.loss.update(noise_power=0.0, measure_kl=True)
    c.eval.every = 10
    c.checkpoint.update(every=60, keep=1)
    return apply(c, variant, samples=24, transitions=24, devices=None)

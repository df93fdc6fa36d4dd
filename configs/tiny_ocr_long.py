"""The longer run of the miniature: all weights, guidance 2, half of the reward from the
recogniser's likelihood.

    python -m densegrpo_jax.main --config=configs/tiny_ocr_long.py --workdir=runs/long

Hardware: two CPU cores, 4 GiB of memory, an hour and a half. Results, and other settings tried:
docs/results/long.
"""

from densegrpo_jax.config.variants import apply
from densegrpo_jax.configs import tiny_ocr


def get_config(variant: str = ''):
    c = tiny_ocr.get_config()
    c.iterations = 500
    c.label = 'miniature FLUX, held-out OCR, all weights, the longer run'
    c.full = True
    c.model.guidance = 2.0
    c.loss.noise_power = 0.0  # as it was measured
    c.optim.learning_rate = 1e-4
    c.ema.decay = 0.95
    # The plain score of a word that is nearly always read correctly has no gains left; the
    # likelihood still distinguishes better from worse letters.
    c.reward.ocr.smooth = 0.5
    c.eval.best = 'ocr'
    return apply(c, variant, samples=24, transitions=48, devices=None)

"""What the runs of `experiments.reproduce` share: the demo, with all weights trained by small
updates and evaluated more often.

    python -m experiments.reproduce --figure=4,6b

- All weights at 1e-4 instead of the demo's adapters at 1e-3: they rise farther in as many updates.
  The rate falls to 0 by the end, so that the last evaluations say what has been learned and not
  where the last step went.
- 24 samples an update instead of 96. Adam's steps are as long as the rate says, whatever the
  gradient: where an update has many samples, good and bad estimates of its direction are good
  enough alike (configs/claims_ocr_96.py shows it). What credit rules differ in, the noise of the
  direction, is seen where there are few.
"""

from densegrpo_jax.configs import tiny_ocr


def get_config():
    c = tiny_ocr.get_config()
    c.label = 'miniature FLUX, held-out OCR, the claims of the paper'
    c.full = True
    c.rollout.update(prompts=2, prompts_per_batch=2)
    c.optim.update(learning_rate=1e-4, decay='linear', microbatch=24)
    # as the paper; other weights are a figure of their own
    c.loss.update(noise_power=0.0, measure_kl=True)
    c.eval.every = 10
    c.checkpoint.update(every=60, keep=1)
    return c

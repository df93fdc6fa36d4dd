"""What the runs of `densegrpo_jax.reproduce` share: the demo, with all weights trained and evaluated more often.

    python -m densegrpo_jax.reproduce --figure=4,6b

All weights at 1e-4 instead of the demo's adapters at 1e-3: in 60 updates they rise twice as far, and the rate falls to 0 by the
end, so that the last evaluations say what has been learned and not where the last step went.
"""

from configs import tiny_ocr


def get_config():
    c = tiny_ocr.get_config()
    c.label = 'miniature FLUX, held-out OCR, the claims of the paper'
    c.full = True
    c.optim.update(learning_rate=1e-4, decay='linear')
    c.loss.measure_kl = True
    c.eval.every = 10
    c.checkpoint.update(every=60, keep=1)
    return c

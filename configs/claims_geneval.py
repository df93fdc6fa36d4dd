"""What the runs of `densegrpo_jax.reproduce` share on the compositional task: coloured shapes, all weights trained.

    python -m densegrpo_jax.reproduce --figure=4 --config=configs/claims_geneval.py --workdir=runs/claims_geneval

The page that is shipped: `--out=docs/reproduction/geneval`. 96 samples an update: with 24, two prompts of six kinds of task, runs gained less
than seeds differed by.
"""

from configs import tiny_geneval


def get_config():
    c = tiny_geneval.get_config()
    c.label = 'miniature FLUX, held-out compositions of shapes, the claims of the paper'
    c.iterations = 60
    c.loss.update(noise_power=0.0, measure_kl=True)  # as the paper; other weights are a figure of their own
    c.eval.update(every=12, best='shapes')
    c.checkpoint.update(every=60, keep=1)
    return c

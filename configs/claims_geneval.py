"""What the runs of `densegrpo_jax.reproduce` share on the compositional task: coloured shapes, all weights trained.

    python -m densegrpo_jax.reproduce --figure=4 --config=configs/claims_geneval.py \\
        --workdir=runs/claims_geneval --out=docs/reproduction/geneval
"""

from configs import tiny_geneval


def get_config():
    c = tiny_geneval.get_config()
    c.label = 'miniature FLUX, held-out compositions of shapes, the claims of the paper'
    c.iterations = 100
    c.optim.learning_rate = 3e-5  # at the 1e-4 of configs/tiny_geneval.py four of six runs first fall by up to 0.09 with so few samples
    c.loss.measure_kl = True
    c.eval.update(every=10, best='shapes')
    c.checkpoint.update(every=100, keep=1)
    return c

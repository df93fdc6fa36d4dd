"""A miniature FLUX and a reward with an embedding space that can be hacked: the stand-in for FLUX
with CLIP, PickScore or HPS, for D2-Align on a laptop.

    python -m densegrpo_jax.main --config=configs/tiny_scene.py --workdir=runs/tiny_scene

Contrast and darkness raise the score of any picture (`rewards/local/scene_embedding.py`);
`preference` and GenEval's verdicts are logged beside it, and are not trained on. With the direction
of D2-Align:

    python -m densegrpo_jax.direction --config=configs/tiny_scene.py --workdir=runs/tiny_direction
    python -m densegrpo_jax.main --config=configs/tiny_scene.py:method=d2_align \\
        --workdir=runs/tiny_scene_d2 --config.d2.file=runs/tiny_direction/direction.npz

Hardware: two CPU cores, 4 GiB of memory. Scores: docs/d2_align.md and docs/results/guard.
"""

from densegrpo_jax.config.variants import apply
from densegrpo_jax.configs import tiny_geneval


def get_config(variant: str = ''):
    c = tiny_geneval.get_config()
    c.label = 'miniature FLUX, held-out compositions of shapes, scene embedding, dense credit'
    c.reward = {
        'scene_embedding': {'weight': 1.0},
        'preference': {'weight': 0.0},
        'shapes': {'weight': 0.0},
    }
    # a free direction ends 2.8 times as long as the text's embedding, and then the text counts for
    # nothing; at this length text and direction have equal shares of the reward's variance
    c.d2.radius = 0.5
    c.eval.best = 'total'  # the scene embedding alone
    return apply(c, variant, samples=24, transitions=48, devices=None)

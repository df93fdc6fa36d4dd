"""SD3.5-M at 1024 px with PickScore, one of the paper's extra runs.

    python -m densegrpo_jax.main --config=configs/sd35_pickscore_1024.py:devices=8 \\
        --workdir=runs/sd35_pickscore_1024 \\
        --config.data.train=pickscore_train.txt --config.data.eval=pickscore_test.txt

The reward's weights come from Hugging Face (yuvalkirstain/PickScore_v1, its tokenizer from
laion/CLIP-ViT-H-14-laion2B-s32B-b79K) before anything else is loaded; without a network, give
folders: --config.reward.pickscore.path=DIR --config.reward.pickscore.processor=DIR.
Settings: those of sd35_pickscore.py at four times the tokens (4,096), so a quarter of the images
per device at a time.
Hardware: not measured here on any; extrapolated, four to five times the cost of 512 px.
Expected cost: 1.6 H100-hours per iteration (extrapolated from 512 px: 4.9 times the operations of a
velocity).
Memory: 5 GiB of weights in bfloat16 (the text encoders, 11 GiB, are freed before training), and 3.7
GiB of PickScore on every device (half with --config.reward.pickscore.dtype=bfloat16).
Expected score: above the base's (the paper shows a curve and no table).
"""

from densegrpo_jax.config.variants import apply
from densegrpo_jax.configs import sd35_pickscore


def get_config(variant: str = ''):
    c = sd35_pickscore.get_config()
    c.label = 'SD3.5-M at 1024 px, PickScore, dense credit'
    c.model.update(height=1024, width=1024)
    return apply(c, variant, samples=6, transitions=2)

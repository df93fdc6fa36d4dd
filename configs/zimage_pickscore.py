"""Z-Image learns what people prefer: DenseGRPO with PickScore at 512 px on the base model.

    python -m densegrpo_jax.main --config=configs/zimage_pickscore.py:devices=8 \\
        --workdir=runs/zimage_pickscore \\
        --config.data.train=pickscore_train.txt --config.data.eval=pickscore_test.txt

The reward's weights come as for flux_pickscore.py.
Settings: no paper trains this model. Classifier-free guidance 5 in sampling, completion and
training (ZImagePipeline of Diffusers counts guidance from 0 and calls it 4); T = 10, evaluation 28,
Flow-SDE noise with a = 0.7 as for SD3.5, which has such guidance too; LoRA 64/128, beta 0.
Hardware: written for devices with 80 GiB; not measured on any.
Expected cost: 2.6 H100-hours per iteration (that of flux2_klein_pickscore.py times the ratio of the
networks' operations; not planned, not measured).
Memory: that of zimage_ocr.py, and 3.7 GiB of PickScore on every device (half with
--config.reward.pickscore.dtype=bfloat16).
Expected score: above the base's; no paper has such a run.
"""

from densegrpo_jax.config.recipes import pickscore, zimage_base
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.variants import apply


def get_config(variant: str = ''):
    c = zimage_base(default_config())
    c.label = 'Z-Image, PickScore, dense credit'
    c.credit.std = 'global'
    pickscore(c)
    return apply(c, variant, samples=24, transitions=3)

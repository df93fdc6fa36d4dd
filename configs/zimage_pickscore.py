"""Z-Image learns what people prefer: DenseGRPO with PickScore at 512 px on the base model.

    python -m densegrpo_jax.main --config=configs/zimage_pickscore.py:devices=8 \\
        --workdir=runs/zimage_pickscore \\
        --config.data.train=pickscore_train.txt --config.data.eval=pickscore_test.txt

The reward's weights come as for flux_pickscore.py.
Settings: no paper trains this model. Classifier-free guidance 5 in sampling, completion and
training (ZImagePipeline of Diffusers counts guidance from 0 and calls it 4); T = 10, evaluation 28,
Flow-SDE noise with a = 0.7 as for SD3.5, which has such guidance too; LoRA 64/128, beta 0. The
further options of that guidance are off, as by default there; `--config.model.cfg_normalization=1`
and `--config.model.cfg_truncation=0.7` would set them.
Hardware: written for devices with 80 GiB; not measured on any.
Expected cost: 2.6 H100-hours per iteration, 2,050 for 800 (`densegrpo_jax.plan` at 40 % of the
peak, scoring not counted; not measured).
Memory: 41 GiB on one H100 (`:devices=1`), as its compiler plans it (docs/own_machine.md), and
3.7 GiB of PickScore on every device (half with --config.reward.pickscore.dtype=bfloat16). The text
encoder, 7.5 GiB, is freed before training. v5e-8, v6e-8 and one RTX 4090 need the options that
docs/own_machine.md lists.
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

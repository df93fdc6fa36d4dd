"""SD3.5-M learns what people prefer: DenseGRPO with PickScore at 512 px, the paper's third task.

    python -m densegrpo_jax.main --config=configs/sd35_pickscore.py:devices=8 \\
        --workdir=runs/sd35_pickscore \\
        --config.data.train=pickscore_train.txt --config.data.eval=pickscore_test.txt

The reward's weights come from Hugging Face (yuvalkirstain/PickScore_v1, its tokenizer from
laion/CLIP-ViT-H-14-laion2B-s32B-b79K) before anything else is loaded; without a network, give
folders: --config.reward.pickscore.path=DIR --config.reward.pickscore.processor=DIR.
Settings: the paper's on Flow-GRPO's pickscore_sd3; as sd35_ocr.py except for the reward, the
prompts, beta 0.01 and 4,500 iterations.
Hardware: the paper used 16 A100; not measured here on any.
Expected cost: 0.33 H100-hours per iteration (`densegrpo_jax.plan` of sd35_ocr at 40 % of the peak,
scoring not counted; not measured).
Memory: 5 GiB of weights in bfloat16 (the text encoders, 11 GiB, are freed before training), and 3.7
GiB of PickScore on every device (half with --config.reward.pickscore.dtype=bfloat16).
Expected score: 24.64 (the paper; Flow-GRPO 23.31, base 21.72).
"""

from densegrpo_jax.config.recipes import pickscore, sd35
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.variants import apply


def get_config(variant: str = ''):
    c = sd35(default_config())
    c.label = 'SD3.5-M, PickScore, dense credit'
    c.iterations = 4500
    c.loss.beta = 0.01
    pickscore(c)
    return apply(c, variant, samples=24, transitions=8)

"""SD3.5-M learns to compose: DenseGRPO with GenEval at 512 px, the paper's first task.

    python -m densegrpo_jax.main --config=configs/sd35_geneval.py:devices=8 \\
        --workdir=runs/sd35_geneval \\
        --config.data.train=train_metadata.jsonl --config.data.eval=test_metadata.jsonl

Prompts: the JSON lines of Flow-GRPO's dataset/geneval (50,000 to train on, 2,212 to evaluate).
Reward: Mask2Former and CLIP in torch (`pip install -r requirements-geneval.txt`; without network,
folders of them are named with --config.reward.geneval.mask2former and .clip). They need their own
GPU, and a server there: docs/rewards.md#geneval has the commands.

Settings: the paper's on Flow-GRPO's geneval_sd3; as sd35_ocr.py except for the reward, the prompts
and 4,500 iterations.
Hardware: the paper used 16 A100; not measured here on any.
Expected cost: 0.33 H100-hours per iteration (`densegrpo_jax.plan` of sd35_ocr at 40 % of the peak,
scoring not counted; not measured).
Memory: 5 GiB of weights in bfloat16 (the text encoders, 11 GiB, are freed before training).
Expected score: 0.97 (the paper; Flow-GRPO 0.95, base 0.63).
"""

from densegrpo_jax.config.recipes import geneval, sd35
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.variants import apply


def get_config(variant: str = ''):
    c = sd35(default_config())
    c.label = 'SD3.5-M, GenEval, dense credit'
    c.iterations = 4500
    c.loss.beta = 0.04
    geneval(c)
    return apply(c, variant, samples=24, transitions=8)

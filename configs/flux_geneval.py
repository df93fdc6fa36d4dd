"""FLUX.1-dev learns to compose: DenseGRPO with GenEval at 512 px.

    python -m densegrpo_jax.main --config=configs/flux_geneval.py:devices=8 \\
        --workdir=runs/flux_geneval \\
        --config.data.train=train_metadata.jsonl --config.data.eval=test_metadata.jsonl

Prompts: the JSON lines of Flow-GRPO's dataset/geneval (50,000 to train on, 2,212 to evaluate).
Reward: Mask2Former and CLIP in torch (`pip install -r requirements-geneval.txt`; without network,
folders of them are named with --config.reward.geneval.mask2former and .clip). They need their own
GPU, and a server there: docs/rewards.md#geneval has the commands.

Settings: Flow-GRPO's geneval_flux_fast: T = 6, evaluation 28, guidance 3.5, CPS eta = 0.8 on the
first three steps, LoRA 64/128, beta 0.
Hardware: written for devices with 80 GiB; not measured on any.
Expected cost: 0.38 H100-hours per iteration, 305 for 800 (`densegrpo_jax.plan` at 40 % of the peak,
scoring not counted; not measured).
Memory: 22 GiB of weights in bfloat16, split over the devices by `--config.mesh.fsdp` (the text
encoders, 9 GiB, are freed before training).
Expected score: none is claimed (extrapolated; the paper has no such run).
"""

from densegrpo_jax.config.recipes import flux, geneval
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.variants import apply


def get_config(variant: str = ''):
    c = flux(default_config())
    c.label = 'FLUX.1-dev, GenEval, dense credit'
    c.rollout.last = 3
    c.credit.std = 'global'
    geneval(c)
    return apply(c, variant, samples=24, transitions=3)

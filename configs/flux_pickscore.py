"""FLUX.1-dev learns what people prefer: DenseGRPO with PickScore at 512 px, one of the paper's
extra runs.

    python -m densegrpo_jax.main --config=configs/flux_pickscore.py:devices=8 \\
        --workdir=runs/flux_pickscore \\
        --config.data.train=pickscore_train.txt --config.data.eval=pickscore_test.txt

The reward's weights come from Hugging Face (yuvalkirstain/PickScore_v1, its tokenizer from
laion/CLIP-ViT-H-14-laion2B-s32B-b79K) before anything else is loaded; without a network, give
folders: --config.reward.pickscore.path=DIR --config.reward.pickscore.processor=DIR.
Settings: Flow-GRPO's pickscore_flux: T = 6, evaluation 28, guidance 3.5, LoRA 64/128, lr 3e-4, beta
0, Flow-SDE noise with a = 0.9.
Hardware: written for devices with 80 GiB; not measured on any.
Expected cost: 0.49 H100-hours per iteration, 391 for 800 (`densegrpo_jax.plan` at 40 % of the peak,
scoring not counted; not measured).
Memory: 22 GiB of weights in bfloat16, split over the devices by `--config.mesh.fsdp` (the text
encoders, 9 GiB, are freed before training), and 3.7 GiB of PickScore on every device (half with
--config.reward.pickscore.dtype=bfloat16).
Expected score: a rise from 20.4 to 21.8 over 800 updates (read off the paper's figure).
"""

from densegrpo_jax.config.recipes import flux, pickscore
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.variants import apply


def get_config(variant: str = ''):
    c = flux(default_config())
    c.label = 'FLUX.1-dev, PickScore, dense credit'
    c.rollout.update(kernel='sde', noise='flow_grpo', level=0.9)
    c.credit.std = 'global'
    pickscore(c)
    return apply(c, variant, samples=24, transitions=3)

"""Stable Diffusion 1.5 learns what people prefer: DenseGRPO with PickScore at 512 px on a diffusion
model, one of the paper's extra runs.

    python -m densegrpo_jax.main --config=configs/sd15_pickscore.py:devices=8 \\
        --workdir=runs/sd15_pickscore \\
        --config.data.train=pickscore_train.txt --config.data.eval=pickscore_test.txt

The U-Net predicts noise; a change of variables turns it into a flow model with DDIM as its sampler
(core/diffusion_path.py). The reward's weights come as for flux_pickscore.py.
Settings: the paper gives none. DDIM with eta = 1 and guidance 5 in sampling and training, adapters
on all attention layers, lr 1e-4 and clip range 1e-4 are those of DDPO and CoCA, which train this
model; they take 50 steps. Here T = 20 (evaluation 50), as completions grow with its square and a
DDIM of 10 steps is still coarse. Groups, beta and the batch are those of sd35_pickscore.py.
Hardware: written for devices with 80 GiB; not measured on any.
Expected cost: 0.36 H100-hours per iteration, 290 for 800 (`densegrpo_jax.plan` at 40 % of the peak,
scoring not counted; not measured).
Memory: 40.7 GiB while it samples and 11.9 while it updates, weights and optimiser included (planned
by the compiler for eight H100; the U-Net keeps its activations, so few transitions are re-scored
together), and 3.7 GiB of PickScore (half with --config.reward.pickscore.dtype=bfloat16).
Expected score: above the base's; the paper shows a curve without a number.
"""

from densegrpo_jax.config.recipes import pickscore
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.variants import apply
from densegrpo_jax.networks.unet import LORA_TARGETS


def get_config(variant: str = ''):
    c = default_config()
    c.label = 'SD1.5, PickScore, dense credit'
    c.iterations = 800
    c.model.update(
        path='stable-diffusion-v1-5/stable-diffusion-v1-5', height=512, width=512, guidance=5.0
    )
    c.model.update(scan=False, remat='none')  # the U-Net's blocks are of different shapes
    c.lora.update(rank=32, alpha=64.0, targets=LORA_TARGETS)
    c.rollout.update(steps=20, prompts=48, group=24, kernel='cps', noise='ddim', level=1.0)
    c.credit.std = 'global'
    c.loss.beta = 0.01
    c.optim.learning_rate = 1e-4
    c.eval.update(every=30, steps=50, shown=16)
    pickscore(c)
    return apply(c, variant, samples=24, transitions=2)

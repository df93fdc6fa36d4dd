"""FLUX.2 [klein] learns what people prefer: DenseGRPO with PickScore at 512 px on the base model.

    python -m densegrpo_jax.main --config=configs/flux2_klein_pickscore.py:devices=8 \\
        --workdir=runs/flux2_klein_pickscore \\
        --config.data.train=pickscore_train.txt --config.data.eval=pickscore_test.txt

The reward's weights come as for flux_pickscore.py.
Settings: no paper trains this model. FLUX.2-klein-base-4B with its classifier-free guidance 4 in
sampling, completion and training; T = 10, evaluation 28, Flow-SDE noise with a = 0.7 as for SD3.5,
which has such guidance too; LoRA 64/128, beta 0. With the 9B model:
`--config.model.path=black-forest-labs/FLUX.2-klein-base-9B`.
Hardware: written for devices with 80 GiB; not measured on any.
Expected cost: 1.4 H100-hours per iteration, 1,130 for 800 (`densegrpo_jax.plan` at 40 % of the
peak, scoring not counted; not measured). Six steps (`--config.rollout.steps=6`) need 21 guided
evaluations a sample instead of 55.
Memory: 42 GiB on one H100 (`:devices=1`), as its compiler plans it (docs/own_machine.md), and
3.7 GiB of PickScore (half with --config.reward.pickscore.dtype=bfloat16). The text encoder,
7.5 GiB, is freed before training. v5e-8, v6e-8 and one RTX 4090 need the options that
docs/own_machine.md lists.
Expected score: above the base's; no paper has such a run.
"""

from densegrpo_jax.config.recipes import klein_base, pickscore
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.variants import apply


def get_config(variant: str = ''):
    c = klein_base(default_config())
    c.label = 'FLUX.2-klein-base-4B, PickScore, dense credit'
    c.credit.std = 'global'
    pickscore(c)
    return apply(c, variant, samples=24, transitions=3)

"""Variants of a configuration: `--config=configs/flux_ocr.py:devices=8` fits its batches to that
many devices by one rule.
"""

from __future__ import annotations

from densegrpo_jax.config.model_keys import SD35_LORA_TARGETS


def fit(config, variant: str = '', *, samples: int, transitions: int):
    """Sets the batch sizes that depend on the number of devices; what is learned does not depend on
    it, only speed and memory do.

    The rule: as many whole prompts are sampled together, and as many transitions are re-scored
    together, as the devices hold, so that both divide over the devices and make up the iteration.

    Args:
      config: a complete configuration; `rollout.prompts_per_batch`, `optim.microbatch` and
        `eval.batch` are set.
      variant: 'devices=N'; '' stands for 8.
      samples: pictures that one device samples at a time.
      transitions: transitions that one device re-scores at a time.

    Returns:
      config.

    Raises:
      ValueError: an unknown variant; or an iteration that does not divide over N devices, with the
        numbers that would do.
    """
    devices = _parse(variant)
    r, o = config.rollout, config.optim
    total = r.prompts * r.group
    whole = [
        p for p in range(1, r.prompts + 1) if r.prompts % p == 0 and p * r.group % devices == 0
    ]
    parts = [
        m
        for m in range(1, total // o.updates + 1)
        if (total // o.updates) % m == 0 and m % devices == 0
    ]
    if not whole or not parts:
        fitting = [
            n for n in range(1, total + 1) if total % n == 0 and (total // o.updates) % n == 0
        ]
        raise ValueError(
            f'devices={devices}: an iteration of {r.prompts} prompts x {r.group} samples = '
            f'{total}, in {o.updates} update(s), does not divide over {devices} devices; numbers '
            f'that do: {fitting}, or change rollout.prompts or rollout.group'
        )
    r.prompts_per_batch = max(
        [p for p in whole if p * r.group <= samples * devices], default=whole[0]
    )
    o.microbatch = max([m for m in parts if m <= transitions * devices], default=parts[0])
    config.eval.batch = samples * devices
    return config


def _parse(variant: str) -> int:
    if not variant:
        return 8
    name, _, value = variant.partition('=')
    if name != 'devices' or not value.isdigit() or int(value) < 1:
        raise ValueError(
            f"configuration variant {variant!r} is not known; expected 'devices=N' with N of at "
            'least 1, or nothing'
        )
    return int(value)


def sd35(c):
    """Turns the defaults into Flow-GRPO's settings for SD3.5-M (general_ocr_sd3, geneval_sd3,
    pickscore_sd3), with dense credit.
    """
    c.model.update(path='stabilityai/stable-diffusion-3.5-medium', t5_length=128, guidance=4.5)
    c.lora.update(rank=32, alpha=64.0, targets=SD35_LORA_TARGETS)
    c.rollout.update(steps=10, prompts=48, group=24, kernel='sde', noise='flow_grpo', level=0.7)
    c.credit.std = 'global'
    c.loss.kl_form = 'flow_grpo'
    c.eval.update(every=60, steps=40)
    return c

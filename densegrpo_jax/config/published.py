"""What the papers of the methods, or their code, ran on FLUX.1-dev and SD3.5-M: amounts on top of a
method's row, as `--config=RECIPE:method=NAME,settings=paper`.

A number stands here only if the method's paper or code states it for the model; of an entry that
is `borrowed`, another source states it, which the run's label names. An entry repeats nothing of
the row, and something in it is not a default either. The recipe keeps the rest, its prompts and its
reward. Our readings of a method (`methods`) stay, unless a note says otherwise. Nothing of this
size was trained here.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from densegrpo_jax.config.method_row import Published

PAPER = 'paper'  # the one value of `settings` in a variant
FLUX, SD35 = 'FLUX.1-dev', 'SD3.5-M'
# The last part of `model.path`, a Hugging Face id or a folder -> the model.
_MODELS = {'FLUX.1-dev': FLUX, 'stable-diffusion-3.5-medium': SD35}
RECIPES = {FLUX: 'flux_ocr', SD35: 'sd35_ocr'}  # one of each

_SHIFT = "Its grid is shifted by 3, ours by the model's rule (2.2 at 720 px); no key sets that."
_ACCUMULATION = 'One update takes a whole iteration: its accumulation over {} has no key.'
_PROMPTS = 'A prompt on each of {} GPUs.'
_HALVES = (
    'Two updates of an iteration: its code divides samples between them at random, ours prompts '
    '(`optim.updates`).'
)
_UPDATES = (
    "How many updates it makes of an iteration is not known; Flow-GRPO's code makes two "
    '(`optim.updates`), the recipe one.'
)
_PIXELS = {'model.height': 720, 'model.width': 720}

# All methods that arXiv 2601.20218 compares. Its global batch of 144 with 8 accumulations is 48
# groups of 24 samples, in one update or in two.
_DENSE_GRPO = {
    'model.guidance': 4.5,
    'lora.rank': 32,
    'lora.alpha': 64.0,
    'rollout.steps': 10,
    'rollout.prompts': 48,
    'rollout.group': 24,
    'loss.clip_range': 1e-4,
    'optim.learning_rate': 3e-4,
    'optim.weight_decay': 1e-4,
    'eval.steps': 40,
}
_DENSE_GRPO_REWARDS = {
    'geneval': {'iterations': 4500, 'loss.beta': 0.04},
    'ocr': {'iterations': 1500, 'loss.beta': 0.04},
    'pickscore': {'iterations': 4500, 'loss.beta': 0.01},
}

_BASELINE = 'the baseline in arXiv 2601.20218'

# Also the likeliest base of AEGPO.
_DANCE = {
    **_PIXELS,
    'full': True,
    'rollout.steps': 16,
    'rollout.prompts': 16,
    'rollout.group': 12,
    'optim.learning_rate': 1e-5,
}

_TP_GRPO = {
    SD35: Published(
        {
            'model.guidance': 4.5,
            'rollout.steps': 10,
            'rollout.level': 0.7,
            'rollout.train_end': True,
        },
        'Nine transitions are noisy: with `rollout.train_end` also the one into an almost clean '
        f'latent, in which this kernel leaves hardly any noise. {_UPDATES}',
    )
}

# G2RPO and E-GRPO.
_BRANCHES = {
    **_PIXELS,
    'model.guidance': 3.5,
    'full': True,
    'rollout.steps': 16,
    'rollout.group': 12,
    'optim.learning_rate': 2e-6,
    'optim.weight_decay': 1e-4,
}

# By method, then by model.
PUBLISHED: Mapping[str, Mapping[str, Published]] = {
    'dense_grpo': {
        SD35: Published(
            _DENSE_GRPO,
            '512 px, and 1024 px in a run with PickScore, as the recipes have them. The noise is '
            f"the recipe's until `calibrate` has found it. {_UPDATES}",
            _DENSE_GRPO_REWARDS,
        )
    },
    'flow_grpo': {
        FLUX: Published(
            {
                'model.height': 512,
                'model.width': 512,
                'model.guidance': 3.5,
                'lora.rank': 64,
                'lora.alpha': 128.0,
                'rollout.steps': 6,
                'rollout.prompts': 48,
                'rollout.group': 24,
                'rollout.level': 0.9,
                'loss.beta': 0.0,
                'optim.learning_rate': 3e-4,
                'optim.updates': 2,
                'eval.steps': 28,
            },
            f'Its configuration pickscore_flux. {_HALVES}',
        ),
        SD35: Published(
            {**_DENSE_GRPO, 'rollout.level': 0.7}, _UPDATES, _DENSE_GRPO_REWARDS, borrowed=_BASELINE
        ),
    },
    'coca': {
        SD35: Published(
            _DENSE_GRPO,
            f'Its own paper has no flow models. {_UPDATES}',
            _DENSE_GRPO_REWARDS,
            borrowed=_BASELINE,
        )
    },
    'guard': {
        SD35: Published(
            {
                'rollout.prompts': 48,
                'rollout.group': 24,
                'optim.learning_rate': 1e-4,
                'optim.updates': 2,
            },
            f'{_HALVES} Only the second is off policy, and clipped.',
            {'pickscore': {'loss.clip_range': 4e-6}},
        )
    },
    'nft': {
        SD35: Published(
            {'model.guidance': 1.0, 'rollout.prompts': 48, 'rollout.group': 24},
            'Without classifier-free guidance. Its b (`loss.nft_strength`) is also 0.1 with '
            'several rewards, and 1 with others.',
            {'ocr': {'loss.nft_strength': 0.1, 'loss.old_decay': 'late', 'optim.updates': 2}},
        )
    },
    'stepwise': {SD35: Published({'rollout.steps': 10})},
    'tp_grpo': _TP_GRPO,
    'tp_grpo_code': _TP_GRPO,
    'dance': {
        FLUX: Published(
            {**_DANCE, 'iterations': 300, 'credit.clip': 5.0},
            f'{_PROMPTS.format(16)} {_SHIFT} {_ACCUMULATION.format(4)}',
        )
    },
    'mix': {
        FLUX: Published(
            {
                **_PIXELS,
                'full': True,
                'iterations': 300,
                'rollout.steps': 25,
                'rollout.prompts': 32,
                'rollout.group': 12,
                'credit.clip': 5.0,
                'optim.learning_rate': 1e-5,
            },
            f'{_PROMPTS.format(32)} {_SHIFT} {_ACCUMULATION.format(3)}',
        )
    },
    'aegpo': {
        FLUX: Published(
            {**_DANCE, 'moving.width': 4},
            'Known are the groups of 8 and 16 and the top 4 transitions; the rest is that of the '
            f'likeliest base. {_SHIFT}',
            borrowed='DanceGRPO',
        )
    },
    'euphonium': {
        FLUX: Published(
            {
                'full': True,
                'iterations': 501,
                'rollout.steps': 16,
                'rollout.group': 8,
                'rollout.noisy_end': True,
                'guide.steps': (12, 13, 14, 15),
                'guide.normalise': False,
                'guide.scale': 0.16,
                'credit.clip': 5.0,
                'optim.learning_rate': 1e-6,
            },
            'The paper has no image model; size, guidance and shift are not those of its videos. '
            "The number of GPUs, with a prompt on each, is not stated: the recipe's prompts stay. "
            'Transition 15, the last, drifts and is not trained: `rollout.noisy_end` gives it '
            'noise. λ = 0.01 is `guide.scale=0.16` at noise of 0.25. '
            f'{_ACCUMULATION.format(4)}',
            borrowed='HunyuanVideo',
        )
    },
    'g2rpo': {
        FLUX: Published(
            {
                **_BRANCHES,
                'iterations': 301,
                'rollout.prompts': 16,
                'plan.strides': (1, 2, 3),
                'optim.grad_clip': 1.0,
            },
            f'{_PROMPTS.format(16)} Strides 1, 2 and 3 are those of its tables, 1 and 2 '
            f'(`plan.strides`) those of both scripts. {_SHIFT}',
        )
    },
    'e_grpo': {
        FLUX: Published(
            {**_BRANCHES, 'iterations': 300, 'rollout.prompts': 8},
            f'{_PROMPTS.format(8)} The released configuration has a learning rate of 1e-5. '
            f'{_SHIFT} So steps merge '
            'otherwise: lengths 1, 1, 2, 2, 3, 3, 4, 4, where on its grid they are 1, 1, 2, 2, 2, '
            '3, 3, 3 (`plan.merge`, with `plan.merge_tau=0`).',
        )
    },
    'temp_flow': {
        SD35: Published(
            {
                'rollout.steps': 10,
                'rollout.prompts': 48,
                'rollout.group': 24,
                'rollout.last': 9,
                'rollout.train_end': True,
                'optim.learning_rate': 3e-4,
            },
            'Branches at every transition but the last, so also into an almost clean latent, whose '
            f'noise stays in the image. {_UPDATES}',
            {'pickscore': {'loss.beta': 0.001}},
        )
    },
    'branch': {
        FLUX: Published(
            {
                **_PIXELS,
                'full': True,
                'iterations': 300,
                'rollout.steps': 20,
                'rollout.prompts': 16,
                'rollout.group': 16,
                'plan.splits': (0, 3, 6, 9),
                'credit.clip': 5.0,
                'optim.learning_rate': 1e-5,
            },
            f'Two prompts on each of 8 GPUs. {_SHIFT} One update takes a whole iteration: its '
            'accumulation over 12 transitions has no key.',
        )
    },
}


def apply_published(config, method: str | None):
    """Sets what was published of a method for the configuration's model; returns the configuration.

    Args:
      config: with the row of the method; changed in place, with a word in its label.
      method: None: the variant names none.

    Raises:
      ValueError: no method, or nothing was published of it for this model; the message says what
        would do.
    """
    if method is None:
        raise ValueError(
            f'settings={PAPER} are those of a method, and none is chosen: add method=NAME, one of '
            f'{", ".join(PUBLISHED)}'
        )
    found = PUBLISHED.get(method, {})
    if not found:
        raise ValueError(
            f'settings={PAPER}: beyond the row and the defaults there are none of method={method}, '
            f'neither for {FLUX} nor for {SD35}: leave settings={PAPER} out; methods that have '
            f'some: {", ".join(PUBLISHED)}'
        )
    path = config.model.path
    model = _MODELS.get(pathlib.PurePath(path).name)
    if model is None or model not in found:
        raise ValueError(
            f'settings={PAPER}: those of method={method} are for {" and ".join(found)}, and the '
            f'model of this recipe is {path!r}: choose a recipe such as '
            f'{" or ".join(RECIPES[known] for known in found)}, or leave settings={PAPER} out'
        )
    published = found[model]
    config.update_from_flattened_dict(dict(published.overrides))
    for reward, overrides in published.by_reward.items():
        if reward in config.reward:
            config.update_from_flattened_dict(dict(overrides))
    of = f' of {published.borrowed}' if published.borrowed else ''
    config.label = f'{config.label}, published settings{of}'
    return config

"""Methods by name: a row of overrides on top of any recipe, as `--config=RECIPE:method=NAME`.

The recipe keeps its model, prompts, reward and amounts; a row sets what the method itself decides.
docs/config.md shows this table.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import NamedTuple


class Method(NamedTuple):
    """Overrides by their dotted keys, the idea in a sentence, and its source."""

    overrides: Mapping[str, object]
    idea: str
    source: str


# All give transitions equal weights: weighting is TempFlow-GRPO's idea (loss.noise_power).
METHODS: Mapping[str, Method] = {
    'dense_grpo': Method(
        {'credit.rule': 'dense', 'loss.noise_power': 0.0},
        'Each transition gets what it added to the reward of the completed image.',
        'arXiv 2601.20218',
    ),
    'flow_grpo': Method(
        {'credit.rule': 'sparse', 'credit.std': 'global', 'loss.noise_power': 0.0},
        "Each transition gets the finished image's reward; the std is over the batch, as in the "
        "paper's code.",
        'arXiv 2505.05470',
    ),
    'flow_cps': Method(
        {
            'credit.rule': 'sparse',
            'credit.std': 'global',
            'loss.noise_power': 0.0,
            'loss.kl_form': 'gaussian',
            'loss.clip_range': 1e-5,
            'rollout.kernel': 'cps',
            'rollout.noise': 'constant',
            'rollout.level': 0.8,
            'rollout.log_prob': 'unscaled',
        },
        "Flow-GRPO on a kernel that adds no more noise than the next state has; its code's "
        'log-probability and clip range.',
        'arXiv 2509.05952',
    ),
    'coca': Method(
        {'credit.rule': 'coca_to_go', 'credit.coca_signed': True, 'loss.noise_power': 0.0},
        "The finished image's advantage, shared out by how much each transition moved its "
        'prediction towards the image; no further image is scored.',
        'arXiv 2505.19196',
    ),
    'winners': Method(
        {'loss.kind': 'winners', 'credit.rule': 'sparse', 'loss.noise_power': 0.0},
        'The best image of each prompt is learned by the regression that the model was trained '
        'with: best-of-N search, distilled.',
        'arXiv 2304.06767',
    ),
    'gae': Method(
        {'credit.rule': 'gae', 'credit.gae_lambda': 0.5, 'loss.noise_power': 0.0},
        'Between dense and sparse: a transition also gets part of what later ones added.',
        'arXiv 1506.02438',
    ),
}


def apply_method(config, name: str):
    """Sets the overrides of a method, and its name in the label; returns the configuration.

    Raises:
      ValueError: no such method; the message lists the methods.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, 1)
        hint = f'did you mean {close[0]!r}? ' if close else ''
        raise ValueError(f'method={name} is not known; {hint}methods: {", ".join(METHODS)}')
    config.update_from_flattened_dict(dict(METHODS[name].overrides))
    config.label = f'{config.label.removesuffix(", dense credit")}, {name}'
    return config

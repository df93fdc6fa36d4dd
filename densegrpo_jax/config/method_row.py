"""A row of the table of methods (`methods`), and settings that several rows share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Method(NamedTuple):
    """A row of the table. The texts are plain Markdown, a sentence or two each."""

    overrides: Mapping[str, object]  # by dotted key
    idea: str
    source: str  # arXiv number; of methods of ours, those that it came from
    exact: str  # what is as in the source, its paper or its code
    reading: str  # what the source leaves open, or has otherwise, and what is done here
    cost: str  # network evaluations of a sample, as a formula of T; docs/methods.md counts them too


# The sde kernel from one initial noise per prompt, rewards normalised apart, no KL.
ONE_START = {
    'credit.std': 'group',
    'credit.combine': 'advantages',
    'loss.noise_power': 0.0,
    'loss.beta': 0.0,
    'loss.kl_form': 'gaussian',
    'loss.clip_range': 1e-4,
    'rollout.kernel': 'sde',
    'rollout.shared_noise': True,
}

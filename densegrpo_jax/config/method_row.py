"""A row of the table of methods (`methods`) and of what was published (`published`), and settings
that several methods share.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Method(NamedTuple):
    """A row of the table. The texts are plain Markdown, a sentence or two each."""

    overrides: Mapping[str, object]  # by dotted key
    idea: str
    source: str  # the paper's name of it and arXiv number; of ours, those that it came from
    exact: str  # what is as in the source, its paper or its code
    reading: str  # what the source leaves open, or has otherwise, and what is done here
    cost: str  # network evaluations of a sample, as a formula of T; docs/methods.md counts them too


class Published(NamedTuple):
    """The amounts that a paper or its code states for one model, on top of the method's row, which
    an entry does not repeat.
    """

    overrides: Mapping[str, object]  # by dotted key
    note: str = ''  # plain Markdown: what no key sets, and where the sources differ
    # the reward of a recipe -> amounts that the source states for it
    by_reward: Mapping[str, Mapping[str, object]] = MappingProxyType({})
    borrowed: str = ''  # whose amounts these are if no source states them of this method and model


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

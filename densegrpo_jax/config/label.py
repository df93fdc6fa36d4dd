"""The label of a run that changes its recipe: a recipe's names the recipe's credit and reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

LONGEST = 200  # characters that the key allows; a longer one stays the recipe's


class Told(NamedTuple):
    """What a label tells of.

    Attributes:
      rewards: name -> kind.
    """

    label: str
    rule: str
    rewards: Mapping[str, str]


def told(config) -> Told:
    """Of a complete configuration, which need not be valid yet."""
    pairs = config.reward.items() if hasattr(config.reward, 'items') else ()
    rewards = {name: str(dict(o).get('kind', name)) for name, o in pairs if hasattr(o, 'keys')}
    return Told(config.label, config.credit.rule, rewards)


def relabel(config, recipe: Told) -> None:
    """Says in a label that is the recipe's what the configuration has otherwise; in place."""
    label, rule, rewards = told(config)
    if not label or label != recipe.label:
        return
    if rule != recipe.rule:
        for words in (f', {recipe.rule} credit', f', credit {recipe.rule}'):
            label = label.replace(words, '')
        label = f'{label}, credit {rule}'
    if rewards and rewards != recipe.rewards:
        # by its kind where a name has come to mean another
        names = [n if recipe.rewards.get(n, kind) == kind else kind for n, kind in rewards.items()]
        label = f'{label}, but the reward is {" + ".join(names)}'
    if len(label) <= LONGEST:
        config.label = label

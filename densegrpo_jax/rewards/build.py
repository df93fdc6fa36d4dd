"""Rewards from a config."""

import importlib
import inspect
import numbers
import types
import typing
from collections.abc import Callable
from typing import Any

from densegrpo_jax.rewards.base import Reward
from densegrpo_jax.rewards.composite import CompositeReward
from densegrpo_jax.rewards.directional import EMBEDDING_REWARDS
from densegrpo_jax.runtime.named import failure, imported
from densegrpo_jax.runtime.reading import finite, shown

# Name in a config -> the reward, or 'module:Class' of this package, imported only if a config names
# it: some need OpenCV or jax.
REWARDS: dict[str, str | Callable[..., Reward]] = {
    'ocr': 'local.ocr:OcrReward',
    'jpeg': 'local.jpeg:JpegReward',
    'pixels': 'local.pixels:PixelsReward',
    'geneval': 'local.geneval:GenevalReward',
    'remote': 'remote.client:RemoteReward',
    'judge': 'remote.judge:JudgeReward',
    'shapes': 'local.shapes:ShapesReward',
    'preference': 'local.preference:PreferenceReward',
    'scene_embedding': 'local.scene_embedding:SceneEmbeddingReward',
    'clipscore': 'local.clip_rewards:ClipScoreReward',
    'pickscore': 'local.clip_rewards:PickScoreReward',
    'hpsv2': 'local.clip_rewards:Hpsv2Reward',
    'aesthetic': 'local.aesthetic:AestheticReward',
}


# The attributes that a class of another package needs; its constructor may set names and range.
FACE = ('name', 'check', '__call__')


def build_reward(spec) -> CompositeReward:
    """The weighted sum that a config describes, such as {'ocr': {'weight': 1.0, 'mode':
    'recognise'}, 'jpeg': {'weight': 0.1}}.

    Args:
      spec: dict or ConfigDict, reward name -> options. `weight` (1.0 if absent) belongs to the sum,
        the other options to the reward. If a reward occurs twice, such as two sets of servers, keys
        are free and `kind` names the reward: {'deqa': {'kind': 'remote', ...}}. A reward of another
        package is named by its import path: {'mine': {'kind': 'my_package.my_module:MyReward',
        ...}} (or by its key, but a ConfigDict takes no key with a dot).

    Raises:
      ValueError: an unknown reward or option (the message lists the known ones), a value out of
        range, or an import that fails.
    """
    parts = []
    for name, options in spec.items():
        if not hasattr(options, 'items'):
            raise ValueError(
                f'reward {name!r} is {options!r}; expected its options, such as {{"weight": 1.0}}'
            )
        options = dict(options.items())
        kind = options.pop('kind', name)
        reward = resolve(kind)
        known = [key for key in inspect.signature(reward).parameters if not key.startswith('make_')]
        weight = options.pop('weight', 1.0)
        unknown = [key for key in options if key not in known]
        if 'direction' in unknown:
            raise ValueError(
                f'reward {name!r} has no embedding, so no direction can guide it; rewards that '
                f'have: {", ".join(EMBEDDING_REWARDS)}'
            )
        if unknown:
            raise ValueError(
                f'reward {name!r} has no option {unknown[0]!r}; known options: '
                f'{", ".join(["weight", "kind", *known])}'
            )
        weight = _weight(name, weight)
        parts.append((_made(name, kind, reward, options), weight))
    return CompositeReward(parts)


def kinds(spec) -> dict[str, str]:
    """Name -> kind, of the rewards in a config; parts that `build_reward` refuses are left out."""
    named = [(name, o.get('kind', name)) for name, o in spec.items() if hasattr(o, 'get')]
    return {name: kind for name, kind in named if isinstance(kind, str)}


def reads_targets(spec) -> bool:
    """Whether a reward in a config reads the quoted text of a prompt in its image, by the kind of
    the reward: its key may be any.
    """
    return 'ocr' in kinds(spec).values()


def own_kinds(spec) -> dict[str, str]:
    """Name -> 'package.module:Class', for the rewards of a user's own in a config."""
    return {name: kind for name, kind in kinds(spec).items() if ':' in kind}


def _weight(name: str, weight) -> float:
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
        raise ValueError(f'reward.{name}.weight={weight!r}; expected a number')
    return float(weight)


def _made(name: str, kind: str, reward: Callable[..., Reward], options: dict) -> Reward:
    """The reward, with what every reward has."""
    _check_types(name, reward, options)
    try:
        made = reward(**options)
    except (ValueError, OSError, ImportError):  # these say what is wrong
        raise
    except Exception as error:  # noqa: BLE001 (somebody's code may raise anything)
        raise ValueError(
            f'reward {name!r} ({kind}) cannot be made with {options}: {failure(error)}'
        ) from error
    if missing := [field for field in ('names', 'range') if not hasattr(made, field)]:
        raise ValueError(
            f'reward {name!r} ({kind}) has no {missing[0]!r}: names of its scores, such as '
            "('redness',), and range, such as (0.0, 1.0), are set by the class or its constructor"
        )
    return made


# type of an option -> what it is called, and the test of a value
_TYPES: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ('a whole number', lambda value: type(value) is int),
    float: ('a finite number', finite),
    bool: ('True or False', lambda value: isinstance(value, bool)),
    str: ('text', lambda value: isinstance(value, str)),
    type(None): ('None', lambda value: value is None),
}


def _check_types(name: str, reward: Callable[..., Reward], options: dict) -> None:
    """Raises ValueError if an option is not of the type that the reward's signature says, or else
    of its default's: with another one it may fail only when it scores.
    """
    try:
        hints = typing.get_type_hints(reward.__init__ if inspect.isclass(reward) else reward)
    except Exception:  # noqa: BLE001 (somebody's code may raise anything)
        hints = {}
    for key, value in options.items():
        default = inspect.signature(reward).parameters[key].default
        hint = hints.get(key, type(default) if isinstance(default, int | float) else Any)
        union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        kinds = [_TYPES.get(kind) for kind in (typing.get_args(hint) if union else (hint,))]
        found = [kind for kind in kinds if kind is not None]
        if len(found) == len(kinds) and not any(fits(value) for _, fits in found):
            expected = ' or '.join(said for said, _ in found)
            raise ValueError(f'reward.{name}.{key}={shown(value)}: expected {expected}')


def resolve(kind: str) -> Callable[..., Reward]:
    """The class or function that makes the reward `kind`. Raises ValueError as `build_reward`."""
    if not isinstance(kind, str):
        raise ValueError(
            f'the kind of a reward is {kind!r}; expected a name, or package.module:Class'
        )
    if ':' in kind:
        return _imported(kind)
    if kind not in REWARDS:
        known = ', '.join(REWARDS)
        raise ValueError(
            f'unknown reward {kind!r}; known rewards: {known}; one of your own is named by '
            'package.module:Class'
        )
    reward = REWARDS[kind]
    if not isinstance(reward, str):
        return reward
    module, _, name = reward.partition(':')
    return getattr(importlib.import_module(f'densegrpo_jax.rewards.{module}'), name)


def _imported(path: str) -> Callable[..., Reward]:
    """The reward class 'package.module:Class' of another package."""
    reward = imported(path, f'reward {path!r}')
    if missing := [field for field in FACE if not hasattr(reward, field)]:
        raise ValueError(
            f'reward {path!r} has no {missing[0]!r}; a reward class has {", ".join(FACE)} '
            '(rewards/base.py, class Reward)'
        )
    return reward

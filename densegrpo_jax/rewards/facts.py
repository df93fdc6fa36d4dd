"""What no key tells of rewards, for records that decide whether results are comparable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

from densegrpo_jax.rewards.base import Reward


def reward_facts(rewards: Iterable[Reward]) -> dict[str, dict[str, str]]:
    """The fingerprints of servers, which are asked if they were not yet; and, if there are any, the
    `directions`.
    """
    rewards = [*rewards]
    asked = lambda reward: reward.fingerprint if hasattr(type(reward), 'fingerprint') else None
    told = {'directions of rewards': directions(rewards)}
    held = {fact: of for fact, of in told.items() if of}
    return {'servers of rewards': _by_name(rewards, asked), **held}


def directions(rewards: Iterable[Reward]) -> dict[str, str]:
    """names[0] -> digest of the direction, of the rewards and parts of sums that are guided."""

    def digest(reward):
        if (direction := getattr(reward, 'direction', None)) is None:
            return None
        content = direction.vector.tobytes() + repr(direction.omega).encode()
        content += repr(direction.renormalise).encode()
        return hashlib.sha256(content).hexdigest()[:12]

    return _by_name(rewards, digest)


def _by_name(rewards: Iterable[Reward], tell: Callable[[Reward], str | None]) -> dict[str, str]:
    """names[0] -> what `tell` says, where it is not None. The training reward and one of a panel
    with prompts of its own may have one name: the later one has it, as in earlier records.
    """
    found: dict[str, str] = {}
    for reward in reversed([*_parts(rewards)]):
        if (told := tell(reward)) is not None:
            name = reward.names[0]
            while name in found:
                name += ' (trained on)'
            found[name] = told
    return found


def _parts(rewards: Iterable[Reward]) -> Iterator[Reward]:
    """The rewards, each followed by the parts of the sum that it is."""
    for reward in rewards:
        yield reward
        yield from _parts(part for part, _ in getattr(reward, 'parts', ()))

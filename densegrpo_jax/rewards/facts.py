"""What no key tells of rewards, for records that decide whether results are comparable."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

from densegrpo_jax.pipelines.weights.content import content_digest
from densegrpo_jax.rewards.base import Reward
from densegrpo_jax.runtime.named import failure


def reward_facts(rewards: Iterable[Reward]) -> dict[str, dict[str, str]]:
    """The fingerprints of servers, which are asked if they were not yet; and, if there are any, the
    `directions` and `weights`.
    """
    rewards = [*rewards]
    asked = lambda reward: reward.fingerprint if hasattr(type(reward), 'fingerprint') else None
    told = {'directions of rewards': directions(rewards), 'weights of rewards': weights(rewards)}
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


def weights(rewards: Iterable[Reward]) -> dict[str, str]:
    """names[0] -> `content_digest` of the weights, of the rewards and parts of sums that name their
    files: equal for a copy in another place.

    Raises:
      OSError: a file cannot be read. ValueError: a reward of somebody's own cannot name its files.
    """
    return _by_name(rewards, _weights)


def _weights(reward: Reward) -> str | None:
    if (find := getattr(reward, 'weight_files', None)) is None:
        return None
    try:
        listed = find()
        if isinstance(listed, str | bytes | os.PathLike):
            raise TypeError(f'expected a list of paths, got {listed!r}')
        files = [pathlib.Path(file) for file in listed]
        if folders := [str(file) for file in files if file.is_dir()]:
            raise TypeError(f'expected files, got the folder {folders[0]}')
        found = [(file, file.stat()) for file in files]
    except Exception as error:  # noqa: BLE001 (somebody's code may raise anything)
        raise ValueError(
            f'weight_files() of reward {reward.name!r} gives no paths of files: {failure(error)}'
        ) from error
    return _digest(*((f, stat.st_size, stat.st_mtime_ns) for f, stat in found)) if found else None


@functools.cache
def _digest(*files: tuple[pathlib.Path, int, int]) -> str:
    """Of (path, size, time of change): a command makes several records."""
    return content_digest(path for path, *_ in files)


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

"""Work that every process of a run does for itself, with one outcome for all processes."""

from __future__ import annotations

import contextlib
import json

from densegrpo_jax.runtime.hosts import Hosts, OtherProcessFailed


class Agreement:
    """A conversation among the processes of a run; all processes must call its methods equally
    often, in the same order.

    Args:
      hosts: the processes.
      name: of the conversation; unique within a run.
      fatal: errors that end the run, whatever the other processes met.
      brief: error -> the sentence that tells the other processes about it.
    """

    def __init__(self, hosts: Hosts, name: str, fatal: tuple[type[Exception], ...] = (), brief=str):
        self._hosts, self._name, self._fatal, self._brief, self._asked = (
            hosts,
            name,
            fatal,
            brief,
            0,
        )

    def poll(self, value) -> list:
        """The JSON values of all processes, in their order."""
        self._asked += 1
        return [
            json.loads(one)
            for one in self._hosts.share(f'{self._name}/{self._asked}', json.dumps(value).encode())
        ]

    @contextlib.contextmanager
    def alike(self):
        """A context whose body ends alike in all processes: an error of one is an error of all. The
        body may contain no collective.

        Raises:
          OtherProcessFailed: another process met a fatal error, and this one did not.
          ValueError: another process met any other error, and this one met none.
        """
        error = None
        try:
            yield
        # if a process ends in another way, `poll` raises, or JAX's heartbeat ends this one
        except Exception as raised:
            error = raised
        said = self.poll(
            None if error is None else [isinstance(error, self._fatal), self._brief(error)]
        )
        failed = {index: one for index, one in enumerate(said) if one}
        fatal = [index for index, (ends, _) in failed.items() if ends]
        if error is not None and (not fatal or self._hosts.index in fatal):
            raise error
        if failed:
            first = min(fatal or failed)
            message = f'process {first} of the run: {failed[first][1]}'
            raise OtherProcessFailed(message) if fatal else ValueError(message)

"""The reward of a configuration behind a socket, until a signal ends it."""

from __future__ import annotations

import json
import signal
import threading

import uvicorn
from absl import logging
from ml_collections import ConfigDict

from densegrpo_jax import __version__
from densegrpo_jax.rewards.base import Reward
from densegrpo_jax.rewards.build import build_reward, own_kinds
from densegrpo_jax.rewards.remote.service import RewardService, fingerprint
from densegrpo_jax.runtime.arrivals import bounded
from densegrpo_jax.runtime.leaving import leave_at_once
from densegrpo_jax.runtime.listening import LOOPBACK, listen
from densegrpo_jax.runtime.named import code_digest

CLOSING_SECONDS = 2.0  # from the end of the drain to that of the process, at most


def served(spec) -> Reward:
    """The served reward of a config: a single part of weight 1 by itself, else the weighted sum."""
    reward = build_reward(spec)
    (part, weight), *others = reward.parts
    return reward if others or weight != 1 else part


def serve(
    spec: ConfigDict,
    host: str,
    port: int,
    *,
    token: str,
    workers: int,
    max_queue: int,
    max_request_bytes: int,
    drain_s: int,
) -> None:
    """Answers requests until SIGTERM or SIGINT, then finishes running ones. Main thread only.

    Args:
      spec: `config.reward`.
      host, port: to listen on; port 0 = any free one.
      drain_s: seconds that running requests have to finish.
      token, workers, max_queue, max_request_bytes: see `RewardService`.

    Raises:
      ValueError: the reward cannot be made, or the server cannot listen on the address.
    """
    reward = served(spec)
    code = {name: code_digest(kind) for name, kind in own_kinds(spec).items()}
    name = fingerprint(reward, json.loads(spec.to_json_best_effort()), __version__, code)
    limits = dict(workers=workers, max_queue=max_queue, max_request_bytes=max_request_bytes)
    service = RewardService(reward, name, __version__, token=token, **limits)
    listening, where = listen(host, port)
    if not token and host not in LOOPBACK:
        logging.warning(
            'anyone who can reach %s can use this service; give it a token with --token_env', host
        )
    logging.info('serving %s, fingerprint %s, on %s', ', '.join(reward.names), name, where)
    # uvicorn passes the signal that stopped it on to these handlers: the server has stopped
    # already, so they do nothing.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    settings = uvicorn.Config(
        service.app,
        http=bounded(),
        ws='none',
        lifespan='on',
        log_config=None,
        log_level='warning',
        access_log=False,
        timeout_graceful_shutdown=drain_s,
    )
    _Server(settings, drain_s + CLOSING_SECONDS).run(sockets=[listening])
    logging.info('stopped')


class _Server(uvicorn.Server):
    """Ends the process `seconds` after the signal: a thread in which a reward hangs cannot be
    stopped, and Python waits for its threads.
    """

    def __init__(self, settings: uvicorn.Config, seconds: float):
        super().__init__(settings)
        self._timer = threading.Timer(seconds, _end, [seconds])
        self._timer.daemon = True

    async def shutdown(self, sockets=None) -> None:
        self._timer.start()
        await super().shutdown(sockets)


def _end(seconds: float) -> None:
    logging.warning(
        'stopped, with requests that were not finished after %g s: their clients ask again', seconds
    )
    leave_at_once(0)

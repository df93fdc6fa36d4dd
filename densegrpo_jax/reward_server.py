"""Command: serves the reward of a configuration over HTTP, for training runs on other machines
(reward `remote`).

    python -m densegrpo_jax.reward_server --config=configs/reward_server.py \\
        --host=0.0.0.0 --port=18100 --token_env=REWARD_TOKEN

Only `config.reward` is read, so the configuration of a training run does as well. A reward of one
part with weight 1 is served under its own names; of several, their weighted sum `total` comes
first. The token is taken from the environment, never from the command line, where every user of the
machine could read it. SIGTERM and SIGINT finish the requests under way first. Exit status: 0
stopped by a signal, 2 a configuration, token or address that cannot be used.
"""

from __future__ import annotations

import json
import signal
import socket

import uvicorn
from absl import app, flags, logging

from densegrpo_jax import __version__
from densegrpo_jax.config.command_line import define_config, run_main
from densegrpo_jax.rewards.base import Reward
from densegrpo_jax.rewards.build import build_reward
from densegrpo_jax.rewards.remote.endpoints import read_token
from densegrpo_jax.rewards.remote.service import RewardService, fingerprint
from densegrpo_jax.runtime import console
from densegrpo_jax.runtime.cores import cpu_cores

LOOPBACK = ('127.0.0.1', '::1', 'localhost')


def served(spec) -> Reward:
    """The reward of a config as it is served: a single part of weight 1 by itself, else the
    weighted sum.
    """
    reward = build_reward(spec)
    (part, weight), *others = reward.parts
    return reward if others or weight != 1 else part


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(
            f'unexpected arguments {argv[1:]}; settings are given as --config.key=value'
        )
    console.start()
    flag = flags.FLAGS
    try:
        token = read_token(flag.token_env) if flag.token_env else ''
        reward = served(flag.config.reward)
        name = fingerprint(
            reward, json.loads(flag.config.reward.to_json_best_effort()), __version__
        )
        service = RewardService(
            reward,
            name,
            __version__,
            token=token,
            workers=flag.workers or cpu_cores(),
            max_queue=flag.max_queue,
            max_request_bytes=flag.max_request_mb << 20,
        )
        family = socket.AF_INET6 if ':' in flag.host else socket.AF_INET
        listening = socket.create_server((flag.host, flag.port), family=family)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        logging.error('%s', error)
        return 2
    except OSError as error:
        logging.error(
            'cannot listen on %s port %d: %s; choose others with --host and --port',
            flag.host,
            flag.port,
            error,
        )
        return 2
    if not token and flag.host not in LOOPBACK:
        logging.warning(
            'anybody who reaches %s can use this server; give it a token with --token_env',
            flag.host,
        )
    host = f'[{flag.host}]' if family == socket.AF_INET6 else flag.host
    where = f'http://{host}:{listening.getsockname()[1]}'
    logging.info('serving %s, fingerprint %s, on %s', ', '.join(reward.names), name, where)
    # uvicorn hands the signal that stopped it on to the handlers found here: having stopped is what
    # it asked for.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    settings = uvicorn.Config(
        service.app,
        http='h11',
        ws='none',
        lifespan='on',
        log_config=None,
        log_level='warning',
        access_log=False,
        timeout_graceful_shutdown=flag.drain_s,
    )
    uvicorn.Server(settings).run(sockets=[listening])
    logging.info('stopped')
    return 0


def define_flags() -> None:
    """Only the command itself has flags: importing this module defines none."""
    define_config('Configuration, of which only `reward` is read.')
    flags.DEFINE_string(
        'host',
        '127.0.0.1',
        'Address to listen on; 0.0.0.0 = all of this machine (then use a token).',
    )
    flags.DEFINE_integer(
        'port', 18100, 'Port to listen on; 0 = any free one.', lower_bound=0, upper_bound=65535
    )
    flags.DEFINE_string(
        'token_env', '', 'Environment variable that holds the token which requests must carry.'
    )
    flags.DEFINE_integer('workers', 0, 'Scoring threads; 0 = one per core.', lower_bound=0)
    flags.DEFINE_integer(
        'max_queue', 16, 'Requests waiting or under way; more are told to come back.', lower_bound=1
    )
    flags.DEFINE_integer(
        'max_request_mb',
        64,
        'Largest request in MiB (a picture of 512 x 512 has 0.75).',
        lower_bound=1,
    )
    flags.DEFINE_integer(
        'drain_s',
        60,
        'Seconds that requests under way are given when the server is stopped.',
        lower_bound=0,
    )


if __name__ == '__main__':
    define_flags()
    flags.mark_flag_as_required('config')
    run_main(main)

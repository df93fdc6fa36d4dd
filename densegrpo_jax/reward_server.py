"""Command: serves the reward of a configuration over HTTP, for training runs on other machines
(reward `remote`).

    python -m densegrpo_jax.reward_server --config=configs/reward_server.py \\
        --host=0.0.0.0 --port=18100 --token_env=REWARD_TOKEN

It reads only `config.reward`, so the configuration of a training run works too. A reward with one
part of weight 1 is served under its own names; of several parts the weighted sum `total` comes
first. The token comes from the environment, never from the command line, where every user of the
machine could read it. After SIGTERM or SIGINT it finishes running requests first. Exit status: 0
stopped by a signal, 2 a configuration, token or address cannot be used.
"""

from __future__ import annotations

from absl import flags

from densegrpo_jax.config.command_line import define_config, run_main
from densegrpo_jax.runtime.cores import cpu_cores


def main(flag) -> None:
    if 'reward' not in flag.config:
        raise ValueError('this configuration has no `reward`; configs/reward_server.py shows one')

    from densegrpo_jax.rewards.remote.endpoints import read_token
    from densegrpo_jax.rewards.remote.serve import serve

    serve(
        flag.config.reward,
        flag.host,
        flag.port,
        token=read_token(flag.token_env) if flag.token_env else '',
        workers=flag.workers or cpu_cores(),
        max_queue=flag.max_queue,
        max_request_bytes=flag.max_request_mb << 20,
        drain_s=flag.drain_s,
    )


if __name__ == '__main__':
    define_config(
        'Configuration; only its `reward` is read.', training=False, reads='reward_server'
    )
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
    flags.DEFINE_integer(
        'workers', 0, 'Scoring threads; 0 = one per core.', lower_bound=0, upper_bound=1024
    )
    flags.DEFINE_integer(
        'max_queue',
        16,
        'Most requests that wait or run; more are told to retry later.',
        lower_bound=1,
    )
    flags.DEFINE_integer(
        'max_request_mb',
        64,
        'Largest request in MiB (an image of 512 x 512 has 0.75).',
        lower_bound=1,
    )
    flags.DEFINE_integer(
        'drain_s',
        60,
        'Seconds that running requests have to finish when the server is stopped.',
        lower_bound=0,
    )
    flags.mark_flag_as_required('config')
    run_main(main)

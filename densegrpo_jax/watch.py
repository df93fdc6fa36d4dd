"""Command: follows runs in a browser while they train.

    python -m densegrpo_jax.watch --workdir=runs/tiny_ocr
    python -m densegrpo_jax.watch --workdir=runs/a --workdir=runs/b --port=8100

It reads the work directory, whoever started the run and wherever it goes on, and shows the page of
`densegrpo report`, which follows the news. It listens on this machine only; from another one use a
tunnel: `ssh -L 8090:localhost:8090 MACHINE`. With --host it answers for IP addresses, that host and
this machine's names. It sends the page and the pictures of the named runs, nothing else.
"""

from __future__ import annotations

import pathlib

from absl import flags

from densegrpo_jax.config.command_line import define_runs, run_main
from densegrpo_jax.config.flag_types import define_whole


def main(flag) -> None:
    from densegrpo_jax.viewing.server import serve

    serve([pathlib.Path(folder).expanduser() for folder in flag.workdir], flag.host, flag.port)


if __name__ == '__main__':
    define_runs()
    flags.DEFINE_string('host', '127.0.0.1', 'Address to listen on; 0.0.0.0: all of the machine.')
    define_whole('port', 8090, 'Port to listen on; 0 = any free one.', 0, 65535)
    run_main(main)

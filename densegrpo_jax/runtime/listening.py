"""A socket that a server listens on."""

from __future__ import annotations

import socket

LOOPBACK = ('127.0.0.1', '::1', 'localhost')


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A listening socket and its address, as http://HOST:PORT.

    Args:
      host, port: to listen on; port 0 = any free one.

    Raises:
      ValueError: nothing can listen there.
    """
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(
            f'cannot listen on {host} port {port}: {error}; choose others with --host and --port'
        ) from None
    shown = f'[{host}]' if family == socket.AF_INET6 else host
    return listening, f'http://{shown}:{listening.getsockname()[1]}'

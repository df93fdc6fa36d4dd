"""One HTTP request within a time limit, on the standard library.

A connection per request: against pictures of megabytes it costs nothing, and no answer can be left over from an earlier request.
Redirects and proxy settings of the environment are not followed: pictures and tokens go to the server that the configuration names.
"""

import http.client
import selectors
import socket
import threading
import time
from typing import NamedTuple
from urllib.parse import urlsplit

TRANSPORT_ERRORS = (OSError, http.client.HTTPException)  # what `request` raises when there was no whole answer
MAX_ANSWER_BYTES = 64 << 20


class Interrupted(Exception):
    """The request was given up because its caller is going."""


class Answer(NamedTuple):
    """An answer as it came, and whence; retry_after in seconds, None where the server names none."""

    url: str
    status: int
    body: bytes
    retry_after: float | None = None


def request(
    method: str, url: str, body: bytes = b'', headers: dict[str, str] | None = None, *, timeout_s: float, stop: threading.Event
) -> Answer:
    """Sends a request and reads the whole answer, whatever its status.

    Args:
      timeout_s: from here to the last byte of the answer.
      stop: gives up waiting for the answer once it is set.

    Raises:
      OSError: refused, reset, unknown host, TLS, TimeoutError. http.client.HTTPException: not HTTP, or a body that ends too early.
      Interrupted: `stop` was set.
    """
    deadline, where = time.monotonic() + timeout_s, urlsplit(url)
    make = http.client.HTTPSConnection if where.scheme == 'https' else http.client.HTTPConnection
    connection = make(where.hostname, where.port, timeout=timeout_s)
    try:
        connection.connect()
        sock = connection.sock
        sock.settimeout(_left(deadline))
        try:
            connection.request(method, where.path or '/', body or None, {**(headers or {}), 'Connection': 'close'})
        except (BrokenPipeError, ConnectionResetError):
            pass  # a server may refuse before it has read everything; if it said why, that can still be read
        _wait_readable(sock, deadline, stop)
        sock.settimeout(_left(deadline))
        response = connection.getresponse()
        parts, size = [], 0
        while chunk := response.read1(1 << 20):
            parts.append(chunk)
            if (size := size + len(chunk)) > MAX_ANSWER_BYTES:
                raise http.client.HTTPException(f'an answer of more than {MAX_ANSWER_BYTES} bytes')
            if response.isclosed():
                break
            sock.settimeout(_left(deadline))
        expected = response.getheader('Content-Length')
        if expected is not None and (not expected.isdigit() or int(expected) != size):
            raise http.client.HTTPException(f'the answer ends after {size} of {expected} bytes')
        return Answer(url, response.status, b''.join(parts), _seconds(response.getheader('Retry-After')))
    finally:
        connection.close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError('timed out')
    return left


def _wait_readable(sock: socket.socket, deadline: float, stop: threading.Event) -> None:
    """Waits for the first byte of the answer, where the time goes while the server computes, with an eye on `stop`."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        while not selector.select(min(_left(deadline), 0.2)):
            if stop.is_set():
                raise Interrupted


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; None for none, and for a date, which nobody sends here."""
    return float(header) if header is not None and header.isascii() and header.isdigit() else None

"""One HTTP request within a time limit, on the standard library.

Each request has its own connection: compared with images of megabytes that costs nothing, and no
answer can be left over from an earlier request. Redirects and the environment's proxy settings are
ignored: images and tokens go only to the server that the configuration names.
"""

import functools
import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

# what `request` raises if no complete answer arrived
TRANSPORT_ERRORS = (OSError, http.client.HTTPException)
MAX_ANSWER_BYTES = 64 << 20
# longest time that a server may take to accept a connection; `stop` does not end that wait
CONNECT_SECONDS = 10.0


class Interrupted(Exception):
    """The request was abandoned because its caller stops."""


class Answer(NamedTuple):
    """An answer as received, and its URL; retry_after in seconds, None if the server names none."""

    url: str
    status: int
    body: bytes
    retry_after: float | None = None


def request(
    method: str,
    url: str,
    body: bytes = b'',
    headers: dict[str, str] | None = None,
    *,
    timeout_s: float,
    stop: threading.Event,
) -> Answer:
    """Sends a request and reads the whole answer, whatever its status.

    Args:
      timeout_s: from the call to the last byte of the answer.
      stop: once set, the request ends soon, except during name lookup and connecting.

    Raises:
      OSError: refused, reset, unknown host, TLS, TimeoutError. http.client.HTTPException: not HTTP,
        or a body that ends too early.
      Interrupted: `stop` was set.
    """
    deadline, where = time.monotonic() + timeout_s, urlsplit(url)
    secure = ssl.create_default_context() if where.scheme == 'https' else None
    make = (
        functools.partial(http.client.HTTPSConnection, context=secure)
        if secure
        else http.client.HTTPConnection
    )
    connection = make(where.hostname, where.port)
    sock = socket.create_connection(
        (connection.host, connection.port), min(timeout_s, CONNECT_SECONDS)
    )
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if secure:
            sock = secure.wrap_socket(
                sock, server_hostname=connection.host, do_handshake_on_connect=False
            )
        connection.sock = _Patient(sock, deadline, stop)
        if secure:
            connection.sock.wait(sock.do_handshake)
        try:
            connection.request(
                method, where.path or '/', body or None, {**(headers or {}), 'Connection': 'close'}
            )
        except (BrokenPipeError, ConnectionResetError):
            # a server may refuse before it has read everything; if it said why, that can still be
            # read
            pass
        response = connection.getresponse()
        parts, size = [], 0
        while chunk := response.read1(1 << 20):
            parts.append(chunk)
            if (size := size + len(chunk)) > MAX_ANSWER_BYTES:
                raise http.client.HTTPException(f'an answer of more than {MAX_ANSWER_BYTES} bytes')
            if response.isclosed():
                break
        expected = response.getheader('Content-Length')
        if expected is not None and (not expected.isdigit() or int(expected) != size):
            raise http.client.HTTPException(f'the answer ends after {size} of {expected} bytes')
        return Answer(
            url, response.status, b''.join(parts), _seconds(response.getheader('Retry-After'))
        )
    finally:
        sock.close()


class _Patient(io.RawIOBase):
    """The part of a socket that http.client needs. Every wait, over TLS too, ends at the deadline
    or soon after `stop` is set.
    """

    def __init__(self, sock: socket.socket, deadline: float, stop: threading.Event):
        self._sock, self._deadline, self._stop = sock, deadline, stop

    def wait(self, operation: Callable, *args):
        """The result of a socket operation. The operation is tried repeatedly with short time
        limits, which leave the socket unchanged.
        """
        while (left := self._deadline - time.monotonic()) > 0:
            self._sock.settimeout(min(left, 0.2))
            try:
                return operation(*args)
            except TimeoutError:
                if self._stop.is_set():
                    raise Interrupted from None
        raise TimeoutError('timed out')

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self.wait(self._sock.send, rest) :]

    def makefile(self, *_) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self.wait(self._sock.recv_into, buffer)

    def close(self) -> None:
        """Does nothing: http.client closes its socket before it has read the answer. `request`
        closes the real socket.
        """


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; None if absent, or if it is a date, which no reward server sends."""
    return float(header) if header is not None and header.isascii() and header.isdigit() else None

"""Connections that have not sent the headers of a request yet, bounded in time and in number.

The server cannot ask them for a token, so they must not keep rightful clients out: each gets
HEADER_SECONDS, and an address has at most MOST_PER_ADDRESS of them.
"""

import asyncio
import collections
import logging

from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

HEADER_SECONDS = 10.0
MOST_PER_ADDRESS = 64


def bounded(
    seconds: float = HEADER_SECONDS, most: int = MOST_PER_ADDRESS
) -> type[asyncio.Protocol]:
    """The class of a server's connections, as `http=` of `uvicorn.Config`.

    Args:
      seconds: from the connection, or from the answer before, to the end of the headers.
      most: connections of one address without headers at a time; more are closed.
    """
    unfinished: collections.Counter[str] = collections.Counter()

    class Connection(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if unfinished[self._address] >= most:
                self._end(f'has {most} connections open that have not asked for anything')
            else:
                self._expect_headers()

        def data_received(self, data: bytes) -> None:
            # A further request on the same connection.
            if self._timer is None and (self.cycle is None or self.cycle.response_complete):
                self._expect_headers()
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._headers_came()

        def connection_lost(self, exc: Exception | None) -> None:
            self._headers_came()
            super().connection_lost(exc)

        @property
        def _address(self) -> str:
            return self.client[0] if self.client else ''

        def _expect_headers(self) -> None:
            unfinished[self._address] += 1
            said = f'has not sent the headers of a request in {seconds:g} s'
            self._timer = self.loop.call_later(seconds, self._end, said)

        def _headers_came(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
                unfinished[self._address] -= 1
                if not unfinished[self._address]:
                    del unfinished[self._address]

        def _end(self, why: str) -> None:
            log.warning('closing a connection of %s, which %s', self._address or 'a client', why)
            self.transport.abort()

    return Connection

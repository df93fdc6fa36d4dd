"""Connections of a server, bounded in number, and in time until they have asked for something.

The server cannot ask them for a token, so they must not keep rightful clients out: an address has
at most MOST_OPEN connections and MOST_PER_ADDRESS without the headers of a request, for which each
gets HEADER_SECONDS.
"""

import asyncio
import collections
import logging

from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

HEADER_SECONDS = 10.0
MOST_PER_ADDRESS = 64
MOST_OPEN = 256  # a process may open 1024 files, by the usual limit


def bounded(
    seconds: float = HEADER_SECONDS, most: int = MOST_PER_ADDRESS, most_open: int = MOST_OPEN
) -> type[asyncio.Protocol]:
    """The class of a server's connections, as `http=` of `uvicorn.Config`.

    Args:
      seconds: from the connection, or from the answer before, to the end of the headers.
      most: connections of one address without headers at a time; more are closed.
      most_open: connections of one address at a time; more are closed.
    """
    opened: collections.Counter[str] = collections.Counter()
    unfinished: collections.Counter[str] = collections.Counter()

    class Connection(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            opened[self._address] += 1
            if opened[self._address] > most_open:
                self._end(f'has {most_open} connections open')
            elif unfinished[self._address] >= most:
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
            opened[self._address] -= 1
            if not opened[self._address]:
                del opened[self._address]
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

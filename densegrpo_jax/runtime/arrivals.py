"""Connections of a server, bounded in number, and in time until they have asked for something.

The server cannot ask them for a token, so they must not keep rightful clients out: there are at
most MOST of them, MOST_OPEN of an address, and MOST_PER_ADDRESS of an address without the headers
of a request, for which each gets HEADER_SECONDS. Where a number is reached, a new connection takes
the place of the one that has been silent the longest, of those whose request has not arrived, or
whose client has taken nothing of its answer for UNREAD_SECONDS.
"""

import asyncio
import ipaddress
import itertools
import logging
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

HEADER_SECONDS = 10.0
UNREAD_SECONDS = 30.0  # for a client that takes nothing of its answer
MOST_PER_ADDRESS = 64
MOST_OPEN = 256
MOST = 768  # a process may open 1024 files, by the usual limit


def bounded(
    seconds: float = HEADER_SECONDS,
    most_silent: int = MOST_PER_ADDRESS,
    most_open: int = MOST_OPEN,
    most: int = MOST,
) -> type[asyncio.Protocol]:
    """The class of a server's connections, as `http=` of `uvicorn.Config`.

    Args:
      seconds: from the connection, or from the answer before, to the end of the headers.
      most_silent: connections of one address without headers at a time.
      most_open: connections of one address at a time.
      most: connections of all addresses at a time.
    """
    # Address -> its connections; those silent the longest come first.
    places: dict[str, dict[Any, None]] = {}

    class Connection(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _address = ''
        _unread = 0, 0.0  # bytes of answers that wait, and since when the client has taken none

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._address = network_of(self.client[0]) if self.client else ''
            mine = places.get(self._address, {})
            silent = [other for other in mine if other._timer is not None]
            room = True
            if len(silent) >= most_silent:
                said = f'has {most_silent} connections open that have not asked for anything'
                room = self._replaces(silent, said)
            elif len(mine) >= most_open:
                room = self._replaces(mine, f'has {most_open} connections open')
            elif sum(map(len, places.values())) >= most:
                largest_first = sorted(places.values(), key=len, reverse=True)
                others = itertools.chain.from_iterable(largest_first)
                room = self._replaces(others, f'is one of {most} that are open')
            if room:
                places.setdefault(self._address, {})[self] = None
                self._expect_headers()

        def data_received(self, data: bytes) -> None:
            if (mine := places.get(self._address, {})).pop(self, 0) is None:
                mine[self] = None  # it is the last that was heard of
            # A further request on the same connection.
            if self._timer is None and (self.cycle is None or self.cycle.response_complete):
                self._expect_headers()
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._headers_came()
                self._unread = 0, 0.0  # what waits from here on is another answer's

        def connection_lost(self, exc: Exception | None) -> None:
            self._leave()
            super().connection_lost(exc)

        @property
        def _arrived(self) -> bool:
            """Whether a whole request is there whose answer has not left, and is being taken."""
            (before, since), now = self._unread, self.loop.time()
            unread = self.transport.get_write_buffer_size()
            self._unread = unread, (now if not before or unread < before else since)
            if unread:
                return now - self._unread[1] < UNREAD_SECONDS
            cycle = self.cycle
            return cycle is not None and not cycle.more_body and not cycle.response_complete

        def _replaces(self, others: 'Iterable[Connection]', why: str) -> bool:
            """Ends the first of `others` whose request has not arrived, or else this one."""
            ended = next((other for other in others if not other._arrived), self)
            ended._end(why)
            return ended is not self

        def _expect_headers(self) -> None:
            said = f'has not sent the headers of a request in {seconds:g} s'
            self._timer = self.loop.call_later(seconds, self._end, said)

        def _headers_came(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _leave(self) -> None:
            self._headers_came()
            mine = places.get(self._address, {})
            mine.pop(self, None)
            if not mine:
                places.pop(self._address, None)

        def _end(self, why: str) -> None:
            log.warning('closing a connection of %s, which %s', self._address or 'a client', why)
            self._leave()
            self.transport.abort()

    return Connection


def network_of(host: str) -> str:
    """What counts as one address: IPv4's own, IPv6's first 64 bits, which one client may have all
    addresses of.
    """
    try:
        address = ipaddress.ip_address(host.partition('%')[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), 64), strict=False))

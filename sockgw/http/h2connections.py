"""Which HTTP/2 connection carries a request: few connections, shared by many exchanges.

A connection is used until it carries as many exchanges as its origin takes, then another one is
dialled, one at a time, up to a bound. Exchanges for which there is no room wait, a bounded number
of them for a bounded time. An origin that chooses HTTP/1.1 in the TLS handshake has it, and is
asked again after a while.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from sockgw.http.h2origin import H2OriginConnection
from sockgw.http.h2originexchange import H2OriginExchange
from sockgw.http.negotiated import NegotiatedFactory
from sockgw.http.originconnection import OriginConnection
from sockgw.http.originerror import OriginError
from sockgw.http.originexchange import OriginExchange
from sockgw.http.outgoing import clean
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.heads import RequestHead

if TYPE_CHECKING:
    from sockgw.http.client import Origin, OriginHandler, OriginPool

__all__ = ["H2Connections", "H2Limits"]

# Seconds for which an origin that chose HTTP/1.1 is not offered HTTP/2 again, and how many such
# origins are remembered.
_HTTP1_TIME = 60.0
_MAX_HTTP1 = 1_000


@dataclass(frozen=True, slots=True)
class H2Limits:
    """How much one origin may be asked at a time over HTTP/2."""

    max_streams: int = 256  #: exchanges on one connection, where the origin does not take fewer
    max_connections: int = 16  #: connections that take new exchanges
    max_waiting: int = 1_024  #: exchanges that wait for a connection with room
    wait: float = 10.0  #: seconds for which they do


class H2Connections:
    """HTTP/2 connections to all origins; part of an :class:`~sockgw.http.client.OriginPool`."""

    _log = Logger()

    def __init__(self, pool: OriginPool, limits: H2Limits) -> None:
        self._pool = pool
        self._origins: dict[Origin, OriginConnections] = {}
        self._http1: dict[Origin, float] = {}  # until when, in seconds of the deadlines' clock
        self.limits = limits
        self.deadlines = pool.deadlines
        #: Seconds beyond the deadlines' now in which another byte must have come or gone.
        self.patience = pool.deadlines.patience(pool.idle_timeout)
        self.keep_alive = pool.keep_alive
        self.max_header_size = pool.max_header_size
        self.max_header_count = pool.max_header_count

    def speaks_http1(self, origin: Origin) -> bool:
        """Whether the origin has chosen HTTP/1.1 lately."""
        until = self._http1.get(origin)
        if until is None:
            return False
        if self._pool.seconds() < until:
            return True
        del self._http1[origin]
        return False

    def request(
        self,
        origin: Origin,
        head: RequestHead,
        complete: bool,
        handler: OriginHandler,
        host: bytes,
    ) -> H2OriginExchange:
        """See :meth:`OriginPool.request`."""
        exchange = H2OriginExchange(self, origin, head, complete, handler)
        if self._pool.closing:
            self.fail_later(exchange, StreamCode.REFUSED, "shutting down")
            return exchange
        try:
            exchange.begin(origin.protocol.encode(), clean(head, host))
        except ValueError as error:
            self.fail_later(exchange, StreamCode.PROTOCOL_ERROR, str(error))
            return exchange
        self.deadlines.watch(exchange)
        self._of(origin).take(exchange)
        return exchange

    def close(self) -> None:
        """End all that waits and is dialled."""
        for connections in list(self._origins.values()):
            connections.close()

    # for exchanges

    def wait(self, exchange: H2OriginExchange) -> None:
        """Find a connection for the exchange, once more."""
        if self._pool.closing:
            exchange.fail(StreamCode.CANCELLED, "shutting down")
        else:
            self._of(exchange.origin).take(exchange)

    def withdraw(self, exchange: H2OriginExchange) -> None:
        """The exchange waits no more, if it did."""
        connections = self._origins.get(exchange.origin)
        if connections is not None:
            connections.withdraw(exchange)

    def request_http1(self, exchange: H2OriginExchange) -> OriginExchange:
        """Make the request over HTTP/1.1."""
        return self._pool.request_http1(
            exchange.origin, exchange.head, exchange.complete, exchange.handler
        )

    def unwatch(self, exchange: H2OriginExchange) -> None:
        """The exchange has no deadline any more."""
        self.deadlines.discard(exchange)

    # for those of one origin

    def fail_later(self, exchange: H2OriginExchange, code: StreamCode, detail: str) -> None:
        """Fail the exchange in the next turn: request() may not have returned yet."""
        self._pool.fail_later(exchange, code, detail)

    def connect(self, origin: Origin, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Dial the origin."""
        return maybeDeferred(self._pool.connect, origin, factory)

    def opened(self, connection: H2OriginConnection) -> None:
        """A connection has been made."""
        self._pool.opened(connection)

    def lost(self, connection: H2OriginConnection) -> None:
        """A connection has ended."""
        self._pool.lost(connection)

    def chose_http1(self, origin: Origin, connection: OriginConnection) -> None:
        """The origin has chosen HTTP/1.1: the connection may serve the first who comes."""
        if len(self._http1) >= _MAX_HTTP1:
            self._http1.clear()
        self._http1[origin] = self._pool.seconds() + _HTTP1_TIME
        connection.origin = replace(origin, http2=False)
        connection.deadline = self.deadlines.after(self.keep_alive)
        self._pool.idle.put(connection)

    def http1_protocol(self) -> IProtocolFactory:
        """Return what builds connections of HTTP/1.1."""
        return self._pool.factory

    def unused(self, origin: Origin, connections: OriginConnections) -> None:
        """Nothing is left of them but connections that take no new exchanges."""
        if self._origins.get(origin) is connections:
            del self._origins[origin]

    def _of(self, origin: Origin) -> OriginConnections:
        connections = self._origins.get(origin)
        if connections is None:
            connections = self._origins[origin] = OriginConnections(self, origin)
        return connections


class OriginConnections:
    """HTTP/2 connections to one origin, and who waits for one."""

    _log = Logger()

    def __init__(self, all_of_them: H2Connections, origin: Origin) -> None:
        self._all = all_of_them
        self._origin = origin
        self._factory = _Factory(self, all_of_them.http1_protocol())
        self._connections: list[H2OriginConnection] = []  # those that take new exchanges
        self._waiting: dict[H2OriginExchange, None] = {}  # an ordered set
        self._dialling: Deferred[IProtocol] | None = None
        self.limits = all_of_them.limits
        self.deadlines = all_of_them.deadlines
        self.keep_alive = all_of_them.keep_alive
        self.max_header_size = all_of_them.max_header_size
        self.max_header_count = all_of_them.max_header_count

    def take(self, exchange: H2OriginExchange) -> None:
        """Send the exchange's request, or let it wait."""
        for connection in self._connections:
            if connection.has_room and connection.attach(exchange):
                return
        if len(self._waiting) >= self.limits.max_waiting:
            self._all.fail_later(exchange, StreamCode.REFUSED, "too many requests wait")
            return
        self._waiting[exchange] = None
        exchange.deadline = self.deadlines.after(self.limits.wait)
        self._dial()

    def withdraw(self, exchange: H2OriginExchange) -> None:
        """The exchange waits no more, if it did."""
        if exchange in self._waiting:
            del self._waiting[exchange]
            if not self._waiting and self._dialling is not None:
                self._dialling.cancel()
            self._check_unused()

    def close(self) -> None:
        """Fail all that wait; dial no more."""
        for exchange in list(self._waiting):
            exchange.fail(StreamCode.CANCELLED, "shutting down")

    # for connections

    def opened(self, connection: H2OriginConnection) -> None:
        """A connection has been made."""
        self._all.opened(connection)

    def leaving(self, connection: H2OriginConnection) -> None:
        """The connection takes no new exchanges."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._dial()  # there is room for another now
            self._check_unused()

    def lost(self, connection: H2OriginConnection) -> None:
        """The connection has ended."""
        self.leaving(connection)
        self._all.lost(connection)

    def freed(self, connection: H2OriginConnection) -> None:
        """The connection may have room."""
        while self._waiting and connection.has_room:
            exchange = next(iter(self._waiting))
            del self._waiting[exchange]
            if not connection.attach(exchange):
                self.take(exchange)

    # inside

    def _dial(self) -> None:
        """Dial one more where somebody waits, and there may be more."""
        if (
            self._dialling is None
            and self._waiting
            and len(self._connections) < self.limits.max_connections
        ):
            self._dialling = dialling = self._all.connect(self._origin, self._factory)
            dialling.addCallbacks(self._connected, self._not_connected)
            dialling.addErrback(self._log_error)

    def _connected(self, protocol: IProtocol) -> None:
        self._dialling = None
        if isinstance(protocol, OriginConnection):
            self._fall_back(protocol)
        else:
            connection = cast(H2OriginConnection, protocol)
            if connection.closed:
                self._fail_waiting(StreamCode.ORIGIN_CLOSED, "closed before the request")
            else:
                self._connections.append(connection)
                self.freed(connection)
                self._dial()
        self._check_unused()

    def _not_connected(self, failure: Failure) -> None:
        self._dialling = None
        error = failure.value
        if not self._waiting:
            pass  # all have left, so it was cancelled
        elif self._connections:
            # They may yet have room. The next that comes dials again.
            self._log.info(
                "No further connection to {origin}: {error}", origin=self._origin, error=error
            )
        elif isinstance(error, OriginError):
            self._fail_waiting(error.code, error.detail)
        else:
            self._log.failure("Dialling {origin} failed", failure, origin=self._origin)
            self._fail_waiting(StreamCode.INTERNAL_ERROR, "dialling failed")
        self._check_unused()

    def _fail_waiting(self, code: StreamCode, detail: str) -> None:
        waiting, self._waiting = self._waiting, {}
        for exchange in waiting:
            self._all.fail_later(exchange, code, detail)

    def _fall_back(self, connection: OriginConnection) -> None:
        if connection.closed:
            self._fail_waiting(StreamCode.ORIGIN_CLOSED, "closed before the request")
            return
        self._all.chose_http1(self._origin, connection)
        waiting, self._waiting = self._waiting, {}
        for exchange in waiting:
            exchange.fall_back()

    def _check_unused(self) -> None:
        if not self._connections and not self._waiting and self._dialling is None:
            self._all.unused(self._origin, self)

    def _log_error(self, failure: Failure) -> None:
        self._log.failure("A new connection was not taken", failure)


class _Factory(NegotiatedFactory):
    """Builds HTTP/2 connections, of HTTP/1.1 where that was negotiated."""

    noisy = False

    def __init__(self, connections: OriginConnections, http1: IProtocolFactory) -> None:
        self._connections = connections
        self._http1 = http1

    def buildProtocol(self, addr: IAddress | None) -> H2OriginConnection:  # type: ignore[override]
        return H2OriginConnection(self._connections)

    def negotiated(self, protocol: bytes | None) -> IProtocolFactory:
        return self if protocol == b"h2" else self._http1

"""The client side of HTTP: requests to origins, over connections that are reused.

::

    OriginPool ──request()──▶ OriginExchange ◀──▶ OriginConnection ◀──▶ transport
        │ └── IdleConnections ─────────────────────────┘
        │
        └─ HTTP/2 ──▶ H2OriginExchange ◀──▶ H2OriginConnection ◀──▶ transport
             └── H2Connections ───────────────────────┘
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from sockgw.deadlines import Deadlines, Expiring
from sockgw.http.h2connections import H2Connections, H2Limits
from sockgw.http.h2originexchange import H2OriginExchange
from sockgw.http.methods import IDEMPOTENT
from sockgw.http.originconnection import OriginConnection
from sockgw.http.originerror import OriginError
from sockgw.http.originexchange import OriginExchange
from sockgw.http.outgoing import clean
from sockgw.http.pool import FRESH, IdleConnections
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.heads import Headers, RequestHead, ResponseHead

__all__ = ["Origin", "OriginError", "OriginExchange", "OriginHandler", "OriginPool"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where requests go: a scheme, ``http`` or ``https``, a host and a port.

    Also ``tcp`` or ``udp``, where bytes go. With ``socket`` that Unix socket is dialled, and host
    and port only give ``Host``.
    """

    protocol: str
    hostname: str
    port: int
    socket: str = ""
    http2: bool = False  #: it is to be spoken to in HTTP/2
    #: All of that in one string, whose hash is not worked out each time.
    key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = (self.protocol, self.hostname, self.port, self.socket, self.http2)
        object.__setattr__(self, "key", repr(parts))


class OriginHandler(Protocol):
    """Who made a request and takes its response. Nothing is called before request() has returned.

    After ``body_ended`` or ``failed``, one of which comes exactly once, and after ``abort()``
    nothing more is called. ``failed`` may come from within the exchange's ``write`` and ``finish``
    where they break the request's framing; every method may call the exchange.
    """

    def informed(self, head: ResponseHead) -> None:
        """An interim response has come: 1xx, never 101 (RFC 9110, section 15.2).

        With its end-to-end fields, as all heads and trailers that come here.
        """

    def responded(self, head: ResponseHead) -> None:
        """The response's head has come."""

    def body_received(self, data: bytes) -> None:
        """Some bytes of the body have come, without transfer coding."""

    def body_ended(self, trailers: Headers) -> None:
        """The response is complete; of the request, what is not yet sent is not wanted."""

    def failed(self, code: StreamCode, detail: str) -> None:
        """There will be no response, or no end of it. ``detail`` is for operators."""

    def request_drained(self) -> None:
        """The exchange is no longer congested."""

    @property
    def suspended(self) -> bool:
        """Whether nothing can come from the handler now: the origin is not to blame for silence."""


class Connection(Expiring, Protocol):
    """A connection to an origin, as the pool sees it."""

    def shut_down(self) -> None:
        """End at once, failing all exchanges."""


class OriginPool:
    """Connections to all origins of an inner layer.

    :param dial: gives the endpoint of an origin, whose Deferred fails with :exc:`OriginError`; it
        keeps the timeout of connecting and of a TLS handshake
    :param idle_timeout: seconds without a byte either way after which an exchange fails
    :param keep_alive: seconds for which an unused connection is kept
    :param max_idle: unused connections kept per origin; beyond that they are kept for a second
    :param max_idle_total: unused connections kept in all
    :param max_header_size: bytes of a response's head, and of its trailers
    :param max_header_count: fields in a response's head, and in its trailers
    :param http2: bounds for origins that are spoken to in HTTP/2
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        dial: Callable[[Origin], IStreamClientEndpoint],
        deadlines: Deadlines,
        *,
        idle_timeout: float = 300.0,
        keep_alive: float = 15.0,
        max_idle: int = 64,
        max_idle_total: int = 1024,
        max_header_size: int = 65_536,
        max_header_count: int = 200,
        http2: H2Limits | None = None,
    ) -> None:
        self._clock = clock
        self._dial = dial
        self._dialling: set[OriginExchange] = set()
        self._open: set[Connection] = set()
        self._closed: Deferred[None] | None = None
        # For the connections:
        self.factory = _Factory(self)
        self.seconds = clock.seconds
        self.deadlines = deadlines
        self.idle = IdleConnections(clock, deadlines, max_idle, max_idle_total)
        self.idle_timeout = idle_timeout
        self.keep_alive = keep_alive
        self.max_header_size = max_header_size
        self.max_header_count = max_header_count
        self._h2 = H2Connections(self, http2 or H2Limits())

    def request(
        self,
        origin: Origin,
        head: RequestHead,
        *,
        complete: bool,
        handler: OriginHandler,
        host: bytes,
    ) -> OriginExchange | H2OriginExchange:
        """Send a request, now as far as a connection is there, and return its exchange.

        :param head: as it came from wherever; it is changed into what is sent: without hop-by-hop
            fields and with one Host. In HTTP/1.1 a body is framed by its Content-Length, else
            chunked. What is not fit to be sent fails with PROTOCOL_ERROR. A request that asks for
            an upgrade goes over HTTP/1.1, whatever the origin speaks besides.
        :param complete: no body follows
        :param host: the value of Host, where the head has none
        """
        if origin.http2:
            if not head.upgrade and not self._h2.speaks_http1(origin):
                return self._h2.request(origin, head, complete, handler, host)
            origin = replace(origin, http2=False)
        exchange = OriginExchange(self, origin, handler)
        if self._closed is not None:
            self.fail_later(exchange, StreamCode.REFUSED, "shutting down")
            return exchange
        try:
            start = exchange.begin(head, clean(head, host), complete)
        except ValueError as error:
            self.fail_later(exchange, StreamCode.PROTOCOL_ERROR, str(error))
            return exchange
        again = head.method in IDEMPOTENT
        connection = self.idle.take(origin, None if again else FRESH)
        if connection is None:
            exchange.held = [start]
            self.dial(exchange)
        else:
            exchange.reused = True
            exchange.held = [start] if again else None
            exchange.connection = connection
            connection.begin(exchange, start)
        return exchange

    def close(self) -> Deferred[None]:
        """Refuse new requests, end everything at once; the Deferred fires when all is gone."""
        if self._closed is None:
            self._closed = Deferred()
            for exchange in list(self._dialling):
                exchange.fail(StreamCode.CANCELLED, "shutting down")
            self._h2.close()
            for connection in list(self._open):
                connection.shut_down()
            self._check_closed()
        return self._closed

    # for exchanges and connections

    @property
    def closing(self) -> bool:
        """Whether new requests are refused."""
        return self._closed is not None

    def request_http1(
        self, origin: Origin, head: RequestHead, complete: bool, handler: OriginHandler
    ) -> OriginExchange:
        """As :meth:`request` with a head that is clean, over HTTP/1.1."""
        origin = replace(origin, http2=False)
        return cast(
            OriginExchange, self.request(origin, head, complete=complete, handler=handler, host=b"")
        )

    def connect(self, origin: Origin, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Dial the origin for what the factory builds."""
        return self._dial(origin).connect(factory)

    def dial(self, exchange: OriginExchange) -> None:
        """Get a new connection for the exchange."""
        self._dialling.add(exchange)
        exchange.dialling = dialling = maybeDeferred(self.connect, exchange.origin, self.factory)
        dialling.addCallbacks(
            self._connected, self._not_connected, callbackArgs=(exchange,), errbackArgs=(exchange,)
        )
        dialling.addErrback(self._log_error)

    def opened(self, connection: Connection) -> None:
        """A connection has been made."""
        self._open.add(connection)
        self.deadlines.watch(connection)

    def lost(self, connection: Connection) -> None:
        """A connection has ended."""
        self._open.discard(connection)
        self.deadlines.discard(connection)
        if isinstance(connection, OriginConnection):
            self.idle.discard(connection)
        self._check_closed()

    def _connected(self, protocol: IProtocol, exchange: OriginExchange) -> None:
        connection = cast(OriginConnection, protocol)
        self._dialling.discard(exchange)
        dialling, exchange.dialling = exchange.dialling, None
        if dialling is None:
            connection.drop()  # aborted meanwhile, and the dialler would not be cancelled
        elif connection.closed:
            self.fail_later(exchange, StreamCode.ORIGIN_CLOSED, "closed before the request")
        else:
            connection.origin = exchange.origin
            exchange.connected(connection)
        self._check_closed()

    def _not_connected(self, failure: Failure, exchange: OriginExchange) -> None:
        self._dialling.discard(exchange)
        dialling, exchange.dialling = exchange.dialling, None
        error = failure.value
        if dialling is None:
            pass  # aborted, so cancelled
        elif isinstance(error, OriginError):
            self.fail_later(exchange, error.code, error.detail)
        else:
            self._log.failure("Dialling {origin} failed", failure, origin=exchange.origin)
            self.fail_later(exchange, StreamCode.INTERNAL_ERROR, "dialling failed")
        self._check_closed()

    def _log_error(self, failure: Failure) -> None:
        self._log.failure("A new connection was not taken", failure)

    def fail_later(
        self, exchange: OriginExchange | H2OriginExchange, code: StreamCode, detail: str
    ) -> None:
        """Fail the exchange in the next turn: request() may not have returned yet."""
        self._clock.callLater(0, exchange.fail, code, detail)

    def _check_closed(self) -> None:
        closed = self._closed
        if closed is not None and not closed.called and not self._open and not self._dialling:
            closed.callback(None)


class _Factory(Factory):
    """Builds the connections of a pool."""

    noisy = False

    def __init__(self, pool: OriginPool) -> None:
        self._pool = pool

    def buildProtocol(self, addr: IAddress | None) -> OriginConnection:  # type: ignore[override]
        return OriginConnection(self._pool)

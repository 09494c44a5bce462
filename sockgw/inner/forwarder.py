"""The forwarder: what the inner layer does with each stream that the outer layer opens.

The outer layer says where a request goes; whether it may go there is decided here, for each stream:
a service must stand in this inner layer's own configuration, any other origin must pass the allow
list, by name here and by address when it is dialled. Heads are cleaned as if a stranger had sent
them. Bytes go through as they come, and each side is told to pause by the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Protocol

from sockgw.http.client import Origin, OriginHandler, OriginPool
from sockgw.inner.allow import AllowList, socket_path
from sockgw.protocol.errors import LocalError, StreamCode
from sockgw.protocol.heads import Headers, RequestHead, ResponseHead
from sockgw.protocol.payloads import Destination
from sockgw.protocol.streams import Stream, StreamHandler
from sockgw.tunnel.tunnel import Tunnel

__all__ = ["Forwarder", "OriginSide", "RawOrigins"]

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HTTP = ("http", "https")
_MAX_ROUTES = 10_000  # destinations whose decision is remembered

# What a destination consists of: hashed in C, where its own hash would be Python's.
_all_of = attrgetter(*(part.name for part in fields(Destination)))


class OriginSide(Protocol):
    """What a stream becomes on this side (:class:`sockgw.http.client.OriginExchange`).

    It calls an :class:`sockgw.http.client.OriginHandler`.
    """

    @property
    def congested(self) -> bool:
        """The origin takes no more: stop writing until ``request_drained``."""

    def write(self, data: bytes) -> None:
        """Send bytes to the origin."""

    def finish(self, trailers: Headers | None = None) -> None:
        """Nothing more will be written."""

    def abort(self) -> None:
        """Drop it. Nothing is called back."""

    def pause_response(self) -> None:
        """Read no more for now."""

    def resume_response(self) -> None:
        """Read again."""


class RawOrigins(Protocol):
    """Connects streams of bytes to origins of one protocol."""

    def connect(self, origin: Origin, handler: OriginHandler) -> OriginSide:
        """Dial, and return what to write to; nothing is called before this has returned.

        ``handler.responded`` is called with a status of 200 and no fields once there is a
        connection, ``body_received`` and ``body_ended`` for what comes from the origin, which
        leaves the other direction open; ``failed`` before or after that.
        """


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests for a destination go."""

    origin: Origin
    host: bytes  #: the value of ``Host``, where the request brings none
    raw: bool  #: they are streams of bytes
    told: tuple[str, str, int] | None  #: the origin's URL, which the outer layer does not know


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why requests for a destination go nowhere."""

    code: StreamCode
    detail: str


class Forwarder:
    """Opens a request to an origin for each stream; see :class:`sockgw.tunnel.tunnel.Opener`."""

    def __init__(
        self,
        pool: OriginPool,
        allow: AllowList,
        services: Mapping[str, Origin],
        raw: Mapping[str, RawOrigins] | None = None,
    ) -> None:
        """``raw`` has what connects streams of bytes, by protocol."""
        self._pool = pool
        self._raw = raw or {}
        self._allow = allow
        self._services = services
        self._routes: dict[tuple[object, ...], Route | Refusal] = {}

    def __call__(
        self, tunnel: Tunnel, stream: Stream, head: RequestHead, to: Destination, complete: bool
    ) -> StreamHandler:
        passage = _Passage(tunnel, stream)
        route = self._routes.get(_all_of(to)) or self._route(to)
        if isinstance(route, Refusal):
            stream.reset(route.code, route.detail)
            return passage
        if route.raw:
            passage.switched = True
            passage.exchange = self._raw[to.protocol].connect(route.origin, passage)
            return passage
        passage.told_origin = route.told
        passage.exchange = self._pool.request(
            route.origin, head, complete=complete, handler=passage, host=route.host
        )
        return passage

    def _route(self, to: Destination) -> Route | Refusal:
        route = self._decide(to)
        if len(self._routes) >= _MAX_ROUTES:
            self._routes.clear()
        self._routes[_all_of(to)] = route
        return route

    def _decide(self, to: Destination) -> Route | Refusal:
        if to.service:
            origin = self._services.get(to.service)
            if origin is None:
                return Refusal(StreamCode.UNKNOWN_SERVICE, f"no service {to.service!r} here")
            wanted = (to.protocol,) if to.raw else _HTTP
            if origin.protocol not in wanted:
                detail = f"service {to.service!r} is {origin.protocol}, not {' or '.join(wanted)}"
                return Refusal(StreamCode.UNKNOWN_SERVICE, detail)
            origin = replace(origin, http2=to.http2)
        elif to.socket:
            socket = socket_path(to.socket)
            if not self._allow.permits_socket(socket):
                return Refusal(StreamCode.NOT_ALLOWED, f"unix:{socket} is not on the allow list")
            origin = Origin(to.protocol, to.hostname, to.port, socket, to.http2)
        else:
            origin = Origin(to.protocol, to.hostname, to.port, http2=to.http2)
            if not self._allow.permits_name(to.hostname, to.port):
                where = f"{to.hostname}:{to.port}"
                listed = "on the allow list" if self._allow.listed else "allowed"
                return Refusal(StreamCode.NOT_ALLOWED, f"{where} is not {listed}")
        if to.raw and to.protocol not in self._raw:
            return Refusal(StreamCode.REFUSED, f"no streams of {to.protocol} here")
        host = f"[{origin.hostname}]" if ":" in origin.hostname else origin.hostname
        if origin.port != _DEFAULT_PORTS.get(origin.protocol):
            host = f"{host}:{origin.port}"
        try:
            host_field = host.encode("ascii")
        except UnicodeEncodeError:
            return Refusal(StreamCode.DNS_ERROR, f"{origin.hostname!r} is not a host name")
        told = (origin.protocol, origin.hostname, origin.port) if to.service else None
        return Route(origin, host_field, to.raw, told)


class _Passage:
    """One stream and the request that it became; handles both.

    The exchange is let go of as soon as it is over: they refer to each other.
    """

    __slots__ = (
        "_ended",
        "_half_ended",
        "_stream",
        "_tunnel",
        "_unconsumed",
        "exchange",
        "switched",
        "told_origin",
    )

    def __init__(self, tunnel: Tunnel, stream: Stream) -> None:
        self._tunnel = tunnel
        self._stream = stream
        self._unconsumed = 0
        self._ended = False  # nothing more goes to the origin
        self._half_ended = False  # one way of two
        self.exchange: OriginSide | None = None
        #: Bytes go both ways, and each way ends for itself.
        self.switched = False
        self.told_origin: tuple[str, str, int] | None = None

    # ------------------------------------------------------------------ from the tunnel

    def head_received(self, head: ResponseHead) -> None:
        """Responses go the other way; the session lets none through."""

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None or self._ended:
            return  # the origin has answered: no credit for what it does not want any more
        exchange.write(data)
        if exchange.congested:
            self._unconsumed += len(data)
        else:
            self._stream.consumed(len(data))

    def ended(self, trailers: Headers) -> None:
        if self.exchange is not None and not self._ended:
            self.exchange.finish(trailers)
            if self.switched:
                self._end_half()

    def reset(self, code: StreamCode, detail: str) -> None:
        self._ended = True
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.abort()

    def drained(self) -> None:
        if self.exchange is not None:
            self.exchange.resume_response()

    # ------------------------------------------------------------------ from the origin

    def informed(self, head: ResponseHead) -> None:
        self.responded(head)

    def responded(self, head: ResponseHead) -> None:
        head.origin = self.told_origin
        if head.status == 101:
            self.switched = True
        try:
            self._stream.respond(head)
        except (LocalError, ValueError) as error:
            self._too_large(error)

    def body_received(self, data: bytes) -> None:
        stream = self._stream
        stream.write(data)
        if stream.congested and self.exchange is not None:
            self.exchange.pause_response()

    def body_ended(self, trailers: Headers) -> None:
        if self.switched:
            self._end_half()
        else:
            self._ended = True
            self.exchange = None
        try:
            self._stream.end(trailers)
        except (LocalError, ValueError) as error:
            self._too_large(error)

    def failed(self, code: StreamCode, detail: str) -> None:
        self._ended = True
        self.exchange = None
        self._stream.reset(code, detail)

    def request_drained(self) -> None:
        count, self._unconsumed = self._unconsumed, 0
        if count:
            self._stream.consumed(count)

    @property
    def suspended(self) -> bool:
        return self._tunnel.suspended

    def _too_large(self, error: Exception) -> None:
        """A head or trailers are larger than a frame, or have names that are none."""
        self._ended = True
        exchange, self.exchange = self.exchange, None
        self._stream.reset(StreamCode.TOO_LARGE, str(error))
        if exchange is not None:
            exchange.abort()

    def _end_half(self) -> None:
        if self._half_ended:
            self.exchange = None
        self._half_ended = True

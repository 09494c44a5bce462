"""The forwarder: what the inner layer does with each stream that the outer layer opens.

The outer layer says where a request goes; whether it may go there is decided here, for each stream:
a service must stand in this inner layer's own configuration, any other origin must pass the allow
list, by name here and by address when it is dialled. Heads are cleaned as if a stranger had sent
them. Bytes go through as they come, and each side is told to pause by the other.
"""

from __future__ import annotations

from collections.abc import Mapping

from sockgw.http.client import Origin, OriginExchange, OriginPool
from sockgw.http.headers import end_to_end, lower
from sockgw.inner.allow import AllowList
from sockgw.protocol.errors import LocalError, StreamCode
from sockgw.protocol.heads import Headers, RequestHead, ResponseHead
from sockgw.protocol.payloads import Destination
from sockgw.protocol.streams import Stream, StreamHandler
from sockgw.tunnel.tunnel import Tunnel

__all__ = ["Forwarder"]

_DEFAULT_PORTS = {"http": 80, "https": 443}
_SLACK = 1_000


class Forwarder:
    """Opens a request to an origin for each stream; see :class:`sockgw.tunnel.tunnel.Opener`."""

    def __init__(self, pool: OriginPool, allow: AllowList, services: Mapping[str, Origin]) -> None:
        self._pool = pool
        self._allow = allow
        self._services = services
        self._hosts: dict[Origin, bytes] = {}

    def __call__(
        self, tunnel: Tunnel, stream: Stream, head: RequestHead, to: Destination, complete: bool
    ) -> StreamHandler:
        passage = _Passage(tunnel, stream)
        if to.service:
            origin = self._services.get(to.service)
            if origin is None:
                stream.reset(StreamCode.UNKNOWN_SERVICE, f"no service {to.service!r} here")
                return passage
            passage.told_origin = (origin.protocol, origin.hostname, origin.port)
        else:
            origin = Origin(to.protocol, to.hostname, to.port)
            if not self._allow.permits_name(to.hostname, to.port):
                stream.reset(
                    StreamCode.NOT_ALLOWED, f"{to.hostname}:{to.port} is not on the allow list"
                )
                return passage
        try:
            head.headers = self._clean(head.headers, origin)
        except ValueError as error:
            stream.reset(StreamCode.PROTOCOL_ERROR, str(error))
            return passage
        passage.exchange = self._pool.request(origin, head, complete=complete, handler=passage)
        return passage

    def _clean(self, headers: Headers, origin: Origin) -> Headers:
        headers = end_to_end(headers)
        hosts = sum(lower(name) == b"host" for name, _ in headers)
        if hosts > 1:
            raise ValueError("two Host fields")
        if not hosts:
            headers.insert(0, (b"Host", self._host(origin)))
        return headers

    def _host(self, origin: Origin) -> bytes:
        host = self._hosts.get(origin)
        if host is None:
            name = f"[{origin.hostname}]" if ":" in origin.hostname else origin.hostname
            if origin.port != _DEFAULT_PORTS[origin.protocol]:
                name = f"{name}:{origin.port}"
            host = name.encode("ascii", "strict")
            if len(self._hosts) < _SLACK:
                self._hosts[origin] = host
        return host


class _Passage:
    """One stream and the request that it became; handles both."""

    __slots__ = ("_ended", "_stream", "_tunnel", "_unconsumed", "exchange", "told_origin")

    def __init__(self, tunnel: Tunnel, stream: Stream) -> None:
        self._tunnel = tunnel
        self._stream = stream
        self._unconsumed = 0
        self._ended = False
        self.exchange: OriginExchange | None = None
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

    def reset(self, code: StreamCode, detail: str) -> None:
        self._ended = True
        if self.exchange is not None:
            self.exchange.abort()

    def drained(self) -> None:
        if self.exchange is not None:
            self.exchange.resume_response()

    # ------------------------------------------------------------------ from the origin

    def informed(self, head: ResponseHead) -> None:
        self._respond(head)

    def responded(self, head: ResponseHead) -> None:
        head.origin = self.told_origin
        self._respond(head)

    def body_received(self, data: bytes) -> None:
        stream = self._stream
        stream.write(data)
        if stream.congested and self.exchange is not None:
            self.exchange.pause_response()

    def body_ended(self, trailers: Headers) -> None:
        self._ended = True
        self._stream.end()
        self._tunnel.hurry()

    def failed(self, code: StreamCode, detail: str) -> None:
        self._ended = True
        self._stream.reset(code, detail)
        self._tunnel.hurry()

    def request_drained(self) -> None:
        count, self._unconsumed = self._unconsumed, 0
        if count:
            self._stream.consumed(count)
            self._tunnel.hurry()

    def _respond(self, head: ResponseHead) -> None:
        try:
            head.headers = end_to_end(head.headers)
            self._stream.respond(head)
        except (LocalError, ValueError) as error:
            # Larger than a frame, or names that are none.
            self._ended = True
            self._stream.reset(StreamCode.TOO_LARGE, str(error))
            if self.exchange is not None:
                self.exchange.abort()

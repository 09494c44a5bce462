"""One request to an origin: its framing, and what becomes of it when its connection is stale.

An exchange outlives its connection where the request can be sent again: a
connection that was idle may have been closed by the origin just before it was used, and nobody is
to blame. So the exchange holds what it sent on a reused connection, up to a bound, until the first
byte of the answer; then it needs it no more. What is written before there is a connection is held
in the same place.

No write is delayed to gather it with the next: Twisted's transports send what one reactor turn
wrote together, so a head and the first bytes of its body leave in one piece.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol

from sockgw.http.headers import serialize, write_head
from sockgw.http.outgoing import MAX_HELD, body_length, only_trailers
from sockgw.http.shapes import Shape
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.heads import Headers, RequestHead

if TYPE_CHECKING:
    from sockgw.http.client import Origin, OriginHandler, OriginPool
    from sockgw.http.originconnection import OriginConnection

__all__ = ["OriginExchange"]

# How a head ends, whose last line has not ended yet.
_END = b"\r\n\r\n"
_END_WITH_TE = b"\r\nConnection: TE\r\n\r\n"
_CHUNKED = b"\r\nTransfer-Encoding: chunked"


class OriginExchange:
    """One request and its response. Made by :meth:`OriginPool.request`."""

    __slots__ = (
        "_held_size",
        "_over",
        "_paused",
        "_pool",
        "_remaining",
        "congested",
        "connection",
        "dialling",
        "handler",
        "head_only",
        "held",
        "origin",
        "reused",
        "sent",
        "switched",
        "upgrade",
    )

    def __init__(self, pool: OriginPool, origin: Origin, handler: OriginHandler) -> None:
        self._pool = pool
        self.origin = origin
        self.handler = handler
        self.congested = False  #: the origin takes no more: stop writing until request_drained()
        self.reused = False  #: whether it runs on a connection that has served before
        self._over = False
        self._paused = False
        self._remaining: int | None = 0  # bytes of body still to be written; None: no length
        self._held_size = 0
        # For the connection and the pool:
        self.connection: OriginConnection | None = None
        self.dialling: Deferred[IProtocol] | None = None
        self.held: list[bytes] | None = None  #: what was written, while it may be sent (again)
        self.head_only = False  #: the answer to HEAD has no body, whatever its fields say
        self.sent = False  #: the request is complete
        self.upgrade = b""  #: the protocols to which the connection may be switched
        self.switched = False  #: it has been: bytes go both ways, and each way ends for itself

    # for the caller

    def write(self, data: bytes) -> None:
        """Send bytes of the request's body.

        More than its Content-Length fails the exchange; ignored once the exchange is over.
        """
        if self._over or not data:
            return
        if self.switched:
            if not self.sent:
                self._send((data,))
            return
        remaining = self._remaining
        if self.sent or (remaining is not None and len(data) > remaining):
            self.fail(StreamCode.PROTOCOL_ERROR, "request body longer than announced")
        elif remaining is None:
            self._send((b"%x\r\n" % len(data), data, b"\r\n"))
        else:
            self._remaining = remaining - len(data)
            # Before finish() says so: the answer may come as soon as the last byte is written.
            self.sent = self._remaining == 0
            if self.held is None and self.connection is not None:
                self.connection.send(data)
            else:
                self._send((data,))

    def finish(self, trailers: Headers | None = None) -> None:
        """The request's body is complete.

        Less than its Content-Length fails the exchange. ``trailers`` go only with a chunked body,
        and without those fields that must not stand there (RFC 9110, section 6.5.1).
        """
        if self._over or self.sent:
            return
        if self.switched:
            self.sent = True
            if self.connection is not None:
                self.connection.close_half()
            return
        if self._remaining is not None:
            self.fail(StreamCode.PROTOCOL_ERROR, "request body shorter than announced")
            return
        try:
            end = serialize(b"0", only_trailers(trailers))
        except ValueError as error:
            self.fail(StreamCode.PROTOCOL_ERROR, str(error))
            return
        self.sent = True
        self._send((end,))

    def abort(self) -> None:
        """The response is not wanted any more: drop the connection. Nothing is called back."""
        if self._over:
            return
        self._over = True
        self.held = None
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.drop()
        dialling, self.dialling = self.dialling, None
        if dialling is not None:
            dialling.cancel()

    def pause_response(self) -> None:
        """Stop reading the response; some more of it may still come. No timeout runs meanwhile."""
        self._paused = True
        if self.connection is not None:
            self.connection.pause()

    def resume_response(self) -> None:
        """Read the response again."""
        self._paused = False
        if self.connection is not None:
            self.connection.resume()

    # for the pool

    def begin(self, head: RequestHead, shape: Shape, complete: bool) -> bytes:
        """Decide the request's framing and return its head; raise ValueError for a bad one."""
        method = head.method
        headers = head.headers
        upgrade = head.upgrade
        length = body_length(head, shape, complete or bool(upgrade))
        line = method + b" " + head.target + b" HTTP/1.1"
        self.head_only = method == b"HEAD"
        if upgrade:
            self.sent = True
            self.upgrade = upgrade
            options = b"TE, upgrade" if shape.te else b"upgrade"
            return serialize(line, [*headers, (b"Upgrade", upgrade), (b"Connection", options)])
        end = _END_WITH_TE if shape.te else _END
        if complete:
            self.sent = True
        elif length is None:
            self._remaining = None
            end = _CHUNKED + end
        else:
            self._remaining = length
            self.sent = length == 0
        return write_head(line, headers, end)

    def connected(self, connection: OriginConnection) -> None:
        """The dialled connection is there: send what was held."""
        held, self.held = self.held, None
        self.attach(connection)
        congested, self.congested = self.congested, False
        if held:
            connection.send_parts(held)
        if congested and not self.congested:
            self.handler.request_drained()

    def attach(self, connection: OriginConnection) -> None:
        """Run on this connection from now on."""
        self.connection = connection
        connection.attach(self)
        if self._paused:
            connection.pause()

    # for the connection

    def drained(self) -> None:
        """The transport has sent everything."""
        if self.congested:
            self.congested = False
            self.handler.request_drained()

    def retry(self) -> bool:
        """The connection was lost: dial a new one and return True, if all can be sent again."""
        if self._over or self.held is None:
            return False
        self.connection = None
        self.reused = False
        self._pool.dial(self)
        return True

    def switch(self) -> None:
        """The origin has switched: what was a request without a body has two directions now."""
        self.switched = True
        self.sent = False

    def forget(self) -> None:
        """Both directions have ended, of what is switched, ours last."""
        self._over = True
        self.connection = None

    def half_completed(self) -> None:
        """The origin's direction has ended, of what is switched."""
        self.handler.body_ended([])

    def completed(self, trailers: Headers) -> None:
        """The response is complete; the connection goes its own way."""
        self._over = True
        self.held = None
        self.connection = None
        self.handler.body_ended(trailers)

    def fail(self, code: StreamCode, detail: str) -> None:
        """End the exchange and its connection, and tell the caller, unless it is over already."""
        if not self._over:
            self.abort()
            self.handler.failed(code, detail)

    def _send(self, parts: tuple[bytes, ...]) -> None:
        held = self.held
        connection = self.connection
        if held is not None:
            held.extend(parts)
            self._held_size += sum(map(len, parts))
            if self._held_size >= MAX_HELD:
                if connection is None:
                    self.congested = True
                else:
                    self.held = None
        if connection is not None:
            connection.send_parts(parts)

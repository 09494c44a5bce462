"""One request and its response on a stream of HTTP/2: what an application sees of it.

The connection owns the protocol's state and calls here with what comes; what is to be sent waits
here until the windows and the transport take it.
"""

from __future__ import annotations

from base64 import b64encode
from collections import deque
from collections.abc import Sequence
from hashlib import sha1
from hmac import compare_digest
from os import urandom
from typing import TYPE_CHECKING

from sockgw.http.application import NOBODY, RequestHandler
from sockgw.http.exchange import http_date
from sockgw.http.h2request import Request
from sockgw.http.headers import check_text, lower
from sockgw.protocol.heads import Headers, ResponseHead

if TYPE_CHECKING:
    from sockgw.http.h2server import H2ClientConnection

__all__ = ["H2Exchange"]

_HIGH = 65_536  # bytes waiting; from here on it is congested
_LOW = 32_768  # bytes waiting, below which it is not any more

# Small pieces that wait become one: each costs as much as 200 bytes.
_MANY = 64  # pieces
_SMALL = 1_024  # bytes of a piece, on average

# RFC 9113, section 8.2.2; what HTTP/1.1 origins say of their connection.
_NOT_SENT = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
# RFC 9110, section 6.5.1: fields that must not come late.
_NO_TRAILERS = _NOT_SENT | {
    b"content-length",
    b"host",
    b"authorization",
    b"set-cookie",
    b"content-encoding",
}

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_ACCEPT = b"sec-websocket-accept"


class H2Exchange:
    """One request and its response (:class:`sockgw.http.application.ClientExchange`)."""

    __slots__ = (
        "_accept",
        "_bodyless",
        "_congested",
        "_end_told",
        "_over",
        "_remaining",
        "_trailers",
        "body_expected",
        "bytes_received",
        "bytes_sent",
        "complete",
        "connection",
        "deadline",
        "delivering",
        "ending",
        "expects_continue",
        "granting",
        "handler",
        "head",
        "host",
        "length",
        "paused",
        "pieces",
        "queue",
        "queued",
        "refused",
        "responded",
        "scheduled",
        "sent",
        "started",
        "stream_id",
        "switched",
        "trailers",
        "uncredited",
        "unread",
        "waiting_head",
    )

    protocol = "HTTP/2.0"

    def __init__(
        self, connection: H2ClientConnection, stream_id: int, request: Request, complete: bool
    ) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.head = request.head
        self.host = request.host
        self.length = request.length
        self.expects_continue = request.expects_continue and not complete
        self.body_expected = not (complete or request.head.upgrade)
        self.started = connection.seconds()
        self.bytes_received = 0
        self.bytes_sent = 0
        self.complete = complete
        self.refused = False
        self.handler: RequestHandler = NOBODY
        self.deadline: float | None = None
        #: Bytes of the request that are not handed on yet.
        self.pieces: list[bytes] = []
        self.trailers: Headers = []
        self.paused = bool(request.head.upgrade)  # until it is switched
        #: Bytes of the request that the handler has not taken.
        self.uncredited = 0
        #: Bytes that it has, of which the stream's window has not been given back.
        self.granting = 0
        #: Something is being handed on at the moment.
        self.delivering = False
        #: Bytes that wait to be sent, whole pieces; and how many.
        self.queue: deque[memoryview] = deque()
        self.queued = 0
        #: Whether it is in line for the connection's window and the transport.
        self.scheduled = False
        #: It waits for the client to read since its deadline was set.
        self.unread = False
        #: The response's head is out.
        self.responded = False
        #: The response's head, until it is known whether anything follows.
        self.waiting_head: Headers | None = None
        #: The response ends behind what waits.
        self.ending = False
        #: Our direction has ended.
        self.sent = False
        self.switched = False
        self._trailers: Headers = []
        self._remaining: int | None = None  # bytes of the response's body, where it is announced
        self._bodyless = False  # the response has none
        self._congested = False
        self._over = False
        # Where an upgrade is asked for there is nothing to tell before it was granted.
        self._end_told = bool(request.head.upgrade)
        self._accept = b""
        if request.head.upgrade:
            self._ask_for_websocket()

    @property
    def over(self) -> bool:
        """Whether the application has nothing more to say."""
        return self._over

    @property
    def congested(self) -> bool:
        """The client takes no more for now."""
        if self.queued > _HIGH:
            self._congested = True
        return self._congested

    # ------------------------------------------------------------------ the request

    def pause_request(self) -> None:
        """Give no more credit for now; what it has may still come."""
        if not (self.paused or self._over):
            self.paused = True
            self.connection.watch(self)

    def resume_request(self) -> None:
        """Go on."""
        if self.paused and not self._over and (self.switched or not self.head.upgrade):
            self.paused = False
            self.connection.deliver(self)

    def keep(self, data: bytes) -> None:
        """A piece of the request has come."""
        self.pieces.append(data)
        if len(self.pieces) > _MANY:
            self.pieces = [b"".join(self.pieces)]

    def step(self) -> bool:
        """Hand one thing on to the handler; return whether there was any."""
        if self._over:
            return False
        if self.pieces:
            if self.paused:
                return False
            pieces, self.pieces = self.pieces, []
            self.handler.body_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            return True
        if self.complete and not self._end_told:
            self._end_told = True
            self.handler.body_ended(self.trailers)
            return True
        return False

    # ------------------------------------------------------------------ the response

    def inform(self, status: int, headers: Headers) -> None:
        """Send an interim response. Raises ValueError where it is none."""
        if not 100 <= status <= 199 or status == 101:
            raise ValueError("no interim status")
        if not (self._over or self.responded):
            self.connection.sender.inform(self, _with_status(status, headers, b"content-length"))

    def respond(self, head: ResponseHead) -> None:
        """Send the response's head. Raises ValueError where it cannot be written."""
        if self._over:
            return
        if self.responded:
            raise RuntimeError("the response has begun already")
        status = head.status
        if status == 101:
            self._switch(head)
            return
        if status < 200:
            raise ValueError("not a final status")
        if self.head.upgrade and status < 300:
            # To such a client this would say that the WebSocket is there.
            raise ValueError("an answer that is neither an upgrade nor a refusal")
        fields = _with_status(status, head.headers)
        lengths = [value for name, value in fields if name == b"content-length"]
        length = int(lengths[0]) if len(lengths) == 1 and _is_length(lengths[0]) else None
        if status == 204 or (lengths and length is None):
            fields = [field for field in fields if field[0] != b"content-length"]
        if all(name != b"date" for name, _ in fields):
            fields.append((b"date", http_date(int(self.connection.wall_clock()))))
        self._bodyless = status in (204, 304) or self.head.method == b"HEAD"
        self._remaining = length
        self.responded = True
        self.waiting_head = fields
        self.connection.sender.soon(self)

    def _switch(self, head: ResponseHead) -> None:
        """Accept a WebSocket (RFC 8441, section 5)."""
        if not self.head.upgrade:
            raise ValueError("not a final status")
        accepts = [value for name, value in head.headers if lower(name) == _ACCEPT]
        if len(accepts) != 1 or not compare_digest(accepts[0], self._accept):
            raise ValueError("not the answer to our key")
        self.waiting_head = _with_status(200, head.headers, b"content-length", _ACCEPT)
        self.responded = self.switched = True
        self.connection.sender.soon(self)
        self._end_told = False
        self.paused = False
        self.connection.deliver(self)

    def write(self, data: bytes) -> None:
        """Send a piece of the body; more than was announced breaks the stream off."""
        if self._over or self.ending or not data:
            return
        if not self.responded:
            raise RuntimeError("the response has not begun")
        if self._bodyless:
            return
        size = len(data)
        if self._remaining is not None:
            if size > self._remaining:
                self.connection.broken(self)
                return
            self._remaining -= size
        self.bytes_sent += size
        queue = self.queue
        queue.append(memoryview(data))
        self.queued += size
        if self.waiting_head is None or self.queued >= _LOW:
            self.connection.sender.pump(self)  # else it goes along with the head
        if len(queue) > _MANY and self.queued < _SMALL * len(queue):
            whole = b"".join(queue)
            queue.clear()
            queue.append(memoryview(whole))

    def finish(self, trailers: Sequence[tuple[bytes, bytes]] = ()) -> bool:
        """End the response; return whether it is complete.

        Raises ValueError, and sends nothing, where trailers cannot be written.
        """
        if self._over or self.ending:
            return False
        if not self.responded:
            raise RuntimeError("the response has not begun")
        if self._remaining and not self._bodyless:
            self.abort()
            return False
        self._trailers = [field for field in _fields(trailers) if field[0] not in _NO_TRAILERS]
        self.ending = True
        if not self.switched:
            self._over = True
        self.connection.sender.pump(self)
        return True

    def abort(self) -> None:
        """Give up: the stream is reset, so that it looks broken."""
        if not self._over:
            self.handler = NOBODY
            self.connection.broken(self)

    def drop(self) -> None:
        """Cut the client off, as far as this stream goes."""
        self.connection.broken(self)

    # ------------------------------------------------------------------ for the connection

    def expired(self) -> None:
        """Nothing has come of what it waits for."""
        self.connection.late(self)

    @property
    def end_fields(self) -> Headers:
        """The trailers."""
        return self._trailers

    def relieved(self) -> None:
        """Some of what waits is out."""
        if self._congested and self.queued <= _LOW:
            self._congested = False
            self.handler.response_drained()

    def close(self, lost: bool) -> None:
        """The stream is over; ``lost``: before its time."""
        over, self._over = self._over, True
        self.ending = False
        handler, self.handler = self.handler, NOBODY
        self.queue.clear()
        self.queued = 0
        self.pieces = []
        if lost and not over:
            handler.client_lost()
        elif self._congested:
            self._congested = False
            handler.response_drained()

    def _ask_for_websocket(self) -> None:
        key = b64encode(urandom(16))
        self._accept = b64encode(sha1(key + _GUID, usedforsecurity=False).digest())
        self.head.headers.append((b"sec-websocket-key", key))


def _fields(headers: Sequence[tuple[bytes, bytes]], *without: bytes) -> Headers:
    """Return fields as HTTP/2 sends them. Raises ValueError where they cannot be."""
    fields = []
    for name, value in headers:
        key = lower(name)
        if key not in _NOT_SENT and key not in without:
            fields.append((key, value.strip(b" \t")))
    check_text(fields)
    return fields


def _with_status(status: int, headers: Headers, *without: bytes) -> Headers:
    return [(b":status", b"%d" % status), *_fields(headers, *without)]


def _is_length(value: bytes) -> bool:
    return value.isdigit() and len(value) <= 19

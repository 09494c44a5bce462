"""One request to an origin in HTTP/2.

::

    waiting ──▶ on a stream ──▶ over         waiting for a connection with room, within a time
       ▲            │
       └────────────┘   nothing of it was done: it is sent again

An origin says exactly what it has not looked at: streams that it refuses (REFUSED_STREAM) and those
above the last one of its GOAWAY. These are sent again whatever their method, a few times. What was
on a connection that breaks without a word is sent again where HTTP/1.1 would (see
:mod:`sockgw.http.originexchange`). Either way all of the request must still be held, and nothing of
an answer may have come.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from hpack import HeaderTuple

from sockgw.http.h2fields import (
    MalformedResponse,
    announced_length,
    as_trailers,
    read_response,
    read_trailers,
    request_fields,
)
from sockgw.http.methods import IDEMPOTENT
from sockgw.http.outgoing import MAX_HELD, body_length, only_trailers
from sockgw.http.shapes import Shape, name_of, shapes
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.heads import Headers, RequestHead, ResponseHead

if TYPE_CHECKING:
    from sockgw.http.client import Origin, OriginHandler
    from sockgw.http.h2connections import H2Connections
    from sockgw.http.h2origin import H2OriginConnection
    from sockgw.http.originexchange import OriginExchange

__all__ = ["H2OriginExchange"]

# As for HTTP/1.1: more interim responses is somebody who never answers.
_MAX_INFORMED = 16

# How often a request is sent at most: a graceful GOAWAY costs one, a full connection another.
_MAX_TRIES = 3

# Bytes up to which pieces that wait are put together: apart they would cost many times what they
# weigh.
_SMALL = 4_096

_NO_BODY = (204, 304)

_FIELD_OVERHEAD = 4  # bytes of a field on the wire of HTTP/1.1, for which the limit was made


class H2OriginExchange:
    """One request and its response. Made by :meth:`OriginPool.request`."""

    __slots__ = (
        "_announced",
        "_congested",
        "_held_size",
        "_informed",
        "_instead",
        "_left",
        "_over",
        "_received",
        "_remaining",
        "_responded",
        "_trailers",
        "_tries",
        "complete",
        "connection",
        "deadline",
        "fields",
        "finished",
        "handler",
        "head",
        "held",
        "origin",
        "paused",
        "pool",
        "queue",
        "queued",
        "request_trailers",
        "reused",
        "sent",
        "stream_id",
        "uncredited",
    )

    def __init__(
        self,
        pool: H2Connections,
        origin: Origin,
        head: RequestHead,
        complete: bool,
        handler: OriginHandler,
    ) -> None:
        self._congested = False
        self._held_size = 0
        self._informed = 0
        self._instead: OriginExchange | None = None  # it goes over HTTP/1.1 after all
        self._over = False
        self._remaining: int | None = 0  # bytes of body still to be written; None: no length
        self._responded = False
        self._announced: int | None = None  # bytes of the response's body
        self._received = 0
        self._trailers: Headers = []  # of the response
        self._tries = 0
        self.handler = handler
        self.head = head
        self.complete = complete
        self.origin = origin
        self.pool = pool
        self.deadline: float | None = None
        # For the connection:
        self.connection: H2OriginConnection | None = None
        self.stream_id = 0
        self.fields: list[tuple[bytes, bytes]] = []
        self.queue: deque[memoryview] = deque()  #: of the body, what was not sent yet
        self.queued = False  #: whether the connection knows of that
        self.held: list[bytes] | None = []  #: the body so far, while it may be sent (again)
        self.request_trailers: list[tuple[bytes, bytes]] = []
        self.finished = complete  #: the caller has written all
        self.sent = False  #: our side of the stream has ended
        self.reused = False  #: whether it runs on a connection that has served before
        self.paused = False
        self.uncredited = 0  #: bytes that came, and were not given back to the stream's window

    # for the caller

    @property
    def congested(self) -> bool:
        """The origin takes no more: stop writing until ``request_drained``."""
        return self._congested if self._instead is None else self._instead.congested

    def write(self, data: bytes) -> None:
        """Send bytes of the request's body; see :meth:`OriginExchange.write`."""
        if self._over or not data:
            return
        if self._instead is not None:
            self._instead.write(data)
            return
        remaining = self._remaining
        if self.finished or (remaining is not None and len(data) > remaining):
            self.fail(StreamCode.PROTOCOL_ERROR, "request body longer than announced")
            return
        if remaining is not None:
            self._remaining = remaining - len(data)
        connection = self.connection
        held = self.held
        if held is not None:
            if held and len(held[-1]) + len(data) <= _SMALL:
                held[-1] += data
            else:
                held.append(data)
            self._held_size += len(data)
            if self._held_size >= MAX_HELD:
                if connection is None:
                    self._congested = True
                else:
                    self.held = None
        if connection is not None:
            queue = self.queue
            if queue and len(queue[-1]) + len(data) <= _SMALL:
                queue[-1] = memoryview(b"".join((queue[-1], data)))
            else:
                queue.append(memoryview(data))
            connection.pump(self)
            self._congested = bool(self.queue)

    def finish(self, trailers: Headers | None = None) -> None:
        """The request's body is complete; see :meth:`OriginExchange.finish`."""
        if self._over or self.finished:
            return
        if self._instead is not None:
            self._instead.finish(trailers)
            return
        if self._remaining:
            self.fail(StreamCode.PROTOCOL_ERROR, "request body shorter than announced")
            return
        try:
            self.request_trailers = as_trailers(only_trailers(trailers))
        except ValueError as error:
            self.fail(StreamCode.PROTOCOL_ERROR, str(error))
            return
        self.finished = True
        if self.connection is not None:
            self.connection.pump(self)

    def abort(self) -> None:
        """The response is not wanted any more: reset the stream. Nothing is called back."""
        if self._over:
            return
        connection = self.connection
        instead = self._instead
        self._end()
        if connection is not None:
            connection.cancel(self)
        elif instead is not None:
            instead.abort()
        else:
            self.pool.withdraw(self)

    def pause_response(self) -> None:
        """Let the origin's window run out; some more may still come. No timeout runs meanwhile."""
        if self._instead is not None:
            self._instead.pause_response()
        elif not self.paused:
            self.paused = True
            if self.connection is not None:
                self.deadline = None

    def resume_response(self) -> None:
        """Read the response again."""
        if self._instead is not None:
            self._instead.resume_response()
        elif self.paused:
            self.paused = False
            if self.connection is not None:
                self._touch()
                self.connection.credit(self)

    # for those who wait for a connection

    def begin(self, scheme: bytes, shape: Shape) -> None:
        """Decide the request's framing; raise ValueError for a bad one."""
        self._remaining = body_length(self.head, shape, self.complete)
        self.fields = request_fields(self.head, scheme)

    def attached(self, connection: H2OriginConnection, stream_id: int, reused: bool) -> None:
        """It runs on this stream from now on, which has its head."""
        self.connection = connection
        self.stream_id = stream_id
        self.reused = reused
        self._tries += 1
        held = self.held
        if held:
            self.queue.extend(map(memoryview, held))
        if self._held_size >= MAX_HELD:
            self.held = None
        self.sent = self.complete
        self.deadline = None  # of waiting
        self._touch()

    def fall_back(self) -> None:
        """The origin wants HTTP/1.1: go on there."""
        held, self.held = self.held, None
        congested, self._congested = self._congested, False
        self._leave()
        self.pool.unwatch(self)
        self._instead = instead = self.pool.request_http1(self)
        for piece in held or ():
            instead.write(piece)
        if self.finished and not self.complete:
            instead.finish(self.request_trailers)
        if self.paused:
            instead.pause_response()
        if congested and not instead.congested:
            self.handler.request_drained()

    # for the connection

    def drained(self) -> None:
        """All that was written is sent."""
        if self._congested:
            self._congested = False
            self.handler.request_drained()

    def progress(self) -> None:
        """Something was sent."""
        self._touch()

    def head_received(self, fields: list[HeaderTuple]) -> None:
        """The head of a response has come."""
        self.held = None
        self._touch()
        try:
            status, reason, headers = read_response(fields)
            self._check_size(headers)
            head = ResponseHead(status, reason, _end_to_end(headers))
            if status < 200:
                self._informed += 1
                if status == 101 or self._informed > _MAX_INFORMED:
                    raise MalformedResponse("unexpected interim response")
                self.handler.informed(head)
                return
            announced = announced_length(headers)
        except MalformedResponse as error:
            self.fail(StreamCode.ORIGIN_MALFORMED, str(error))
            return
        except _TooLarge:
            self.fail(StreamCode.TOO_LARGE, "head too large")
            return
        self._responded = True
        if self.head.method == b"HEAD" or status in _NO_BODY:
            announced = 0
        self._announced = announced
        self.handler.responded(head)

    def body_received(self, data: bytes, size: int) -> None:
        """Bytes of the body have come, in a frame for which the window gave ``size`` bytes."""
        self.uncredited += size
        self._touch()
        if not data:
            return
        self._received += len(data)
        if self._announced is not None and self._received > self._announced:
            self.fail(StreamCode.ORIGIN_MALFORMED, "a body longer than announced")
            return
        self.handler.body_received(data)
        if self.connection is not None and not self.paused:
            self.connection.credit(self)

    def trailers_received(self, fields: list[HeaderTuple]) -> None:
        """Trailers have come."""
        try:
            trailers = read_trailers(fields)
            self._check_size(trailers)
            self._trailers = _end_to_end(trailers)
        except MalformedResponse as error:
            self.fail(StreamCode.ORIGIN_MALFORMED, str(error))
        except _TooLarge:
            self.fail(StreamCode.TOO_LARGE, "trailers too large")

    def ended(self) -> None:
        """The origin has ended its side of the stream, which the connection has let go of."""
        self.connection = None
        if self._announced is not None and self._received != self._announced:
            self.fail(StreamCode.ORIGIN_MALFORMED, "a body shorter than announced")
            return
        self._end()
        self.handler.body_ended(self._trailers)

    def unprocessed(self, detail: str) -> None:
        """The origin says that it has not looked at it: send it again, or let another layer."""
        self._leave()
        if self.held is None or self._tries >= _MAX_TRIES:
            self.fail(StreamCode.REFUSED, detail)
        else:
            self.pool.wait(self)

    def lost(self, detail: str) -> None:
        """The connection has ended."""
        again = self.held is not None and self.reused and self.head.method in IDEMPOTENT
        self._leave()
        if again and self._tries < _MAX_TRIES:
            self.pool.wait(self)
        elif self._responded:
            self.fail(StreamCode.ORIGIN_CLOSED, f"{detail} within the response")
        else:
            self.fail(StreamCode.ORIGIN_CLOSED, f"{detail} before the response")

    def reset(self, code: str) -> None:
        """The origin has reset the stream, which the connection has let go of."""
        self._leave()
        self.fail(StreamCode.ORIGIN_CLOSED, f"the origin has reset the stream ({code})")

    def fail(self, code: StreamCode, detail: str) -> None:
        """End the exchange and its stream, and tell the caller, unless it is over already."""
        if not self._over:
            self.abort()
            self.handler.failed(code, detail)

    # for the deadlines

    def expired(self) -> None:
        """It has waited too long for a connection, or no byte has come or gone in time."""
        if self.connection is None:
            self.fail(StreamCode.CONNECTION_TIMEOUT, "no connection had room in time")
        elif self.handler.suspended:
            self._touch()
        else:
            self.fail(StreamCode.IDLE_TIMEOUT, "no byte either way in time")

    def _touch(self) -> None:
        if not self.paused:
            self.deadline = self.pool.deadlines.now + self.pool.patience

    def _leave(self) -> None:
        """It is on no stream, and not waiting."""
        self.connection = None
        self.deadline = None
        self.queue.clear()
        self.queued = False
        self.uncredited = 0
        self.sent = False

    def _end(self) -> None:
        self._over = True
        self._congested = False
        self.held = None
        self._leave()
        self._instead = None
        self.pool.unwatch(self)

    def _check_size(self, headers: Headers) -> None:
        size = 0
        for name, value in headers:
            size += len(name) + len(value) + _FIELD_OVERHEAD
        if len(headers) > self.pool.max_header_count or size > self.pool.max_header_size:
            raise _TooLarge


def _end_to_end(headers: Headers) -> Headers:
    return shapes[tuple(map(name_of, headers))].end_to_end(headers)


class _TooLarge(Exception):
    """Larger than a limit."""

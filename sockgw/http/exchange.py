"""One request and its response: what an application sees of a client, and how a response is framed.

The connection calls the handler, the handler (or whoever it works for) calls the exchange. The
framing of the response is decided in one place, :meth:`Exchange.respond`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING

from sockgw.http.application import NOBODY, RequestHandler
from sockgw.http.framing import CHUNKED
from sockgw.http.headers import end_to_end, lower, serialize, write_head
from sockgw.http.shapes import FRAMING, name_of, shapes
from sockgw.protocol.heads import Headers, RequestHead, ResponseHead

if TYPE_CHECKING:
    from sockgw.http.server import ClientConnection

__all__ = ["Exchange", "Framing", "http_date"]


class Framing(enum.Enum):
    """How the end of a response's body is told (RFC 9112, section 6.3)."""

    NONE = enum.auto()  #: no body: to HEAD, and with 204 and 304
    LENGTH = enum.auto()
    CHUNKED = enum.auto()
    CLOSE = enum.auto()  #: HTTP/1.0 without a length: the end of the connection
    RAW = enum.auto()  #: none: what follows a 101 is not HTTP


_STATUS_LINES = {
    (status.value, status.phrase.encode()): f"HTTP/1.1 {status.value} {status.phrase}".encode()
    for status in HTTPStatus
}

# RFC 9110, section 6.5.1: fields that must not come late. Those of one hop end_to_end() drops.
_NO_TRAILERS = frozenset(
    (b"content-length", b"host", b"authorization", b"set-cookie", b"content-encoding")
)
_NO_LENGTH = frozenset((b"content-length",))

_LARGE = 4096  # bytes; from here on copying costs more than two more entries in the send buffer


@lru_cache(maxsize=1)
def http_date(second: int) -> bytes:
    """Return a Date field's value, of seconds since 1970."""
    return formatdate(second, usegmt=True).encode("ascii")


def status_line(status: int, reason: bytes) -> bytes:
    """Return a status line without its end. Raises ValueError where it is no status."""
    line = _STATUS_LINES.get((status, reason))
    if line is None:
        if not 100 <= status <= 999:
            raise ValueError("bad status")
        line = b"HTTP/1.1 %d %b" % (status, reason)
    return line


class Exchange:
    """One request and its response. Made by :class:`ClientConnection`.

    Calls come in the order ``inform``\\*, ``respond``, ``write``\\*, ``finish``; ``abort`` at any
    time. Once it is over, by either side, all calls do nothing.

    A response of 101 to a request that asks for an upgrade switches the connection: from then on
    bytes go as they are, and each direction ends for itself.
    """

    __slots__ = (
        "_connection",
        "_end_told",
        "_handler",
        "_over",
        "_paused",
        "_persistent",
        "_remaining",
        "body_expected",
        "bytes_received",
        "bytes_sent",
        "complete",
        "expects_continue",
        "finished",
        "framing",
        "head",
        "host",
        "http_version",
        "keep_alive",
        "length",
        "pieces",
        "response_started",
        "started",
        "trailers",
    )

    def __init__(
        self,
        connection: ClientConnection,
        head: RequestHead,
        host: bytes,
        http_version: tuple[int, int],
        length: int,
        expects_continue: bool,
        keep_alive: bool,
        started: float,
    ) -> None:
        self._connection = connection
        #: The request; its target is in origin-form.
        self.head = head
        #: The authority that the request is for; b"" where an HTTP/1.0 request names none.
        self.host = host
        self.http_version = http_version
        #: The client waits for a 100 before it sends the body (RFC 9110, section 10.1.1).
        self.expects_continue = expects_continue
        #: False: the request has no body.
        self.body_expected = length != 0
        #: When the head was complete, by the connection's clock for durations.
        self.started = started
        #: Bytes of the request's body so far.
        self.bytes_received = 0
        #: Bytes of the response's body so far.
        self.bytes_sent = 0
        self.response_started = False
        #: The response is complete.
        self.finished = False
        #: How the response's body ends; meaningful once the response has started.
        self.framing = Framing.NONE
        self._handler: RequestHandler = NOBODY
        self.length = length  # of the request's body in bytes, or CHUNKED
        self.keep_alive = keep_alive  # what the client wishes
        self._persistent = False  # what our response promised
        self.complete = False  # the request has arrived whole
        self._end_told = bool(head.upgrade)  # nothing to tell, unless the connection is switched
        self._over = False
        self._paused = False
        self.pieces: list[bytes] = []  # of the request's body, not yet handed on
        self.trailers: Headers = []
        self._remaining = 0  # bytes of the response's body that its Content-Length promises

    @property
    def connection(self) -> ClientConnection:
        """The client's connection."""
        return self._connection

    @property
    def congested(self) -> bool:
        """The client's socket is full: stop writing soon; ``response_drained`` follows."""
        return self._connection.congested

    @property
    def protocol(self) -> str:
        """As the access log has it."""
        return "HTTP/1.1" if self.http_version == (1, 1) else "HTTP/1.0"

    @property
    def refused(self) -> bool:
        """The request has turned out malformed: :meth:`Application.refused` follows."""
        return self._connection.refusing

    # ------------------------------------------------------------------ the request

    def pause_request(self) -> None:
        """Read no more of the request's body for now."""
        if not self._paused and not self._over:
            self._paused = True
            self._connection.settle()

    def resume_request(self) -> None:
        """Go on reading."""
        if self._paused and not self._over:
            self._paused = False
            self._connection.pump()

    # ------------------------------------------------------------------ the response

    def inform(self, status: int, headers: Headers) -> None:
        """Send an interim response (1xx). HTTP/1.0 knows none: nothing is sent.

        Raises ValueError, and sends nothing, where it is no interim response, or 101.
        """
        if not 100 <= status <= 199 or status == 101:
            raise ValueError("no interim status")
        if self._over or self.response_started or self.http_version == (1, 0):
            return
        reason = HTTPStatus(status).phrase.encode() if status in _KNOWN else b""
        fields = end_to_end(headers, _NO_LENGTH)
        self._connection.write(serialize(status_line(status, reason), fields))

    def respond(self, head: ResponseHead) -> None:
        """Send the response's head and settle how its body is framed.

        Raises ValueError, and sends nothing, where the head cannot be written.
        """
        if self._over:
            return
        if self.response_started:
            raise RuntimeError("the response has begun already")
        status = head.status
        if self.head.upgrade:
            self._connection.decided()
        if status < 200:
            self._switch(head)
            return
        connection = self._connection
        headers = head.headers
        shape = shapes[tuple(map(name_of, headers))]
        fields = shape.unframed(headers)
        lengths = shape.lengths

        # A request that is still coming in, of which nobody may want the rest, leaves the
        # connection in no state for another.
        persistent = self.keep_alive and self.complete and not connection.leaving
        remaining = 0
        length = headers[lengths[0]][1] if len(lengths) == 1 else None
        if length is not None and not _is_length(length):
            length = None
        if status == 204:  # RFC 9110, section 8.6: no length either
            framing = Framing.NONE
        elif status == 304 or self.head.method == b"HEAD":
            framing = Framing.NONE
            if length is not None:
                fields.append((b"Content-Length", length))
        elif length is not None:
            framing = Framing.LENGTH
            remaining = int(length)
            fields.append((b"Content-Length", length))
        elif self.http_version == (1, 0):
            framing = Framing.CLOSE
            persistent = False
        else:
            framing = Framing.CHUNKED
            fields.append((b"Transfer-Encoding", b"chunked"))
        if not shape.dated:
            fields.append((b"Date", http_date(int(connection.wall_clock()))))
        if not persistent:
            fields.append((b"Connection", b"close"))
        elif self.http_version == (1, 0):
            fields.append((b"Connection", b"keep-alive"))

        data = write_head(status_line(status, head.reason), fields)
        self._persistent = persistent
        self._remaining = remaining
        self.framing = framing
        self.response_started = True
        connection.write(data)

    def write(self, data: bytes) -> None:
        """Send a piece of the response's body.

        More than its Content-Length makes it a broken message: the connection is cut off, of which
        ``client_lost`` tells.
        """
        if self._over or not data:
            return
        framing = self.framing
        size = len(data)
        if framing is Framing.LENGTH:
            if size > self._remaining:
                self._connection.cut(self)
                return
            self._remaining -= size
            self.bytes_sent += size
            self._connection.write(data)
        elif framing is Framing.CHUNKED:
            self.bytes_sent += size
            if size < _LARGE:
                self._connection.write(b"%x\r\n%b\r\n" % (size, data))
            else:
                self._connection.write_all((b"%x\r\n" % size, data, b"\r\n"))
        elif not self.response_started:
            raise RuntimeError("the response has not begun")
        elif framing is Framing.CLOSE or framing is Framing.RAW:
            self.bytes_sent += size
            self._connection.write(data)

    def finish(self, trailers: Sequence[tuple[bytes, bytes]] = ()) -> bool:
        """End the response; return whether it is complete.

        A body shorter than its Content-Length is a broken message: as :meth:`abort`. Trailers go
        out where the response is chunked. Raises ValueError, and sends nothing, where they cannot
        be written.
        """
        if self._over:
            self._connection.forget(self)
            return False
        if not self.response_started:
            raise RuntimeError("the response has not begun")
        if self._remaining:
            self.abort()
            return False
        if self.framing is Framing.RAW:
            self.finished = True
            if self._connection.switched is not None:
                self._connection.switched.finish()
            return True
        if self.framing is Framing.CHUNKED:
            end = b"0\r\n\r\n"
            if trailers:
                # serialize() gives the lines as a head has them, its first the last chunk's.
                end = serialize(b"0", end_to_end(list(trailers), _NO_TRAILERS))
            self._connection.write(end)
        self.finished = True
        self._over = True
        self._connection.response_finished(self)
        return True

    def abort(self) -> None:
        """Give up: what the client has got must look broken to it, never complete."""
        if not self._over:
            self._connection.cut(self)
        self._connection.forget(self)

    def drop(self) -> None:
        """Cut the client off."""
        self._connection.drop()

    def _switch(self, head: ResponseHead) -> None:
        """Send a 101 and go on with bytes. Raises ValueError where none was asked for."""
        if head.status != 101 or not (self.head.upgrade and head.upgrade):
            raise ValueError("not a final status")
        fields = [field for field in head.headers if lower(field[0]) not in FRAMING]
        fields += ((b"Connection", b"upgrade"), (b"Upgrade", head.upgrade))
        data = serialize(status_line(101, head.reason), fields)
        self.framing = Framing.RAW
        self.response_started = True
        self.complete = self._end_told = False
        self._connection.write(data)
        self._connection.switch(self)

    @property
    def chunked(self) -> bool:
        """The request's body is chunked."""
        return self.length == CHUNKED


_KNOWN = frozenset(status.value for status in HTTPStatus)


def _is_length(value: bytes) -> bool:
    """Return whether it is a Content-Length (RFC 9110, section 8.6), and of a size to count in."""
    return value.isdigit() and len(value) <= 19

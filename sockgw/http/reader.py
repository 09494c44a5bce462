"""Bytes of a client in, requests out: llhttp, and the limits that it does not know.

No I/O and nothing of an application in here: the parser's callbacks only record what they see.
"""

import sys
from collections.abc import Callable
from typing import Protocol

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from sockgw.http.framing import CHUNKED, HttpError, examine, wanted_upgrade
from sockgw.protocol.heads import Headers, RequestHead

__all__ = ["IncomingRequest", "RequestReader"]

# What a chunk may cost beyond its data, as in Go's net/http: its size and line ends, and as much
# again as its data. What exceeds that adds up, to no more than a head may have.
_CHUNK_COST = 16  # bytes

_VERSIONS = {"1.1": (1, 1), "1.0": (1, 0)}


class IncomingRequest(Protocol):
    """Where the reader records a request (an :class:`sockgw.http.exchange.Exchange`)."""

    bytes_received: int
    length: int  #: of the body, in bytes, or CHUNKED
    keep_alive: bool  #: another request may follow
    pieces: list[bytes]  #: of the body
    trailers: Headers
    complete: bool


class RequestReader:
    """Reads the requests of one connection.

    ``begin(head, host, http_version, length, expects_continue, keep_alive)`` is called for each
    head and returns where to record what follows.
    """

    __slots__ = (
        "_begin",
        "_begun",
        "_chunks",
        "_current",
        "_error",
        "_excess",
        "_headers",
        "_max_body_size",
        "_max_header_count",
        "_max_header_size",
        "_parser",
        "_piece",
        "_replaying",
        "_tail",
        "_target",
        "_upgrading",
        "ended",
        "head",
        "head_size",
        "receiving",
    )

    _parser: HttpRequestParser
    _current: IncomingRequest

    def __init__(
        self,
        begin: Callable[
            [RequestHead, bytes, tuple[int, int], int, bool, bool],
            IncomingRequest,
        ],
        max_header_size: int,
        max_header_count: int,
        max_body_size: int,
    ) -> None:
        """Sizes in bytes; ``max_body_size`` may be 0 for no limit."""
        self._begin = begin
        self._max_header_size = max_header_size
        self._max_header_count = max_header_count
        self._max_body_size = max_body_size or sys.maxsize
        self._parser = HttpRequestParser(self)
        self._target = b""
        self._headers: Headers = []  # of the head that is coming in; after it, the trailers
        self._tail = b""  # the last bytes before, if an empty line may begin in them
        self._piece = b""  # of a head that is being fed
        self._begun = b""  # what there was of that head before
        self._chunks = 0  # in this piece
        self._excess = 0  # bytes that chunks cost beyond measure
        self._upgrading = False  # llhttp took a head for the end of HTTP
        self._replaying = False  # and is being told otherwise
        self._error: HttpError | None = None
        #: The request whose body is coming in.
        self.receiving: IncomingRequest | None = None
        #: Its head; also that of a request which was refused when its head was complete.
        self.head: RequestHead | None = None
        #: Bytes of a head that is coming in.
        self.head_size = 0
        #: No request may follow: the last one asked for the connection's end.
        self.ended = False

    def close(self) -> None:
        """Take nothing more."""
        self._parser = None  # a cycle: it holds our callbacks

    def feed(self, data: bytes, start: int) -> int:
        """Take bytes from ``start`` on, of one request at most; return where to go on.

        What follows the last request is ignored. Raises HttpError, after which nothing more may be
        fed.
        """
        receiving = self.receiving
        if receiving is None:
            end = self._boundary(data, start)
            piece = data if start == 0 and end == len(data) else data[start:end]
            self._piece = piece
            self.head_size += len(piece)
            self._parse(piece)
            if self.receiving is None and self.head_size:
                self._check_unfinished_head(piece)
            return end
        if receiving.length != CHUNKED:
            end = min(start + receiving.length - receiving.bytes_received, len(data))
            if end <= start:
                # Cannot be, or llhttp reads this request in another way than we do.
                raise HttpError(400, "the length of the body is in doubt")
            self._parse(memoryview(data)[start:end])
            return end
        end = self._boundary(data, start)
        before = receiving.bytes_received
        self._chunks = 0
        self._parse(memoryview(data)[start:end])
        if self.receiving is not None:
            payload = receiving.bytes_received - before
            self._check_chunks(end - start - 2 * payload - _CHUNK_COST * self._chunks)
        return end

    def _boundary(self, data: bytes, start: int) -> int:
        """Return the place after the next empty line, or the end of what there is.

        llhttp does not tell where in the data a request ends. But a head ends with an empty line,
        and so does a chunked body, in which other ones may stand; so no piece holds parts of two
        requests. An empty line can be cut in two by the network: hence ``_tail``.
        """
        tail = self._tail
        if tail:
            place = (tail + data[start : start + 3]).find(b"\r\n\r\n")
            if place >= 0:
                self._tail = b""
                return start + place + 4 - len(tail)
        place = data.find(b"\r\n\r\n", start)
        if place >= 0:
            self._tail = b""
            return place + 4
        self._tail = (tail + data[max(start, len(data) - 3) :])[-3:]
        return len(data)

    def _parse(self, piece: bytes | memoryview) -> None:
        try:
            self._parser.feed_data(piece)
        except HttpParserUpgrade:  # at the end of the piece, as that is where the head ends
            self._pass_upgrade()
        except HttpParserError as error:
            if self._error is not None:
                raise self._error from None
            if isinstance(error, HttpParserCallbackError):
                raise
            # What llhttp finds helps whoever tests a client; it quotes no input.
            raise HttpError(400, f"malformed request: {error}") from None

    def _check_unfinished_head(self, piece: bytes) -> None:
        if self.head_size > self._max_header_size:
            raise self._head_too_large()
        if len(self._headers) > self._max_header_count:
            raise HttpError(431, "too many header fields")
        self._begun += piece

    def _check_chunks(self, excess: int) -> None:
        self._excess = max(self._excess + excess, 0)
        if self._excess > self._max_header_size:
            raise HttpError(400, "too much around the body's chunks")

    def _head_too_large(self) -> HttpError:
        if len(self._target) > self._max_header_size // 2:
            return HttpError(414, "the request target is too long")
        return HttpError(431, "the request's header fields are too large")

    def _pass_upgrade(self) -> None:
        """Go on with HTTP/1.1 where llhttp stopped: a new parser is told of the body only.

        Whether the connection is upgraded is not for the reader to say.
        """
        request = self._current
        lines = [b"POST / HTTP/1.1"]
        if request.length == CHUNKED:
            lines.append(b"Transfer-Encoding: chunked")
        else:
            lines.append(b"Content-Length: %d" % request.length)
        self._upgrading = False
        self._replaying = True
        self._parser = HttpRequestParser(self)
        self._parser.feed_data(b"\r\n".join(lines) + b"\r\n\r\n")

    # ------------------------------------------------------------------ llhttp calls

    # An exception comes out of feed_data as HttpParserCallbackError, with the first one as its
    # context; but not reliably, if another is being handled: hence self._error.

    def on_url(self, target: bytes) -> None:
        self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if self._replaying:
            self._replaying = False
            self._headers = []
            return
        try:
            self._head_complete()
        except HttpError as error:
            self._error = error
            raise

    def _head_complete(self) -> None:
        parser = self._parser
        method = parser.get_method()
        target = self._target
        headers = self._headers
        self._headers = []  # from here on: trailers
        self.head = head = RequestHead(method, target, headers)
        if self.head_size > self._max_header_size:
            raise self._head_too_large()
        if len(headers) > self._max_header_count:
            raise HttpError(431, "too many header fields")
        data = self._piece
        if self._begun:
            data = self._begun + data
            self._begun = b""
        # llhttp takes RTSP too, and does not tell which it was.
        if b" RTSP/" in data and data.lstrip(b"\r\n").startswith(b"%b %b RTSP/" % (method, target)):
            raise HttpError(505, "this is not HTTP")
        version = parser.get_http_version()
        head.target, host, length, expects_continue = examine(method, target, version, headers)
        if length > self._max_body_size:
            raise HttpError(413, "the request's body is too large")
        if parser.should_upgrade():
            # To be ignored in HTTP/1.0, and with a body it may be: RFC 9110, section 7.8.
            if version == "1.1" and not length:
                head.upgrade = wanted_upgrade(headers)
            self._upgrading = True
        self._excess = 0
        self.receiving = self._current = self._begin(
            head, host, _VERSIONS[version], length, expects_continue, parser.should_keep_alive()
        )

    def on_body(self, data: bytes) -> None:
        request = self._current
        request.bytes_received += len(data)
        if request.bytes_received > self._max_body_size:
            self._error = HttpError(413, "the request's body is too large")
            raise self._error
        request.pieces.append(data)

    def on_chunk_header(self) -> None:
        self._chunks += 1

    def on_message_complete(self) -> None:
        if self._upgrading:
            return  # it is not: llhttp skipped the body
        request = self._current
        trailers = self._headers
        if trailers:
            if len(trailers) > self._max_header_count or _size(trailers) > self._max_header_size:
                self._error = HttpError(431, "the trailer fields are too large")
                raise self._error
            request.trailers = trailers
            self._headers = []
        request.complete = True
        if not request.keep_alive:
            self.ended = True
        self.receiving = None
        self.head = None
        self.head_size = 0
        self._target = b""


def _size(headers: Headers) -> int:
    """Return the bytes that fields take, each with a colon, one space and its line end."""
    return sum(len(name) + len(value) + 4 for name, value in headers)

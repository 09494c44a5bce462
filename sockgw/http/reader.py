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

from sockgw.http.framing import CHUNKED, HttpError, check_upgrade, examine
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
        "_request_line",
        "_target",
        "_uncounted",
        "_upgrading",
        "ended",
        "head",
        "head_size",
        "receiving",
        "surplus",
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
        self._piece = b""  # what is being fed
        self._request_line = b""  # what there was of it before, while it may be incomplete
        self._chunks = 0  # in this piece
        self._excess = 0  # bytes that chunks cost beyond measure
        self._upgrading = False  # llhttp took a head for the end of HTTP
        self._replaying = False  # and is being told otherwise
        self._uncounted = 0  # bytes that a head may have beyond head_size
        self._error: HttpError | None = None
        #: The request whose body is coming in.
        self.receiving: IncomingRequest | None = None
        #: Its head; also that of a request which was refused when its head was complete.
        self.head: RequestHead | None = None
        #: Bytes of a head that is coming in.
        self.head_size = 0
        #: No request may follow: the last one asked for the connection's end.
        self.ended = False
        #: Something came after it all the same.
        self.surplus = False

    def close(self) -> None:
        """Take nothing more."""
        del self._parser  # it holds our callbacks

    def feed(self, piece: bytes) -> int:
        """Take bytes; return how many, all of them or up to the end of an ignored upgrade's head.

        After the last request the rest is ignored. Raises HttpError, after which nothing more may
        be fed.
        """
        size = len(piece)
        receiving = self.receiving
        before = receiving.bytes_received if receiving is not None else 0
        self._chunks = 0
        self._piece = piece
        # Where in a piece a request ends is not known. So a head that begins within a piece is
        # counted from the next one on, and what it may have had before is kept apart.
        self.head_size += size
        try:
            self._parser.feed_data(piece)
        except HttpParserUpgrade as upgrade:
            self._ignore_upgrade()
            return int(upgrade.args[0])
        except HttpParserError as error:
            if self.ended:
                self.surplus = True
                return size
            if self._error is not None:
                raise self._error from None
            if isinstance(error, HttpParserCallbackError):
                raise
            # What llhttp finds helps whoever tests a client; it quotes no input.
            raise HttpError(400, f"malformed request: {error}") from None
        finally:
            self._piece = b""
        if self.receiving is None:
            if self.head_size:
                self._check_unfinished_head(piece)
        elif receiving is not None and receiving.length == CHUNKED:
            data = receiving.bytes_received - before
            self._check_chunks(size - 2 * data - _CHUNK_COST * self._chunks)
        return size

    def _check_unfinished_head(self, piece: bytes) -> None:
        if self.head_size > self._max_header_size:
            raise self._head_too_large()
        if len(self._headers) > self._max_header_count:
            raise HttpError(431, "too many header fields")
        if not self._headers:
            self._request_line += piece

    def _check_chunks(self, excess: int) -> None:
        self._excess = max(self._excess + excess, 0)
        if self._excess > self._max_header_size:
            raise HttpError(400, "too much around the body's chunks")

    def _head_too_large(self) -> HttpError:
        if len(self._target) > self._max_header_size // 2:
            return HttpError(414, "the request target is too long")
        return HttpError(431, "the request's header fields are too large")

    def _ignore_upgrade(self) -> None:
        """Go on with HTTP/1.1 where llhttp stopped: a new parser is told of the body only."""
        request = self._current
        lines = [b"POST / HTTP/1.1"]
        if request.length == CHUNKED:
            lines.append(b"Transfer-Encoding: chunked")
        else:
            lines.append(b"Content-Length: %d" % request.length)
        if not request.keep_alive:
            lines.append(b"Connection: close")
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
        piece = self._piece
        limit = self._max_header_size
        if self.head_size + self._uncounted > limit:  # it may be too large: let us see
            size = len(method) + len(target) + len(b"  HTTP/1.1\r\n\r\n") + _size(headers)
            if size > limit:
                raise self._head_too_large()
        if len(headers) > self._max_header_count:
            raise HttpError(431, "too many header fields")
        if self._request_line:
            piece = self._request_line + piece
            self._request_line = b""
        # llhttp takes RTSP too, and does not tell which it was.
        if b" RTSP/" in piece and method + b" " + target + b" RTSP/" in piece:
            raise HttpError(505, "this is not HTTP")
        version = parser.get_http_version()
        head.target, host, length, expects_continue = examine(method, target, version, headers)
        if length > self._max_body_size:
            raise HttpError(413, "the request's body is too large")
        if parser.should_upgrade():
            if version == "1.1":  # to be ignored in HTTP/1.0: RFC 9110, section 7.8
                check_upgrade(headers)
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
        self._uncounted = len(self._piece)
        self._target = b""


def _size(headers: Headers) -> int:
    """Return the bytes that fields take, each with a colon, one space and its line end."""
    return sum(len(name) + len(value) + 4 for name, value in headers)

"""The demonstration's origin: a small server whose answers show what a tunnel does to them.

It is built on the gateway's own HTTP server, as an :class:`Application` of one small handler for
each thing it shows. None of them holds a body: each reads or writes as fast as its client does.

``python -m sockgw.demo.origin [--line ENDPOINT=PORT] ENDPOINT...`` runs it. With ``--line`` it also
is the line between the layers: what connects to the endpoint is passed on to that port.
"""

# Twisted leaves much of this without types:
# mypy: allow-untyped-calls

import json
import re
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256, shake_256
from http import HTTPStatus
from importlib.resources import files
from typing import Any, Protocol, cast
from urllib.parse import parse_qs, urlsplit

from twisted.logger import Logger, globalLogBeginner
from twisted.python.failure import Failure

from sockgw.deadlines import Deadlines
from sockgw.demo.chat import Room, Visit
from sockgw.demo.line import Line
from sockgw.endpoints import describe, listen_error, server_endpoint
from sockgw.http.application import ClientExchange, Connection, RequestHandler
from sockgw.http.framing import HttpError
from sockgw.http.front import ClientFactory
from sockgw.http.patience import ServerLimits
from sockgw.logs import observer
from sockgw.protocol.heads import Headers, RequestHead, ResponseHead

__all__ = ["Origin", "blocks", "main"]

_log = Logger()

_BLOCK = shake_256(b"sockgw demo").digest(64 * 1024)
_INDEX = 8  # bytes at the start of each block: its number, so that no two blocks are alike
_MAX_ECHO = 64 * 1024  # bytes of a body that /echo shows
_MAX_LINES = 600  # of a drip: ten minutes at the usual pace
_MAX_PAUSE = 10_000  # ms between two lines
_MAX_SIZE = 1 << 34  # bytes of a download
_MAX_UPLOAD = 1 << 30  # bytes
_MAX_CONNECTIONS = 500
_MAX_STREAMS = 100  # of events
_MAX_ID = 10**15  # of an event; what a client says it has seen is not taken to be more
_CUT = 4  # seconds
_MAX_CUT = 10  # seconds; well below how long the layers wait for each other

_LIMITS = ServerLimits(
    max_header_size=64 * 1024,
    max_header_count=200,
    max_body_size=0,
    head_timeout=10.0,
    keep_alive_timeout=75.0,
    idle_timeout=300.0,
    half_close_timeout=0.75,
)

# The page has its style and its script inside, and talks to where it came from.
_PAGE_POLICY = (
    "default-src 'none'; style-src '{style}'; script-src '{script}'; img-src data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_TEXT = b"text/plain; charset=utf-8"
_LENGTH, _LAST_EVENT = b"content-length", b"last-event-id"
_HOSTS = (b"host", b"x-forwarded-host")
_METHODS = {"/upload": b"POST, PUT", "/cut": b"POST"}


def blocks(size: int) -> Iterator[bytes]:
    """Yield ``size`` bytes, the same at every call, in blocks of 64 KiB."""
    for index in range(-(-size // len(_BLOCK))):
        block = index.to_bytes(_INDEX, "big") + _BLOCK[_INDEX:]
        yield block[: size - index * len(_BLOCK)]


class _Clock(Protocol):
    """What is used of a reactor."""

    def callLater(self, delay: float, callable: Callable[[], None], /) -> Any: ...


class _Handler:
    """Ignores the request's body; the base of those that do not."""

    def __init__(self, exchange: ClientExchange) -> None:
        self.exchange = exchange

    def body_received(self, data: bytes) -> None:
        pass

    def body_ended(self, trailers: Headers) -> None:
        pass

    def client_lost(self) -> None:
        pass

    def client_left(self) -> None:
        pass

    def response_drained(self) -> None:
        pass


class _Echo(_Handler):
    """Answers with the request as it arrived: the head, and as much of the body as is shown."""

    def __init__(self, exchange: ClientExchange) -> None:
        super().__init__(exchange)
        self._shown = bytearray()

    def body_received(self, data: bytes) -> None:
        self._shown += data[: _MAX_ECHO - len(self._shown)]

    def body_ended(self, trailers: Headers) -> None:
        exchange, head = self.exchange, self.exchange.head
        lines = [b"%b %b %b" % (head.method, head.target, exchange.protocol.encode())]
        lines += [b"%b: %b" % field for field in head.headers]
        parts = [b"\n".join(lines), b"\n\n", bytes(self._shown)]
        if surplus := exchange.bytes_received - len(self._shown):
            parts.append(b"\n(and %d bytes more)" % surplus)
        if not parts[-1].endswith(b"\n"):
            parts.append(b"\n")
        parts += (b"%b: %b\n" % field for field in trailers)
        _answer(exchange, 200, _TEXT, b"".join(parts))


class _Upload(_Handler):
    """Digests the body as it comes."""

    def __init__(self, exchange: ClientExchange) -> None:
        super().__init__(exchange)
        self._digest = sha256()
        self._started = time.monotonic()

        lengths = [value for name, value in exchange.head.headers if name.lower() == _LENGTH]
        self._refused = bool(lengths) and int(lengths[0]) > _MAX_UPLOAD
        if self._refused:
            self._refuse()

    def body_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self.exchange.bytes_received > _MAX_UPLOAD:
            self._refused = True
            self._refuse()
        else:
            self._digest.update(data)

    def body_ended(self, trailers: Headers) -> None:
        if self._refused:
            return
        result = {
            "bytes": self.exchange.bytes_received,
            "sha256": self._digest.hexdigest(),
            "seconds": round(time.monotonic() - self._started, 3),
        }
        _answer(
            self.exchange, 200, b"application/json", json.dumps(result, indent=2).encode() + b"\n"
        )

    def _refuse(self) -> None:
        text = f"An upload has at most {_MAX_UPLOAD:,} bytes here.\n"
        _answer(self.exchange, 413, _TEXT, text.encode())


class _Events(_Handler):
    """Sends an event at a time (HTML, section 9.2), numbered on from the last that was seen."""

    def __init__(self, exchange: ClientExchange, origin: "Origin", pause: float) -> None:
        super().__init__(exchange)
        self._origin = origin
        self._pause = pause  # seconds
        seen = [value for name, value in exchange.head.headers if name.lower() == _LAST_EVENT]
        self._id = _bounded(seen[-1].decode("latin-1") if seen else "", 0, 0, _MAX_ID)
        self._timer: Any = None
        exchange.respond(_head(200, b"text/event-stream"))
        if exchange.head.method == b"HEAD":
            exchange.finish()
            return
        origin.streams += 1
        exchange.write(b"retry: 1000\n\n")
        self._tick()

    def client_lost(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._origin.streams -= 1

    def _tick(self) -> None:
        self._timer = self._origin.clock.callLater(self._pause, self._tick)
        self._id += 1
        if not self.exchange.congested:  # its number tells who reads too slowly that it is missing
            self.exchange.write(b"id: %d\ndata: %b\n\n" % (self._id, _now()))


class _Drip(_Handler):
    """Sends a line at a time."""

    def __init__(self, exchange: ClientExchange, clock: _Clock, lines: int, pause: float) -> None:
        super().__init__(exchange)
        self._clock = clock
        self._lines = 1 if exchange.head.method == b"HEAD" else lines
        self._pause = pause  # seconds
        self._sent = 0
        self._timer: Any = None
        exchange.respond(_head(200, _TEXT))
        self._drip()

    def client_lost(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drip(self) -> None:
        self._timer = None
        self._sent += 1
        self.exchange.write(b"%b  line %d of %d\n" % (_now(), self._sent, self._lines))
        if self._sent < self._lines:
            self._timer = self._clock.callLater(self._pause, self._drip)
        else:
            self.exchange.finish()


class _Download(_Handler):
    """Sends so many bytes, no faster than the client takes them."""

    def __init__(self, exchange: ClientExchange, size: int) -> None:
        super().__init__(exchange)
        self._blocks = blocks(0 if exchange.head.method == b"HEAD" else size)
        self._over = False
        head = _head(200, b"application/octet-stream", size)
        head.headers.append((b"Content-Disposition", b'attachment; filename="demo.bin"'))
        exchange.respond(head)
        self.response_drained()

    def client_lost(self) -> None:
        self._over = True

    def response_drained(self) -> None:
        while not self._over and not self.exchange.congested:
            block = next(self._blocks, None)
            if block is None:
                self._over = True
                self.exchange.finish()
            else:
                self.exchange.write(block)


class _Digest(_Handler):
    """Tells what a download's digest will be; others are served between two of its blocks."""

    def __init__(self, exchange: ClientExchange, clock: _Clock, size: int) -> None:
        super().__init__(exchange)
        self._clock = clock
        self._blocks = blocks(size)
        self._digest = sha256()
        self._timer: Any = clock.callLater(0, self._step)

    def client_lost(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _step(self) -> None:
        for block in self._blocks:
            self._digest.update(block)
            self._timer = self._clock.callLater(0, self._step)
            return
        self._timer = None
        _answer(self.exchange, 200, _TEXT, self._digest.hexdigest().encode() + b"\n")


class Origin:
    """The :class:`Application` of the demonstration's origin."""

    def __init__(self, clock: _Clock, line: Line | None = None) -> None:
        self.clock = clock
        self.streams = 0  # of events
        self._connections = 0
        self._page = files("sockgw.demo").joinpath("page.html").read_bytes()
        self._policy = _PAGE_POLICY.format(
            style=_hash(self._page, b"style"), script=_hash(self._page, b"script")
        ).encode()
        self._room = Room(clock)
        self._line = line
        if line is not None:
            line.told = lambda seconds: self._room.tell(kind="cut", seconds=seconds)

    def connected(self, connection: Connection) -> bool:
        if self._connections >= _MAX_CONNECTIONS:
            return False
        self._connections += 1
        return True

    def disconnected(self, connection: Connection) -> None:
        self._connections -= 1

    def succeeded(self, connection: Connection, begin: Callable[[], None]) -> None:
        begin()

    def request(self, exchange: ClientExchange) -> RequestHandler:
        """Return the handler for the path; wrong numbers in a query become the usual ones."""
        head = exchange.head
        target = urlsplit(head.target.decode("ascii", "replace"))
        query = parse_qs(target.query)
        if exchange.expects_continue:
            exchange.inform(100, [])
        if target.path == "/echo":
            return _Echo(exchange)
        if target.path == "/upload" and head.method in (b"POST", b"PUT"):
            return _Upload(exchange)
        if target.path in ("/chat", "/cut") and not _from_our_page(head):
            _answer(exchange, 403, _TEXT, b"Pages of others must not ask for this.\n")
        elif target.path == "/cut" and head.method == b"POST":
            self._cut(exchange, _number(query, "seconds", _CUT, 1, _MAX_CUT))
        elif target.path in _METHODS or head.method not in (b"GET", b"HEAD"):
            allowed = _METHODS.get(target.path, b"GET, HEAD")
            _answer(exchange, 405, _TEXT, b"Method Not Allowed\n", (b"Allow", allowed))
        elif target.path == "/":
            policy = (b"Content-Security-Policy", self._policy)
            _answer(exchange, 200, b"text/html; charset=utf-8", self._page, policy)
        elif target.path == "/chat":
            if head.upgrade.lower() != b"websocket":
                _answer(exchange, 426, _TEXT, b"Here is a WebSocket.\n")
            elif self._room.full:
                _answer(exchange, 503, _TEXT, b"The room is full.\n")
            else:
                return Visit(exchange, self._room)
        elif target.path == "/events":
            if self.streams < _MAX_STREAMS:
                pause = _number(query, "every", 1000, 100, _MAX_PAUSE) / 1000
                return _Events(exchange, self, pause)
            _answer(exchange, 503, _TEXT, b"Too many watch the events.\n")
        elif target.path == "/drip":
            lines = _number(query, "lines", 10, 1, _MAX_LINES)
            pause = _number(query, "every", 1000, 1, _MAX_PAUSE) / 1000
            return _Drip(exchange, self.clock, lines, pause)
        elif target.path == "/download":
            return _Download(exchange, _number(query, "size", 1 << 20, 0, _MAX_SIZE))
        elif target.path == "/download/sha256":
            size = _number(query, "size", 1 << 20, 0, _MAX_SIZE)
            return _Digest(exchange, self.clock, size)
        elif target.path == "/secret":
            _answer(exchange, 200, _TEXT, b"Only who is inside can read this.\n")
        else:
            _answer(exchange, 404, _TEXT, b"Not Found\n")
        return _Handler(exchange)

    def _cut(self, exchange: ClientExchange, seconds: int) -> None:
        if self._line is None:
            _answer(exchange, 404, _TEXT, b"The line is not ours to cut.\n")
        elif self._line.cut(seconds):
            text = f"The line is cut for {seconds} s. What is under way pauses, and goes on.\n"
            _answer(exchange, 200, _TEXT, text.encode())
        else:
            _answer(exchange, 429, _TEXT, b"It was cut only just now.\n")

    def refused(
        self, connection: Connection, error: HttpError, head: RequestHead | None
    ) -> tuple[ResponseHead, bytes]:
        return _head(error.status, _TEXT), f"{error}\n".encode()


def _number(
    query: dict[str, list[str]], name: str, default: int, smallest: int, largest: int
) -> int:
    """Return a number of the query, within bounds."""
    return _bounded(query.get(name, [""])[-1], default, smallest, largest)


def _bounded(text: str, default: int, smallest: int, largest: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        return default
    return min(max(int(text), smallest), largest)


def _now() -> bytes:
    return time.strftime("%H:%M:%S").encode()


def _hash(page: bytes, element: bytes) -> str:
    """Return how a content security policy names the element's text (CSP 3, section 2.3.1)."""
    found = re.search(b"<%b>(.*?)</%b>" % (element, element), page, re.DOTALL)
    assert found is not None  # noqa: S101 - it is our own page
    return "sha256-" + b64encode(sha256(found[1]).digest()).decode()


def _from_our_page(head: RequestHead) -> bool:
    """Return whether no page of another origin sends this; other clients than browsers may."""
    origins = [value for name, value in head.headers if name.lower() == b"origin"]
    hosts = [value for name, value in head.headers if name.lower() in _HOSTS]
    return all(origin.partition(b"://")[2] in hosts for origin in origins)


def _head(status: int, kind: bytes, size: int | None = None) -> ResponseHead:
    headers = [
        (b"Content-Type", kind),
        (b"Cache-Control", b"no-store"),
        (b"X-Content-Type-Options", b"nosniff"),
    ]
    if size is not None:
        headers.append((b"Content-Length", b"%d" % size))
    return ResponseHead(status, HTTPStatus(status).phrase.encode(), headers)


def _answer(
    exchange: ClientExchange, status: int, kind: bytes, body: bytes, *fields: tuple[bytes, bytes]
) -> None:
    head = _head(status, kind, len(body))
    head.headers.extend(fields)
    exchange.respond(head)
    exchange.write(body)
    exchange.finish()


def main(arguments: Sequence[str]) -> int:
    """Serve on these endpoints until SIGTERM; return the exit status."""
    from twisted.internet import reactor

    clock: Any = reactor
    globalLogBeginner.beginLoggingTo([observer("text", sys.stdout)], redirectStandardIO=False)
    listeners: list[tuple[str, Any]] = []
    descriptions, line = list(arguments), None
    if descriptions[:1] == ["--line"]:
        description, _, port = descriptions[1].rpartition("=")
        line = Line(clock, int(port))
        listeners.append((description, line))
        del descriptions[:2]
    factory = ClientFactory(Origin(clock, line), Deadlines(clock), _LIMITS)
    listeners += ((description, factory) for description in descriptions)
    failures: list[str] = []

    def failed(failure: Failure, description: str) -> None:
        failures.append(listen_error(description, cast(BaseException, failure.value)))

    for description, served in listeners:
        listening = server_endpoint(reactor, description).listen(served)
        listening.addCallback(lambda port: _log.info("listening on {where}", where=describe(port)))
        listening.addErrback(failed, description)
    if failures:
        print(failures[0], file=sys.stderr)
        return 1
    clock.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A client that speaks HTTP/2 frame by frame, as right or as wrong as a test says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from hpack import Decoder, Encoder
from http_clients import LIMITS, Application, Transport
from twisted.internet.task import Clock

from sockgw.deadlines import Deadlines
from sockgw.http.front import ClientFactory
from sockgw.http.h2server import PREFACE
from sockgw.http.patience import ServerLimits

__all__ = ["GET", "POST", "Frame", "H2Server", "frame"]

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 1, 1, 4, 8, 32

GET = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a.example")]
POST = [(":method", "POST"), *GET[1:]]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Return any frame at all."""
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    payload = b"".join(code.to_bytes(2, "big") + value.to_bytes(4, "big") for code, value in pairs)
    return frame(SETTINGS, 0, 0, payload)


def window(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


def rst(stream: int, code: int = 8) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def ping(flags: int = 0) -> bytes:
    return frame(PING, flags, 0, b"abcdefgh")


def data(stream: int, payload: bytes = b"", end: bool = False) -> bytes:
    return frame(DATA, END_STREAM if end else 0, stream, payload)


@dataclass
class Frame:
    """One that has come."""

    kind: int
    flags: int
    stream: int
    payload: bytes
    fields: list[tuple[str, str]] | None = None

    @property
    def end(self) -> bool:
        return self.kind in (DATA, HEADERS) and bool(self.flags & END_STREAM)

    @property
    def code(self) -> int:
        return int.from_bytes(self.payload[4:8] if self.kind == GOAWAY else self.payload[:4], "big")


class H2Server:
    """A connection of HTTP/2 over a fake transport, with its application and clock."""

    def __init__(
        self,
        start: bytes = PREFACE + settings(),
        flushing: bool = True,
        **limits: Any,
    ) -> None:
        self.clock = Clock()
        self.application = Application()
        self.deadlines = Deadlines(self.clock)
        self.factory = ClientFactory(
            self.application,
            self.deadlines,
            ServerLimits(**{**LIMITS, **limits}),
            self.clock.seconds,
            lambda: 0.0,
            later=partial(self.clock.callLater, 0),
        )
        self.connection = self.factory.buildProtocol(None)
        self.transport = Transport(self.clock, flushing)
        self.transport.protocol = self.connection
        self.encoder = Encoder()
        self.decoder = Decoder()
        self._read = 0
        self.connection.makeConnection(self.transport)
        self.frames: list[Frame] = []
        if start:
            self.feed(start)

    def feed(self, *pieces: bytes, step: int = 0) -> list[Frame]:
        """Send; return what has come since."""
        data = b"".join(pieces)
        if not step:
            self._receive(data)
        for at in range(0, len(data) if step else 0, step or 1):
            self._receive(data[at : at + step])
        self.advance(0)
        return self.came()

    def _receive(self, data: bytes) -> None:
        if not (self.transport.lost or self.transport.aborted):
            self.connection.dataReceived(data)

    def advance(self, seconds: float) -> None:
        """Time passes, with room for the sweeps of deadlines and what they start."""
        self.clock.pump([0.0, 0.0] + [0.25] * int(seconds / 0.25) + [0.0, 0.0])

    def head(
        self,
        stream: int,
        fields: list[tuple[str, str]] = GET,
        *more: tuple[str, str],
        end: bool = True,
        flags: int = END_HEADERS,
    ) -> bytes:
        """Return a request's head, or trailers."""
        block = self.encoder.encode([*fields, *more], huffman=False)
        return frame(HEADERS, flags | (END_STREAM if end else 0), stream, block)

    def came(self) -> list[Frame]:
        """Return the frames that have come since the last call."""
        written = bytes(self.transport.written)
        new = []
        while len(written) - self._read >= 9:
            at = self._read
            length = int.from_bytes(written[at : at + 3], "big")
            payload = written[at + 9 : at + 9 + length]
            assert len(payload) == length, "half a frame"
            stream = int.from_bytes(written[at + 5 : at + 9], "big")
            one = Frame(written[at + 3], written[at + 4], stream, payload)
            if one.kind == HEADERS:
                assert one.flags & END_HEADERS
                one.fields = [
                    (bytes(name).decode(), bytes(value).decode())
                    for name, value in self.decoder.decode(payload, raw=True)
                ]
            new.append(one)
            self._read += 9 + length
        self.frames += new
        return new

    # what has come

    def of(self, stream: int) -> list[Frame]:
        """Return all frames of a stream but its window's."""
        self.came()
        return [f for f in self.frames if f.stream == stream and f.kind != WINDOW_UPDATE]

    def status(self, stream: int) -> str:
        """Return the status of the last head of a stream, "" for none."""
        heads = [f.fields for f in self.of(stream) if f.kind == HEADERS and f.fields]
        return dict(heads[-1]).get(":status", "") if heads else ""

    def body(self, stream: int) -> bytes:
        return b"".join(f.payload for f in self.of(stream) if f.kind == DATA)

    def ended(self, stream: int) -> bool:
        return any(f.end for f in self.of(stream))

    def reset(self, stream: int) -> int | None:
        """Return the code with which a stream was first reset."""
        codes = [f.code for f in self.of(stream) if f.kind == RST_STREAM]
        return codes[0] if codes else None

    def credit(self, stream: int) -> int:
        """Return how much a window has been opened."""
        self.came()
        updates = [f for f in self.frames if f.kind == WINDOW_UPDATE and f.stream == stream]
        return sum(f.code for f in updates)

    @property
    def goaway(self) -> int | None:
        """The code of the last GOAWAY."""
        self.came()
        codes = [f.code for f in self.frames if f.kind == GOAWAY]
        return codes[-1] if codes else None

    @property
    def closing(self) -> bool:
        t = self.transport
        return t.disconnecting or t.write_closing or t.aborted or t.lost

    @property
    def h2(self) -> Any:
        """What keeps the protocol's state."""
        return self.connection._other._h2

    @property
    def handlers(self) -> list[Any]:
        return self.application.handlers

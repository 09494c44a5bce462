"""Looks at the frames of an HTTP/2 connection before h2 does.

h2 is told of nothing that is seen here, and keeps three things to itself that have to be known
earlier:

1. It buffers a whole frame, of up to 16 MiB, before it finds it too long, and up to 64 frames of a
   header block before it decodes them. Here both are judged on their first bytes.
2. It takes nothing more once a GOAWAY has come. But that only says that no new streams are taken:
   those that are open go on (RFC 9113, section 6.8). So h2 does not get to see it.
3. It answers every PING and SETTINGS and skips what is empty or unknown, however much comes. Here
   frames that carry nothing are counted against those that do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

from h2.errors import ErrorCodes

__all__ = [
    "CONTINUATION",
    "DATA",
    "HEADERS",
    "RST_STREAM",
    "SETTINGS",
    "FrameFault",
    "FrameScanner",
    "GoAway",
]

MAX_FRAME = 16_384  # bytes of payload: RFC 9113's default, and we ask for no more

# Frames without content that may come at once; Go's and Netty's servers queue as many.
MAX_SPARE = 10_000

# What a frame of content, either way, brings along: a WINDOW_UPDATE for the stream and another for
# the connection, and PINGs that measure the bandwidth, as gRPC sends them.
PER_FRAME = 4
# What a request brings along: settings, heads in pieces, window updates for its first bytes.
PER_REQUEST = 64

_PER_SETTINGS = 60  # bytes: ten settings, and each further ten count as a frame more

_HEADER = 9
DATA, HEADERS, RST_STREAM, SETTINGS, _PUSH_PROMISE = 0, 1, 3, 4, 5
_GOAWAY, CONTINUATION = 7, 9
_goaway = Struct(">LL")


class FrameFault(Exception):
    """The peer has sent what ends the connection."""

    def __init__(self, code: ErrorCodes, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class GoAway:
    """The peer takes no new streams, and has not looked at those above ``last_stream``."""

    last_stream: int
    code: int


class FrameScanner:
    """Cuts what arrives into frames, so that whatever one of them does is done before the next.

    ``max_block`` is the most bytes of one header block, as it is on the wire.
    """

    __slots__ = ("_block", "_judged", "_max_block", "_rest", "spare")

    def __init__(self, max_block: int) -> None:
        self._max_block = max_block
        self._rest = b""  # the beginning of a frame
        self._judged = False  # it was
        self._block = 0  # bytes of the header block so far
        #: How many frames without content may still come.
        self.spare = MAX_SPARE

    def earned(self, frames: int) -> None:
        """We have sent what such frames answer."""
        self.spare = min(self.spare + frames, MAX_SPARE)

    def spend(self, frames: int) -> None:
        """So many have come. Raises FrameFault where they were too many."""
        self.spare -= frames
        if self.spare < 0:
            raise FrameFault(ErrorCodes.ENHANCE_YOUR_CALM, "too many frames without content")

    def scan(self, data: bytes) -> Iterator[bytes | GoAway]:
        """Yield each frame that is complete, as h2 gets it or as a GoAway.

        Raises FrameFault for a frame or header block that is too long, and for a flood.
        """
        if self._rest:
            data = self._rest + data
        size = len(data)
        at = 0
        while at + _HEADER <= size:
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            kind = data[at + 3]
            if not self._judged:
                self._judge(kind, length)
            start, at = at, at + _HEADER + length
            self._judged = at > size
            if self._judged:
                at = start
                break
            frame = data[start:at]
            yield _read_goaway(frame) if kind == _GOAWAY else frame
        self._rest = data[at:]

    def _judge(self, kind: int, length: int) -> None:
        if length > MAX_FRAME:
            raise FrameFault(ErrorCodes.FRAME_SIZE_ERROR, "a frame is too long")
        if kind == DATA and length:
            self.earned(PER_FRAME)
            return
        if kind == CONTINUATION:
            self._block += length
        elif kind in (HEADERS, _PUSH_PROMISE):
            self._block = length
        if self._block > self._max_block:
            raise FrameFault(ErrorCodes.ENHANCE_YOUR_CALM, "a header block is too long")
        self.spend(1 + length // _PER_SETTINGS if kind == SETTINGS else 1)


def _read_goaway(frame: bytes) -> GoAway:
    if len(frame) < _HEADER + _goaway.size or frame[5:9] != bytes(4):
        raise FrameFault(ErrorCodes.PROTOCOL_ERROR, "a malformed GOAWAY")
    last, code = _goaway.unpack_from(frame, _HEADER)
    return GoAway(last & 0x7FFF_FFFF, code)

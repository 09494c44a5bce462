"""Frames: nine bytes of header and a payload, several to a message.

::

    0               1               2               3
    +-----------------------------------------------+---------------+
    |                  length (u24)                 |   type (u8)   |
    +---------------+-------------------------------+---------------+
    |  flags (u8)   |                  stream (u32) ...
    +---------------+-------------------------------+---------------+
    ...             |  payload (length bytes)
    +---------------+

A message of the carrier holds one or more whole frames; a frame never crosses a message. The length
is judged before the payload is touched: each type has its limit. docs/protocol.rst is the
specification.
"""

from collections.abc import Iterator
from enum import IntEnum, unique
from struct import Struct

from sockgw.protocol.errors import LocalError, TunnelCode, TunnelError

__all__ = [
    "FIN",
    "HEADER_SIZE",
    "MAX_DATA",
    "MAX_HEAD",
    "MAX_MESSAGE",
    "MAX_STREAM_ID",
    "FrameType",
    "decode",
    "encode",
    "pack_header",
]

FIN = 0x01
"""Flag on OPEN, HEAD and DATA: the sender's half of the stream ends with this frame."""

HEADER_SIZE = 9
MAX_STREAM_ID = 0x7FFF_FFFF  # as HTTP/2: the top bit stays free

MAX_DATA = 65_536  # bytes; what one TCP read yields, so that no frame needs two
MAX_HEAD = 131_072  # bytes; above any header limit that makes sense (nginx: 32 KiB, Apache: 8 KiB)
MAX_HANDSHAKE = 4_096  # bytes; a stranger gets no more of our memory
MAX_REASON = 512  # bytes of UTF-8 in RESET and GOAWAY

MAX_MESSAGE = 262_144  # bytes; 64 KiB of coalesced frames and one frame of the largest kind fit


@unique
class FrameType(IntEnum):
    """What a frame says. Frames of stream 0 concern the tunnel, all others their stream."""

    HELLO = 0x01
    CHALLENGE = 0x02
    PROOF = 0x03
    WELCOME = 0x04
    OPEN = 0x10
    HEAD = 0x11
    DATA = 0x12
    CREDIT = 0x13
    RESET = 0x14
    PING = 0x20
    PONG = 0x21
    ACK = 0x22
    GOAWAY = 0x23


# type: (least, most payload bytes, whether it belongs to a stream)
_RULES: dict[int, tuple[int, int, bool]] = {
    FrameType.HELLO: (1, MAX_HANDSHAKE, False),
    FrameType.CHALLENGE: (1, MAX_HANDSHAKE, False),
    FrameType.PROOF: (1, MAX_HANDSHAKE, False),
    FrameType.WELCOME: (1, MAX_HANDSHAKE, False),
    FrameType.OPEN: (1, MAX_HEAD, True),
    FrameType.HEAD: (1, MAX_HEAD, True),
    FrameType.DATA: (0, MAX_DATA, True),
    FrameType.CREDIT: (4, 4, True),
    FrameType.RESET: (2, 2 + MAX_REASON, True),
    FrameType.PING: (8, 8, False),
    FrameType.PONG: (8, 8, False),
    FrameType.ACK: (8, 8, False),
    FrameType.GOAWAY: (6, 6 + MAX_REASON, False),
}

_HEADER = Struct(">IBI")  # length and type share the first word
_pack = _HEADER.pack
_unpack_from = _HEADER.unpack_from


def pack_header(kind: int, flags: int, stream: int, length: int) -> bytes:
    """Return the nine bytes that precede a payload of ``length`` bytes."""
    return _pack(length << 8 | kind, flags, stream)


def encode(kind: FrameType, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a whole frame. Raises LocalError where the payload breaks the type's limits."""
    least, most, of_stream = _RULES[kind]
    if not least <= len(payload) <= most or (stream != 0) != of_stream:
        raise LocalError(f"{kind.name} of {len(payload)} bytes on stream {stream}")
    return _pack(len(payload) << 8 | kind, flags, stream) + payload


def decode(message: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield ``(type, flags, stream, payload)`` for each frame of a message, in order.

    Frames of unknown type come too; the session ignores them. Raises TunnelError at the first frame
    that is cut short, has a length its type does not allow, or stands on the wrong kind of stream;
    the frames before it have been yielded by then.
    """
    offset = 0
    end = len(message)
    while offset < end:
        start = offset + HEADER_SIZE
        if start > end:
            raise TunnelError(TunnelCode.FRAME_SIZE_ERROR, "a frame header is cut short")
        word, flags, stream = _unpack_from(message, offset)
        length = word >> 8
        kind = word & 0xFF
        offset = start + length
        rule = _RULES.get(kind)
        if rule is not None:
            least, most, of_stream = rule
            if not least <= length <= most:
                raise TunnelError(
                    TunnelCode.FRAME_SIZE_ERROR, f"{FrameType(kind).name} of {length} bytes"
                )
            if (stream != 0) != of_stream or stream > MAX_STREAM_ID:
                raise TunnelError(
                    TunnelCode.PROTOCOL_ERROR, f"{FrameType(kind).name} on stream {stream}"
                )
        if offset > end:
            raise TunnelError(TunnelCode.FRAME_SIZE_ERROR, "a payload is cut short")
        yield kind, flags, stream, message[start:offset]

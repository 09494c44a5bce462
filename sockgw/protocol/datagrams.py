"""Datagrams in a stream of bytes: each preceded by its length as u16, cut and joined in any way.

And where they wait while the stream takes no more: few, and the oldest goes first when there is no
room, as in any router. What comes late is worth less than what comes now.
"""

from collections import deque
from struct import Struct

__all__ = ["MAX_DATAGRAM", "DatagramReader", "Waiting", "frame"]

MAX_DATAGRAM = 65_535  # bytes; UDP over IPv4 has 65,507 at most (RFC 768)

_length = Struct(">H")


def frame(datagram: bytes) -> bytes:
    """Return a datagram as it stands in a stream."""
    return _length.pack(len(datagram)) + datagram


class DatagramReader:
    """Finds the datagrams again."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""  # less than one datagram

    def feed(self, data: bytes) -> list[bytes]:
        """Return the datagrams that are complete with these bytes."""
        if self._rest:
            data = self._rest + data
        found: list[bytes] = []
        start = 0
        while len(data) - start >= _length.size:
            (size,) = _length.unpack_from(data, start)
            end = start + _length.size + size
            if end > len(data):
                break
            found.append(data[start + _length.size : end])
            start = end
        self._rest = data[start:]
        return found


class Waiting:
    """A queue of datagrams that drops the oldest when it is full.

    :param most: datagrams
    :param most_bytes: of all of them; one is kept in any case
    """

    __slots__ = ("_most", "_most_bytes", "_queue", "_size")

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._queue: deque[bytes] = deque()
        self._size = 0

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, datagram: bytes) -> int:
        """Let one wait; return how many were dropped for it."""
        queue = self._queue
        queue.append(datagram)
        self._size += len(datagram)
        dropped = 0
        while len(queue) > self._most or (self._size > self._most_bytes and len(queue) > 1):
            self._size -= len(queue.popleft())
            dropped += 1
        return dropped

    def take(self) -> bytes:
        """Return the oldest, which waits no longer."""
        datagram = self._queue.popleft()
        self._size -= len(datagram)
        return datagram

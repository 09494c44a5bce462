"""Bodies of requests, kept to be sent again to another inner layer.

What is kept was received anyway and is kept by reference, until the answer begins or a bound is
reached: of the request, or of all requests together. Past it the body is let go, and with it the
chance of another inner layer; nobody waits for room.
"""

__all__ = ["KeptBodies", "KeptBody"]

# Pieces of one body. A client that sends byte by byte would have us keep an object for each.
MOST_PIECES = 1_024


class KeptBodies:
    """The bounds, and what all requests keep together. Sizes in bytes."""

    def __init__(self, most_each: int, most: int) -> None:
        self.most_each = most_each
        self.most = most
        self.size = 0


class KeptBody:
    """What one request keeps."""

    __slots__ = ("_all", "chunks", "size")

    def __init__(self, bodies: KeptBodies) -> None:
        self._all = bodies
        self.chunks: list[bytes] = []
        self.size = 0

    def add(self, data: bytes) -> bool:
        """Keep a piece in any case; return whether that is within the bounds."""
        size = len(data)
        self.chunks.append(data)
        self.size += size
        self._all.size += size
        return self.within

    @property
    def within(self) -> bool:
        """Whether it may be kept on."""
        bodies = self._all
        return (
            self.size <= bodies.most_each
            and bodies.size <= bodies.most
            and len(self.chunks) <= MOST_PIECES
        )

    def release(self) -> None:
        """Keep nothing."""
        self._all.size -= self.size
        self.chunks = []
        self.size = 0

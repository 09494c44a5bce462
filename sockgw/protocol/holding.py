"""What one tunnel holds for readers that are slow, and has promised to those that were not.

Bytes that were received are held from then on until the local socket has taken them. On the side
that opens this goes on when the stream is complete: an answer whose client does not take the end of
it lingers here. A window each, for as many clients as there are, is no small change.
"""

from collections.abc import Iterable
from itertools import chain

from sockgw.protocol.memory import Limits, Memory
from sockgw.protocol.streams import Stream

__all__ = ["Holding"]


class Holding:
    """The books of one tunnel; it keeps those of the process, too."""

    __slots__ = ("_limits", "_memory", "buffered", "lingering", "pool", "promised")

    def __init__(self, limits: Limits, memory: Memory) -> None:
        self._limits = limits
        self._memory = memory
        #: Bytes held.
        self.buffered = 0
        #: Bytes held by all tunnels; changes with ``buffered``.
        self.pool = memory.buffered
        #: Bytes by which windows exceed their first size.
        self.promised = 0
        #: Streams that are complete, and of which something is held.
        self.lingering: set[Stream] = set()

    @property
    def full(self) -> bool:
        """Whether a stream has to be given up."""
        return self.buffered > self._limits.max_buffered

    def took(self, count: int) -> None:
        """So many more bytes are held; negative: fewer."""
        self.buffered += count
        self.pool.used += count

    def promise(self, count: int) -> int:
        """Return by how much a window may grow that wants to by ``count`` bytes."""
        if count > 0:
            pool = self._memory.promised
            left = self._limits.max_buffered - self.promised
            count = max(min(count, left, pool.limit - pool.used), 0)
        self.promised += count
        self._memory.promised.used += count
        return count

    def over(self, stream: Stream, lingers: bool) -> None:
        """A stream is over; ``lingers``: what is held of it will still be taken."""
        window = stream.receiving
        if window.promised:
            self.promise(-window.promised)
        if window.held or window.surcharge:
            if lingers and window.held:
                self.lingering.add(stream)
            else:
                self.took(-window.held - window.surcharge)
                window.held = window.surcharge = 0

    def taken_late(self, stream: Stream, count: int) -> None:
        """So many bytes of a stream that lingers have been taken."""
        if stream in self.lingering:
            stream.receiving.held -= count
            self.took(-count)
            if not stream.receiving.held:
                self.took(-stream.receiving.surcharge)
                self.lingering.discard(stream)
                stream.let_go()

    def slowest(self, streams: Iterable[Stream]) -> Stream:
        """Return the stream of which most is held: of these, or of those that linger."""
        return max(chain(streams, self.lingering), key=_held)


def _held(stream: Stream) -> int:
    return stream.receiving.held + stream.receiving.surcharge

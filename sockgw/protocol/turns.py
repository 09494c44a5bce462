"""Whose data goes next: fair among those who have much, quick for those who have little.

Round robin by frames. A stream that had nothing to send before ("fresh") gets every other turn, so
that a small answer stands behind one frame of the downloads, not behind one of each. Every other,
not every: streams that always have a little must not silence those that have much. After its turn,
a stream that has more waits with all others. (The new and old flows of FQ-CoDel, RFC 8290 section
4.2, without its queue management: nothing is dropped here.)
"""

from collections import deque

from sockgw.protocol.frames import MAX_DATA
from sockgw.protocol.streams import Stream

__all__ = ["Turns"]

SHARED_FRAME = 16_384  # bytes of DATA in a frame while several streams compete


class Turns:
    """The streams of a session that have data and credit."""

    __slots__ = ("_freshs_turn", "fresh", "others")

    def __init__(self) -> None:
        self._freshs_turn = True
        #: Those that had nothing to send before, and all others.
        self.fresh: deque[Stream] = deque()
        self.others: deque[Stream] = deque()

    def __bool__(self) -> bool:
        return bool(self.others or self.fresh)

    def add(self, stream: Stream, fresh: bool) -> None:
        """A stream can send; ``fresh``: it had nothing to send before."""
        stream.scheduled = True
        (self.fresh if fresh else self.others).append(stream)

    def fill(self, parts: list[bytes], size: int, target: int, relieved: list[Stream]) -> int:
        """Fill a message of ``size`` bytes up with DATA until it has ``target``.

        Returns the number of frames; ``relieved`` gets the streams whose sources may go on.
        """
        fresh = self.fresh
        others = self.others
        shared = min(SHARED_FRAME, target)
        frames = 0
        while (others or fresh) and size < target:
            queue = fresh if fresh and (self._freshs_turn or not others) else others
            self._freshs_turn = queue is others
            stream = queue.popleft()
            if stream.closed or not stream.sendable:
                stream.scheduled = False
                continue
            size += stream.take_frame(shared if others or fresh else MAX_DATA, parts)
            frames += 1
            if stream.sendable:
                others.append(stream)
            else:
                stream.scheduled = False
            if stream.relieved():
                relieved.append(stream)
        return frames

    def clear(self) -> None:
        """The tunnel is over."""
        self.fresh.clear()
        self.others.clear()

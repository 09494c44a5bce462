"""What was sent and is not acknowledged: kept, because a carrier may break, and sent again then.

Messages are kept whole, as they left: nothing is copied, and a frame costs nothing here. Only when
a carrier was lost are they taken apart, to leave out what has arrived and what concerned that
carrier alone (frames of stream 0: pings and acknowledgements).

The numbers of frames are not on the wire. Both sides count the frames of streams, and what is sent
again comes in the same order before anything new: so counting goes on as if nothing had happened.
"""

from collections import deque

from sockgw.protocol.errors import TunnelCode, TunnelError
from sockgw.protocol.flight import Departure, Flight
from sockgw.protocol.frames import HEADER_SIZE, decode
from sockgw.protocol.memory import Pool

__all__ = ["Outbox"]

# Bytes that a tunnel may keep even if the process has used up its share: a message, or one slow
# tunnel could silence all others.
LEAST = 65_536

# Bytes as which a message counts at least: so much is what it takes to remember one.
_LEAST_COST = 256

_Kept = tuple[int, bytes, Departure]  # the number of the last frame, the message


class Outbox:
    """The messages of one side of a tunnel that the peer may still miss."""

    __slots__ = ("_bound", "_kept", "_pool", "_rewound", "acknowledged", "again", "cost", "flight",
                 "resent", "sent", "size")  # fmt: skip

    def __init__(self, bound: int, pool: Pool) -> None:
        """``bound``: bytes kept by this tunnel; ``pool``: by all of the process."""
        self._bound = bound
        self._pool = pool
        self._kept: deque[_Kept] = deque()
        self._rewound = 0  # frames up to this number have been sent more than once, perhaps
        #: What may have to be sent again before anything new.
        self.again: deque[_Kept] = deque()
        #: Bytes kept.
        self.size = 0
        #: What that takes of our memory, in bytes: more, if there are many small messages.
        self.cost = 0
        #: Frames of streams that have left.
        self.sent = 0
        #: How many of them the peer has said it got.
        self.acknowledged = 0
        #: Bytes that were sent again.
        self.resent = 0
        #: What is known of the link.
        self.flight = Flight()

    @property
    def full(self) -> bool:
        """Whether no further frame of a stream may be sent now."""
        return self.cost >= self._bound or (
            self._pool.used >= self._pool.limit and self.cost >= LEAST
        )

    def keep(self, message: bytes, frames: int, now: float, limited: bool) -> None:
        """A message leaves, with ``frames`` of streams; ``limited``: more waits for the link."""
        departure = self.flight.departed(now, not self.size, limited)
        self.sent += frames
        size = len(message)
        self.size += size
        cost = size if size > _LEAST_COST else _LEAST_COST
        self.cost += cost
        self._pool.used += cost
        self._kept.append((self.sent, message, departure))

    def acknowledge(self, count: int, now: float) -> None:
        """The peer has got ``count`` frames in all. Raises TunnelError for what cannot be."""
        if not self.acknowledged <= count <= self.sent:
            raise TunnelError(TunnelCode.PROTOCOL_ERROR, f"ACK of {count} frames")
        self.acknowledged = count
        kept = self._kept
        freed = cost = 0
        newest = None
        while kept and kept[0][0] <= count:
            newest = kept.popleft()
            size = len(newest[1])
            freed += size
            cost += size if size > _LEAST_COST else _LEAST_COST
        if newest is None:
            return
        self.size -= freed
        self.cost -= cost
        self._pool.used -= cost
        if newest[0] > self._rewound:
            self.flight.acknowledged(freed, now, newest[2])
        else:  # who can tell which of its copies has arrived? (Karn and Partridge, 1987)
            self.flight.delivered += freed

    def rewind(self, count: int, now: float) -> None:
        """A new carrier: the peer has got ``count`` frames, all others are to be sent again."""
        self._rewound = self.sent
        self.acknowledge(count, now)
        self.again = deque(self._kept)
        self.flight.reset()

    def next_again(self) -> bytes:
        """Return the next message to be sent again, before anything new; empty without one."""
        while self.again:
            last, message, _ = self.again.popleft()
            missing = last - self.acknowledged
            if missing <= 0:
                continue
            frames = []
            end = 0
            for _, _, stream, payload in decode(message):
                start, end = end, end + HEADER_SIZE + len(payload)
                if stream:
                    frames.append(message[start:end])
            again = b"".join(frames[-missing:])
            self.resent += len(again)
            return again
        return b""

    def clear(self) -> None:
        """The tunnel is over: nothing will be sent again."""
        self._kept.clear()
        self.again.clear()
        self._pool.used -= self.cost
        self.size = self.cost = 0

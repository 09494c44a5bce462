"""Credit: how many bytes of DATA a side may still send on one direction of a stream.

1. Both sides start with ``WINDOW`` bytes.
2. The sender takes what it sends off its credit; without credit it waits.
3. The receiver counts what arrives; more than it granted is an error of the peer.
4. When the local socket has taken bytes, the receiver grants credit again, in one CREDIT frame once
   it comes to a quarter of the window: fewer frames than one for each read, and at least three
   quarters of the window can be on their way. (HTTP/2 and yamux wait for a half.)
5. Once in a round trip it looks at how much came in that time. More than ``BUSY`` of the window of
   a round trip before (what was granted later cannot have been used yet): the window is what
   limits, not the reader or the link, and is doubled, as long as there is memory to promise.
6. Less than ``IDLE`` of the present window: it is too large for its reader or its link, and is
   halved. What was granted cannot be taken back, so grants are withheld until it is used up.

So the window comes to stand between 1.7 and 5 times the bandwidth-delay product. A receiver
never holds more than one window of a stream, however slow its socket; and a reader that was never
fast has never got more than the first one.
"""

from collections.abc import Callable

from sockgw.protocol.errors import LocalError

__all__ = ["MAX_CREDIT", "WINDOW", "CreditOverflow", "CreditOverrun", "ReceiveWindow", "SendWindow"]

WINDOW = 262_144  # bytes; as yamux: 256 KiB fill a 20 Mbit/s link at 100 ms
MAX_CREDIT = 0x7FFF_FFFF  # bytes; as HTTP/2, RFC 9113 section 6.9.1

BUSY = 0.6  # of the window used in a round trip; a sender that waits for credit uses 0.75 at least
IDLE = 0.2  # so far below BUSY that a window which was halved is not doubled again
# Seconds. On a shorter round trip the processes' own turns take the time, not the link.
LEAST_ROUND_TRIP = 0.001


class CreditOverrun(ValueError):
    """The peer sent more than it was granted."""


class CreditOverflow(ValueError):
    """The peer granted nothing, or more than any side may."""


class SendWindow:
    """What we may still send."""

    __slots__ = ("available",)

    def __init__(self, size: int = WINDOW) -> None:
        self.available = size

    def take(self, count: int) -> None:
        """Spend credit. Raises LocalError beyond what is available."""
        if count > self.available:
            raise LocalError("sending beyond the credit")
        self.available -= count

    def grant(self, count: int) -> None:
        """Add what the peer granted. Raises CreditOverflow."""
        if count == 0 or self.available + count > MAX_CREDIT:
            raise CreditOverflow(f"credit of {count} bytes on top of {self.available}")
        self.available += count


class ReceiveWindow:
    """What the peer may still send, and what is ready to be granted again."""

    __slots__ = ("_before", "_first", "_most", "_since", "_used", "granted", "held",
                 "size",
                 "surcharge")  # fmt: skip

    def __init__(self, size: int = WINDOW, most: int = WINDOW, now: float = 0.0) -> None:
        """``size``: the first window in bytes; ``most``: the largest that it may grow to."""
        self._first = size
        self._most = most
        self._since = now  # from when on it is looked at what is used
        self._used = 0  # bytes since then
        self._before = size  # the window of a round trip before
        #: The window, in bytes.
        self.size = size
        #: What the peer may send now.
        self.granted = size
        #: Bytes received that the local socket has not taken yet.
        self.held = 0
        #: What small frames among them take of our memory beyond their bytes; for streams to count.
        self.surcharge = 0

    @property
    def promised(self) -> int:
        """Bytes by which the window exceeds the first one."""
        return self.size - self._first

    def received(self, count: int) -> None:
        """Count bytes that arrived. Raises CreditOverrun."""
        if count > self.granted:
            raise CreditOverrun(f"{count} bytes with a credit of {self.granted}")
        self.granted -= count
        self.held += count

    def consumed(
        self, count: int, now: float, round_trip: float | None, promise: Callable[[int], int]
    ) -> int:
        """Count bytes that the local socket took; return how many to grant now, often 0.

        ``round_trip`` in seconds, None where it is not known; ``promise`` is asked for a larger
        window (or told of a smaller one) in bytes, and returns how much of it there is.
        """
        if count > self.held:
            raise LocalError("more consumed than received")
        self.held -= count
        self._used += count
        if (self.size - self.granted - self.held) * 4 < self.size:
            return 0
        if round_trip is not None:
            round_trip = max(round_trip, LEAST_ROUND_TRIP)
            took = now - self._since
            if took >= round_trip:
                used = self._used * round_trip / took
                before, self._before = self._before, self.size
                if used > BUSY * before:
                    self.size += promise(min(self.size, max(self._most - self.size, 0)))
                elif used < IDLE * self.size and self.size > self._first:
                    self.size += promise(max(self.size // 2, self._first) - self.size)
                self._since, self._used = now, 0
        grant = self.size - self.granted - self.held
        if grant <= 0:
            return 0
        self.granted += grant
        return grant

"""Credit: how many bytes of DATA a side may still send on one direction of a stream.

1. Both sides start with ``WINDOW`` bytes.
2. The sender takes what it sends off its credit; without credit it waits.
3. The receiver counts what arrives; more than it granted is an error of the peer.
4. When the local socket has taken bytes, the receiver grants credit again, in one CREDIT frame once
   it comes to half the window (the rule of HTTP/2 and yamux: fewer frames than one for each read,
   and the sender never runs dry on a link whose bandwidth-delay product is below half the window).
5. Half a window used up in less than a round trip: the window is what limits, not the reader, and
   is doubled, as long as there is memory to promise. So it comes to stand between two and four
   times the bandwidth-delay product.
6. Half a window that lasts longer than ``SLOW`` round trips is too large for its reader: it is
   halved. What was granted cannot be taken back, so grants are withheld until it is used up.

So a receiver never holds more than one window of a stream, however slow its socket; and a reader
that was never fast has never got more than the first one.
"""

from collections.abc import Callable

from sockgw.protocol.errors import LocalError

__all__ = ["MAX_CREDIT", "WINDOW", "CreditOverflow", "CreditOverrun", "ReceiveWindow", "SendWindow"]

WINDOW = 262_144  # bytes; as yamux: 256 KiB fill a 20 Mbit/s link at 100 ms
MAX_CREDIT = 0x7FFF_FFFF  # bytes; as HTTP/2, RFC 9113 section 6.9.1

SLOW = 8  # round trips
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

    __slots__ = ("_first", "_since", "granted", "held", "size")

    def __init__(self, size: int = WINDOW) -> None:
        self._first = size
        self._since: float | None = None  # when the credit in use was granted
        #: The window, in bytes.
        self.size = size
        #: What the peer may send now.
        self.granted = size
        #: Bytes received that the local socket has not taken yet.
        self.held = 0

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
        if (self.size - self.granted - self.held) * 2 < self.size:
            return 0
        if round_trip is not None and self._since is not None:
            took = now - self._since
            round_trip = max(round_trip, LEAST_ROUND_TRIP)
            if took < round_trip:
                self.size += promise(self.size)
            elif took > SLOW * round_trip and self.size > self._first:
                self.size += promise(max(self.size // 2, self._first) - self.size)
        self._since = now
        grant = self.size - self.granted - self.held
        if grant <= 0:
            return 0
        self.granted += grant
        return grant

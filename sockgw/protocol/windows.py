"""Credit: how many bytes of DATA a side may still send on one direction of a stream.

1. Both sides start with ``WINDOW`` bytes.
2. The sender takes what it sends off its credit; without credit it waits.
3. The receiver counts what arrives; more than it granted is an error of the peer.
4. When the local socket has taken bytes, the receiver counts them as consumed, and once they come
   to half the window it grants them again in one CREDIT frame (the rule of HTTP/2 and yamux: fewer
   frames than one for each read, and the sender never runs dry on a link whose
   bandwidth-delay product is below half the window).

So a receiver never holds more than one window of a stream, however slow its socket.
"""

from sockgw.protocol.errors import LocalError

__all__ = ["MAX_CREDIT", "WINDOW", "CreditOverflow", "CreditOverrun", "ReceiveWindow", "SendWindow"]

WINDOW = 262_144  # bytes; as yamux: 256 KiB fill a 20 Mbit/s link at 100 ms
MAX_CREDIT = 0x7FFF_FFFF  # bytes; as HTTP/2, RFC 9113 section 6.9.1


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

    __slots__ = ("_consumed", "granted", "size")

    def __init__(self, size: int = WINDOW) -> None:
        self.size = size
        self.granted = size
        self._consumed = 0

    def received(self, count: int) -> None:
        """Count bytes that arrived. Raises CreditOverrun."""
        if count > self.granted:
            raise CreditOverrun(f"{count} bytes with a credit of {self.granted}")
        self.granted -= count

    def consumed(self, count: int) -> int:
        """Count bytes that the local socket took; return how many to grant now, often 0."""
        self._consumed += count
        if self.granted + self._consumed > self.size:
            raise LocalError("more consumed than received")
        if self._consumed * 2 < self.size:
            return 0
        grant = self._consumed
        self._consumed = 0
        self.granted += grant
        return grant

"""Bounds that many tunnels share: how much a process keeps of what it sent and of what it got.

Each tunnel has a bound of its own; a thousand tunnels would still be a thousand times that. So the
process has one, too, and what a tunnel takes counts against both. Numbers only: nothing is reserved
or handed out here.
"""

from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Limits", "Memory", "Pool"]


class Pool:
    """Bytes in use by all tunnels of a process, and how many there may be."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one tunnel may use. Sizes in bytes."""

    max_streams: int = 1_000
    #: Sent and not acknowledged: kept for sending again.
    resend_buffer: int = 16 * 1024 * 1024
    #: The largest window that a stream's credit grows to.
    max_window: int = 16 * 1024 * 1024
    #: Received by streams, and not yet taken by the sockets that it is for.
    max_buffered: int = 128 * 1024 * 1024


class Holder(Protocol):
    """A session, as one of those that hold bytes for slow readers."""

    @property
    def buffered(self) -> int:
        """Bytes held."""

    def shed(self) -> None:
        """Give up the stream that holds most."""


@dataclass(slots=True, kw_only=True)
class Memory:
    """The bounds of a process, shared by its tunnels. Sizes in bytes."""

    #: Kept for sending again.
    resend: Pool = field(default_factory=lambda: Pool(256 * 1024 * 1024))
    #: Received and not yet passed on.
    buffered: Pool = field(default_factory=lambda: Pool(512 * 1024 * 1024))
    #: Credit granted beyond every stream's first window: it may become ``buffered`` at any time.
    promised: Pool = field(default_factory=lambda: Pool(256 * 1024 * 1024))
    holders: set[Holder] = field(default_factory=set)

    def shed(self) -> None:
        """While too much is held, have the tunnel that holds most give a stream up."""
        while self.buffered.used > self.buffered.limit:
            max(self.holders, key=_buffered).shed()


def _buffered(holder: Holder) -> int:
    return holder.buffered

"""Requests that wait for an inner layer, in the order in which they came.

They are served in a turn of their own: whoever tells of an inner layer that is back, or of a stream
that has ended, is in the middle of something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IDelayedCall, IReactorTime

if TYPE_CHECKING:
    from sockgw.outer.relay import Relay

__all__ = ["Held"]

# Seconds. A tunnel whose carrier was congested takes streams again without telling anybody.
_LOOK_AGAIN = 0.1


class Held:
    """A queue of relays.

    ``serve`` gets all of them, first come first, takes out whom it serves with :meth:`discard`, and
    returns whether it may be able to serve another one soon without :meth:`wake` being called.
    """

    def __init__(
        self, clock: IReactorTime, most: int, serve: Callable[[Iterable[Relay]], bool]
    ) -> None:
        self._clock = clock
        self._most = most
        self._on_wake = serve
        self._call: IDelayedCall | None = None
        self._soon = False  # the call comes in the next turn
        #: Who waits; a dict for its order.
        self.relays: dict[Relay, None] = {}

    def add(self, relay: Relay) -> bool:
        """Let it wait; return False where too many do already."""
        if len(self.relays) >= self._most:
            return False
        self.relays[relay] = None
        return True

    def discard(self, relay: Relay) -> None:
        """It waits no longer."""
        self.relays.pop(relay, None)

    def wake(self) -> None:
        """There may be an inner layer for somebody."""
        if self.relays and not self._soon:
            self.stop()
            self._soon = True
            self._call = self._clock.callLater(0, self._serve)

    def stop(self) -> None:
        """Leave no timer behind."""
        self._soon = False
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _serve(self) -> None:
        self._call = None
        self._soon = False
        if self._on_wake(list(self.relays)) and self.relays and self._call is None:
            self._call = self._clock.callLater(_LOOK_AGAIN, self._serve)

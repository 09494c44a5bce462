"""Coarse deadlines for many connections with one timer.

A timer per request would cost more than parsing the request. Here a deadline is an attribute that
its owner moves as often as it likes, and one sweep looks at all of them a few times a second; a
deadline is therefore met within one tick after it passes, never before.
"""

from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

__all__ = ["Deadlines", "Expiring"]

_log = Logger()


class Expiring(Protocol):
    """What can be watched."""

    deadline: float | None
    """When to expire, in seconds of :attr:`Deadlines.now`; None for never."""

    def expired(self) -> None:
        """The deadline has passed. Called at each tick until it is moved or the owner discarded."""


class Deadlines:
    """A set of deadlines swept every ``tick`` seconds while there are any."""

    def __init__(self, clock: IReactorTime, tick: float = 0.25) -> None:
        self._clock = clock
        self._tick = tick
        self._watched: set[Expiring] = set()
        self._timer: IDelayedCall | None = None
        #: The clock's time at the last tick, in seconds: cheap to read on the hot path, and true
        #: while anything is watched.
        self.now: float = clock.seconds()

    def watch(self, item: Expiring) -> None:
        """Look at the item's deadline from now on."""
        self._watched.add(item)
        if self._timer is None:
            self.now = self._clock.seconds()
            self._timer = self._clock.callLater(self._tick, self._sweep)

    def discard(self, item: Expiring) -> None:
        """Forget the item."""
        self._watched.discard(item)

    def after(self, seconds: float) -> float:
        """Return the deadline that lies so many seconds ahead, never early by a tick."""
        if self._timer is None:  # nothing is watched, so nothing keeps the time
            self.now = self._clock.seconds()
        return self.now + seconds + self._tick

    def _sweep(self) -> None:
        self._timer = None
        self.now = now = self._clock.seconds()
        late = [
            item for item in self._watched if item.deadline is not None and item.deadline <= now
        ]
        for item in late:
            # Expiring one item may have ended another.
            if item in self._watched:
                try:
                    item.expired()
                except Exception:  # noqa: BLE001 - the others must not wait for ever for its sake
                    self._watched.discard(item)
                    _log.failure("a deadline's owner failed")
        if self._watched and self._timer is None:
            self._timer = self._clock.callLater(self._tick, self._sweep)

    def stop(self) -> None:
        """Forget everything and leave no timer behind."""
        self._watched.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

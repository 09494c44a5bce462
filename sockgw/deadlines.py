"""Coarse deadlines for many connections with one timer.

A timer per request would cost more than parsing the request. Here a deadline is an attribute that
its owner moves as often as it likes, without a word to anybody. A sweep looks at those that may be
due soon a few times a second; a deadline is therefore met within one tick after it passes, never
before. Those that are far off, as of ten thousand idle clients, are looked at in turn, each at
least once in ``NEAR`` seconds: before anything that is set meanwhile can be due, unless it is
shorter. Whoever sets a shorter one says for whom; else all are looked at until it has passed.
"""

from math import inf
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

__all__ = ["NEAR", "Deadlines", "Expiring"]

_log = Logger()

NEAR = 10.0  # seconds; a deadline that lies further ahead is far off
_ROUND = NEAR / 2  # seconds from one look at all that are far off to the next: see _next_of_round


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
        self._near: set[Expiring] = set()  # looked at at each tick
        self._far: set[Expiring] = set()
        self._round: list[Expiring] = []  # of the far ones, those that are still to be looked at
        self._portion = 0  # how many of them at each tick
        self._hasty = 0.0  # until then any may be due
        self._timer: IDelayedCall | None = None
        #: The clock's time at the last tick, in seconds: cheap to read on the hot path, and true
        #: while anything is watched.
        self.now: float = clock.seconds()

    def watch(self, item: Expiring) -> None:
        """Look at the item's deadline from now on."""
        self._near.add(item)
        if self._timer is None:
            self.now = self._clock.seconds()
            self._timer = self._clock.callLater(self._tick, self._sweep)

    def discard(self, item: Expiring) -> None:
        """Forget the item."""
        self._near.discard(item)
        self._far.discard(item)

    @property
    def watched(self) -> set[Expiring]:
        """All that are looked at."""
        return self._near | self._far

    def after(self, seconds: float, item: Expiring | None = None) -> float:
        """Return the deadline that lies so many seconds ahead, never early by a tick.

        ``item`` is what it is for, if that is watched: to be given where it may be short.
        """
        if self._timer is None:  # nothing is watched, so nothing keeps the time
            self.now = self._clock.seconds()
        deadline = self.now + seconds + self._tick
        if seconds < NEAR:
            if item is None:
                self._hasty = max(self._hasty, deadline + self._tick)
            elif item in self._far:
                self._far.discard(item)
                self._near.add(item)
        return deadline

    def patience(self, seconds: float) -> float:
        """Return what to add to :attr:`now`, where something is watched, for what after() says.

        Where that is short, all are looked at from now on: nobody says whose it is.
        """
        if seconds < NEAR:
            self._hasty = inf
        return seconds + self._tick

    def _sweep(self) -> None:
        self._timer = None
        self.now = now = self._clock.seconds()
        soon = now + NEAR
        far = self._far
        near = self._near
        looked_at = list(far) if now <= self._hasty else self._next_of_round()
        arrived = [
            item for item in looked_at if item.deadline is not None and item.deadline <= soon
        ]
        late = []
        left = []
        for item in near:
            deadline = item.deadline
            if deadline is None or deadline > soon:
                left.append(item)
            elif deadline <= now:
                late.append(item)
        near.difference_update(left)
        far.update(left)
        for item in arrived:
            if item in far:
                far.discard(item)
                near.add(item)
                if item.deadline is not None and item.deadline <= now:
                    late.append(item)
        for item in late:
            # Expiring one item may have ended another.
            if item in near or item in far:
                try:
                    item.expired()
                except Exception:  # noqa: BLE001 - the others must not wait for ever for its sake
                    self.discard(item)
                    _log.failure("a deadline's owner failed")
        if (near or far) and self._timer is None:
            self._timer = self._clock.callLater(self._tick, self._sweep)

    def _next_of_round(self) -> list[Expiring]:
        """Return those of the far ones whose turn it is.

        One that has just missed a round is last in the next one at worst: so two of them are
        ``NEAR`` seconds.
        """
        if not self._round and self._far:
            self._round = list(self._far)
            self._portion = int(len(self._round) * self._tick / _ROUND) + 1
        portion = self._round[-self._portion :]
        del self._round[-self._portion :]
        return portion

    def stop(self) -> None:
        """Forget everything and leave no timer behind."""
        self._near.clear()
        self._far.clear()
        self._round.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

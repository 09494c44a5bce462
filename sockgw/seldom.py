"""Log lines that strangers can cause: so many in a while, then only how many there were."""

from collections.abc import Callable

__all__ = ["LIMIT", "PERIOD", "Seldom"]

LIMIT = 10
"""Lines in a period: enough to see what kind of thing it is."""

PERIOD = 60.0
"""Seconds."""


class Seldom:
    """Decides for each event whether it may be logged."""

    def __init__(
        self, seconds: Callable[[], float], limit: int = LIMIT, period: float = PERIOD
    ) -> None:
        self._seconds = seconds
        self._limit = limit
        self._period = period
        self._until = float("-inf")
        self._said = 0
        self._unsaid = 0

    def may(self) -> bool:
        """Count an event; return whether to log it. Then :meth:`rest` belongs in its line."""
        now = self._seconds()
        if now >= self._until:
            self._until = now + self._period
            self._said = 0
        if self._said >= self._limit:
            self._unsaid += 1
            return False
        self._said += 1
        return True

    def rest(self) -> str:
        """Return how many events were left out since the last line, for the end of this one."""
        unsaid, self._unsaid = self._unsaid, 0
        return f" ({unsaid} more like this before)" if unsaid else ""

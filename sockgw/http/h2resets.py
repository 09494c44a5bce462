"""How many streams a client may have end before their time (CVE-2023-44487, CVE-2025-8671).

Work begins with a request and is not undone by its reset, so resets are paid for: from a purse that
is full at first, gets a thirtieth of that back each second, and one with each request that ends
well. It does not matter who sends the reset: there are many ways to make us send it.
"""

from h2.errors import ErrorCodes

from sockgw.http.h2frames import FrameFault

__all__ = ["Resets"]

_REFILLED = 30.0  # seconds in which an empty purse is full again

# Of frames without content so many are forgiven in each second: a long-lived connection pings.
_FORGIVEN = 10


class Resets:
    """The purse of one connection."""

    __slots__ = ("_left", "_most", "_then")

    def __init__(self, most: int, now: float) -> None:
        """Hold ``most``; ``now`` is in seconds."""
        self._most = self._left = float(most)
        self._then = now

    def spend(self) -> None:
        """A stream ends before its time. Raises FrameFault for one too many."""
        self._left -= 1
        if self._left < 0:
            raise FrameFault(ErrorCodes.ENHANCE_YOUR_CALM, "too many streams end before their time")

    def earn(self) -> None:
        """A stream has ended well."""
        self._left = min(self._left + 1, self._most)

    def time_passes(self, now: float) -> int:
        """Return how many frames without content the time until ``now`` makes up for."""
        elapsed = now - self._then
        if elapsed < 1.0:
            return 0
        self._then = now
        self._left = min(self._left + elapsed * self._most / _REFILLED, self._most)
        return int(elapsed * _FORGIVEN)

"""Idle connections to origins: last in, first out, few and not for long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import IReactorTime

from sockgw.deadlines import Deadlines

if TYPE_CHECKING:
    from sockgw.http.client import Origin
    from sockgw.http.originconnection import OriginConnection

__all__ = ["FRESH", "IdleConnections"]

# Seconds of idleness up to which a connection is good enough for a request that must not be sent
# twice. Servers close idle connections after whole seconds (nginx 75, Apache and Node.js 5): within
# the first one the race is practically excluded, and connections under load are still reused.
FRESH = 1.0


class IdleConnections:
    """Connections that wait for their next request, of all origins.

    The one used last is taken first: it is the least likely to have been closed meanwhile, and the
    others get old enough to be let go. Their age is the connection's own deadline; whoever ends
    an idle connection calls :meth:`discard` first.

    Under load there are, from one turn to the next, as many of an origin as requests were under way
    to it. To close them at once because they are too many would be to dial them all again, so the
    oldest of too many are kept for a second. They are never more than were busy within that second.

    :param max_per_origin: over it, the origin's oldest are kept as long as they are fresh; none are
        kept at all where it is 0
    :param max_total: over it, the oldest of all is closed
    """

    def __init__(
        self, clock: IReactorTime, deadlines: Deadlines, max_per_origin: int, max_total: int
    ) -> None:
        self._seconds = clock.seconds
        self._deadlines = deadlines
        self._max_per_origin = max_per_origin
        self._max_total = max_total if max_per_origin else 0
        self._stacks: dict[str, list[OriginConnection]] = {}  # by the origin's key
        self._oldest_first: dict[OriginConnection, None] = {}  # an ordered set

    def __len__(self) -> int:
        return len(self._oldest_first)

    def put(self, connection: OriginConnection) -> None:
        """Keep the connection; part with the oldest where that makes one too many."""
        connection.idle_since = self._seconds()
        key = connection.origin.key
        stack = self._stacks.get(key)
        if stack is None:
            self._stacks[key] = stack = []
        stack.append(connection)
        oldest_first = self._oldest_first
        oldest_first[connection] = None
        surplus = len(stack) - self._max_per_origin
        if surplus > 0:
            # Those below it had their turn when there were fewer.
            oldest = stack[surplus - 1]
            deadline = self._deadlines.after(FRESH, oldest)
            if oldest.deadline is None or oldest.deadline > deadline:
                oldest.deadline = deadline
        if len(oldest_first) > self._max_total:
            oldest = next(iter(oldest_first))
            self.discard(oldest)
            oldest.close()

    def take(self, origin: Origin, max_age: float | None = None) -> OriginConnection | None:
        """Return the connection to that origin used last, which is then no longer kept.

        :param max_age: seconds that it may have been idle at most; None for any time
        """
        stack = self._stacks.get(origin.key)
        if stack is None:
            return None
        if max_age is not None and self._seconds() - stack[-1].idle_since >= max_age:
            return None
        connection = stack.pop()
        if not stack:
            del self._stacks[origin.key]
        del self._oldest_first[connection]
        return connection

    def discard(self, connection: OriginConnection) -> None:
        """Forget the connection, if it is kept."""
        if connection not in self._oldest_first:
            return
        del self._oldest_first[connection]
        key = connection.origin.key
        stack = self._stacks[key]
        stack.remove(connection)
        if not stack:
            del self._stacks[key]

"""Idle connections to origins: last in, first out, few and not for long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import IReactorTime

if TYPE_CHECKING:
    from sockgw.http.client import Origin
    from sockgw.http.originconnection import OriginConnection

__all__ = ["IdleConnections"]


class IdleConnections:
    """Connections that wait for their next request, of all origins.

    The one used last is taken first: it is the least likely to have been closed meanwhile, and the
    others get old enough to be let go. Their age is the connection's own deadline; whoever ends
    an idle connection calls :meth:`discard` first.

    :param max_per_origin: over it, the origin's oldest is closed
    :param max_total: over it, the oldest of all is closed
    """

    def __init__(self, clock: IReactorTime, max_per_origin: int, max_total: int) -> None:
        self._clock = clock
        self._max_per_origin = max_per_origin
        self._max_total = max_total
        self._stacks: dict[Origin, list[OriginConnection]] = {}
        self._oldest_first: dict[OriginConnection, None] = {}  # an ordered set

    def __len__(self) -> int:
        return len(self._oldest_first)

    def put(self, connection: OriginConnection) -> None:
        """Keep the connection; close the oldest where that makes one too many."""
        connection.idle_since = self._clock.seconds()
        stack = self._stacks.get(connection.origin)
        if stack is None:
            stack = self._stacks[connection.origin] = []
        stack.append(connection)
        self._oldest_first[connection] = None
        if len(stack) > self._max_per_origin:
            self._evict(stack[0])
        elif len(self._oldest_first) > self._max_total:
            self._evict(next(iter(self._oldest_first)))

    def take(self, origin: Origin, max_age: float | None = None) -> OriginConnection | None:
        """Return the connection to that origin used last, which is then no longer kept.

        :param max_age: seconds that it may have been idle at most; None for any time
        """
        stack = self._stacks.get(origin)
        if stack is None:
            return None
        if max_age is not None and self._clock.seconds() - stack[-1].idle_since >= max_age:
            return None
        connection = stack.pop()
        if not stack:
            del self._stacks[origin]
        del self._oldest_first[connection]
        return connection

    def discard(self, connection: OriginConnection) -> None:
        """Forget the connection, if it is kept."""
        if connection not in self._oldest_first:
            return
        del self._oldest_first[connection]
        stack = self._stacks[connection.origin]
        stack.remove(connection)
        if not stack:
            del self._stacks[connection.origin]

    def _evict(self, connection: OriginConnection) -> None:
        self.discard(connection)
        connection.close()

"""A set that tells when it is empty: how a service waits for those who are about to leave."""

from collections.abc import Iterator
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred

__all__ = ["Crowd"]

_T = TypeVar("_T")


class Crowd(Generic[_T]):
    """Members come and go in any order."""

    def __init__(self) -> None:
        self._members: set[_T] = set()
        self._waiting: list[Deferred[None]] = []

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[_T]:
        """Iterate over those who are there now."""
        return iter(list(self._members))

    def add(self, member: _T) -> None:
        """A member comes."""
        self._members.add(member)

    def discard(self, member: _T) -> None:
        """A member goes, if it was there."""
        self._members.discard(member)
        if not self._members:
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.callback(None)

    def emptied(self) -> Deferred[None]:
        """Return what fires once nobody is left. It may be cancelled."""
        waiting: Deferred[None] = Deferred()
        if self._members:
            self._waiting.append(waiting)
        else:
            waiting.callback(None)
        return waiting

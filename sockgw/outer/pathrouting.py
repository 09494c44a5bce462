"""Path routing: which target of a host a request is for, and as which path it goes there.

A route's prefix is compared segment by segment, the longest one wins. Compared is what servers read
in a segment: escapes decoded, so that ``/c%2B%2B/`` is for ``/c++`` as it would be at the origin.
Where a segment has parameters, a server that drops them (Servlets do) reads another path than one
that does not: if the two would lead to different targets, the request is refused.

The path that comes in is in normal form (:mod:`sockgw.outer.paths`), and so is the one that goes
out. That one is what the target's policy judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from urllib.parse import unquote_to_bytes

from sockgw.outer.paths import PathRefused, Resolved, resolve
from sockgw.outer.targets import Target

__all__ = ["Paths", "segments"]

_PARAMETERS = (";", "%3B")


def segments(path: str) -> tuple[str, ...]:
    """Return the segments of a path in normal form as they are compared; of ``/`` none."""
    return tuple(map(_decoded, path.rstrip("/").split("/")[1:]))


def _decoded(segment: str) -> str:
    return unquote_to_bytes(segment).decode("latin-1") if "%" in segment else segment


class _Node:
    """A place in the tree of prefixes; below it, by their next segment, those that are longer."""

    __slots__ = ("below", "route")

    def __init__(self) -> None:
        self.below: dict[str, _Node] = {}
        self.route: _Route | None = None


class _Route:
    """A target, and what becomes of a path on the way to it."""

    __slots__ = ("_added", "_stripped", "target")

    def __init__(self, target: Target) -> None:
        self.target = target
        self._stripped = len(segments(target.strip_prefix))
        self._added = target.add_prefix

    def to_origin(self, resolved: Resolved) -> Resolved:
        """Return the path as the origin gets it, with the query as it came."""
        if not (self._stripped or self._added):
            return resolved
        path = resolved.path
        start = 0
        # A prefix that matched may be spelled in other ways than ours, with as many segments.
        for _ in range(self._stripped):
            start = path.find("/", start + 1)
        rest = path[start:] if start >= 0 else ""
        changed = self._added + rest or "/"
        return Resolved(changed, changed.encode("ascii") + resolved.target[len(path) :])


class Paths:
    """The targets of one host, found in a time that does not depend on how many there are."""

    __slots__ = ("_depth", "_rest", "_root", "_targets", "name")

    protocol = "http"  #: as a target's: of HTTP alone the gateway sees paths

    def __init__(self, name: str, rest: Target | None, targets: Iterable[Target]) -> None:
        """``name`` is the host's, as in the file; ``rest`` has what no prefix stands for."""
        self.name = name
        self._root = _Node()
        self._rest = None if rest is None else _Route(rest)
        self._root.route = self._rest
        self._targets = tuple(targets) if rest is None else (rest, *targets)
        self._depth = 0
        for target in self._targets:
            if target is rest:
                continue
            node = self._root
            prefix = segments(target.prefix)
            self._depth = max(self._depth, len(prefix))
            for segment in prefix:
                node = node.below.setdefault(segment, _Node())
            node.route = _Route(target)
            if not prefix:
                self._rest = node.route

    def __iter__(self) -> Iterator[Target]:
        return iter(self._targets)

    def match(self, request_target: bytes) -> tuple[Target, Resolved] | None:
        """Return the target for a request target, and the path with which it goes there.

        None where there is no such target. Raises PathRefused.
        """
        resolved = resolve(request_target)
        path = resolved.path
        if path == "*":  # about the server as a whole (RFC 9112, section 3.2.4)
            return None if self._rest is None else (self._rest.target, resolved)
        route = self._find(path)
        if any(mark in path for mark in _PARAMETERS) and route is not self._find(path, bare=True):
            raise PathRefused("the path is ambiguous")
        return None if route is None else (route.target, route.to_origin(resolved))

    def _find(self, path: str, *, bare: bool = False) -> _Route | None:
        """Return the route of the longest prefix; ``bare`` is without parameters."""
        node = self._root
        route = node.route
        for segment in path.split("/", self._depth + 1)[1 : self._depth + 1]:
            key = _decoded(segment)
            below = node.below.get(key.partition(";")[0] if bare else key)
            if below is None:
                break
            node = below
            route = node.route or route
        return route

"""What the names of a head's fields tell, worked out once: heads repeat.

A client sends the same fields in the same order with each request, and an origin with each answer.
Which of them end at a hop, and where those stand whose values matter, follows from the names alone.
So it is remembered by the names as they are spelled, and a head costs one look-up where each
question would be a walk over its fields. What a value decides is looked at each time.
"""

from itertools import compress
from operator import itemgetter

from sockgw.http.headers import HOP_BY_HOP, TE_TRAILERS, USUAL_OPTIONS, end_to_end, lower
from sockgw.protocol.heads import Headers

__all__ = ["FRAMING", "Shape", "name_of", "shapes"]

# Strangers could fill what is remembered; then it begins anew. Of names as they are in use a shape
# takes some 2 KiB.
_MAX_SHAPES = 512
_MAX_NAMES = 64
_MAX_SIZE = 2_048  # bytes of a shape's names

# What a server decides for itself, whatever an application says.
FRAMING = frozenset(
    (
        b"connection",
        b"content-length",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"upgrade",
    )
)

#: The name of a field: ``shapes[tuple(map(name_of, headers))]`` is the shape of a head.
name_of = itemgetter(0)


class Shape:
    """A head, but for its values. Fields are given by their places in the head."""

    __slots__ = (
        "_connections",
        "_passes",
        "_te_last",
        "_unframed",
        "codings",
        "dated",
        "hosts",
        "keys",
        "lengths",
        "te",
    )

    def __init__(self, names: tuple[bytes, ...]) -> None:
        """Raises ValueError for a bad name."""
        keys = [lower(name) for name in names]
        self._connections = _places(keys, b"connection")
        passes = [key not in HOP_BY_HOP for key in keys]
        te = _places(keys, b"te")
        # As our other layer sends it: there it passes, if its value is ours, too.
        self._te_last = te == (len(keys) - 1,) and names[-1] == TE_TRAILERS[0]
        if self._te_last:
            passes[-1] = True
        self._passes = None if all(passes) else tuple(passes)
        self.codings = _places(keys, b"transfer-encoding")
        self.lengths = _places(keys, b"content-length")
        unframed = [key not in FRAMING for key in keys]
        self._unframed = None if all(unframed) else tuple(unframed)
        #: The names in lower case.
        self.keys = frozenset(keys)
        #: Whether there is any Date.
        self.dated = b"date" in keys
        self.hosts = len(_places(keys, b"host"))
        #: Whether there is any TE.
        self.te = bool(te)

    def unframed(self, headers: Headers) -> Headers:
        """Return a list of those fields that say nothing about framing and the connection."""
        unframed = self._unframed
        return list(headers) if unframed is None else list(compress(headers, unframed))

    def end_to_end(self, headers: Headers) -> Headers:
        """Return those fields of a head of this shape that pass; see :func:`.headers.end_to_end`.

        The very list where all do.
        """
        for place in self._connections:
            if headers[place][1].lower() not in USUAL_OPTIONS:
                return end_to_end(headers)
        if self.te and not (self._te_last and headers[-1] == TE_TRAILERS):
            return end_to_end(headers)
        passes = self._passes
        return headers if passes is None else list(compress(headers, passes))


def _places(keys: list[bytes], name: bytes) -> tuple[int, ...]:
    return tuple(place for place, key in enumerate(keys) if key == name)


class _Shapes(dict[tuple[bytes, ...], Shape]):
    """The shapes of heads, by the names in them. Raises ValueError for a bad name."""

    def __missing__(self, names: tuple[bytes, ...]) -> Shape:
        shape = Shape(names)
        if len(names) <= _MAX_NAMES and sum(map(len, names)) <= _MAX_SIZE:
            if len(self) >= _MAX_SHAPES:
                self.clear()
            self[names] = shape
        return shape


shapes = _Shapes()

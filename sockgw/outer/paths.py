"""The path that a policy judges is the path that the origin gets.

Servers disagree about dot segments, empty segments, percent-escapes and path parameters. A policy
that looks at one reading while the origin acts on another can be walked around. So the path is
brought to its normal form first (RFC 3986, section 6.2.2), and that form is both matched and sent;
what has no form that all origins read alike is refused.

Empty segments are merged: ``//admin`` becomes ``/admin``. Kept, they would walk around
``^/(?:[^a]|a[^d])`` at every origin that merges them itself (nginx, Tomcat and Go's ServeMux do).
Refused, they would break the many clients that join ``http://host/`` and ``/path``. Nobody who
needs ``//`` to arrive is harmed where no policy stands: such targets get their bytes untouched.
"""

import re
from typing import NamedTuple

__all__ = ["MAX_PATH", "PathRefused", "Resolved", "resolve"]

MAX_PATH = 8192
"""Bytes in a path: as much as nginx and Apache take for a request line. It bounds matching, too."""

# Printable ASCII; no fragment, which is none of a request target's parts (RFC 9112, section 3.2).
# In the path no backslash either, which Windows servers and browsers take for a slash.
_PATH = re.compile(rb'/[!"$-\[\]-~]*')
_QUERY = re.compile(rb'[!"$-~]*')

# Paths that are in normal form as they stand: most.
_NORMAL = re.compile(rb"(?:/[A-Za-z0-9_~!$&'()*+,:=@-][A-Za-z0-9_~!$&'()*+,:=@.-]*)+/?|/")

_ESCAPE = re.compile(rb"%.{0,2}")
_UNRESERVED = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"


def _escapes() -> dict[bytes, bytes]:
    """Return every spelling of every escape that may stand in a path, with its normal form."""
    table = {}
    for code in range(0x20, 0x100):
        if code in b"/\\\x7f":
            continue
        escape = b"%%%02X" % code
        normal = bytes((code,)) if code in _UNRESERVED else escape
        high, low = escape[1:2], escape[2:3]
        for a in {high, high.lower()}:
            for b in {low, low.lower()}:
                table[b"%" + a + b] = normal
    return table


_ESCAPES = _escapes()

# Looked for once escapes are in normal form, so that `%25%32e` is seen as `%252e`.
_AMBIGUOUS = re.compile(
    rb"%25[0-9A-Fa-f]{2}"  # escaped twice: a second decoder behind the first finds an escape
    rb"|%C[01]%[89AB]|%E0%[89]|%F0%8"  # overlong UTF-8 (RFC 3629, section 3): a hidden ASCII byte
    rb"|/\.{0,2}(?:;|%3B)"  # Java servers drop parameters first: `/..;x/` is `/../`, `/;x/` is `//`
)


class PathRefused(ValueError):
    """The request target could mean different paths to different servers; answer with 400."""


class Resolved(NamedTuple):
    """A request target in normal form."""

    path: str  #: what a policy matches: ASCII, without the query
    target: bytes  #: what is sent to the origin: the same path with the query as it came


_ASTERISK = Resolved("*", b"*")


def resolve(target: bytes) -> Resolved:
    """Return the normal form of a request target in origin-form, or of ``*``.

    Escapes of unreserved characters are decoded and the others upper-cased (RFC 3986, sections
    6.2.2.1 and 6.2.2.2), empty segments merged, dot segments removed (section 5.2.4). The query
    stays as it is. Raises PathRefused, whose text may be shown to the client.
    """
    path, mark, query = target.partition(b"?")
    if len(path) > MAX_PATH:
        raise PathRefused("the path is too long")
    if not _QUERY.fullmatch(query):
        raise PathRefused("the query holds a character that is not allowed")
    if not _NORMAL.fullmatch(path):
        if target == b"*":
            return _ASTERISK
        path = _normalised(path)
        target = path + mark + query
    return Resolved(path.decode("ascii"), target)


def _normalised(path: bytes) -> bytes:
    if not _PATH.fullmatch(path):
        raise PathRefused("the path holds a character that is not allowed, or starts without /")
    path = _ESCAPE.sub(_normal_escape, path)
    if _AMBIGUOUS.search(path):
        raise PathRefused("the path is ambiguous")
    kept: list[bytes] = []
    segments = path.split(b"/")
    for segment in segments:
        if segment == b"..":
            if kept:
                kept.pop()
        elif segment and segment != b".":
            kept.append(segment)
    if segments[-1] in (b"", b".", b".."):
        kept.append(b"")  # what ends in a directory goes on to do so
    return b"/" + b"/".join(kept)


def _normal_escape(match: re.Match[bytes]) -> bytes:
    normal = _ESCAPES.get(match[0])
    if normal is None:
        raise PathRefused(
            "the path holds a percent-escape that is malformed, or that stands for a slash, a"
            " backslash or a control character"
        )
    return normal

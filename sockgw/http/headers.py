"""Header fields: which are well-formed, which stop at a hop, and how they are written.

Both layers distrust each other, so heads that came through the tunnel are checked here as strictly
as llhttp checks those that came from a socket.
"""

import re

from sockgw.protocol.heads import Headers

__all__ = [
    "HOP_BY_HOP",
    "TE_TRAILERS",
    "USUAL_OPTIONS",
    "check_text",
    "connection_options",
    "end_to_end",
    "get",
    "lower",
    "lowered",
    "serialize",
    "upgrades_to",
    "write_head",
]

# RFC 9110, section 7.6.1, with Proxy-* of section 11.7 and obsolete ones still seen in the wild.
# Trailer is none: trailers pass, and what announces them with them.
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")  # RFC 9110, section 5.6.2
# What may stand in a line (section 5.5): no controls but HTAB.
_TEXT = bytes(code for code in range(256) if code == 9 or (code >= 32 and code != 127))

# Names repeat from request to request: a look-up instead of a match and a copy. Strangers could
# fill what is remembered; then it begins anew, or the names in use would have no place in it.
_MAX_KNOWN_NAMES = 1024


class _Lowered(dict[bytes, bytes]):
    """Names in lower case, by names as they are spelled."""

    def __missing__(self, name: bytes) -> bytes:
        if not _TOKEN.fullmatch(name):
            raise ValueError("bad header name")
        if len(self) >= _MAX_KNOWN_NAMES:
            self.clear()
        self[name] = result = name.lower()
        return result


#: ``lowered[name]`` is :func:`lower` without its call, for the loops that every request takes.
lowered = _Lowered()


def lower(name: bytes) -> bytes:
    """Return a field name in lower case.

    Raises ValueError where it is no token (RFC 9110, section 5.1).
    """
    return lowered[name]


def get(headers: Headers, name: bytes) -> bytes | None:
    """Return the value of the first field of that name, which is given in lower case."""
    for key, value in headers:
        if lowered[key] == name:
            return value
    return None


def connection_options(headers: Headers) -> set[bytes]:
    """Return what all ``Connection`` fields list, in lower case (RFC 9110, section 7.6.1)."""
    options: set[bytes] = set()
    for key, value in headers:
        if lower(key) == b"connection":
            options.update(option.strip(b" \t").lower() for option in value.split(b","))
    options.discard(b"")
    return options


#: All that we say with TE.
TE_TRAILERS = (b"TE", b"trailers")

#: What nearly every Connection field says; it names no other field.
USUAL_OPTIONS = frozenset((b"close", b"keep-alive"))


def end_to_end(headers: Headers, also: frozenset[bytes] = frozenset()) -> Headers:
    """Return the fields that pass a gateway: neither hop-by-hop nor named by ``Connection``.

    Of ``TE`` passes that trailers are welcome (RFC 9110, section 10.1.4), as we pass them on.
    ``also`` names further fields to leave out, in lower case. Raises ValueError for a bad name.
    """
    result: Headers = []
    named = trailers = False
    for field in headers:
        name = lowered[field[0]]
        if name in HOP_BY_HOP:
            if name == b"connection":
                named |= field[1].lower() not in USUAL_OPTIONS
            elif name == b"te" and b"trailers" in field[1].lower():
                trailers = True
        elif name not in also:
            result.append(field)
    if named:
        options = connection_options(headers)
        result = [field for field in result if lower(field[0]) not in options]
    if trailers:
        result.append(TE_TRAILERS)
    return result


def upgrades_to(given: bytes, asked: bytes) -> bool:
    """Whether a 101 with this ``Upgrade`` answers a request with that one (RFC 9110, section 7.8).

    Protocols are compared without regard to case, of their names as of their versions.
    """
    wanted = {protocol.strip(b" \t").lower() for protocol in asked.split(b",")} - {b""}
    got = {protocol.strip(b" \t").lower() for protocol in given.split(b",")} - {b""}
    return bool(got) and got <= wanted


def check_text(headers: Headers) -> None:
    """Raise ValueError where a control character stands in a value (RFC 9110, section 5.5)."""
    if b"".join([value for _, value in headers]).translate(None, _TEXT):
        raise ValueError("control character in a header value")


def serialize(start_line: bytes, headers: Headers) -> bytes:
    """Return a head as it goes on the wire, with its empty line.

    Raises ValueError where a name is no token or a control character stands in a value.
    """
    for name, _ in headers:
        lower(name)
    return write_head(start_line, headers)


def write_head(start_line: bytes, headers: Headers, end: bytes = b"\r\n\r\n") -> bytes:
    """Return a head whose names are known to be good, with ``end`` behind the last field.

    Raises ValueError where a control character stands in a value.
    """
    block = b"\r\n".join((start_line, *map(b": ".join, headers)))
    # One look at the whole block: no controls but exactly the line ends that we wrote ourselves. It
    # costs a hundredth of a match per value.
    if block.translate(None, _TEXT) != b"\r\n" * len(headers):
        raise ValueError("control character in a head")
    return block + end

"""What a request to an origin must be like, whatever version of HTTP carries it.

It came through the tunnel, so it is checked as if a stranger had sent it.
"""

import re

from sockgw.http.headers import HOP_BY_HOP, lower
from sockgw.http.shapes import Shape, name_of, shapes
from sockgw.protocol.heads import Headers, RequestHead

__all__ = ["MAX_HELD", "body_length", "clean", "only_trailers"]

# Bytes of a request held for sending again, and bytes held while dialling before the caller is
# asked to pause. As much as a Twisted transport buffers before it pauses its producer.
MAX_HELD = 65_536

# RFC 9110, section 6.5.1: framing, routing, authentication, request modifiers, content format.
_NO_TRAILERS = HOP_BY_HOP | frozenset(
    (
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"expect",
        b"forwarded",
        b"host",
        b"max-forwards",
        b"range",
    )
)

_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")  # RFC 9110, section 9.1: a token
# RFC 9112, section 3.2: origin-form or the asterisk, of visible ASCII without a fragment. An
# absolute target would have an origin that is a proxy, too, go on to places that nobody allowed.
_TARGET = re.compile(rb"/[\x21\x22\x24-\x7e]*|\*")
_LENGTH = re.compile(rb"[0-9]{1,18}")  # RFC 9110, section 8.6; below 2**63

# Method and target of requests that were fit to be sent: those in use are asked for again. Neither
# has a space in it, so that the one between them says where both end.
_known: set[bytes] = set()
_MAX_KNOWN = 1_024
_MAX_KNOWN_SIZE = 256  # bytes of one


def clean(head: RequestHead, host: bytes) -> Shape:
    """Leave in the head what goes to an origin, with ``host`` if it has no Host, and say its shape.

    Raises ValueError for bad names and for a second Host.
    """
    headers = head.headers
    shape = shapes[tuple(map(name_of, headers))]
    passed = shape.end_to_end(headers)
    if passed is not headers:
        shape = shapes[tuple(map(name_of, passed))]
    if shape.hosts != 1:
        if shape.hosts:
            raise ValueError("two Host fields")
        passed = [(b"Host", host), *passed]
        shape = shapes[tuple(map(name_of, passed))]
    head.headers = passed
    return shape


def body_length(head: RequestHead, shape: Shape, complete: bool) -> int | None:
    """Return the length of the body that its head announces, in bytes; None where it does not.

    The head is a clean one of that shape. ``complete`` says that no body follows. Raises ValueError
    where the method, the target or the framing is not fit to be sent; values of fields are for
    their writer to check.
    """
    request = head.method + b" " + head.target
    if request not in _known:
        _check(head.method, head.target)
        if len(request) <= _MAX_KNOWN_SIZE:
            if len(_known) >= _MAX_KNOWN:
                _known.clear()
            _known.add(request)
    length = None
    for place in shape.lengths:
        value = head.headers[place][1]
        if length is not None or not _LENGTH.fullmatch(value):
            raise ValueError("bad Content-Length")
        length = int(value)
    if complete:
        if length:
            raise ValueError("Content-Length without a body")
        return 0
    return length


def _check(method: bytes, target: bytes) -> None:
    if method == b"CONNECT" or not _METHOD.fullmatch(method):
        raise ValueError("bad method")
    if not _TARGET.fullmatch(target):
        raise ValueError("bad target")


def only_trailers(trailers: Headers | None) -> Headers:
    """Return those fields that may stand behind a body (RFC 9110, section 6.5.1).

    Raises ValueError for a bad name.
    """
    return [field for field in trailers or () if lower(field[0]) not in _NO_TRAILERS]

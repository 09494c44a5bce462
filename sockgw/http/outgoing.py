"""What a request to an origin must be like, whatever version of HTTP carries it.

It came through the tunnel, so it is checked as if a stranger had sent it.
"""

import re

from sockgw.http.headers import HOP_BY_HOP, lower
from sockgw.protocol.heads import Headers, RequestHead

__all__ = ["MAX_HELD", "body_length", "only_trailers"]

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


def body_length(head: RequestHead, complete: bool) -> int | None:
    """Return the length of the body that its head announces, in bytes; None where it does not.

    ``complete`` says that no body follows. Raises ValueError where the method, the target or the
    framing is not fit to be sent; names and values of fields are for their writer to check.
    """
    if head.method == b"CONNECT" or not _METHOD.fullmatch(head.method):
        raise ValueError("bad method")
    if not _TARGET.fullmatch(head.target):
        raise ValueError("bad target")
    length = None
    for name, value in head.headers:
        key = name.lower()
        if key == b"transfer-encoding":
            raise ValueError("Transfer-Encoding is not the caller's")
        if key == b"content-length":
            if length is not None or not _LENGTH.fullmatch(value):
                raise ValueError("bad Content-Length")
            length = int(value)
    if complete:
        if length:
            raise ValueError("Content-Length without a body")
        return 0
    return length


def only_trailers(trailers: Headers | None) -> Headers:
    """Return those fields that may stand behind a body (RFC 9110, section 6.5.1).

    Raises ValueError for a bad name.
    """
    return [field for field in trailers or () if lower(field[0]) not in _NO_TRAILERS]

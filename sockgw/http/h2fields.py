"""Header fields as HTTP/2 has them, towards origins (RFC 9113, section 8).

They are checked here and not by h2, for which a malformed response is the end of the connection,
with everybody else's streams on it. It is the end of one stream (section 8.1.1).
"""

import re
from collections.abc import Iterable
from http import HTTPStatus

from hpack import HeaderTuple, NeverIndexedHeaderTuple

from sockgw.http.headers import check_text, lower
from sockgw.protocol.heads import Headers, RequestHead

__all__ = [
    "MalformedResponse",
    "announced_length",
    "as_trailers",
    "read_response",
    "read_trailers",
    "request_fields",
]

Fields = list[tuple[bytes, bytes]]

# Section 8.2.2. TE is ours to send; Host goes as :authority.
_CONNECTION = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
_NOT_SENT = _CONNECTION | {b"te", b"host", b"http2-settings"}

# RFC 7541, section 7.1.3: kept out of all tables, and marked so for whoever passes them on.
_SECRET = frozenset((b"authorization", b"proxy-authorization"))
_SHORT_COOKIE = 20  # bytes; shorter ones could be guessed

_STATUS = re.compile(rb"[1-5][0-9]{2}")
_LENGTH = re.compile(rb"[0-9]{1,18}")

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


class MalformedResponse(ValueError):
    """A response that is none."""


def request_fields(head: RequestHead, scheme: bytes) -> Fields:
    """Return the fields of a request, which has Host.

    Trailers are always welcome: gRPC cannot do without, and who asked us may leave them away.
    Raises ValueError for names and values that cannot be sent.
    """
    authority = b""
    fields: Fields = []
    for name, value in head.headers:
        key = lower(name)
        value = value.strip(b" \t")  # section 8.2.1
        if key == b"host":
            authority = value
        elif key in _SECRET or (key == b"cookie" and len(value) < _SHORT_COOKIE):
            fields.append(NeverIndexedHeaderTuple(key, value))
        elif key not in _NOT_SENT:
            fields.append((key, value))
    fields.append((b"te", b"trailers"))
    result = [
        (b":method", head.method),
        (b":scheme", scheme),
        (b":authority", authority),
        (b":path", head.target),
        *fields,
    ]
    check_text(result)
    return result


def as_trailers(trailers: Headers) -> Fields:
    """Return trailers as they are sent. Raises ValueError as :func:`request_fields`."""
    fields = [(lower(name), value.strip(b" \t")) for name, value in trailers]
    fields = [field for field in fields if field[0] not in _NOT_SENT]
    check_text(fields)
    return fields


def read_response(fields: Iterable[HeaderTuple]) -> tuple[int, bytes, Headers]:
    """Return the status, its usual phrase, and the other fields of a response's head.

    Raises MalformedResponse.
    """
    rest = _plain(fields)
    name, status = rest[0] if rest else (b"", b"")
    if name != b":status" or not _STATUS.fullmatch(status):
        raise MalformedResponse("a response without a valid :status")
    del rest[0]
    _check(rest)
    number = int(status)
    return number, _PHRASES.get(number, b""), rest


def read_trailers(fields: Iterable[HeaderTuple]) -> Headers:
    """Return the fields of trailers. Raises MalformedResponse."""
    trailers = _plain(fields)
    _check(trailers)
    return trailers


def announced_length(headers: Headers) -> int | None:
    """Return the length of the body that a response announces. Raises MalformedResponse."""
    length = None
    for name, value in headers:
        if name == b"content-length":
            if length is not None or not _LENGTH.fullmatch(value):
                raise MalformedResponse("bad content-length")
            length = int(value)
    return length


def _plain(fields: Iterable[HeaderTuple]) -> Headers:
    return [(field[0], field[1]) for field in fields]


def _check(headers: Headers) -> None:
    try:
        for name, value in headers:
            # Of which a colon is no part, so no pseudo-header field comes through either.
            if lower(name) != name:
                raise MalformedResponse("a header name in upper case")
            if name in _CONNECTION:
                raise MalformedResponse(f"{name.decode()} in HTTP/2")
            if value != value.strip(b" \t"):
                raise MalformedResponse("a header value with space around it")
        check_text(headers)
    except MalformedResponse:
        raise
    except ValueError as error:
        raise MalformedResponse(str(error)) from None

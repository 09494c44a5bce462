"""Requests as HTTP/2 has them (RFC 9113, section 8; RFC 8441), made into those of HTTP/1.1.

They are checked here and not by h2, for which a malformed request is the end of the connection,
with everybody else's streams on it: a proxy's connection carries many users. It is the end of one
stream (section 8.1.1). What HTTP/1.1 clients are refused with a status is so here as well.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from hpack import HeaderTuple

from sockgw.http.framing import HttpError, check_host, check_method, same_authority
from sockgw.http.headers import check_text, lower
from sockgw.protocol.heads import Headers, RequestHead

__all__ = ["MalformedRequest", "Request", "read_request", "read_trailers"]

# Section 8.2.2. TE may say that trailers are welcome, and nothing else.
_CONNECTION = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))
_LENGTH = re.compile(rb"[0-9]{1,18}")
_PATH = re.compile(rb"/[\x21\x22\x24-\x7e]*")  # without a fragment, as in HTTP/1.1
_WEBSOCKET = b"websocket"
# Of the key we are in charge (RFC 8441, section 5), and CONNECT has no content to speak of.
_NOT_FOR_WEBSOCKET = frozenset((b"sec-websocket-key", b"content-length", b"expect"))


class MalformedRequest(ValueError):
    """A request that is none: its stream ends with PROTOCOL_ERROR."""


@dataclass(slots=True)
class Request:
    """A request's head, and what it says about what follows."""

    head: RequestHead
    host: bytes  #: b"" where it names none
    length: int | None  #: of the body in bytes, where it is announced
    expects_continue: bool


def read_request(fields: Iterable[HeaderTuple], max_size: int, max_count: int) -> Request:
    """Return the request that these fields are.

    An extended CONNECT for a WebSocket becomes the GET that HTTP/1.1 has for it, without a key.
    ``max_size`` (bytes, as HTTP/1.1 would write the head) and ``max_count`` are for the header
    fields. Raises MalformedRequest; HttpError for what is answered with a status.
    """
    pseudo, headers = _split(fields)
    method = pseudo.get(b":method")
    scheme = pseudo.get(b":scheme")
    path = pseudo.get(b":path")
    protocol = pseudo.get(b":protocol")
    if not method:
        raise MalformedRequest("no :method")
    if method == b"CONNECT" and protocol is None:
        if scheme is not None or path is not None:
            raise MalformedRequest("CONNECT with :scheme or :path")
        check_method(method)
    if scheme is None or not path:
        raise MalformedRequest("no :scheme or :path")
    if protocol is not None and method != b"CONNECT":
        raise MalformedRequest(":protocol without CONNECT")
    size = len(method) + len(path) + 12
    size += sum(len(name) + len(value) + 4 for name, value in headers)
    if size > max_size:
        raise HttpError(431, "the request's header fields are too large")
    if len(headers) > max_count:
        raise HttpError(431, "too many header fields")
    host, length, expects_continue, headers = _examine(headers)
    if scheme not in (b"http", b"https"):
        raise HttpError(400, "the scheme is neither http nor https")
    authority = pseudo.get(b":authority")
    if authority is not None:
        # Section 8.3.1: they must not differ.
        if host is not None and not same_authority(scheme, host, authority):
            raise MalformedRequest("Host is not :authority")
        host = authority
    if host is None:
        raise HttpError(400, "no Host")
    check_host(host)
    if not _PATH.fullmatch(path) and not (path == b"*" and method == b"OPTIONS"):
        raise HttpError(400, "invalid request target")
    upgrade = b""
    if protocol is not None:
        if protocol.lower() != _WEBSOCKET:
            raise HttpError(501, "the only protocol for CONNECT here is websocket")
        if length:
            raise MalformedRequest("CONNECT with content")
        method, upgrade = b"GET", _WEBSOCKET
        headers = [field for field in headers if field[0] not in _NOT_FOR_WEBSOCKET]
        length, expects_continue = None, False
    else:
        check_method(method)
    head = RequestHead(method, path, headers, upgrade)
    return Request(head, host, length, expects_continue)


def read_trailers(fields: Iterable[HeaderTuple]) -> Headers:
    """Return the fields of trailers. Raises MalformedRequest."""
    pseudo, trailers = _split(fields)
    if pseudo:
        raise MalformedRequest("a pseudo-header field in trailers")
    return trailers


def _split(fields: Iterable[HeaderTuple]) -> tuple[dict[bytes, bytes], Headers]:
    """Return pseudo-header fields, which come first and once, and the others."""
    pseudo: dict[bytes, bytes] = {}
    headers: Headers = []
    cookies: list[bytes] = []
    for field in fields:
        name, value = field[0], field[1]
        if name[:1] == b":":
            if headers or cookies or name in pseudo or name not in _PSEUDO:
                raise MalformedRequest("a pseudo-header field that has no business there")
            if value.strip(b" \t") != value:
                raise MalformedRequest("a pseudo-header field with space around it")
            pseudo[name] = value
            continue
        try:
            if lower(name) != name:
                raise MalformedRequest("a header name in upper case")
        except MalformedRequest:
            raise
        except ValueError as error:
            raise MalformedRequest(str(error)) from None
        if name in _CONNECTION:
            raise MalformedRequest("a header field of one connection")
        if value != value.strip(b" \t"):
            raise MalformedRequest("a header value with space around it")
        if name == b"te" and value.lower() != b"trailers":
            raise MalformedRequest("TE with something else than trailers")
        if name == b"cookie":
            cookies.append(value)
        else:
            headers.append((name, value))
    if cookies:
        headers.append((b"cookie", b"; ".join(cookies)))  # section 8.2.3
    try:
        check_text([*pseudo.items(), *headers])
    except ValueError as error:
        raise MalformedRequest(str(error)) from None
    return pseudo, headers


def _examine(headers: Headers) -> tuple[bytes | None, int | None, bool, Headers]:
    """Return Host, Content-Length, whether 100 is expected, and all fields but Host.

    Host is left out as :authority is none of them.
    """
    host: bytes | None = None
    length: int | None = None
    expects_continue = False
    rest: Headers = []
    for name, value in headers:
        if name == b"host":
            if host is not None:
                raise MalformedRequest("more than one Host")
            host = value
            continue
        if name == b"content-length":
            if length is not None or not _LENGTH.fullmatch(value):
                raise MalformedRequest("bad content-length")
            length = int(value)
        elif name == b"expect":
            if value.lower() != b"100-continue":
                raise HttpError(417, "only 100-continue can be expected")
            expects_continue = True
        rest.append((name, value))
    return host, length, expects_continue, rest

"""What the head of a request must be like before anybody acts on it.

llhttp refuses most of what is malformed: both lengths, more than one, obs-fold, bare line ends,
control characters, bad names. What it lets pass although RFC 9112 forbids it, and what a gateway
cannot do, is refused here, so that nobody behind us can read a request in another way than we did.
"""

import re
from functools import lru_cache

from sockgw.http.headers import lower, lowered
from sockgw.protocol.heads import Headers

__all__ = [
    "CHUNKED",
    "HttpError",
    "check_host",
    "check_method",
    "examine",
    "same_authority",
    "split_target",
    "wanted_upgrade",
]

#: In the place of a Content-Length: the body is chunked.
CHUNKED = -1


class HttpError(Exception):
    """A request that is refused: with which status, and why in words for the client."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


# llhttp also speaks RTSP and ICE and does not say which it was; these methods exist only there.
_OTHER_PROTOCOLS = (
    b"ANNOUNCE DESCRIBE FLUSH GET_PARAMETER PAUSE PLAY RECORD REDIRECT SETUP SET_PARAMETER SOURCE "
    b"TEARDOWN PRI"
)
_REFUSED_METHODS = {
    b"CONNECT": (501, "this gateway opens no tunnels: CONNECT is not implemented"),
    # RFC 9110, section 9.3.8: what it would echo, credentials among it, is nobody's business.
    b"TRACE": (501, "TRACE is not implemented"),
    **dict.fromkeys(_OTHER_PROTOCOLS.split(), (505, "this is not HTTP")),
}

_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")  # RFC 9110, section 9.1: a token

_WATCHED = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))

# RFC 9110, section 7.2 and RFC 3986, section 3.2, as far as names in use need it: no user part, no
# sub-delims (a comma would make it a list), no percent-encoding, no zone in an IPv6 address.
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{0,5}))?")
_MAX_PORT = 65535

# RFC 9110, section 7.8: names and versions, both tokens. 256 bytes are the wire's bound.
_UPGRADE = re.compile(rb"(?=.{1,256}\Z)[!#$%&'*+\-.^_`|~0-9A-Za-z/, ]+")

_ABSOLUTE = re.compile(rb"(https?)://([^/?]*)([^?]*)(\?.*)?", re.IGNORECASE | re.DOTALL)
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}


@lru_cache(maxsize=1024)  # entries are short: what is refused raises, and is not kept
def check_host(value: bytes) -> bytes:
    """Return a Host field's value unchanged; raise HttpError where it is none."""
    match = _HOST.fullmatch(value)
    if match is None or (match[1] and int(match[1]) > _MAX_PORT):
        raise HttpError(400, "invalid Host")
    return value


def check_method(method: bytes) -> None:
    """Raise HttpError for a method that is not for us, or is none. llhttp knows the second."""
    if method in _REFUSED_METHODS:
        raise HttpError(*_REFUSED_METHODS[method])
    if not _METHOD.fullmatch(method):
        raise HttpError(400, "invalid method")


def examine(
    method: bytes, target: bytes, version: str, headers: Headers
) -> tuple[bytes, bytes, int, bool]:
    """Return the target in origin-form, the host, the body's length and whether 100 is expected.

    The host is b"" where an HTTP/1.0 request names none. The length is in bytes, or CHUNKED. Raises
    HttpError for what RFC 9112 forbids or this server does not do.
    """
    if version != "1.1" and version != "1.0":
        raise HttpError(505, "this server speaks HTTP/1.1 and HTTP/1.0")
    if method in _REFUSED_METHODS:
        raise HttpError(*_REFUSED_METHODS[method])
    host: bytes | None = None
    length: int | None = None
    expects_continue = False
    for name, value in headers:
        try:
            key = lowered[name]
        except ValueError:  # llhttp has seen to the characters
            raise HttpError(431, "a header field's name is too long") from None
        if key not in _WATCHED:
            continue
        if key == b"host":
            if host is not None:
                raise HttpError(400, "more than one Host")
            host = check_host(value)
        elif key == b"expect":
            if version == "1.1":  # HTTP/1.0: ignored, RFC 9110, section 10.1.1
                if value.lower() != b"100-continue":
                    raise HttpError(417, "only 100-continue can be expected")
                expects_continue = True
        elif length is not None:
            raise HttpError(400, "more than one statement of the body's length")
        elif key == b"content-length":
            if not value.isdigit():
                raise HttpError(400, "invalid Content-Length")
            length = int(value)
        elif version == "1.0":  # RFC 9112, section 6.1: faulty framing
            raise HttpError(400, "Transfer-Encoding in HTTP/1.0")
        elif value.lower() != b"chunked":
            raise HttpError(501, "the only transfer coding here is chunked")
        else:
            length = CHUNKED
    if host is None and version == "1.1":
        raise HttpError(400, "no Host")
    if not target.startswith(b"/") or b"#" in target:
        scheme, authority, target = split_target(method, target)
        if scheme:
            if host is not None and not same_authority(scheme, authority, host):
                raise HttpError(400, "the Host is not the target's")
            host = authority
    length = length or 0
    return target, host or b"", length, expects_continue and length != 0


def split_target(method: bytes, target: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the scheme and authority of an absolute-form target, and its origin-form.

    Scheme and authority are b"" for the asterisk (RFC 9112, section 3.2). Raises HttpError for a
    target that is neither.
    """
    if b"#" in target:
        raise HttpError(400, "a fragment in the request target")
    if target == b"*":
        if method != b"OPTIONS":
            raise HttpError(400, "the target * belongs to OPTIONS")
        return b"", b"", target
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise HttpError(400, "invalid request target")
    scheme, authority, path, query = match.groups()
    check_host(authority)
    if not path:
        # Section 3.2.4: the last proxy turns an empty path of OPTIONS into the asterisk.
        path = b"*" if method == b"OPTIONS" and query is None else b"/"
    return scheme.lower(), authority, path + (query or b"")


def same_authority(scheme: bytes, one: bytes, other: bytes) -> bool:
    """Return whether two authorities are the same, with the default port of http or https."""
    default = _DEFAULT_PORTS[scheme]
    return _without_port(one, default) == _without_port(other, default)


def _without_port(authority: bytes, default: bytes) -> bytes:
    return authority.lower().removesuffix(default).removesuffix(b":")


def wanted_upgrade(headers: Headers) -> bytes:
    """Return the protocols that ``Upgrade`` fields list, but ``h2c``; b"" for no others.

    A server may ignore an upgrade (RFC 9110, section 7.8), and ``h2c`` comes from clients that only
    try their luck (obsolete since RFC 9113, section 3.1). What an origin would do with it cannot be
    filtered. Raises HttpError for what is no list of protocols.
    """
    wanted = []
    for name, value in headers:
        if lower(name) == b"upgrade":
            for protocol in value.split(b","):
                protocol = protocol.strip(b" \t")
                if protocol.lower() not in (b"h2c", b""):
                    wanted.append(protocol)
    value = b", ".join(wanted)
    if value and not _UPGRADE.fullmatch(value):
        raise HttpError(400, "invalid Upgrade")
    return value

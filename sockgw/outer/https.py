"""What tells clients that a host is for https: redirects, and HSTS (RFC 6797)."""

import re

from sockgw.http.forwarded import ClientView
from sockgw.http.headers import lower
from sockgw.outer.challenges import PREFIX
from sockgw.protocol.heads import Headers, RequestHead, ResponseHead

__all__ = ["Https"]

_PORT = re.compile(rb":[0-9]*$")
_HSTS = b"strict-transport-security"


class Https:
    """The rules for all hosts of a process.

    ``port`` is where https is, 0 for no redirects; ``hsts`` what browsers shall remember, b"" for
    nothing.
    """

    __slots__ = ("_hsts", "_port")

    def __init__(self, port: int = 0, hsts: bytes = b"") -> None:
        self._port = port
        self._hsts = hsts

    def redirect(self, head: RequestHead, view: ClientView) -> ResponseHead | None:
        """Return what sends a client to https, where it should go there.

        301 for GET and HEAD, which everything understands; 308 for what must keep its method and
        body. The host must have been found to be one of a target. A challenge for a certificate is
        asked for in clear.
        """
        if not self._port or view.proto == b"https" or not view.host:
            return None
        if head.target.startswith(PREFIX):
            return None
        host = _PORT.sub(b"", view.host)
        port = b"" if self._port == 443 else b":%d" % self._port
        path = b"/" if head.target == b"*" else head.target
        fields = [(b"Location", b"https://%b%b%b" % (host, port, path)), (b"Content-Length", b"0")]
        if head.method in (b"GET", b"HEAD"):
            return ResponseHead(301, b"Moved Permanently", fields)
        return ResponseHead(308, b"Permanent Redirect", fields)

    def mark(self, headers: Headers, proto: bytes) -> None:
        """Add what browsers shall remember to an answer, unless the origin says something else.

        Over http it would mean nothing (section 7.2).
        """
        if self._hsts and proto == b"https" and all(lower(name) != _HSTS for name, _ in headers):
            headers.append((b"Strict-Transport-Security", self._hsts))

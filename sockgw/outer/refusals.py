"""What the gateway answers by itself: statuses, reasons and ``Proxy-Status`` (RFC 9209).

The reason names what kind of thing failed, for whoever waits for the answer. What exactly failed,
with names and addresses of the private network, stands in the log and on the admin page.
"""

import json
from dataclasses import dataclass
from http import HTTPStatus

from sockgw.http.headers import get
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.heads import Headers, ResponseHead

__all__ = [
    "BAD_HEAD",
    "BUSY",
    "MISDIRECTED",
    "NO_INNER_LAYER",
    "NO_PATH",
    "NO_TARGET",
    "TOO_MANY_HELD",
    "Refusal",
    "answer",
    "for_reset",
]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer of the gateway's own."""

    status: int
    reason: str
    error: str  #: the error type of RFC 9209, section 2.3
    retry_after: int | None = None  #: seconds


NO_TARGET = Refusal(404, "no target has this host name", "destination_not_found")
NO_PATH = Refusal(404, "no target of this host has this path", "destination_not_found")
# RFC 9110, section 15.5.20; a client that reused a connection made for another name tries again.
MISDIRECTED = Refusal(
    421, "this host is reached by a TLS connection of its own", "destination_not_found"
)
NO_INNER_LAYER = Refusal(
    502, "no inner layer for this target is connected", "destination_unavailable"
)
BUSY = Refusal(503, "the inner layers are at their limits", "connection_limit_reached", 1)
TOO_MANY_HELD = Refusal(
    503, "too many requests wait for an inner layer", "connection_limit_reached", 1
)
BAD_HEAD = Refusal(400, "the request's head cannot be forwarded", "http_request_error")

_BY_CODE = {
    StreamCode.DNS_ERROR: Refusal(502, "the target's name cannot be resolved", "dns_error"),
    StreamCode.CONNECTION_REFUSED: Refusal(
        502, "the target refused the connection", "connection_refused"
    ),
    StreamCode.CONNECTION_TIMEOUT: Refusal(
        504, "the target did not take the connection in time", "connection_timeout"
    ),
    StreamCode.UNREACHABLE: Refusal(
        502, "the target cannot be reached", "destination_ip_unroutable"
    ),
    StreamCode.TLS_ERROR: Refusal(
        502, "no secure connection to the target could be made", "tls_certificate_error"
    ),
    StreamCode.NOT_ALLOWED: Refusal(
        502, "the inner layer does not allow this target", "destination_ip_prohibited"
    ),
    StreamCode.UNKNOWN_SERVICE: Refusal(
        502, "the inner layer does not know this service", "destination_not_found"
    ),
    StreamCode.ORIGIN_CLOSED: Refusal(
        502, "the target closed the connection without a whole answer", "http_response_incomplete"
    ),
    StreamCode.ORIGIN_MALFORMED: Refusal(
        502, "the target's answer is not valid HTTP", "http_protocol_error"
    ),
    StreamCode.TOO_LARGE: Refusal(
        502, "the target's answer has too large a head", "http_response_header_section_size"
    ),
    StreamCode.RESPONSE_TIMEOUT: Refusal(
        504, "the target did not answer in time", "http_response_timeout"
    ),
    StreamCode.IDLE_TIMEOUT: Refusal(
        504, "the target has fallen silent", "connection_read_timeout"
    ),
    StreamCode.REFUSED: Refusal(
        503, "the inner layer takes no further requests", "connection_limit_reached", 1
    ),
    StreamCode.TUNNEL_LOST: Refusal(
        502, "the connection to the inner layer was lost", "connection_terminated"
    ),
}
_INTERNAL = Refusal(502, "the gateway could not forward this", "proxy_internal_error")


def for_reset(code: StreamCode) -> Refusal:
    """Return what a client is told whose stream was reset before its answer began."""
    return _BY_CODE.get(code, _INTERNAL)


def answer(
    refusal: Refusal, request_headers: Headers, request_id: str
) -> tuple[ResponseHead, bytes]:
    """Return head and body: plain text, or RFC 9457's JSON where the client accepts JSON."""
    accept = get(request_headers, b"accept") or b""
    phrase = HTTPStatus(refusal.status).phrase
    if b"application/json" in accept or b"application/problem+json" in accept:
        kind = b"application/problem+json"
        problem = {
            "title": phrase,
            "status": refusal.status,
            "detail": refusal.reason,
            "request_id": request_id,
        }
        body = json.dumps(problem).encode() + b"\n"
    else:
        kind = b"text/plain; charset=utf-8"
        body = refusal.reason.encode() + b"\n"
    headers = [
        (b"Content-Type", kind),
        (b"Content-Length", str(len(body)).encode()),
        (b"Cache-Control", b"no-store"),
        (b"X-Content-Type-Options", b"nosniff"),
        (b"Proxy-Status", f"sockgw; error={refusal.error}".encode()),
        (b"X-Request-ID", request_id.encode()),
    ]
    if refusal.retry_after is not None:
        headers.append((b"Retry-After", str(refusal.retry_after).encode()))
    return ResponseHead(refusal.status, phrase.encode(), headers), body

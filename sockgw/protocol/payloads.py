"""The payloads of OPEN, HEAD, CREDIT, RESET, ACK and GOAWAY.

Heads are MessagePack maps with text keys; unknown keys are ignored, so that versions may differ.
Whatever is malformed raises ValueError: the session turns it into an error of the stream.
"""

from dataclasses import dataclass
from itertools import chain
from struct import Struct
from typing import Any

import msgpack

from sockgw.protocol.errors import StreamCode, TunnelCode
from sockgw.protocol.frames import MAX_HEAD, MAX_REASON
from sockgw.protocol.heads import Headers, RequestHead, ResponseHead

__all__ = [
    "Destination",
    "decode_goaway",
    "decode_head",
    "decode_open",
    "decode_reset",
    "encode_goaway",
    "encode_open",
    "encode_reset",
    "encode_response",
    "encode_trailers",
    "u32",
    "u64",
]

u32 = Struct(">I")
u64 = Struct(">Q")
_reset = Struct(">H")
_goaway = Struct(">IH")

MAX_FIELDS = 1_000  # header fields in a head; each layer's own limit is far lower
_KEYS = 16  # keys in a map: twice what is known, for later versions


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a stream goes: an origin by its URL's parts, or a service that only the inner layer
    can place.

    Either ``service`` is empty, or ``hostname`` and ``socket`` are and ``port`` is 0.
    """

    #: "http", "https", "tcp" or "udp". With a service what is wanted of it: "" is HTTP.
    protocol: str = ""
    hostname: str = ""
    port: int = 0
    service: str = ""
    #: The path of the Unix socket to dial in place of host name and port.
    socket: str = ""
    #: The origin is to be spoken to in HTTP/2.
    http2: bool = False

    @property
    def raw(self) -> bool:
        """Whether the stream carries bytes, and no requests."""
        return self.protocol in _RAW


_ORIGIN = (str, str, int)  # protocol, host name, port
_HTTP = frozenset(("http", "https"))
_RAW = frozenset(("tcp", "udp"))
_OVER_SOCKETS = frozenset(("http", "tcp"))
_CONNECT = b"CONNECT"
_MAX_UPGRADE = 256  # bytes of an Upgrade field
_MAX_SOCKET = 107  # bytes of a Unix socket's path: sun_path of Linux, without its end

_packer = msgpack.Packer(use_bin_type=True, autoreset=True)
_pack = _packer.pack


def _unpack(payload: bytes) -> dict[str, Any]:
    try:
        fields = msgpack.unpackb(
            payload,
            raw=False,
            use_list=False,
            strict_map_key=True,
            max_str_len=1_024,
            max_bin_len=MAX_HEAD,
            max_array_len=MAX_FIELDS,
            max_map_len=_KEYS,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(f"not a map in MessagePack ({type(error).__name__})") from error
    if type(fields) is not dict:
        raise ValueError("not a map")
    return fields


def _headers(fields: dict[str, Any]) -> Headers:
    headers = fields.get("headers", ())
    if type(headers) is not tuple:
        raise ValueError("headers are no array")
    # Sets of what there is: the loops run in C, for every head that crosses a tunnel.
    if headers and not (
        set(map(type, headers)) == {tuple}
        and set(map(len, headers)) == {2}
        and set(map(type, chain.from_iterable(headers))) == {bytes}
    ):
        raise ValueError("a header is no pair of byte strings")
    return list(headers)


def _origin(value: object, protocols: frozenset[str]) -> tuple[str, str, int]:
    # The types of all at once, before any has a name: True is no number here.
    if type(value) is tuple and tuple(map(type, value)) == _ORIGIN:
        protocol, hostname, port = value
        if protocol in protocols and hostname and 0 < port < 65_536:
            return protocol, hostname, port
    raise ValueError("bad origin")


def _destination(fields: dict[str, Any]) -> Destination:
    http2 = fields.get("http2", False)
    if type(http2) is not bool:
        raise ValueError("bad http2")
    service = fields.get("service")
    if service is not None:
        protocol = fields.get("protocol", "")
        if type(service) is not str or not service or "to" in fields or "socket" in fields:
            raise ValueError("bad service")
        if type(protocol) is not str or (protocol and protocol not in _RAW):
            raise ValueError("bad protocol")
        return Destination(protocol, service=service, http2=http2)
    socket = fields.get("socket", "")
    protocol, hostname, port = _origin(fields.get("to"), _HTTP | _RAW)
    if type(socket) is not str:
        raise ValueError("bad socket")
    if socket and not (protocol in _OVER_SOCKETS and _is_socket(socket)):
        raise ValueError("bad socket")
    return Destination(protocol, hostname, port, socket=socket, http2=http2)


def _is_socket(path: str) -> bool:
    # Printable: it stands in logs.
    return path.startswith("/") and path.isprintable() and len(path.encode()) <= _MAX_SOCKET


def encode_open(head: RequestHead, to: Destination) -> bytes:
    """Return the payload of OPEN: a request head, and where it goes."""
    fields: dict[str, Any] = {}
    if not to.raw:
        fields["method"] = head.method
        fields["target"] = head.target
        fields["headers"] = head.headers
        if head.upgrade:
            fields["upgrade"] = head.upgrade
    if to.service:
        fields["service"] = to.service
        if to.protocol:
            fields["protocol"] = to.protocol
    else:
        fields["to"] = (to.protocol, to.hostname, to.port)
        if to.socket:
            fields["socket"] = to.socket
    if to.http2:
        fields["http2"] = True
    return _pack(fields)  # type: ignore[no-any-return]


def decode_open(payload: bytes) -> tuple[RequestHead, Destination]:
    """Return what :func:`encode_open` was given. Raises ValueError."""
    fields = _unpack(payload)
    to = _destination(fields)
    if to.raw:
        return RequestHead(_CONNECT, b"", []), to
    method = fields.get("method")
    target = fields.get("target")
    if type(method) is not bytes or type(target) is not bytes or not method or not target:
        raise ValueError("method or target is missing")
    return RequestHead(method, target, _headers(fields), _upgrade(fields)), to


def _upgrade(fields: dict[str, Any]) -> bytes:
    upgrade = fields.get("upgrade", b"")
    if type(upgrade) is not bytes or len(upgrade) > _MAX_UPGRADE:
        raise ValueError("bad upgrade")
    return upgrade


def encode_response(head: ResponseHead) -> bytes:
    """Return the payload of HEAD for an interim (1xx) or final response."""
    fields: dict[str, Any] = {
        "status": head.status,
        "reason": head.reason,
        "headers": head.headers,
    }
    if head.origin is not None:
        fields["origin"] = head.origin
    if head.upgrade:
        fields["upgrade"] = head.upgrade
    return _pack(fields)  # type: ignore[no-any-return]


def encode_trailers(trailers: Headers) -> bytes:
    """Return the payload of HEAD for trailers."""
    return _pack({"headers": trailers})  # type: ignore[no-any-return]


def decode_head(payload: bytes) -> ResponseHead | Headers:
    """Return a response head, or a list where there is no status: trailers. Raises ValueError."""
    fields = _unpack(payload)
    headers = _headers(fields)
    if "status" not in fields:
        return headers
    status = fields["status"]
    reason = fields.get("reason", b"")
    if type(status) is not int or not 100 <= status <= 599 or type(reason) is not bytes:
        raise ValueError("bad status")
    origin = _origin(fields["origin"], _HTTP) if "origin" in fields else None
    return ResponseHead(status, reason, headers, origin, _upgrade(fields))


def _text(detail: str) -> bytes:
    return detail.encode("utf-8", "replace")[:MAX_REASON]


def encode_reset(code: StreamCode, detail: str) -> bytes:
    """Return the payload of RESET. The detail is cut at 512 bytes."""
    return _reset.pack(code) + _text(detail)


def decode_reset(payload: bytes) -> tuple[StreamCode, str]:
    """Return code and detail; an unknown code is taken as INTERNAL_ERROR."""
    (number,) = _reset.unpack_from(payload)
    try:
        code = StreamCode(number)
    except ValueError:
        code = StreamCode.INTERNAL_ERROR
    return code, payload[_reset.size :].decode("utf-8", "replace")


def encode_goaway(last_stream: int, code: TunnelCode, detail: str) -> bytes:
    """Return the payload of GOAWAY."""
    return _goaway.pack(last_stream, code) + _text(detail)


def decode_goaway(payload: bytes) -> tuple[int, TunnelCode, str]:
    """Return the last stream that was accepted, code and detail."""
    last, number = _goaway.unpack_from(payload)
    try:
        code = TunnelCode(number)
    except ValueError:
        code = TunnelCode.INTERNAL_ERROR
    return last, code, payload[_goaway.size :].decode("utf-8", "replace")

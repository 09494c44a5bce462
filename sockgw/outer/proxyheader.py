"""The header of the PROXY protocol, by which an origin learns who its client is.

Versions 1 (text) and 2 (binary) of HAProxy's specification, "The PROXY protocol", sections 2.1 and
2.2. It goes first in the stream, before the client's bytes.
"""

from ipaddress import IPv4Address, ip_address
from struct import pack
from typing import Any

from sockgw.http.networks import canonical, host_and_port

__all__ = ["proxy_header"]

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_PROXY = 0x21  # version 2, command PROXY
_UNSPEC, _TCP4, _TCP6 = 0x00, 0x11, 0x21


def proxy_header(version: int, transport: Any) -> bytes:
    """Return the header for a client's transport; without addresses where it has no IP address."""
    addresses = _addresses(transport)
    if addresses is None:
        if version == 1:
            return b"PROXY UNKNOWN\r\n"
        return _SIGNATURE + pack(">BBH", _PROXY, _UNSPEC, 0)
    (client, client_port), (own, own_port) = addresses
    is_v4 = isinstance(client, IPv4Address)
    if version == 1:
        family = "TCP4" if is_v4 else "TCP6"
        return f"PROXY {family} {client} {own} {client_port} {own_port}\r\n".encode("ascii")
    body: bytes = client.packed + own.packed + pack(">HH", client_port, own_port)
    return _SIGNATURE + pack(">BBH", _PROXY, _TCP4 if is_v4 else _TCP6, len(body)) + body


def _addresses(transport: Any) -> tuple[tuple[Any, int], tuple[Any, int]] | None:
    """Return the client's and our own address, of one family; None for what has none."""
    found = []
    for socket in (transport.getPeer(), transport.getHost()):
        host, port = host_and_port(socket)
        try:
            found.append((ip_address(canonical(host)), port))
        except ValueError:
            return None
    client, own = found
    # Behind a load balancer one may have come by IPv6, and the other be our own socket's.
    return (client, own) if client[0].version == own[0].version else None

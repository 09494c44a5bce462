"""The heads of requests and responses, as the wire and the HTTP code share them."""

from dataclasses import dataclass

__all__ = ["Headers", "RequestHead", "ResponseHead"]

Headers = list[tuple[bytes, bytes]]
"""Header fields in their order, duplicates kept, names as they were spelled."""


@dataclass(slots=True)
class RequestHead:
    """A request line and its header section.

    ``method`` and ``target`` stand as in the request line: ``target`` is the origin-form, the path
    with its query (RFC 9112, section 3.2.1), or ``*``. ``upgrade`` is the client's ``Upgrade``
    where the connection is to be switched to another protocol (RFC 9110, section 7.8), else b"".
    A stream of bytes alone, as of TCP, has CONNECT and an empty target.
    """

    method: bytes
    target: bytes
    headers: Headers
    upgrade: bytes = b""


@dataclass(slots=True)
class ResponseHead:
    """A status line and its header section.

    ``origin`` is the protocol, host name and port of the server that answered, where only the inner
    layer knows it (a target that names a service); the gateway rewrites that origin in headers.
    ``upgrade`` is the ``Upgrade`` of a 101: what the connection is from now on.
    """

    status: int
    reason: bytes
    headers: Headers
    origin: tuple[str, str, int] | None = None
    upgrade: bytes = b""

    @property
    def interim(self) -> bool:
        """Whether another head follows: 1xx but 101 (RFC 9110, section 15.2)."""
        return self.status < 200 and self.status != 101

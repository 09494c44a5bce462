"""The heads of requests and responses, as the wire and the HTTP code share them."""

from dataclasses import dataclass

__all__ = ["Headers", "RequestHead", "ResponseHead"]

Headers = list[tuple[bytes, bytes]]
"""Header fields in their order, duplicates kept, names as they were spelled."""


@dataclass(slots=True)
class RequestHead:
    """A request line and its header section.

    ``method`` and ``target`` stand as in the request line: ``target`` is the origin-form, the path
    with its query (RFC 9112, section 3.2.1), or ``*``.
    """

    method: bytes
    target: bytes
    headers: Headers


@dataclass(slots=True)
class ResponseHead:
    """A status line and its header section.

    ``origin`` is the protocol, host name and port of the server that answered, where only the inner
    layer knows it (a target that names a service); the gateway rewrites that origin in headers.
    """

    status: int
    reason: bytes
    headers: Headers
    origin: tuple[str, str, int] | None = None

"""Routes: targets, with what is derived from them once and not for each request."""

from dataclasses import dataclass

from sockgw.http.rewriting import Prefixes, Rewriter
from sockgw.outer.targets import HTTP, Target
from sockgw.protocol.payloads import Destination

__all__ = ["Route", "route_to"]


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests for a target go, and how its answers are rewritten."""

    target: Target
    destination: Destination
    #: None for a service, whose origin the inner layer tells, and where there are no headers.
    rewriter: Rewriter | None
    #: How paths differ between client and origin, for that rewriter; None: they do not.
    prefixes: Prefixes | None = None
    #: What the origin is told of that; b"": nothing.
    forwarded_prefix: bytes = b""


def route_to(target: Target) -> Route:
    """Return the route to a target."""
    strip, add = target.strip_prefix.encode(), target.add_prefix.encode()
    prefixes = Prefixes(strip, add) if strip or add else None
    # Passed through, TLS is a connection like any other.
    protocol = "tcp" if target.protocol == "tls" else target.protocol
    if target.service is not None:
        wanted = "" if protocol in HTTP else protocol
        to = Destination(wanted, service=target.service, http2=target.http2)
        return Route(target, to, None, prefixes, strip)
    to = Destination(
        protocol, target.hostname, target.port, socket=target.socket, http2=target.http2
    )
    if protocol not in HTTP:
        return Route(target, to, None)
    rewriter = Rewriter(protocol.encode(), target.hostname.encode(), target.port, prefixes)
    return Route(target, to, rewriter, prefixes, strip)

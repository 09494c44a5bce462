"""Routes: targets, with what is derived from them once and not for each request."""

from dataclasses import dataclass

from sockgw.http.rewriting import Rewriter
from sockgw.outer.targets import Target
from sockgw.protocol.payloads import Destination

__all__ = ["Route", "route_to"]


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests for a target go, and how its answers are rewritten."""

    target: Target
    destination: Destination
    rewriter: Rewriter | None  #: None for a service, whose origin the inner layer tells


def route_to(target: Target) -> Route:
    """Return the route to a target."""
    if target.service is not None:
        return Route(target, Destination(service=target.service), None)
    return Route(
        target,
        Destination(target.protocol, target.hostname, target.port),
        Rewriter(target.protocol.encode(), target.hostname.encode(), target.port),
    )

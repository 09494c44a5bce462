"""cloudflared (Go): named, so that nobody misses it; it has no server to run here."""

from __future__ import annotations

from collections.abc import Mapping

from bench.contestants import Address, Contestant, Room, Route
from bench.processes import Failed

__all__ = ["Cloudflared"]


class Cloudflared(Contestant):
    """The client half alone is published: its other half is Cloudflare's edge on the Internet.

    "Quick tunnels" go there too, and its option to dial another edge is for Cloudflare's own
    test environment. So it is never run, whether it is installed or not.
    """

    name = "cloudflared"
    encrypts = True
    carries = "HTTP/2 over TLS, or QUIC"

    def missing(self) -> str | None:
        return (
            "its other half is Cloudflare's edge on the Internet, quick tunnels included; there is "
            "none to run on this machine"
        )

    def launch(self, room: Room, origins: Mapping[str, Address]) -> Mapping[str, Route]:
        raise Failed(str(self.missing()))

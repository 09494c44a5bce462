"""wstunnel (Rust): a WebSocket over TLS for each connection of a client."""

from __future__ import annotations

from collections.abc import Mapping

from bench.contestants import Address, Contestant, Room, Route

__all__ = ["Wstunnel"]

_LONG = "24h"
"""It stops listening for clients when none of them has come for a while: for 3 min by default,
which may pass until its next turn."""


class Wstunnel(Contestant):
    """Reverse TCP tunnels; the certificate is the one that it brings along, as by default."""

    name = "wstunnel"
    encrypts = True
    carries = "a WebSocket over TLS for each connection of a client"
    needs = ("wstunnel",)

    def launch(self, room: Room, origins: Mapping[str, Address]) -> Mapping[str, Route]:
        wstunnel = self.program("wstunnel")
        url = f"wss://127.0.0.1:{room.port()}"
        room.start(
            "server",
            [
                *(wstunnel, "--log-lvl", "ERROR", "server"),
                *("--remote-to-local-server-idle-timeout", _LONG, url),
            ],
        )
        room.wait_listening(int(url.rpartition(":")[2]))
        routes = {name: Route(Address(room.port())) for name in origins}
        tunnels = [
            word
            for name, origin in origins.items()
            for word in ("-R", f"tcp://{routes[name].address}:{origin}")
        ]
        room.start("client", [wstunnel, "--log-lvl", "ERROR", "client", *tunnels, url])
        return routes

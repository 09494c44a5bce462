"""socket-gateway (Node.js): the gateway whose command line and targets file sockgw understands."""

from __future__ import annotations

import json
from collections.abc import Mapping

from bench.contestants import Address, Contestant, Room, Route, version_of

__all__ = ["SocketGateway"]

_REACHED = ("web", "sink")


class SocketGateway(Contestant):
    """Both layers with all defaults: neither has TLS of its own, requests are not restricted.

    It removes ``Upgrade`` from requests, so it offers no way to the origin for WebSockets. Both
    layers print a line for each request, which cannot be switched off. It listens on all addresses.
    """

    name = "socket-gateway"
    carries = "Socket.IO over a WebSocket, plain"
    needs = ("socket-gateway",)

    def versions(self) -> dict[str, str]:
        node = self.programs.find("node")
        return {**super().versions(), **({"node": version_of(node)} if node else {})}

    def launch(self, room: Room, origins: Mapping[str, Address]) -> Mapping[str, Route]:
        gateway = self.program("socket-gateway")
        room.call(gateway, "certificates")
        hosts = {name: f"{name}.test" for name in origins if name in _REACHED}
        targets = {
            host: {"protocol": "http", "hostname": origins[name].host, "port": origins[name].port}
            for name, host in hosts.items()
        }
        room.write("targets.yaml", json.dumps({"targets": targets}))
        app, socket = room.port(), room.port()
        room.start(
            "outer",
            [
                *(gateway, "outer-layer", "--public-key", "innerLayer.crt"),
                *("--targets", "targets.yaml"),
                *("--app-port", str(app), "--socket-port", str(socket)),
            ],
        )
        room.wait_listening(socket)
        room.start(
            "inner",
            [
                *(gateway, "inner-layer", "--private-key", "innerLayer.key"),
                *("--outer-layer", f"ws://127.0.0.1:{socket}"),
            ],
        )
        return {name: Route(Address(app), host) for name, host in hosts.items()}

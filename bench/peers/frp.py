"""frp (Go): TCP connections as yamux streams over one TLS connection."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bench.contestants import Address, Contestant, Room, Route

__all__ = ["Frp"]

_POOL = 100
"""Streams that are opened in advance, so that a new connection need not wait for its own."""


class Frp(Contestant):
    """Proxies of type "tcp", with a token; TLS and the multiplexer are its defaults."""

    name = "frp"
    encrypts = True
    carries = "yamux over TLS"
    needs = ("frps", "frpc")

    def launch(self, room: Room, origins: Mapping[str, Address]) -> Mapping[str, Route]:
        port = room.port()
        routes = {name: Route(Address(room.port())) for name in origins}
        both: dict[str, Any] = {
            "auth": {"token": "not-a-secret"},
            "log": {"level": "warn", "disablePrintColor": True},
        }
        server = {
            "bindAddr": "127.0.0.1",
            "bindPort": port,
            "proxyBindAddr": "127.0.0.1",
            "transport": {"maxPoolCount": _POOL},
        }
        client = {
            "serverAddr": "127.0.0.1",
            "serverPort": port,
            "transport": {"poolCount": _POOL},
            "proxies": [
                {
                    "name": name,
                    "type": "tcp",
                    "localIP": origin.host,
                    "localPort": origin.port,
                    "remotePort": routes[name].address.port,
                }
                for name, origin in origins.items()
            ],
        }
        room.write("frps.json", json.dumps({**both, **server}))
        room.write("frpc.json", json.dumps({**both, **client}))
        room.start("server", [self.program("frps"), "-c", "frps.json"])
        room.wait_listening(port)
        room.start("client", [self.program("frpc"), "-c", "frpc.json"])
        return routes

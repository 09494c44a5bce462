"""piko (Go): HTTP requests, each as a yamux stream of its own over one WebSocket."""

from __future__ import annotations

import json
from collections.abc import Mapping

from bench.contestants import Address, Contestant, Room, Route

__all__ = ["Piko"]

_LONG = "1h"
"""Deadlines of whole requests, in which 1 GiB would have to pass: 10 and 30 s by default."""


class Piko(Contestant):
    """HTTP listeners, chosen by the first label of the host; TLS and keys are off by default."""

    name = "piko"
    carries = "yamux over a WebSocket, plain"
    needs = ("piko",)

    def launch(self, room: Room, origins: Mapping[str, Address]) -> Mapping[str, Route]:
        piko = self.program("piko")
        proxy, upstream, admin, gossip = (room.port() for _ in range(4))
        room.start(
            "server",
            [
                *(piko, "server", "--log.level", "warn"),
                *("--proxy.bind-addr", f"127.0.0.1:{proxy}", "--proxy.access-log.disable"),
                *("--proxy.timeout", _LONG, "--proxy.http.read-timeout", _LONG),
                *("--proxy.http.write-timeout", _LONG),
                *("--upstream.bind-addr", f"127.0.0.1:{upstream}"),
                *("--admin.bind-addr", f"127.0.0.1:{admin}"),
                *("--cluster.gossip.bind-addr", f"127.0.0.1:{gossip}"),
            ],
        )
        room.wait_listening(upstream)
        agent = {
            "connect": {"url": f"http://127.0.0.1:{upstream}"},
            "log": {"level": "warn"},
            "listeners": [
                {
                    "endpoint_id": name,
                    "addr": str(origin),
                    "timeout": _LONG,
                    "access_log": {"disable": True},
                    "http_client": {"disable_compression": True},
                }
                for name, origin in origins.items()
            ],
        }
        configuration = room.write("agent.yaml", json.dumps(agent))
        room.start("agent", [piko, "agent", "start", "--config.path", configuration])
        return {name: Route(Address(proxy), f"{name}.test") for name in origins}

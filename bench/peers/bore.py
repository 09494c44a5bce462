"""bore (Rust): a TCP connection between its halves for each of a client."""

from __future__ import annotations

from collections.abc import Mapping

from bench.contestants import Address, Contestant, Room, Route

__all__ = ["Bore"]

_CONTROL = 7835
_SECRET = {"BORE_SECRET": "not-a-secret"}


class Bore(Contestant):
    """One client process for each origin, with a secret. It can encrypt nothing."""

    name = "bore"
    carries = "a TCP connection for each of a client, plain"
    needs = ("bore",)

    def launch(self, room: Room, origins: Mapping[str, Address]) -> Mapping[str, Route]:
        bore = self.program("bore")
        # Its port for control is fixed: another server of it runs on another address of loopback.
        high, low = divmod(room.port(), 256)
        host = f"127.1.{high}.{low}"
        room.start(
            "server",
            [bore, "server", "--bind-addr", host, "--bind-tunnels", "127.0.0.1"],
            env={**_SECRET, "RUST_LOG": "warn"},
        )
        room.wait_listening(_CONTROL, host)
        routes = {name: Route(Address(room.port())) for name in origins}
        for name, origin in origins.items():
            room.start(
                f"client {name}",
                [
                    *(bore, "local", "--local-host", origin.host, str(origin.port)),
                    *("--to", host, "--port", str(routes[name].address.port)),
                ],
                env={**_SECRET, "RUST_LOG": "warn"},
            )
        return routes

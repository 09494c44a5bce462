"""chisel (Go): a tunnel of TCP connections as SSH channels over one WebSocket."""

from __future__ import annotations

from collections.abc import Mapping

from bench.contestants import Address, Contestant, Room, Route

__all__ = ["Chisel"]

_AUTH = {"AUTH": "bench:not-a-secret"}


class Chisel(Contestant):
    """Reverse remotes, one for each origin; ciphers as its SSH library chooses them."""

    name = "chisel"
    encrypts = True
    carries = "SSH over a WebSocket"
    needs = ("chisel",)

    def launch(self, room: Room, origins: Mapping[str, Address]) -> Mapping[str, Route]:
        chisel = self.program("chisel")
        room.call(chisel, "server", "--keygen", room.directory / "host_key")
        port = room.port()
        room.start(
            "server",
            [
                *(chisel, "server", "--host", "127.0.0.1", "--port", str(port)),
                *("--reverse", "--keyfile", room.directory / "host_key"),
            ],
            env=_AUTH,
        )
        room.wait_listening(port)
        routes = {name: Route(Address(room.port())) for name in origins}
        remotes = [f"R:{routes[name].address}:{origin}" for name, origin in origins.items()]
        room.start("client", [chisel, "client", f"http://127.0.0.1:{port}", *remotes], env=_AUTH)
        return routes

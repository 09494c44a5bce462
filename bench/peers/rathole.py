"""rathole (Rust): a TCP connection between its halves for each of a client, kept ready."""

from __future__ import annotations

import json
from collections.abc import Mapping

from bench.contestants import Address, Contestant, Room, Route, version_of

__all__ = ["Rathole", "RatholeNoise"]


class Rathole(Contestant):
    """Transport "tcp", which is its default; with a token."""

    name = "rathole"
    carries = "a TCP connection for each of a client, plain"
    needs = ("rathole",)

    def versions(self) -> dict[str, str]:
        return {"rathole": version_of(self.program("rathole"), wanted="Build Version:")}

    def launch(self, room: Room, origins: Mapping[str, Address]) -> Mapping[str, Route]:
        rathole = self.program("rathole")
        here, there = self._transports(room)
        port = room.port()
        routes = {name: Route(Address(room.port())) for name in origins}
        services = "".join(
            f"[server.services.{name}]\nbind_addr = {_text(route.address)}\n"
            for name, route in routes.items()
        )
        room.write(
            "server.toml",
            f'[server]\nbind_addr = "127.0.0.1:{port}"\ndefault_token = "not-a-secret"\n'
            f"[server.transport]\n{here}{services}",
        )
        services = "".join(
            f"[client.services.{name}]\nlocal_addr = {_text(origin)}\n"
            for name, origin in origins.items()
        )
        room.write(
            "client.toml",
            f'[client]\nremote_addr = "127.0.0.1:{port}"\ndefault_token = "not-a-secret"\n'
            f"[client.transport]\n{there}{services}",
        )
        quiet = {"RUST_LOG": "warn"}
        room.start("server", [rathole, "--server", "server.toml"], env=quiet)
        room.wait_listening(port)
        room.start("client", [rathole, "--client", "client.toml"], env=quiet)
        return routes

    def _transports(self, room: Room) -> tuple[str, str]:
        """Return the settings below ``transport`` of the server and of the client."""
        return 'type = "tcp"\n', 'type = "tcp"\n'


class RatholeNoise(Rathole):
    """Transport "noise", with a key of the server and the pattern that is its default."""

    name = "rathole noise"
    encrypts = True
    carries = "a TCP connection for each of a client, each with Noise"

    def _transports(self, room: Room) -> tuple[str, str]:
        words = room.call(self.program("rathole"), "--genkey").split()
        # "Private Key:", the key, "Public Key:", the key.
        private, public = words[2], words[5]
        return (
            f'type = "noise"\nnoise = {{ local_private_key = "{private}" }}\n',
            f'type = "noise"\nnoise = {{ remote_public_key = "{public}" }}\n',
        )


def _text(address: Address) -> str:
    return json.dumps(str(address))

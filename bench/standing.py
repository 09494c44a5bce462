"""A gateway with crowds that stand: idle clients, open streams, tunnels.

What one of a crowd takes is the slope between two sizes of it, not a size divided by a number: so
nothing of what the processes need anyway is counted.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.origins import SMALL
from bench.ours import BIN
from bench.processes import Failed, usage_of
from bench.room import Address, Room, Route

__all__ = ["Gateway", "settled", "standing_still", "start_hanging"]

_PROGRAMS = Path(__file__).parent / "programs"
_MANY = "100000"

#: Hosts beside the measured one, for the targets file.
_MORE = "more{}.test"


def start_hanging(room: Room) -> Address:
    """Start an origin that takes every connection, and never answers."""
    address = Address(room.port())
    room.start("hanging", [sys.executable, "-P", _PROGRAMS / "hanging.py", str(address.port)])
    room.wait_listening(address.port)
    return address


class Gateway:
    """Both layers at their defaults, but for limits that the crowds would meet.

    Carriers are without TLS: what is measured here does not depend on it.
    """

    def __init__(self, room: Room, origins: dict[str, Address], targets: int = 0) -> None:
        """``targets`` is how many there are beside those of the origins."""
        self.room = room
        for name in ("innerLayer", "crowd"):
            room.call(
                *(BIN / "sockgw", "certificates", "--common-name", name),
                *("--certificate", f"{name}.crt", "--private-key", f"{name}.key"),
            )
        self.socket_port = room.port()
        self._app = room.port()
        self._origins = origins
        self._write_targets(targets)
        room.start(
            "outer",
            [
                *(BIN / "twistd", "-n", "--pidfile=", "sockgw-outer"),
                *("--public-key", "innerLayer.crt", "--public-key", "crowd.crt"),
                *("--targets", "targets.yaml"),
                *("--app-port", f"tcp:{self._app}:interface=127.0.0.1:backlog=4096"),
                *("--socket-port", f"tcp:{self.socket_port}:interface=127.0.0.1:backlog=4096"),
                *("--access-log", "off", "--keep-alive-timeout", "3600000"),
                *("--head-timeout", "3600000", "--timeout", "3600000"),
                *("--max-connections", _MANY, "--max-streams", _MANY),
                *("--max-tunnels", _MANY, "--max-tunnels-per-key", _MANY),
            ],
        )
        room.wait_listening(self.socket_port)
        room.start(
            "inner",
            [
                *(BIN / "twistd", "-n", "--pidfile=", "sockgw-inner"),
                *("--private-key", "innerLayer.key", "--max-streams", _MANY),
                *("--outer-layer", f"ws://127.0.0.1:{self.socket_port}"),
            ],
        )
        room.wait_logged("inner", "connected")

    def _write_targets(self, count: int) -> None:
        targets: dict[str, object] = {
            f"{name}.test": {
                "protocol": "http",
                "hostname": origin.host,
                "port": origin.port,
                "identifier": "innerLayer",
            }
            for name, origin in self._origins.items()
        }
        for number in range(count):
            targets[_MORE.format(number)] = {"hostname": "origin.internal", "port": 8080}
        self.room.write("targets.yaml", json.dumps({"targets": targets}))

    def route(self, name: str) -> Route:
        """Return how to reach an origin."""
        return Route(Address(self._app), f"{name}.test")

    def resident(self, role: str) -> int:
        """Return the bytes of resident memory of a layer."""
        return usage_of(self.room.processes[role].pid).resident

    def cpu(self, role: str) -> float:
        """Return the seconds of CPU that a layer has used."""
        return usage_of(self.room.processes[role].pid).cpu

    def client(self, name: str, path: str = SMALL, *, answered: bool = True) -> socket.socket:
        """Connect a client that asks once, and wait for its answer if there is to be one."""
        connection = socket.create_connection(self.route(name).address[::-1], 20)
        request = f"GET {path} HTTP/1.1\r\nHost: {name}.test\r\nUser-Agent: bench\r\n\r\n"
        connection.sendall(request.encode())
        if answered and not connection.recv(65_536).startswith(b"HTTP/1.1 200 "):
            connection.close()
            raise Failed("a client was not answered")
        return connection

    @contextlib.contextmanager
    def tunnels(self, count: int) -> Iterator[None]:
        """Have so many more tunnels stand, which carry nothing, from one further process."""
        role = f"tunnels {time.monotonic_ns()}"
        self.room.start(
            role,
            [
                sys.executable,
                "-P",
                _PROGRAMS / "tunnels.py",
                str(self.socket_port),
                "crowd.key",
                str(count),
            ],
        )
        process = self.room.processes[role]
        try:
            log = process.log
            self.room.wait_until(
                lambda: f"{count} tunnels" in log.read_text(), f"{count} tunnels stand", 300
            )
            yield
        finally:
            self.room.stop(role)


def standing_still(connections: list[socket.socket]) -> None:
    """Raise :exc:`Failed` if one of them has been closed."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        for key, _ in selector.select(0):
            # The end of an answer may have come behind its beginning.
            if not socket.socket.recv(key.fileobj, 65_536, socket.MSG_DONTWAIT):  # type: ignore[arg-type]
                raise Failed("a connection that should stand has ended")


def settled(gateway: Gateway, role: str, patience: float = 10.0) -> int:
    """Return the resident memory of a layer, once it does not change any more."""
    deadline = time.monotonic() + patience
    before = gateway.resident(role)
    while True:
        time.sleep(0.3)
        now = gateway.resident(role)
        if now == before or time.monotonic() > deadline:
            return now
        before = now

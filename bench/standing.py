"""A gateway with crowds that stand: idle clients, open streams, tunnels.

What one of a crowd takes is the slope between two sizes of it, not a size divided by a number: so
nothing of what the processes need anyway is counted.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import ssl
import sys
import time
from collections.abc import Iterator

from bench.origins import PROGRAMS, SMALL, SMALL_BODY
from bench.ours import BIN
from bench.processes import Failed, usage_of
from bench.room import Address, Room, Route

__all__ = ["Gateway", "open_streams", "settled", "silence", "start_hanging"]

_MANY = "100000"

#: Hosts beside the measured one, for the targets file.
_MORE = "more{}.test"


def start_hanging(room: Room) -> Address:
    """Start an origin that takes every connection, and never answers."""
    address = Address(room.port())
    room.start("hanging", [sys.executable, "-P", PROGRAMS / "hanging.py", str(address.port)])
    room.wait_listening(address.port)
    return address


class Gateway:
    """Both layers at their defaults, but for limits that the crowds would meet.

    Carriers are without TLS: what is measured here does not depend on it.
    """

    def __init__(
        self, room: Room, origins: dict[str, Address], targets: int = 0, *, tls: bool = False
    ) -> None:
        """``targets``: how many there are beside those of the origins; ``tls``: of clients."""
        self.room = room
        self._tls: ssl.SSLContext | None = None
        endpoint = "tcp:{}:interface=127.0.0.1:backlog=4096"
        if tls:
            room.call(
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
                *("ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=web.test"),
                *("-addext", "subjectAltName=DNS:web.test", "-keyout", "tls.key"),
                *("-out", "tls.crt"),
            )
            self._tls = ssl.create_default_context(cafile=room.directory / "tls.crt")
            endpoint = "tls:{}:privateKey=tls.key:certKey=tls.crt:interface=127.0.0.1:backlog=4096"
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
                *("--app-port", endpoint.format(self._app)),
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

    def connect(self) -> socket.socket:
        """Connect a client that has not asked anything yet."""
        connection = socket.create_connection(self.route("").address[::-1], 20)
        if self._tls is None:
            return connection
        return self._tls.wrap_socket(connection, server_hostname="web.test")

    def ask(self, connection: socket.socket, name: str, *, answered: bool = True) -> None:
        """Have a client ask an origin, and wait for the answer if there is to be one."""
        connection.sendall(
            f"GET {SMALL} HTTP/1.1\r\nHost: {name}.test\r\nUser-Agent: bench\r\n\r\n".encode()
        )
        answer = b""
        while answered and not answer.endswith(SMALL_BODY):
            piece = connection.recv(65_536)
            answer += piece
            if not piece or not answer.startswith(b"HTTP/1.1 200 "):
                raise Failed(f"a client's answer was {answer[:200]!r}")

    def client(self, name: str = "web") -> socket.socket:
        """Connect a client that has been answered."""
        connection = self.connect()
        self.ask(connection, name)
        return connection

    def wait_streams(self, count: int, patience: float = 60.0) -> None:
        """Wait until the origin that does not answer has so many connections open."""
        hanging = self._origins["hanging"]
        deadline = time.monotonic() + patience
        while _established(hanging.port) < count:
            if time.monotonic() > deadline:
                have = _established(hanging.port)
                raise Failed(f"{have} and not {count} streams within {patience:g} s")
            time.sleep(0.1)

    @contextlib.contextmanager
    def tunnels(self, count: int) -> Iterator[None]:
        """Have so many more tunnels stand, which carry nothing, from one further process."""
        role = f"tunnels {time.monotonic_ns()}"
        self.room.start(
            role,
            [
                sys.executable,
                "-P",
                PROGRAMS / "tunnels.py",
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


def open_streams(gateway: Gateway, connections: list[socket.socket], before: int = 0) -> None:
    """Have all clients but the first ``before`` ask the origin that does not answer.

    Not all at once: listeners' queues hold a few thousand.
    """
    for start in range(before, len(connections), 500):
        for connection in connections[start : start + 500]:
            gateway.ask(connection, "hanging", answered=False)
        gateway.wait_streams(min(start + 500, len(connections)))


def silence(connections: list[socket.socket]) -> None:
    """Raise :exc:`Failed` if one of them is not idle: it has been closed, or sent something."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        if selector.select(0):
            raise Failed("connections that should stand have ended")


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


def _established(port: int) -> int:
    """Return how many connections to a port of loopback are open: proc(5), /proc/net/tcp."""
    with open("/proc/net/tcp", encoding="ascii") as file:
        remote = f"0100007F:{port:04X}"
        return sum(fields[2:4] == [remote, "01"] for fields in map(str.split, file))

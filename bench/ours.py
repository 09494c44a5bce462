"""sockgw itself, with more and less of what it can do switched on."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.contestants import Address, Contestant, Programs, Room, Route, version_of
from bench.origins import LARGE, POST, SMALL

__all__ = ["BIN", "VARIANTS", "Sockgw", "Variant"]

BIN = Path(sys.executable).parent  # not resolved: a virtual environment's python is a link
_SCRAPE_INTERVAL = 1.0  # seconds

_POLICIES = {
    "web": {f"^{SMALL}$": ["GET", "HEAD"], LARGE: ["GET", "HEAD"], POST: "POST"},
    "sink": {"^/sink(/|$)": ["PUT", "POST"]},
    "echo": {"/echo": "GET"},
}


@dataclass(frozen=True)
class Variant:
    """Which of its features are on. Credit and resume cannot be switched off."""

    name: str
    tls: bool
    access_log: bool = False
    all_on: bool = False
    """A policy, an allow list, and metrics that are scraped once a second."""


VARIANTS = (
    Variant("sockgw all on", tls=True, access_log=True, all_on=True),
    Variant("sockgw all on plain", tls=False, access_log=True, all_on=True),
    Variant("sockgw plain", tls=False),
    Variant("sockgw tls", tls=True),
    Variant("sockgw log", tls=False, access_log=True),
)


class Sockgw(Contestant):
    """Both layers under twistd; all limits and windows at their defaults."""

    def __init__(
        self, programs: Programs, variant: Variant, build: tuple[str, Path] | None = None
    ) -> None:
        """``build``: a name, and where the commands of another installation are."""
        super().__init__(programs)
        self.variant = variant
        self.name = f"{variant.name}, {build[0]}" if build else variant.name
        self.commands = build[1].absolute() if build else BIN
        self.encrypts = variant.tls
        self.carries = "a WebSocket over TLS" if variant.tls else "a WebSocket, plain"
        self.needs = ("openssl",) if variant.tls else ()
        self._admin_ports: dict[Room, int] = {}

    def missing(self) -> str | None:
        lacking = [name for name in ("sockgw", "twistd") if not (self.commands / name).exists()]
        if lacking:
            return f"there is no {' and no '.join(lacking)} in {self.commands}"
        return super().missing()

    def versions(self) -> dict[str, str]:
        return {"sockgw": version_of(self.commands / "sockgw", "version")}

    def launch(self, room: Room, origins: Mapping[str, Address]) -> Mapping[str, Route]:
        variant = self.variant
        room.call(self.commands / "sockgw", "certificates")
        carrier, trust = self._carrier(room)
        targets = {f"{name}.test": self._target(name, origin) for name, origin in origins.items()}
        room.write("targets.yaml", json.dumps({"targets": targets}))
        app, socket, admin = room.port(), room.port(), room.port()
        room.start(
            "outer",
            [
                *(self.commands / "twistd", "-n", "--pidfile=", "sockgw-outer"),
                *("--public-key", "innerLayer.crt", "--targets", "targets.yaml"),
                *("--app-port", f"tcp:{app}:interface=127.0.0.1"),
                *("--socket-port", carrier.format(port=socket)),
                *("--admin-port", f"tcp:{admin}:interface=127.0.0.1"),
                *("--access-log", "access.log" if variant.access_log else "off"),
            ],
        )
        room.wait_listening(socket)
        scheme = "wss" if variant.tls else "ws"
        allowed = [f"{origin.host}:{origin.port}" for origin in origins.values()]
        room.start(
            "inner",
            [
                *(self.commands / "twistd", "-n", "--pidfile=", "sockgw-inner"),
                *("--private-key", "innerLayer.key"),
                *("--outer-layer", f"{scheme}://127.0.0.1:{socket}", *trust),
                *(("--allow", ",".join(allowed)) if variant.all_on else ()),
            ],
        )
        self._admin_ports[room] = admin
        return {name: Route(Address(app), f"{name}.test") for name in origins}

    def _target(self, name: str, origin: Address) -> dict[str, object]:
        target: dict[str, object] = {
            "protocol": "http",
            "hostname": origin.host,
            "port": origin.port,
        }
        if self.variant.all_on:
            target["policy"] = _POLICIES[name]
        return target

    def _carrier(self, room: Room) -> tuple[str, tuple[str, ...]]:
        """Return the endpoint of the socket port, and what the inner layer needs to trust it."""
        if not self.variant.tls:
            return "tcp:{port}:interface=127.0.0.1", ()
        room.call(
            *(self.program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes"),
            *("-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", "tls.key", "-out", "tls.crt"),
        )
        endpoint = "tls:{port}:privateKey=tls.key:certKey=tls.crt:interface=127.0.0.1"
        return endpoint, ("--outer-layer-ca", "tls.crt")

    @contextlib.contextmanager
    def attended(self, room: Room) -> Iterator[None]:
        if not self.variant.all_on:
            yield
            return
        done = threading.Event()
        url = f"http://127.0.0.1:{self._admin_ports[room]}/metrics"

        def scrape() -> None:
            while not done.is_set():
                with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
                    answer.read()
                done.wait(_SCRAPE_INTERVAL)

        thread = threading.Thread(target=scrape, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

"""``bench idle``: what a client, a tunnel and a stream take while nothing happens.

Resident memory of each layer for one more of them, and CPU while thousands stand.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.contestants import Programs
from bench.machine import describe
from bench.origins import start_origins
from bench.processes import Failed
from bench.room import Room
from bench.standing import Gateway, open_streams, settled, silence, start_hanging

__all__ = ["main"]

OUTPUT = Path("build/bench")
_LAYERS = ("outer", "inner")
_KIB = 1024
_STREAM = 4  # KiB at most that a stream takes of a layer


@dataclass(frozen=True)
class Row:
    """One figure; ``most`` is what the figure should not exceed."""

    what: str
    layer: str
    figure: float
    unit: str
    most: float | None = None


class Measured:
    """Takes the memory of both layers before and after a crowd has come."""

    def __init__(self, gateway: Gateway, rows: list[Row]) -> None:
        self._gateway = gateway
        self._rows = rows

    @contextlib.contextmanager
    def each(
        self, what: str, count: int, outer: float | None, inner: float | None
    ) -> Iterator[None]:
        """The block brings ``count`` of them; limits in KiB for each, None for none."""
        before = {layer: settled(self._gateway, layer) for layer in _LAYERS}
        yield
        for layer, most in zip(_LAYERS, (outer, inner), strict=True):
            grown = settled(self._gateway, layer) - before[layer]
            self._rows.append(Row(what, layer, grown / count / _KIB, "KiB", most))

    def cpu(self, what: str, seconds: float) -> None:
        """Let time pass."""
        before = {layer: self._gateway.cpu(layer) for layer in _LAYERS}
        time.sleep(seconds)
        for layer in _LAYERS:
            used = (self._gateway.cpu(layer) - before[layer]) / seconds * 1000
            self._rows.append(Row(what, layer, used, "ms CPU/s"))


def measure(directory: Path | None, clients: int, tunnels: int, tls_clients: int) -> list[Row]:
    """Return all rows. Raises Failed where something does not stand as it should."""
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory)))
        room = stack.enter_context(Room(base / "origins", "origins"))
        origins = dict(start_origins(room, Programs(), 1 << 20))
        origins["hanging"] = start_hanging(room)
        with Room(base / "gateway", "gateway") as room:
            _plain(Gateway(room, origins), rows, clients, tunnels)
        with Room(base / "fresh", "fresh") as room:
            _fresh(Gateway(room, origins), rows, clients // 2)
        with Room(base / "tls", "tls") as room:
            _tls(Gateway(room, origins, tls=True), rows, tls_clients)
    return rows


def _plain(gateway: Gateway, rows: list[Row], clients: int, tunnels: int) -> None:
    _warm(gateway)
    for layer in _LAYERS:
        rows.append(Row("nothing", layer, settled(gateway, layer) / _KIB / _KIB, "MiB"))
    taken = Measured(gateway, rows)
    taken.cpu("nothing", 5)
    with contextlib.ExitStack() as stack:
        standing: list[socket.socket] = []
        stack.callback(_close, standing)
        before = 0
        for size in (clients // 10, clients // 2, clients):
            with taken.each(f"a client that has asked, to {size}", size - before, 30, 1):
                standing += [gateway.client() for _ in range(size - before)]
            before = size
        silence(standing)
        taken.cpu(f"{clients} clients", 10)
        # The same connections ask again: what is added is their streams. Nothing that has been
        # measured leaves before the next crowd comes, which would live in the memory it frees.
        before = 0
        for size in (clients // 10, clients):
            what = f"a stream beside its client, to {size}"
            with taken.each(what, size - before, _STREAM, _STREAM):
                open_streams(gateway, standing[:size], before)
            before = size
        taken.cpu(f"{clients} streams", 10)
        with gateway.tunnels(10):
            with taken.each(f"a tunnel, to {tunnels}", tunnels, 60, None):
                stack.enter_context(gateway.tunnels(tunnels))
            taken.cpu(f"{clients} streams, {tunnels} tunnels", 10)
        silence(standing)


def _fresh(gateway: Gateway, rows: list[Row], clients: int) -> None:
    _warm(gateway)
    standing: list[socket.socket] = []
    try:
        with Measured(gateway, rows).each("a client that has not asked", clients, 30, 1):
            standing += [gateway.connect() for _ in range(clients)]
        silence(standing)
    finally:
        _close(standing)


def _tls(gateway: Gateway, rows: list[Row], clients: int) -> None:
    _warm(gateway)
    standing: list[socket.socket] = []
    try:
        with Measured(gateway, rows).each("a client with TLS", clients, None, None):
            standing += [gateway.client() for _ in range(clients)]
    finally:
        _close(standing)


def _warm(gateway: Gateway) -> None:
    """What the first requests bring into memory is no crowd's."""
    for _ in range(200):
        gateway.client().close()


def _close(connections: list[socket.socket]) -> None:
    for connection in connections:
        connection.close()


def main(arguments: Sequence[str]) -> int:
    """Measure and print; return 1 where it failed."""
    parser = argparse.ArgumentParser("bench idle", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="hundreds in the place of thousands")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="for temporary files")
    options = parser.parse_args(arguments)
    clients, tunnels, tls = (1000, 100, 200) if options.quick else (10_000, 2_000, 1_000)
    try:
        rows = measure(options.directory, clients, tunnels, tls)
    except Failed as error:
        print(f"bench: {error}")
        return 1
    print(as_text(rows))
    options.output.mkdir(parents=True, exist_ok=True)
    told = {"machine": describe(Programs()), "rows": [vars(row) for row in rows]}
    (options.output / "idle.json").write_text(json.dumps(told, indent=1) + "\n")
    return 0


def as_text(rows: Sequence[Row]) -> str:
    """Return the table."""
    lines = ["Idle: for one more of each, or for all that stand", ""]
    for row in rows:
        verdict = ""
        if row.most is not None:
            verdict = f"   at most {row.most:g}: {'met' if row.figure <= row.most else 'MISSED'}"
        lines.append(f"{row.what:58} {row.layer:6} {row.figure:8.2f} {row.unit}{verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

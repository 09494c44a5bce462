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
from bench.standing import Gateway, settled, standing_still, start_hanging

__all__ = ["main"]

OUTPUT = Path("build/bench")
_LAYERS = ("outer", "inner")
_KIB = 1024


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
        self.gateway = gateway
        self._rows = rows

    @contextlib.contextmanager
    def each(
        self, what: str, count: int, outer: float | None, inner: float | None
    ) -> Iterator[None]:
        """The block brings ``count`` of them; limits in KiB for each, None for none."""
        before = {layer: settled(self.gateway, layer) for layer in _LAYERS}
        yield
        for layer, most in zip(_LAYERS, (outer, inner), strict=True):
            grown = settled(self.gateway, layer) - before[layer]
            self._rows.append(Row(what, layer, grown / count / _KIB, "KiB", most))

    def cpu(self, what: str, seconds: float) -> None:
        """Let time pass."""
        before = {layer: self.gateway.cpu(layer) for layer in _LAYERS}
        time.sleep(seconds)
        for layer in _LAYERS:
            used = (self.gateway.cpu(layer) - before[layer]) / seconds * 1000
            self._rows.append(Row(what, layer, used, "ms CPU/s"))


def warm(gateway: Gateway) -> Gateway:
    """Have it answer some requests: what they bring into memory is no crowd's."""
    for _ in range(200):
        gateway.client("web").close()
    return gateway


def measure(directory: Path | None, clients: int, tunnels: int, streams: int) -> list[Row]:
    """Return all rows. Raises Failed where something does not stand as it should."""
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory)))
        origins_room = stack.enter_context(Room(base / "origins", "origins"))
        origins = dict(start_origins(origins_room, Programs(), 1 << 20))
        reachable = {"web": origins["web"], "hanging": start_hanging(origins_room)}
        room = stack.enter_context(Room(base / "gateway", "gateway"))
        gateway = warm(Gateway(room, reachable))
        for layer in _LAYERS:
            rows.append(Row("nothing", layer, settled(gateway, layer) / _KIB / _KIB, "MiB"))
        taken = Measured(gateway, rows)
        taken.cpu("nothing", 5)

        standing: list[socket.socket] = []
        stack.callback(lambda: [connection.close() for connection in standing])
        with taken.each("a client that has asked", clients, 30, None):
            standing += [gateway.client("web") for _ in range(clients)]
        standing_still(standing)
        taken.cpu(f"{clients} clients", 10)

        with gateway.tunnels(10), contextlib.ExitStack() as stack_of_tunnels:
            with taken.each("a tunnel", tunnels, 60, None):
                stack_of_tunnels.enter_context(gateway.tunnels(tunnels))
            taken.cpu(f"{clients} clients, {tunnels} tunnels", 20)

        for connection in standing:
            connection.close()
        standing.clear()
        # Another one: what clients that have left give back would be used again.
        room = stack.enter_context(Room(base / "another", "another gateway"))
        taken = Measured(warm(Gateway(room, reachable)), rows)
        what = "a stream, with its client's and its origin's connection"
        with taken.each(what, streams, 34, None):
            standing += [taken.gateway.client("hanging", answered=False) for _ in range(streams)]
        standing_still(standing)
        taken.cpu(f"{streams} streams", 10)
    return rows


def main(arguments: Sequence[str]) -> int:
    """Measure and print; return 1 where it failed."""
    parser = argparse.ArgumentParser("bench idle", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="hundreds in the place of thousands")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="for temporary files")
    options = parser.parse_args(arguments)
    clients, tunnels, streams = (1000, 100, 500) if options.quick else (10_000, 2_000, 10_000)
    try:
        rows = measure(options.directory, clients, tunnels, streams)
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

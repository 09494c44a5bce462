"""``bench growth``: what a request costs while there are many of everything else.

Small GETs through gateways that differ in one thing only, in turn: targets in the file, tunnels of
inner layers, clients that stand idle, streams that are open. The cost is the CPU of both layers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.contestants import Programs
from bench.load import Load
from bench.machine import describe
from bench.origins import LARGE, start_origins
from bench.processes import Failed
from bench.room import Address, Room
from bench.standing import Gateway, open_streams, silence, start_hanging

__all__ = ["main"]

OUTPUT = Path("build/bench")
_FLAT = 1.10  # times the cost with the least number of them
_CONNECTIONS = 50
_LAYERS = ("outer", "inner")


@dataclass
class Point:
    """A gateway with so many of something."""

    thing: str
    count: int
    microseconds: list[float] = field(default_factory=list)  #: of CPU for a request, by rounds
    p50: list[float] = field(default_factory=list)  #: microseconds

    @property
    def cost(self) -> float:
        """The median of the rounds, in microseconds of CPU."""
        return statistics.median(self.microseconds)


@dataclass(frozen=True)
class Sizes:
    """How many of each there are at the least and at the most."""

    targets: tuple[int, ...]
    tunnels: tuple[int, ...]
    clients: tuple[int, ...]
    streams: tuple[int, ...]


_WHOLE = Sizes((10, 1_000, 10_000), (1, 200, 2_000), (10, 1_000, 10_000), (1, 1_000, 10_000))
_QUICK = Sizes((10, 1_000), (1, 50), (10, 500), (1, 500))


class Growth:
    """Measures one thing after the other."""

    def __init__(self, base: Path, load: Load, origins: dict[str, Address], rounds: int) -> None:
        self._base = base
        self._load = load
        self._origins = origins
        self._rounds = rounds
        self._rooms = 0

    def measure(
        self,
        thing: str,
        counts: Sequence[int],
        furnish: Callable[[contextlib.ExitStack, int], Gateway],
        anew: bool = False,
    ) -> list[Point]:
        """``furnish`` makes a gateway that has so many of the thing.

        ``anew``: each request on a new connection, for which an inner layer is chosen.
        """
        get = self._load.get_anew if anew else self._load.get
        points = [Point(thing, count) for count in counts]
        with contextlib.ExitStack() as stack:
            gateways = [furnish(stack, count) for count in counts]
            for number in range(self._rounds + 1):
                turns = list(zip(points, gateways, strict=True))
                for point, gateway in turns if number % 2 else reversed(turns):
                    before = [gateway.cpu(layer) for layer in _LAYERS]
                    done = get(gateway.route("web"), _CONNECTIONS)
                    used = sum(gateway.cpu(layer) for layer in _LAYERS) - sum(before)
                    if number:  # the first round only warms up
                        point.microseconds.append(used / done.count * 1e6)
                        point.p50.append(done.p50)
        return points

    def gateway(
        self, stack: contextlib.ExitStack, targets: int = 0, hanging: Address | None = None
    ) -> Gateway:
        """Return a new one."""
        origins = self._origins if hanging is None else {**self._origins, "hanging": hanging}
        self._rooms += 1
        room = stack.enter_context(Room(self._base / f"gateway{self._rooms}", "gateway"))
        return Gateway(room, origins, targets)

    def with_tunnels(self, stack: contextlib.ExitStack, count: int) -> Gateway:
        """Return one with so many tunnels, of which one carries."""
        gateway = self.gateway(stack)
        if count > 1:
            stack.enter_context(gateway.tunnels(count - 1))
        return gateway

    def with_clients(self, stack: contextlib.ExitStack, count: int) -> Gateway:
        """Return one with so many clients that have asked once."""
        gateway = self.gateway(stack)
        stack.enter_context(_standing(gateway.client() for _ in range(count)))
        return gateway

    def with_streams(self, stack: contextlib.ExitStack, count: int) -> Gateway:
        """Return one with so many requests under way whose answer does not come."""
        # To an origin of its own, whose connections tell how many streams are open.
        self._rooms += 1
        room = stack.enter_context(Room(self._base / f"hanging{self._rooms}", "hanging"))
        gateway = self.gateway(stack, hanging=start_hanging(room))
        clients = stack.enter_context(_standing(gateway.connect() for _ in range(count)))
        open_streams(gateway, clients)
        return gateway


@contextlib.contextmanager
def _standing(clients: Iterator[socket.socket]) -> Iterator[list[socket.socket]]:
    connections: list[socket.socket] = []
    try:
        connections.extend(clients)
        yield connections
        silence(connections)
    finally:
        for connection in connections:
            connection.close()


def measure(directory: Path | None, sizes: Sizes, rounds: int, seconds: float) -> list[Point]:
    """Return a point for each size of each thing. Raises Failed."""
    programs = Programs()
    wrk, curl = programs.find("wrk"), programs.find("curl")
    if wrk is None or curl is None:
        raise Failed(programs.why_missing("curl" if wrk else "wrk"))
    points: list[Point] = []
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory)))
        room = stack.enter_context(Room(base / "origins", "origins"))
        origins = dict(start_origins(room, programs, 1 << 20))
        load = Load(wrk, curl, room.directory / "files" / LARGE[1:], seconds)
        growth = Growth(base, load, origins, rounds)
        points += growth.measure("targets", sizes.targets, growth.gateway)
        points += growth.measure("tunnels", sizes.tunnels, growth.with_tunnels)
        points += growth.measure(
            "tunnels, anew", sizes.tunnels[:: len(sizes.tunnels) - 1], growth.with_tunnels, True
        )
        points += growth.measure("idle clients", sizes.clients, growth.with_clients)
        points += growth.measure("open streams", sizes.streams, growth.with_streams)
    return points


def as_text(points: Sequence[Point]) -> str:
    """Return the table."""
    lines = ["Growth: CPU of both layers for a request, 50 connections; medians", ""]
    first = points[0]
    for point in points:
        if point.thing != first.thing:
            first = point
        ratio = point.cost / first.cost
        verdict = "" if point is first else "   flat" if ratio <= _FLAT else "   NOT FLAT"
        lines.append(
            f"{point.count:6} {point.thing:14} {point.cost:8.1f} µs  × {ratio:4.2f}"
            f"   p50 {statistics.median(point.p50):8.0f} µs{verdict}"
        )
    return "\n".join(lines)


def draw(points: Sequence[Point], path: Path) -> None:
    """Write the picture. Raises ImportError without matplotlib."""
    import matplotlib as mpl  # type: ignore[import-not-found,unused-ignore]

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # type: ignore[import-not-found,unused-ignore]

    figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for thing in dict.fromkeys(point.thing for point in points):
        same = [point for point in points if point.thing == thing]
        ratios = [point.cost / same[0].cost for point in same]
        axis.plot([point.count for point in same], ratios, marker="o", label=thing)
    axis.axhline(_FLAT, color="#9a9a9a", linestyle=":")
    axis.set_xscale("log")
    axis.set_ylim(0, 1.5)
    axis.set_xlabel("how many there are")
    axis.set_ylabel("CPU of a request, × the least")
    axis.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(arguments: Sequence[str]) -> int:
    """Measure and print; return 1 where it failed."""
    parser = argparse.ArgumentParser("bench growth", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="hundreds in the place of thousands")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each (5)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="for temporary files")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (1 if options.quick else 5)
    sizes, seconds = (_QUICK, 1.0) if options.quick else (_WHOLE, 2.0)
    try:
        points = measure(options.directory, sizes, rounds, seconds)
    except Failed as error:
        print(f"bench: {error}")
        return 1
    print(as_text(points))
    options.output.mkdir(parents=True, exist_ok=True)
    told = {"machine": describe(Programs()), "points": [vars(point) for point in points]}
    (options.output / "growth.json").write_text(json.dumps(told, indent=1) + "\n")
    with contextlib.suppress(ImportError):
        draw(points, options.output / "growth.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

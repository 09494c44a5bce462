"""The works: what is done through each contestant, and which figures come out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.load import Load, Requests
from bench.room import Route

__all__ = ["COLD", "CPU", "MEMORY", "WORKS", "Figure", "Outcome", "Work"]

GIB = 1 << 30
POST_SIZE = 16_384  # bytes
WEBSOCKETS = 10
WINDOW = 16  # messages under way on each


@dataclass(frozen=True)
class Figure:
    """One figure of a work."""

    name: str
    unit: str
    more_is_better: bool = False
    scale: float = 1.0
    """What the figure is multiplied by where it is shown in ``unit``; raw ones are in base units:
    seconds (of latency: microseconds), bytes, counts."""

    @property
    def short(self) -> str:
        """What it is called beside its work."""
        return "CPU" if self.name == CPU else self.name

    @property
    def unit_line(self) -> str:
        """What stands above a column of it."""
        named = self.name in ("p50", "p99", "idle", "peak")
        return f"{self.name} {self.unit}" if named else self.unit


RATE = Figure("rate", "requests/s", more_is_better=True)
P50 = Figure("p50", "µs")
P99 = Figure("p99", "µs")
SPEED = Figure("speed", "MB/s", more_is_better=True, scale=1e-6)
MESSAGES = Figure("rate", "messages/s", more_is_better=True)
FIRST = Figure("first", "ms", scale=1e3)
CPU = "cpu"
"""The figure that is measured of each work beside its own: CPU seconds of all processes of the
contestant, for as much work as :attr:`Work.per` says."""


@dataclass(frozen=True)
class Outcome:
    """What came out of a work once."""

    figures: dict[str, float]
    amount: float
    """How much work it was, in what :attr:`Work.per` counts."""


@dataclass(frozen=True)
class Work:
    """Something to do through a contestant."""

    name: str
    title: str
    origin: str
    figures: tuple[Figure, ...]
    per: str
    """What CPU is counted for: ``10,000 requests``, ``GiB``."""
    run: Callable[[Load, Route], Outcome]

    @property
    def all_figures(self) -> tuple[Figure, ...]:
        return (*self.figures, Figure(CPU, f"CPU s/{self.per}")) if self.per else self.figures


def _requests(run: Callable[[Load, Route], Requests]) -> Callable[[Load, Route], Outcome]:
    def outcome(load: Load, route: Route) -> Outcome:
        got = run(load, route)
        figures = {"rate": got.rate, "p50": got.p50, "p99": got.p99, "mean": got.mean}
        return Outcome(figures, got.count / 10_000)

    return outcome


def _transfers(
    run: Callable[[Load, Route, int], float], count: int
) -> Callable[[Load, Route], Outcome]:
    def outcome(load: Load, route: Route) -> Outcome:
        return Outcome({"speed": run(load, route, count)}, count * load.size / GIB)

    return outcome


def _messages(connections: int, window: int) -> Callable[[Load, Route], Outcome]:
    def outcome(load: Load, route: Route) -> Outcome:
        got = load.messages(route, connections, window)
        figures = {"rate": got["messages"] / got["seconds"]}
        figures |= {name: got[name] for name in ("p50", "p99") if name in got}
        return Outcome(figures, got["messages"] / 10_000)

    return outcome


def _get(connections: int) -> Work:
    plural = "s" if connections > 1 else ""
    return Work(
        f"get-{connections}",
        f"small GET, {connections} connection{plural}",
        "web",
        (RATE, P50, P99),
        "10,000 requests",
        _requests(lambda load, route: load.get(route, connections)),
    )


def _transfer(name: str, run: Callable[[Load, Route, int], float], count: int) -> Work:
    origin = "web" if name == "download" else "sink"
    title = f"{name}, {'eight at once' if count == 8 else 'one'}"
    return Work(f"{name}-{count}", title, origin, (SPEED,), "GiB", _transfers(run, count))


def _not_here(load: Load, route: Route) -> Outcome:
    raise NotImplementedError("measured by whoever has the processes")


COLD = Work("cold", "cold start to the first answer", "web", (FIRST,), "", _not_here)
"""From the start of the contestant's first process to its first 200."""

MEMORY = Work(
    "memory",
    "resident memory of all processes",
    "web",
    (Figure("idle", "MiB", scale=1 / (1 << 20)), Figure("peak", "MiB", scale=1 / (1 << 20))),
    "",
    _not_here,
)
"""Idle: after the first answers, before any load. Peak: the highest in all of the works."""

WORKS: tuple[Work, ...] = (
    _get(1),
    _get(50),
    _get(500),
    Work(
        "post",
        "POST of 16 KiB, 50 connections",
        "web",
        (RATE, P50, P99),
        "10,000 requests",
        _requests(lambda load, route: load.post(route, 50, POST_SIZE)),
    ),
    Work(
        "new",
        "a new connection for each request, 50 at a time",
        "web",
        (RATE, P50, P99),
        "10,000 requests",
        _requests(lambda load, route: load.get_anew(route, 50)),
    ),
    _transfer("download", Load.download, 1),
    _transfer("upload", Load.upload, 1),
    _transfer("download", Load.download, 8),
    _transfer("upload", Load.upload, 8),
    Work(
        "ws-latency",
        "WebSocket message and its echo, one at a time",
        "echo",
        (P50, P99),
        "10,000 messages",
        _messages(1, 1),
    ),
    Work(
        "ws-rate",
        f"WebSocket echoes, {WEBSOCKETS} connections, {WINDOW} messages under way on each",
        "echo",
        (MESSAGES,),
        "10,000 messages",
        _messages(WEBSOCKETS, WINDOW),
    ),
    COLD,
)

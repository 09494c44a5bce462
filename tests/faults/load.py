"""Load: an origin, clients, what they saw, and what that says."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from control import Child

__all__ = [
    "Clients",
    "Origin",
    "Probe",
    "Result",
    "Sample",
    "kinds",
    "percentile",
    "performed_twice",
    "recoveries",
    "waits",
    "wrong",
]


class Origin(Child):
    """The origin of origin.py."""

    def __init__(self, directory: Path, prefix: Sequence[str] = ()) -> None:
        super().__init__("origin", directory, prefix)
        self.port: int = self.ask("port")["port"]

    def counts(self) -> dict[str, int]:
        """Return how often each id was counted."""
        return self.ask("counts")["counts"]


@dataclass(frozen=True, slots=True)
class Result:
    """A transfer. Times as time.monotonic() counts, sizes in bytes."""

    kind: str
    seed: str
    size: int
    saw: str  #: "ok", or what went wrong
    bytes: int  #: that came
    equal: bool  #: whether its SHA-256 is that of what was sent
    differs_at: int | None  #: begin of the first piece that is different
    pause: float  #: the longest without a byte
    begun: float
    ended: float

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.bytes / (self.ended - self.begun)


@dataclass(frozen=True, slots=True)
class Sample:
    """A small request."""

    number: int
    begun: float
    took: float
    saw: str


class Probe:
    """Small requests at a steady rate; ``samples`` is there once it has ended."""

    samples: list[Sample]

    def __init__(self, clients: Clients, name: int, number: int) -> None:
        self._clients = clients
        self._name = name
        self._number = number

    def end(self, patience: float) -> list[Sample]:
        """Begin no more requests, wait for the last answer."""
        self._clients.ask("end_probe", name=self._name)
        told = self._clients.result(self._number, patience)
        self.samples = sorted(
            (Sample(*sample) for sample in told["samples"]), key=lambda s: s.begun
        )
        return self.samples


class Clients(Child):
    """The clients of client.py, who all connect to one port."""

    def __init__(self, directory: Path, port: int) -> None:
        super().__init__("client", directory)
        self._probes = 0
        self.connect_to(port)

    def connect_to(self, port: int) -> None:
        """Connect to that port from now on."""
        self.ask("port", port=port)

    def begin(
        self, kind: str, host: str, size: int, seed: str = "seed", timeout: float = 120
    ) -> int:
        """Begin a "download", an "upload" or an "echo"; return the number for :meth:`finish`."""
        return self.start("transfer", kind=kind, host=host, seed=seed, size=size, timeout=timeout)

    def finish(self, numbers: Iterable[int], patience: float = 130) -> list[Result]:
        """Wait for transfers."""
        results = []
        for number in numbers:
            told = self.result(number, patience)
            told.pop("sha256", None)
            del told["number"]
            results.append(Result(**told))
        return results

    @contextlib.contextmanager
    def probing(
        self,
        host: str,
        rate: float,
        method: str = "GET",
        path: str = "/small",
        timeout: float = 30,
    ) -> Iterator[Probe]:
        """Send small requests at a rate (a second), whether answers come or not."""
        self._probes += 1
        fields: dict[str, Any] = {"host": host, "rate": rate, "method": method, "path": path}
        number = self.start("probe", name=self._probes, timeout=timeout, **fields)
        probe = Probe(self, self._probes, number)
        yield probe
        probe.end(timeout + 5)


def wrong(results: Sequence[Result | Sample]) -> list[Result | Sample]:
    """Return those that the client saw fail."""
    return [result for result in results if result.saw != "ok"]


def kinds(results: Iterable[Result | Sample]) -> dict[str, int]:
    """Count what clients saw."""
    return dict(Counter(result.saw for result in results))


def performed_twice(counts: dict[str, int]) -> dict[str, int]:
    """Return the requests that an origin performed more than once."""
    return {name: count for name, count in counts.items() if count > 1}


def percentile(values: Iterable[float], part: float) -> float:
    """Return the least value that is no less than that part (0 to 1) of all."""
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * part) - 1)]


def recoveries(faults: Iterable[float], samples: Sequence[Sample]) -> list[float]:
    """Return for each fault the time until a request that began after it was answered, in s."""
    times = []
    for fault in faults:
        ends = [s.begun + s.took for s in samples if s.begun >= fault and s.saw == "ok"]
        if ends:
            times.append(min(ends) - fault)
    return times


def waits(faults: Iterable[float], samples: Sequence[Sample]) -> list[float]:
    """Return for each fault how long, in s, the slowest request that it hit took to be answered.

    Hit is what was under way, and what began up to 50 ms later.
    """
    times = []
    for fault in faults:
        hit = [s.took for s in samples if s.begun - 0.05 <= fault <= s.begun + s.took]
        if hit:
            times.append(max(hit))
    return times

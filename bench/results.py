"""What was measured, and what follows from it: medians over rounds, and ratios to one contestant.

A figure counts only if each round of it went well: one that failed makes it invalid, with the
reason, however good the others were.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.works import MEMORY, Work

__all__ = ["NOT_MEASURED", "Measurement", "Results"]

NOT_MEASURED = "not measured"
"""Why there is no figure where nothing was tried, as with the start of what has no process."""


@dataclass(frozen=True)
class Measurement:
    """One work, done once through one contestant."""

    work: str
    round: int
    contestant: str
    figures: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    """CPU seconds of each process for what the work's ``per`` counts; those of the origins too."""
    detail: dict[str, Any] = field(default_factory=dict)
    failed: str | None = None


@dataclass
class Results:
    """All of a run."""

    base: str
    """The contestant whose figures the ratios have above the line."""
    works: Sequence[Work]
    contestants: list[str]
    """The names, in the order of their turns; those that could not run as well."""
    missing: dict[str, str] = field(default_factory=dict)
    """Why a contestant did not run."""
    described: dict[str, Any] = field(default_factory=dict)
    """Versions and properties of each contestant."""
    machine: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    interrupted: bool = False

    def all_works(self) -> tuple[Work, ...]:
        """Return the works, and what is measured over all of them."""
        return (*self.works, MEMORY)

    def of(self, work: str, contestant: str) -> list[Measurement]:
        """Return the measurements of a work, in their order."""
        return [m for m in self.measurements if (m.work, m.contestant) == (work, contestant)]

    def failure(self, work: str, contestant: str) -> str | None:
        """Say why there is no valid figure; None if there is one."""
        if contestant in self.missing:
            return self.missing[contestant]
        rounds = self.of(work, contestant)
        failed = [m.failed for m in rounds if m.failed is not None]
        if failed:
            return f"{len(failed)} of {len(rounds)} failed: {failed[0]}"
        return None if rounds else NOT_MEASURED

    def median(self, work: str, contestant: str, figure: str) -> float | None:
        """Return the median over the rounds; None if it is invalid."""
        if self.failure(work, contestant) is not None:
            return None
        values = [m.figures[figure] for m in self.of(work, contestant) if figure in m.figures]
        return statistics.median(values) if values else None

    def cpu(self, work: str, contestant: str) -> dict[str, float]:
        """Return the medians of the CPU seconds of each process."""
        if self.failure(work, contestant) is not None:
            return {}
        rounds = [m.cpu for m in self.of(work, contestant)]
        roles = {role: None for each in rounds for role in each}
        return {role: statistics.median(each.get(role, 0.0) for each in rounds) for role in roles}

    def ratio(
        self, work: str, contestant: str, figure: str, base: str | None = None
    ) -> float | None:
        """Return the base's figure divided by the contestant's; None if one is invalid or zero."""
        ours = self.median(work, base or self.base, figure)
        theirs = self.median(work, contestant, figure)
        return ours / theirs if ours is not None and theirs else None

    def as_json(self) -> dict[str, Any]:
        """Return everything, for a file."""
        medians = {
            work.name: {
                name: {
                    "failed": self.failure(work.name, name),
                    "median": {
                        figure.name: self.median(work.name, name, figure.name)
                        for figure in work.all_figures
                    },
                    "ratio": {
                        figure.name: self.ratio(work.name, name, figure.name)
                        for figure in work.all_figures
                    },
                    "cpu": self.cpu(work.name, name),
                }
                for name in self.contestants
            }
            for work in self.all_works()
        }
        return {
            "machine": self.machine,
            "settings": self.settings,
            "interrupted": self.interrupted,
            "base": self.base,
            "contestants": {
                name: {**self.described.get(name, {}), "missing": self.missing.get(name)}
                for name in self.contestants
            },
            "works": {
                work.name: {
                    "title": work.title,
                    "figures": [asdict(figure) for figure in work.all_figures],
                    "cpu per": work.per,
                }
                for work in self.all_works()
            },
            "results": medians,
            "measurements": [asdict(m) for m in self.measurements],
        }

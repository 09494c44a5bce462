"""What sockgw has set itself to reach against others, and whether a run reached it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from bench.results import Results

__all__ = ["ALL_ON", "ALL_ON_PLAIN", "REQUIREMENTS", "Requirement", "Verdict", "verdicts"]

ALL_ON = "sockgw all on"
ALL_ON_PLAIN = "sockgw all on plain"

_GATEWAY, _SSH, _NGINX = "socket-gateway", "ssh -R", "nginx one hop"


@dataclass(frozen=True)
class Requirement:
    """A ratio of sockgw's figure to a peer's, and its bound."""

    work: str
    figure: str
    peer: str
    relation: Literal["≥", "≤"]
    bound: float
    ours: str = ALL_ON

    def holds(self, ratio: float) -> bool:
        return ratio >= self.bound if self.relation == "≥" else ratio <= self.bound


def _requirements() -> Iterator[Requirement]:
    for work, figure, *bounds in (
        ("get-50", "rate", 3.0, 1.3, 0.35),
        ("get-500", "rate", 3.0, 1.2, 0.35),
        ("download-1", "speed", 2.0, 0.9, 0.6),
        ("upload-1", "speed", 2.0, 0.9, 0.5),
    ):
        for peer, bound in zip((_GATEWAY, _SSH, _NGINX), bounds, strict=True):
            yield Requirement(work, figure, peer, "≥", bound)
    yield Requirement("get-1", "p50", _GATEWAY, "≤", 1.0)
    yield Requirement("get-1", "p50", _GATEWAY, "≤", 0.8, ALL_ON_PLAIN)
    yield Requirement("get-1", "p99", _SSH, "≤", 0.05)
    yield Requirement("get-1", "p50", _NGINX, "≤", 10.0)
    yield Requirement("get-1", "p50", _NGINX, "≤", 8.0, ALL_ON_PLAIN)
    yield Requirement("memory", "peak", _GATEWAY, "≤", 0.3)


REQUIREMENTS: tuple[Requirement, ...] = tuple(_requirements())


@dataclass(frozen=True)
class Verdict:
    """A requirement, and how a run stands to it."""

    requirement: Requirement
    ratio: float | None
    plain: float | None
    """The ratio with everything on but TLS on the carrier, which some peers have not either."""
    reason: str = ""
    """Why there is no ratio."""

    @property
    def word(self) -> str:
        if self.ratio is None:
            return "not measured"
        if self.requirement.holds(self.ratio):
            return "met"
        if self.plain is not None and self.requirement.holds(self.plain):
            return "missed; met without TLS"
        return "missed"


def verdicts(results: Results) -> list[Verdict]:
    """Judge a run by all requirements."""
    return [_judge(results, requirement) for requirement in REQUIREMENTS]


def _judge(results: Results, requirement: Requirement) -> Verdict:
    work, peer, figure = requirement.work, requirement.peer, requirement.figure
    ratio = results.ratio(work, peer, figure, requirement.ours)
    plain = results.ratio(work, peer, figure, ALL_ON_PLAIN)
    reason = ""
    if ratio is None:
        for name in (requirement.ours, peer):
            if name not in results.contestants:
                reason = f"{name} was not asked for"
            elif name in results.missing:
                reason = f"{name} did not run"
            elif (failure := results.failure(work, name)) is not None:
                reason = f"{name}: {failure}"
    return Verdict(requirement, ratio, plain, reason)

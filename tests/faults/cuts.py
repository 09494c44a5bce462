"""Transfers while the connection between the layers is cut again and again."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from load import Result, Sample, kinds, performed_twice, recoveries, wrong
from schedule import Done, disturb, draw
from stand import Stand

__all__ = ["Report", "cut_transfers", "verify"]


@dataclass
class Report:
    """What came of it."""

    transfers: list[Result]
    reads: list[Sample]  #: GET of 200 bytes
    counted: list[Sample]  #: POST that the origin counts
    counts: dict[str, int]  #: what the origin has counted, by number
    faults: list[Done]
    resumes: int
    resent: int  #: bytes
    streams: int  #: still open after all
    peak_outer: int  #: bytes resident
    peak_inner: int

    @property
    def errors(self) -> dict[str, int]:
        """What clients saw other than success."""
        return kinds(wrong([*self.transfers, *self.reads, *self.counted]))

    @property
    def recoveries(self) -> list[float]:
        """Seconds from each fault to the next answer."""
        return recoveries((fault.at for fault in self.faults), self.reads)

    @property
    def bytes(self) -> int:
        return sum(result.bytes for result in self.transfers)


def cut_transfers(
    stand: Stand, seed: int, *, size: int, count: int, transfers: int = 10, patience: float = 120
) -> Report:
    """Transfer ``size`` bytes in all, and let up to ``count`` faults happen meanwhile.

    Of ``transfers`` at a time two in five are downloads, two uploads, and one sends back what
    comes. Small requests are made all the while.
    """
    mean = size // 2 // count * 2 // 3  # bytes between faults; both directions carry half of all
    before = stand.metric("sockgw_resumes_total"), stand.metric("sockgw_resent_bytes_total")
    with (
        stand.small.probing(stand.small_host, 50) as reads,
        stand.small.probing(stand.small_host, 20, "POST", "/count/*") as counted,
    ):
        numbers = [
            stand.bulk.begin(
                ("download", "upload", "download", "upload", "echo")[number % 5],
                stand.host,
                # What is echoed goes both ways.
                size // transfers // (2 if number % 5 == 4 else 1),
                f"{seed}-{number}",
                patience,
            )
            for number in range(transfers)
        ]

        def busy() -> bool:
            return not all(stand.bulk.answered(number) for number in numbers)

        faults = disturb(stand.relay, draw(seed, mean), count, busy)
        results = stand.bulk.finish(numbers, patience + 10)
    with contextlib.suppress(AssertionError):  # it is in the report
        stand.wait_idle()
    return Report(
        results,
        reads.samples,
        counted.samples,
        stand.small_origin.counts(),
        faults,
        int(stand.metric("sockgw_resumes_total") - before[0]),
        int(stand.metric("sockgw_resent_bytes_total") - before[1]),
        int(stand.metric("sockgw_streams")),
        stand.outer.memory()[1],
        stand.inner.memory()[1],
    )


def verify(report: Report, faults: int) -> None:
    """See that nobody noticed more than a pause, and that there was something to notice."""
    failed = wrong([*report.transfers, *report.reads, *report.counted])
    assert not failed, f"{report.errors}: {failed[:10]}"
    assert all(result.equal for result in report.transfers), report.transfers
    twice = performed_twice(report.counts)
    assert not twice, f"performed more than once: {twice}"
    assert set(report.counts) == {str(sample.number) for sample in report.counted}
    assert report.streams == 0, f"{report.streams} streams were never closed"
    assert len(report.faults) >= faults, f"no more faults than {report.faults}"
    assert len(report.recoveries) == len(report.faults), "it has not recovered"

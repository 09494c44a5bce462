"""The long tests, which ``make faults`` runs and which write the table of docs/reliability.rst."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import schedule
from cuts import cut_transfers, verify
from harness import Keys
from load import Probe, Result, Sample, kinds, performed_twice, recoveries, waits, wrong
from lossylink import LossyLink
from stand import HASTY_INNER, HASTY_OUTER, Stand
from table import MIB, Row, Table

TABLE = Path(__file__).parents[2] / "docs" / "reliability-table.rst"

KILLS = 100
PART = 4 * MIB  # bytes of each transfer that a kill may hit
RATE = 200e6  # bit/s: such a transfer takes a third of a second
OUTER = (*HASTY_OUTER, "--resume-window", "1000")


@pytest.fixture(scope="module")
def seed() -> int:
    return schedule.seed()


@pytest.fixture(scope="module")
def table(seed: int) -> Iterator[Table]:
    table = Table(seed)
    yield table
    table.write(TABLE)


@pytest.fixture(autouse=True)
def _told(seed: int) -> None:
    print(f"SOCKGW_SEED={seed} repeats this")


def test_full_cuts(tmp_path: Path, keys: Keys, seed: int, table: Table) -> None:
    """At least 100 cuts of all kinds during 1 GiB: nobody notices more than a pause."""
    with Stand(tmp_path, keys) as stand:
        report = cut_transfers(stand, seed, size=1 << 30, count=120, transfers=20, patience=600)
    requests = len(report.transfers) + len(report.reads) + len(report.counted)
    table.add(
        Row(
            "connection cut (FIN, RST, black hole, one direction lost, frozen, stalled)",
            len(report.faults),
            "1 GiB up and down at a time; 70 small requests a second",
            requests,
            report.errors,
            report.recoveries,
            report.resent,
            (report.peak_outer, report.peak_inner),
        )
    )
    for kind in schedule.KINDS:
        hit = [fault.at for fault in report.faults if fault.kind == kind]
        times = recoveries(hit, report.reads)
        print(f"{kind}: {len(hit)} times, up to {max(times, default=0):.2f} s")
    verify(report, faults=100)


class Work:
    """What goes on while processes are killed, and what came of it."""

    def __init__(self, stand: Stand, chance: random.Random) -> None:
        self._stand = stand
        self._chance = chance
        self.transfers: list[Result] = []
        self.kills: list[float] = []
        self.resent = 0.0
        self.peaks = [0, 0]

    def begin(self) -> list[int]:
        """Begin a transfer each way, and wait until a random moment within them."""
        number = len(self.kills)
        numbers = [
            self._stand.bulk.begin(kind, self._stand.host, PART, f"{kind}-{number}")
            for kind in ("download", "upload")
        ]
        time.sleep(self._chance.uniform(0, PART * 8 / RATE))  # the moment
        self.note()
        return numbers

    def note(self) -> None:
        """Keep what a process that is about to die would take with it."""
        for place, process in enumerate((self._stand.outer, self._stand.inners[0])):
            self.peaks[place] = max(self.peaks[place], process.memory()[1])

    def row(self, what: str, reads: Probe, counted: Probe, times: list[float]) -> Row:
        samples: list[Sample] = [*reads.samples, *counted.samples]
        everything = [*self.transfers, *samples]
        return Row(
            what,
            len(self.kills),
            "4 MiB up and 4 MiB down at each; 70 small requests a second",
            len(everything),
            kinds(wrong(everything)),
            times,
            int(self.resent),
            (self.peaks[0], self.peaks[1]),
        )


def see_that_it_failed_well(
    work: Work, reads: Probe, counted: Probe, counts: dict[str, int]
) -> None:
    """Nothing is performed twice, nothing broken looks whole, and it recovers each time."""
    assert not performed_twice(counts)
    assert {str(sample.number) for sample in counted.samples if sample.saw == "ok"} <= set(counts)
    for result in work.transfers:
        assert result.saw != "different", result
        assert result.differs_at is None, result
    assert len(recoveries(work.kills, reads.samples)) == len(work.kills)


def test_full_inner_killed(tmp_path: Path, keys: Keys, seed: int, table: Table) -> None:
    """kill -9 of one of two inner layers: reads go to the other one."""
    with Stand(tmp_path, keys, OUTER, HASTY_INNER, replicas=2, rate=RATE) as stand:
        work = Work(stand, random.Random(seed))
        with (
            stand.small.probing(stand.small_host, 50) as reads,
            stand.small.probing(stand.small_host, 20, "POST", "/count/*") as counted,
        ):
            for _ in range(KILLS):
                numbers = work.begin()
                victim = stand.inners.pop(0)
                work.kills.append(time.monotonic())
                victim.kill()
                stand.inners.append(stand.enter_context(stand.new_inner()))
                stand.inners[-1].wait_connected()
                work.transfers += stand.bulk.finish(numbers)
        work.resent = stand.metric("sockgw_resent_bytes_total")
        stand.wait_idle()
        counts = stand.small_origin.counts()
    answered = [sample for sample in reads.samples if sample.saw == "ok"]
    times = waits(work.kills, answered)
    table.add(work.row("inner layer killed (-9), one of two", reads, counted, times))
    see_that_it_failed_well(work, reads, counted, counts)
    # Once an answer has begun, nobody else can finish it.
    assert kinds(wrong(reads.samples)).keys() <= {"cut short"}


def test_full_outer_killed(tmp_path: Path, keys: Keys, seed: int, table: Table) -> None:
    """kill -9 of the outer layer, started again at once: its inner layers are back soon."""
    with Stand(tmp_path, keys, OUTER, HASTY_INNER, replicas=2, rate=RATE) as stand:
        work = Work(stand, random.Random(seed))
        back = []
        with (
            stand.small.probing(stand.small_host, 50) as reads,
            stand.small.probing(stand.small_host, 20, "POST", "/count/*") as counted,
        ):
            for _ in range(KILLS):
                numbers = work.begin()
                work.resent += stand.metric("sockgw_resent_bytes_total")
                work.kills.append(time.monotonic())
                stand.outer.kill()
                stand.replace_outer()
                listening = time.monotonic()
                stand.outer.wait_for_tunnels(2)
                back.append(time.monotonic() - listening)
                work.transfers += stand.bulk.finish(numbers)
        stand.wait_idle()
        counts = stand.small_origin.counts()
    times = recoveries(work.kills, reads.samples)
    table.add(work.row("outer layer killed (-9) and started again", reads, counted, times))
    print(f"inner layers were back at most {max(back):.2f} s after the port")
    see_that_it_failed_well(work, reads, counted, counts)
    assert max(back) < 2


@pytest.mark.parametrize(("loss", "size"), [(1, 64 * MIB), (5, 16 * MIB), (20, 2 * MIB)])
def test_full_loss(tmp_path: Path, keys: Keys, table: Table, loss: int, size: int) -> None:
    """Packets get lost between the layers, each way."""
    with LossyLink(tmp_path, keys, loss / 100) as link:
        with link.clients.probing(link.host, 20, timeout=120) as reads:
            kinds_of_transfer = ("download", "upload") * 2
            numbers = [
                link.clients.begin(kind, link.host, size // 4, str(number), 600)
                for number, kind in enumerate(kinds_of_transfer)
            ]
            results = link.clients.finish(numbers, 610)
        resent = link.outer.metric("sockgw_resent_bytes_total")
        peaks = link.outer.memory()[1], link.inner.memory()[1]
        dropped = link.dropped()
    everything = [*results, *reads.samples]
    table.add(
        Row(
            f"{loss} % of packets lost each way",
            dropped,
            f"{size // MIB} MiB up and down; 20 small requests a second",
            len(everything),
            kinds(wrong(everything)),
            [sample.took for sample in reads.samples if sample.saw == "ok"],
            int(resent),
            peaks,
        )
    )
    assert dropped > 20
    # One of five each way: TCP's own retransmissions can take a minute, and requests time out.
    bearable = {"503", "504"} if loss >= 20 else set()
    assert kinds(wrong(everything)).keys() <= bearable, kinds(everything)
    assert all(result.equal for result in results if result.saw == "ok")

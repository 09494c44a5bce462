"""A broken link loses nothing: the quick part of what ``make faults`` shows at length."""

from __future__ import annotations

import random
import time
from pathlib import Path

from cuts import cut_transfers, verify
from harness import Keys
from load import kinds, recoveries, wrong
from schedule import Fault, disturb, seed
from stand import Stand


def test_cuts_during_transfers(tmp_path: Path, keys: Keys) -> None:
    """All kinds of faults hit 128 MiB on their way, and clients and origin notice pauses only."""
    number = seed()
    with Stand(tmp_path, keys) as stand:
        report = cut_transfers(stand, number, size=128 << 20, count=15, patience=30)
        print(report.errors, report.resumes, report.resent, report.recoveries)
        verify(report, faults=10)
        assert report.resumes >= 5
        assert report.resent > 0


def test_cuts_within_handshakes(tmp_path: Path, keys: Keys) -> None:
    """Connections break one after the other while they are being made; then it goes on at once."""
    chance = random.Random(seed())
    with Stand(tmp_path, keys) as stand:
        with stand.small.probing(stand.small_host, 20) as probe:
            ends = []
            for _ in range(4):
                series = [
                    Fault(
                        chance.choice(("fin", "rst", "hole", "stall")),
                        on=chance.choice(("up", "down")),
                        after=chance.randint(1, 900),
                        direction="",
                        seconds=0,
                    )
                    for _ in range(4)
                ]
                done = disturb(stand.relay, iter(series), 4, lambda: True)
                assert done, "nothing connects any more"
                ends.append(done[-1].at)
                stand.small.finish([stand.small.begin("download", stand.small_host, 100_000)])
            # Until a few requests of the probe must have begun after the last one.
            while time.monotonic() < ends[-1] + 0.3:
                stand.small.finish([stand.small.begin("download", stand.small_host, 100_000)])
        stand.wait_idle()
    assert not wrong(probe.samples), kinds(probe.samples)
    # The time in which a hole in a handshake is noticed, and again for one that was under way.
    times = recoveries(ends, probe.samples)
    print(times)
    assert len(times) == len(ends)
    assert max(times) < 4

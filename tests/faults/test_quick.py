"""A broken link loses nothing: the quick part of what ``make faults`` shows at length."""

from __future__ import annotations

from pathlib import Path

from cuts import cut_transfers, verify
from harness import Keys
from schedule import seed
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

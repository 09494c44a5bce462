"""What each part of the flow control is worth: everything, and everything but one thing.

Run it by hand: ``.venv/bin/python tests/faults/worth.py``. It prints the table of
docs/reliability.rst, from ``ROUNDS`` rounds in turn, of which it shows medians.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e")]

from control import Relay  # noqa: E402
from harness import Keys  # noqa: E402
from load import Clients, percentile, wrong  # noqa: E402
from stand import Stand  # noqa: E402
from test_fairness import latencies, rate_of  # noqa: E402

ROUNDS = 3
VARIANTS = {
    "everything": "",
    "no limit of what is in flight": "flight",
    "the kernel's queue as it comes": "kernel",
    "neither of the two": "flight kernel",
    "no turn for fresh streams": "fresh",
    "messages and frames of 64 KiB": "frames",
}
LINE = 20e6  # bit/s
ROUND_TRIP = 0.040  # seconds
HOLDS = (65_536, 4 << 20)  # bytes that the relay holds


def beside_bulk(directory: Path, keys: Keys, hold: int) -> tuple[float, float]:
    """Return the 95th percentile of small requests in round trips, and the bulk's share."""
    link = {"rate": LINE, "delay": ROUND_TRIP / 2, "hold": hold, "buffers": 32_768}
    with Stand(directory, keys, (), (), **link) as stand:
        size = 2_000_000
        numbers = [stand.bulk.begin("download", stand.host, size, str(n)) for n in range(8)]
        with stand.small.probing(stand.small_host, 20) as probe:
            results = stand.bulk.finish(numbers)
        stand.wait_idle(30)
    assert not wrong(results)
    begun = min(result.begun for result in results)
    times = latencies(probe.samples, begun + 0.5, min(result.ended for result in results))
    return percentile(times, 0.95) / ROUND_TRIP, rate_of(results) * 8 / LINE


def long_link(directory: Path, keys: Keys, *options: str) -> float:
    """Return one download's share of what plain TCP gets, over 200 Mbit/s and 100 ms."""
    link = {"rate": 200e6, "delay": 0.050, "hold": 5_000_000}
    with (
        Stand(directory, keys, options, options, **link) as stand,
        Relay(directory, stand.origin.port, **link) as relay,
        Clients(directory, relay.port) as clients,
    ):
        size = 100_000_000
        plain = clients.finish([clients.begin("download", "plain", size)])
        ours = stand.bulk.finish([stand.bulk.begin("download", stand.host, size)])
        stand.wait_idle()
    assert not wrong([*plain, *ours])
    return ours[0].rate / plain[0].rate


def main() -> None:
    os.environ["PYTHONPATH"] = str(HERE / "variants")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        keys = Keys(directory)
        figures: dict[tuple[str, int], list[tuple[float, float]]] = {}
        windows: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for variant, left_out in VARIANTS.items():
                os.environ["LEFT_OUT"] = left_out
                for hold in HOLDS:
                    seen = beside_bulk(directory, keys, hold)
                    figures.setdefault((variant, hold), []).append(seen)
            os.environ["LEFT_OUT"] = ""
            for window in ("16777216", "262144"):
                share = long_link(directory, keys, "--max-window", window)
                windows.setdefault(window, []).append(share)
    for variant in VARIANTS:
        row = [variant]
        for hold in HOLDS:
            seen = figures[variant, hold]
            row += [f"{median(s[0] for s in seen):.1f}", f"{median(s[1] for s in seen):.0%}"]
        print(" | ".join(row))
    for window, shares in windows.items():
        print(f"one stream, largest window {window}: {median(shares):.0%} of plain TCP")


if __name__ == "__main__":
    main()

"""Memory is bounded: whoever stops reading costs little, and whoever leaves costs nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from extent import FULL, MIB
from harness import Keys, wait_until
from load import kinds, percentile, wrong
from stand import Stand, settle

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")


def memory(stand: Stand) -> tuple[int, int]:
    """Resident memory of outer and inner layer, in bytes."""
    return stand.outer.memory()[0], stand.inner.memory()[0]


@pytest.mark.parametrize("kind", ["download", "upload"])
def test_who_stops_reading_costs_little(tmp_path: Path, keys: Keys, kind: str) -> None:
    """1 GiB each, of which 8 MiB are read, then nothing: memory and others' latency stay."""
    count = 32 if FULL else 8
    with Stand(tmp_path, keys, (), ()) as stand:
        stand.bulk.finish([stand.bulk.begin("echo", stand.host, 64 * MIB)])
        stand.wait_idle()
        with stand.small.probing(stand.small_host, 100) as alone:
            time.sleep(1)  # that is the time to compare with
        before = memory(stand)
        stand.bulk.ask("hold", kind=kind, host=stand.host, count=count, after=8 * MIB)
        passed = settle(
            lambda: stand.relay.stats()[{"download": "up", "upload": "down"}[kind]]["delivered"]
        )
        assert passed > count * 8 * MIB
        with stand.small.probing(stand.small_host, 100) as beside:
            time.sleep(1)
        after = memory(stand)
        assert stand.metric("sockgw_streams") == count
        stand.bulk.ask("release")
        # Of a client whose bytes nobody reads, nobody reads the end either.
        stand.origin.ask("release")
        stand.wait_idle()
    assert not wrong([*alone.samples, *beside.samples]), kinds(beside.samples)
    for layer, one, other in zip(("outer", "inner"), before, after, strict=True):
        grown = (other - one) / count / MIB
        print(f"{layer} layer: {grown:.2f} MiB a stream")
        assert grown <= 4
    one, other = (percentile([s.took for s in probe.samples], 0.5) for probe in (alone, beside))
    assert other < 2 * one + 0.002


def test_aborted_requests_leave_nothing(tmp_path: Path, keys: Keys) -> None:
    """Thousands of requests left at random points: tables are empty, and memory is flat."""
    first, more = (2000, 8000) if FULL else (500, 1500)
    with Stand(tmp_path, keys, (), ()) as stand:

        def abort(count: int, seed: int) -> tuple[int, int]:
            arguments = {"host": stand.host, "count": count, "at_a_time": 20, "seed": seed}
            stand.bulk.ask("abort", 300, **arguments)
            stand.wait_idle()
            wait_until(lambda: stand.metric("sockgw_clients") == 0, "all clients have left")
            return memory(stand)

        before = abort(first, 1)
        after = abort(more, 2)
        wait_until(
            lambda: stand.origin.ask("counts")["open"] <= 64,  # those that the inner layer keeps
            "no connection to the origin stays but those kept",
        )
    for layer, one, other in zip(("outer", "inner"), before, after, strict=True):
        print(f"{layer} layer: {one / MIB:.1f} MiB after {first}, {other / MIB:.1f} after all")
        assert other - one < 8 * MIB

"""The dead are noticed in time, and the busy are never taken for dead."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from extent import FULL, MIB
from harness import Keys, wait_until
from load import kinds, wrong
from stand import HASTY_INNER, HASTY_OUTER, PING, Stand, assert_notices

LOST = [(lost, load) for lost in ("both", "up", "down") for load in ("", "download", "upload")]
STOPPED = [(layer, load) for layer in ("outer", "inner") for load in ("", "download", "upload")]
if not FULL:
    LOST = [
        ("both", ""),
        ("both", "download"),
        ("up", "download"),
        ("up", "upload"),
        ("down", "download"),
        ("down", "upload"),
    ]
    STOPPED = [("outer", "upload"), ("inner", "download")]


@pytest.fixture
def hasty(tmp_path: Path, keys: Keys) -> Iterator[Stand]:
    with Stand(tmp_path, keys) as stand:
        yield stand


@pytest.mark.parametrize(("lost", "load"), LOST)
def test_a_dead_link_is_noticed(hasty: Stand, lost: str, load: str) -> None:
    """By all who do not hear, whatever they send; then it goes on."""
    numbers = []
    if load:
        hasty.relay.set(rate=100e6)
        numbers = [hasty.bulk.begin(load, hasty.host, 20_000_000)]
        direction = "up" if load == "download" else "down"
        before = hasty.relay.stats()[direction]["delivered"]
        wait_until(
            lambda: hasty.relay.stats()[direction]["delivered"] > before + 1_000_000, "it runs"
        )
    marks = hasty.outer.log.mark(), hasty.inner.log.mark()
    # A new connection would tell the outer layer at once: there is none for now.
    hasty.relay.ask("refuse")
    if lost == "both":
        begun = hasty.relay.fail("hole")
    else:
        begun = hasty.relay.fail("lose", lost)
    if lost != "down":
        assert_notices(hasty.outer.log, marks[0], begun)
    if lost != "up":
        assert_notices(hasty.inner.log, marks[1], begun)
    hasty.relay.ask("accept")
    numbers.append(hasty.bulk.begin("download", hasty.host, 1000))
    results = hasty.bulk.finish(numbers)
    assert not wrong(results), kinds(results)


@pytest.mark.parametrize(("stopped", "load"), STOPPED)
def test_a_stopped_peer_is_noticed(hasty: Stand, stopped: str, load: str) -> None:
    numbers = []
    if load:
        hasty.relay.set(rate=100e6)
        numbers = [hasty.bulk.begin(load, hasty.host, 20_000_000)]
    layers = {"outer": hasty.outer, "inner": hasty.inner}
    sleeper = layers.pop(stopped)
    (other,) = layers.values()
    mark = other.log.mark()
    begun = time.monotonic()
    sleeper.signal(signal.SIGSTOP)
    try:
        assert_notices(other.log, mark, begun)
    finally:
        sleeper.signal(signal.SIGCONT)
    results = hasty.bulk.finish(numbers)
    assert not wrong(results), kinds(results)


@pytest.mark.parametrize("hold", [65_536, 4 * MIB])
def test_a_busy_link_is_not_dead(tmp_path: Path, keys: Keys, hold: int) -> None:
    """4 Mbit/s, full in both directions for many times the ping's timeout."""
    size = 5_000_000 if FULL else 1_500_000
    with Stand(tmp_path, keys, HASTY_OUTER, HASTY_INNER, rate=4e6, hold=hold, delay=0.02) as stand:
        numbers = [stand.bulk.begin(kind, stand.host, size) for kind in ("download", "upload")]
        results = stand.bulk.finish(numbers)
        assert not wrong(results), kinds(results)
        assert max(result.ended - result.begun for result in results) > 4 * PING
        assert stand.relay.stats()["accepted"] == 1

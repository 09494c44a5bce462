"""The checks of these tests fail when what they check is not so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import test_bounds
from control import Relay
from cuts import Report, cut_transfers, verify
from harness import Keys, wait_until
from load import Clients, Origin, kinds, performed_twice
from stand import HASTY_OUTER, Stand, assert_notices

SEED = 4  # of no importance


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[tuple[Origin, Relay, Clients]]:
    """An origin, a relay, and clients, without a gateway."""
    with (
        Origin(tmp_path) as origin,
        Relay(tmp_path, origin.port) as relay,
        Clients(tmp_path, relay.port) as clients,
    ):
        yield origin, relay, clients


@pytest.mark.parametrize(("kind", "on"), [("download", "down"), ("upload", "up"), ("echo", "up")])
@pytest.mark.parametrize("action", ["flip", "double"])
def test_a_wrong_byte_is_seen(
    plain: tuple[Origin, Relay, Clients], kind: str, on: str, action: str
) -> None:
    _, relay, clients = plain
    (good,) = clients.finish([clients.begin(kind, "any", 5_000_000)])
    assert (good.saw, good.equal, good.bytes) == ("ok", True, 5_000_000)
    relay.arm(on, 3_000_000, action)
    (bad,) = clients.finish([clients.begin(kind, "any", 5_000_000)])
    assert (bad.saw, bad.equal) == ("different", False)
    assert bad.differs_at is not None
    assert 2_500_000 < bad.differs_at <= 3_000_000


@pytest.mark.parametrize(("action", "saw"), [("fin", "cut short"), ("rst", "reset")])
@pytest.mark.parametrize("kind", ["download", "echo"])
def test_a_broken_transfer_is_seen(
    plain: tuple[Origin, Relay, Clients], kind: str, action: str, saw: str
) -> None:
    _, relay, clients = plain
    relay.arm("down", 3_000_000, action)
    (bad,) = clients.finish([clients.begin(kind, "any", 5_000_000)])
    assert bad.saw in (saw, "reset")
    assert not bad.equal


def test_a_hole_is_seen(plain: tuple[Origin, Relay, Clients]) -> None:
    _, relay, clients = plain
    relay.arm("down", 3_000_000, "hole")
    (bad,) = clients.finish([clients.begin("download", "any", 5_000_000, timeout=0.5)])
    assert bad.saw == "timeout"
    assert bad.pause > 0.4


def test_a_pause_is_seen(plain: tuple[Origin, Relay, Clients]) -> None:
    _, relay, clients = plain
    armed = relay.arm("down", 3_000_000, "freeze")
    number = clients.begin("download", "any", 5_000_000)
    relay.result(armed)
    assert not clients.answered(number)
    with pytest.raises(AssertionError, match="does not answer"):
        clients.result(number, 0.3)
    relay.ask("thaw")
    (late,) = clients.finish([number])
    assert late.saw == "ok"
    assert late.pause > 0.25


def test_what_is_performed_twice_is_seen(plain: tuple[Origin, Relay, Clients]) -> None:
    origin, _, clients = plain
    with clients.probing("any", 1000, "POST", "/count/once-*") as probe:
        pass
    assert kinds(probe.samples) == {"ok": len(probe.samples)}
    assert performed_twice(origin.counts()) == {}
    origin.ask("twice")
    with clients.probing("any", 1000, "POST", "/count/twice-*") as probe:
        pass
    assert kinds(probe.samples) == {"ok": len(probe.samples)}
    expected = {f"twice-{sample.number}": 2 for sample in probe.samples}
    assert performed_twice(origin.counts()) == expected


def test_without_resume_cuts_are_seen(tmp_path: Path, keys: Keys) -> None:
    """What test_quick.py asserts is not so when the tunnel does not outlive its connection."""
    with Stand(tmp_path, keys, outer=(*HASTY_OUTER, "--resume-window", "0")) as stand:
        report = cut_transfers(stand, SEED, size=64 << 20, count=10)
    assert report.errors
    with pytest.raises(AssertionError):
        verify(report, faults=0)


def test_a_wrong_byte_in_the_tunnel_is_seen(tmp_path: Path, keys: Keys) -> None:
    with Stand(tmp_path, keys) as stand:
        number = stand.bulk.begin("download", stand.host, 8 << 20)
        stand.relay.arm("up", 3_000_000, "flip")
        (bad,) = stand.bulk.finish([number])
    assert not bad.equal
    assert bad.saw != "ok"


def test_a_stream_that_stays_open_is_seen(tmp_path: Path, keys: Keys) -> None:
    with Stand(tmp_path, keys) as stand:
        stand.bulk.ask("hold", kind="download", host=stand.host, count=1)
        wait_until(lambda: stand.metric("sockgw_streams") == 1, "it is open")
        with pytest.raises(AssertionError, match="all streams are closed"):
            stand.wait_idle(0.5)
        stand.bulk.ask("release")
        stand.wait_idle()


def test_a_dead_link_that_is_not_noticed_is_seen(tmp_path: Path, keys: Keys) -> None:
    with Stand(tmp_path, keys, (), ()) as stand:
        stand.relay.ask("refuse")
        begun = stand.relay.fail("hole")
        for log in (stand.outer.log, stand.inner.log):
            with pytest.raises(AssertionError, match="no sign of life"):
                assert_notices(log, 0, begun)


def test_every_finding_counts() -> None:
    """A report with any one flaw is refused."""
    good = Report([], [], [], {}, [], 0, 0, 0, 0, 0)
    verify(good, faults=0)
    for bad in (
        replace(good, counts={"1": 2}),
        replace(good, counts={"1": 1}),
        replace(good, streams=1),
    ):
        with pytest.raises(AssertionError):
            verify(bad, faults=0)
    with pytest.raises(AssertionError):
        verify(good, faults=1)


@pytest.mark.parametrize("kind", ["download", "upload"])
def test_memory_that_grows_is_seen(
    tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """With windows of 12 MiB from the first, who stops reading costs more than 4 MiB."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).with_name("variants")))
    monkeypatch.setenv("LEFT_OUT", "window")
    with pytest.raises(AssertionError, match="<= 4"):
        test_bounds.test_who_stops_reading_costs_little(tmp_path, keys, kind)

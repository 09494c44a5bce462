"""A tunnel that has used up the numbers of its streams is replaced, and nobody notices."""

from __future__ import annotations

from pathlib import Path

import pytest
from clients import Client
from harness import Keys
from stand import Stand


def test_numbers_run_out(tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """One download lasts over it all; it stays in the first tunnel, which ends with it."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).with_name("variants")))
    monkeypatch.setenv("LEFT_OUT", "numbers")
    with Stand(tmp_path, keys, rate=40e6) as stand:
        long = stand.bulk.begin("download", stand.host, 20_000_000)
        with Client(stand.outer.app_port) as client:
            for number in range(2_000):
                client.ask(stand.small_host, "/small")
                answer = client.answer()
                assert answer.status == 200, f"request {number}: {answer}"
        (result,) = stand.bulk.finish([long])
        assert (result.saw, result.equal) == ("ok", True)
        stand.wait_idle()
        connected = stand.outer.log.matching("inner layer innerLayer connected")
        assert 3 <= len(connected) <= 6
        stand.outer.log.wait("disconnected: another tunnel has taken over")
        assert not stand.outer.log.matching("lost its connection")

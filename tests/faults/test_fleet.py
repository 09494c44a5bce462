"""An outer layer that comes back gets its inner layers back soon, and not all at once."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
from extent import FULL
from harness import Keys, Outer, Process, wait_until

COUNT = 500 if FULL else 200
STAMP = r"^(\S+)Z +info +"


def times(outer: Outer, pattern: str) -> list[float]:
    """Return when the log said so, in seconds."""
    found = (re.match(STAMP + pattern, line) for line in outer.log.lines())
    return [datetime.fromisoformat(match[1]).timestamp() for match in found if match]


@pytest.mark.parametrize("absence", [0, 4])
def test_a_restarted_outer_layer_has_its_inner_layers_back(
    tmp_path: Path, keys: Keys, absence: float
) -> None:
    options = ("--max-tunnels-per-key", "1000")
    with Outer(tmp_path, keys.certificate, *options) as outer:
        port = outer.socket_port
        script = Path(__file__).with_name("fleet.py")
        command = [sys.executable, script, f"ws://127.0.0.1:{port}", keys.private, str(COUNT)]
        with Fleet("fleet", command, tmp_path) as fleet:
            outer.wait_for_tunnels(COUNT, 30)
            outer.kill()
            if absence:
                stay_away(fleet, absence)
            socket = f"tcp:{port}:interface=127.0.0.1:backlog=1024"
            with Outer(tmp_path, keys.certificate, *options, socket=socket) as successor:
                successor.wait_for_tunnels(COUNT, 30)
                began = times(successor, "listening on ")[0]
                back = [at - began for at in times(successor, r"inner layer \S+ connected ")]
                fleet.kill()
    tenths = Counter(int(at * 10) for at in back)
    print(f"all {COUNT} after {max(back):.2f} s; in a tenth at most {max(tenths.values())}")
    assert len(back) == COUNT
    assert max(back) < 2
    assert max(tenths.values()) <= COUNT / 5, sorted(tenths.items())


class Fleet(Process):
    """The process of fleet.py."""

    end = -signal.SIGTERM


def stay_away(fleet: Fleet, seconds: float) -> None:
    """Stay away for a while, in which they ask in vain."""
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() - begun > seconds, "the time is over", seconds + 1)
    assert fleet.status is None

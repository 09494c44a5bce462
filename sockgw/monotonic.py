"""The reactor's clock, made one that nobody can set.

Twisted's reactors take their time from ``time.time()``: for ``callLater``, for deciding what is
due, and for how long to sleep. Where an administrator, NTP or a resumed virtual machine sets that
clock a day ahead, every timer fires at once and all tunnels and clients are taken for dead; a day
back, and nothing fires for a day. All of it goes through one method, ``reactor.seconds``, and so
do Twisted's and Autobahn's own timers (LoopingCall, TLS, connection timeouts, batched timers): to
replace that method replaces the clock.

The wall clock stays where a point in time is told to somebody: logs, ``Date``, since when a tunnel
stands, the dates of certificates. No duration is measured by it.
"""

import time
from typing import Any

from twisted.python.runtime import seconds as twisted_seconds

__all__ = ["make_monotonic"]


def make_monotonic(reactor: Any) -> None:
    """Have this reactor run on ``time.monotonic()``; one with a clock of its own keeps it.

    Calls that are scheduled already keep the time that they have left. Not to be called while
    somebody measures with ``reactor.seconds()``.
    """
    if reactor.seconds is not twisted_seconds:
        return
    offset = time.monotonic() - reactor.seconds()
    reactor.seconds = time.monotonic
    for call in reactor.getDelayedCalls():
        # All by the same amount: their order, by which the reactor keeps them, stays.
        call.time += offset
        call.seconds = time.monotonic

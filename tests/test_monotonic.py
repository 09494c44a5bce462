"""The reactor's clock: nobody can set it."""

import time

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.task import Clock, LoopingCall

from sockgw.monotonic import make_monotonic


def reactor():
    """Return one of its own, which is never run."""
    return EPollReactor()


def test_timers_run_on_a_clock_that_nobody_sets():
    mine = reactor()
    make_monotonic(mine)
    now = time.monotonic()
    assert now <= mine.seconds() <= time.monotonic()
    call = mine.callLater(5, list)
    assert now + 5 <= call.getTime() <= time.monotonic() + 5
    call.reset(7)
    assert now + 7 <= call.getTime() <= time.monotonic() + 7
    assert 6 < mine.timeout() <= 7


def test_what_was_scheduled_before_keeps_its_time_and_order():
    mine = reactor()
    called = []
    calls = [mine.callLater(delay, called.append, delay) for delay in (0.0, 60.0, 30.0)]
    mine.timeout()  # takes the new ones into its order
    calls.append(mine.callLater(90.0, called.append, 90.0))
    make_monotonic(mine)
    lefts = [call.getTime() - time.monotonic() for call in calls]
    for left, delay in zip(lefts, (0.0, 60.0, 30.0, 90.0), strict=True):
        assert abs(left - delay) < 1
    mine.runUntilCurrent()
    assert called == [0.0]
    calls[1].reset(0)
    mine.runUntilCurrent()
    assert called == [0.0, 60.0]
    calls[2].cancel()


def test_a_looping_call_goes_on_across_the_change():
    mine = reactor()
    loop = LoopingCall(list)
    loop.clock = mine
    loop.start(10, now=False)
    make_monotonic(mine)
    assert 9 < loop.call.getTime() - time.monotonic() <= 10
    loop.stop()


def test_twice_is_once():
    mine = reactor()
    make_monotonic(mine)
    call = mine.callLater(5, list)
    before = call.getTime()
    make_monotonic(mine)
    assert call.getTime() == before


def test_a_clock_of_its_own_stays():
    """Such as a test's."""
    clock = Clock()
    make_monotonic(clock)
    clock.advance(3)
    assert clock.seconds() == 3

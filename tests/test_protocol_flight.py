"""The estimate of what a link can use, against links whose rate, delay and queue are known."""

from heapq import heappop, heappush
from itertools import count

import pytest

from sockgw.protocol.flight import (
    ACK_DELAY,
    CRUISE_GAIN,
    FIRST_LIMIT,
    LEAST_LIMIT,
    ROUND_TRIP_AGE,
    Flight,
)
from sockgw.protocol.memory import Pool
from sockgw.protocol.outbox import Outbox

KIB = 1024


class Link:
    """A sender with much to send, a link of a rate and a delay, whose buffer knows no end, and a
    receiver that acknowledges after ``ACK_DELAY``."""

    def __init__(self, rate, round_trip):
        self.rate = rate  # bytes a second
        self.round_trip = round_trip  # seconds, of an empty link
        self.now = 0.0
        self.outbox = Outbox(1 << 40, Pool(1 << 40))
        self.flight = self.outbox.flight
        self.wants = float("inf")  # bytes that there are to send
        self.delivered = 0
        self.arrived = 0  # messages
        self.sent = 0
        self._free = 0.0  # when what is in the link's buffer will have left it
        self._back = 0.0
        self._told = 0
        self._events = []
        self._number = count()

    @property
    def queue(self):
        """Seconds for which a byte would have to wait now."""
        return max(self._free - self.now, 0.0)

    @property
    def ideal(self):
        return CRUISE_GAIN * self.rate * (self.round_trip + ACK_DELAY)

    def _at(self, when, what, *arguments):
        heappush(self._events, (when, next(self._number), what, arguments))

    def _send(self):
        flight = self.flight
        while self.wants > 0 and self.outbox.size < flight.limit:
            size = int(min(max(flight.limit // 8, 4_096), 65_536, self.wants))
            self.wants -= size
            limited = self.wants > 0 and self.outbox.size * 2 >= flight.limit
            self.outbox.keep(bytes(size), 1, self.now, limited)
            self._free = max(self._free, self.now) + size / self.rate
            self._at(self._free + self.round_trip / 2, self._arrive, size)

    def _arrive(self, size):
        self.delivered += size
        self.arrived += 1
        if self.arrived == self._told + 1:
            self._at(self.now + ACK_DELAY, self._acknowledge)

    def _acknowledge(self):
        self._told = self.arrived
        self._back = max(self._back, self.now + self.round_trip / 2)  # none overtakes another
        self._at(self._back, self._acknowledged, self.arrived)

    def _acknowledged(self, number):
        self.outbox.acknowledge(number, self.now)

    def run(self, seconds, step=None):
        """Let time pass; returns the bytes a second that arrived."""
        until, before = self.now + seconds, self.delivered
        self._send()
        while self._events and self._events[0][0] <= until:
            self.now, _, what, arguments = heappop(self._events)
            what(*arguments)
            self._send()
            if step is not None:
                step()
        self.now = until
        return (self.delivered - before) / seconds


LINKS = [
    (250_000, 0.3),  # 2 Mbit/s by satellite, nearly
    (2_500_000, 0.04),  # 20 Mbit/s
    (12_500_000, 0.1),
    (125_000_000, 0.01),
    (500_000_000, 0.001),
]


@pytest.mark.parametrize(("rate", "round_trip"), LINKS)
def test_it_comes_to_what_the_link_holds_and_a_little(rate, round_trip):
    link = Link(rate, round_trip)
    link.run(60 * (round_trip + 2 * ACK_DELAY) + 1)
    before, began = link.delivered, link.now
    limits = []
    for _ in range(20):
        link.run(5 * (round_trip + 2 * ACK_DELAY))
        limits.append(link.flight.limit)
        # A quarter of what is in flight, a message, and what a late acknowledgement lets out.
        assert link.queue < 0.3 * round_trip + 65_536 / rate + 4 * ACK_DELAY
    assert link.delivered - before > 0.93 * rate * (link.now - began)
    limits.sort()  # the least of them perhaps while the round trip was measured anew
    assert limits[10] > 0.95 * link.ideal
    assert limits[-1] < max(1.75 * link.ideal, LEAST_LIMIT + 1)


@pytest.mark.parametrize(("rate", "round_trip"), LINKS)
def test_it_is_found_soon(rate, round_trip):
    """Doubling from 256 KiB: 8 round trips are enough for each of these."""
    link = Link(rate, round_trip)
    link.run(8 * (round_trip + 2 * ACK_DELAY + 65_536 / rate))
    assert link.flight.limit >= min(link.ideal * 0.9, FIRST_LIMIT)
    assert link.run(4 * (round_trip + 2 * ACK_DELAY)) > 0.85 * rate


@pytest.mark.parametrize(("rate", "round_trip"), LINKS)
def test_startup_does_not_fill_the_network(rate, round_trip):
    """Never is more in flight than thrice what the link holds, or what may be at first."""
    link = Link(rate, round_trip)
    most = 0

    def look():
        nonlocal most
        most = max(most, link.outbox.size)

    link.run(5, look)
    assert most <= max(FIRST_LIMIT + 65_536, 3.2 * link.ideal)


def test_it_doubles_in_startup():
    """As long as it does not know of an end: about twice as much in each round trip."""
    link = Link(1e9, 0.1)
    link.run(0.2)
    for _ in range(5):
        before = link.flight.limit
        link.run(4 * link.round_trip)
        if link.flight.limit > link.ideal / 4:
            break
        assert 8 * before < link.flight.limit < 40 * before
    assert link.flight.limit > link.ideal / 4
    assert link.now < 1.5


def test_it_follows_a_rate_that_falls():
    link = Link(12_500_000, 0.04)
    link.run(3)
    link.rate /= 10
    link.run(8)  # ten of the round trips that the old rate has made long
    assert link.run(1) > 0.93 * link.rate
    assert link.flight.limit < 2 * link.ideal
    assert link.queue < 0.1


def test_it_follows_a_rate_that_rises():
    link = Link(1_250_000, 0.04)
    link.run(3)
    link.rate *= 10
    link.run(3)
    assert link.run(1) > 0.93 * link.rate
    assert link.flight.limit < 1.75 * link.ideal


def test_it_follows_a_round_trip_that_grows():
    """A longer path looks like a queue, until less is sent and it stays as long."""
    link = Link(12_500_000, 0.02)
    link.run(3)
    link.round_trip = 0.2
    link.run(ROUND_TRIP_AGE + 10)
    assert link.flight.round_trip > 0.2
    assert link.run(2) > 0.9 * link.rate


def test_it_follows_a_round_trip_that_shrinks():
    """A queue hides that, until it is measured anew: each time, half of the queue is gone."""
    link = Link(12_500_000, 0.2)
    link.run(3)
    link.round_trip = 0.02
    link.run(1)
    assert link.flight.round_trip < 0.1
    link.run(3 * ROUND_TRIP_AGE)
    assert link.flight.round_trip < 0.04
    assert link.flight.limit < 1.9 * link.ideal
    assert link.run(2) > 0.93 * link.rate


@pytest.mark.parametrize(("rate", "round_trip"), LINKS[:4])
def test_its_own_queue_does_not_make_it_run_away(rate, round_trip):
    """For ten minutes: each time that the round trip is measured anew, the queue is out of it."""
    link = Link(rate, round_trip)
    link.run(5)
    first = link.flight.round_trip
    seconds = 600 if rate < 10_000_000 else 60
    assert link.run(seconds) > 0.93 * rate
    assert link.flight.limit < 1.75 * link.ideal
    assert link.flight.round_trip < first * 1.3 + ACK_DELAY


def test_half_is_sent_while_the_round_trip_is_measured_anew():
    link = Link(2_500_000, 0.04)
    link.run(3)
    before = link.flight.limit
    lowest = before

    def look():
        nonlocal lowest
        lowest = min(lowest, link.flight.limit)

    link.run(ROUND_TRIP_AGE + 2, look)
    assert lowest <= max(before * 0.45, LEAST_LIMIT)
    assert 0.95 * link.ideal < link.flight.limit <= before


def test_a_sender_with_little_learns_nothing_wrong():
    link = Link(12_500_000, 0.04)
    link.run(3)
    before = link.flight.limit
    for _ in range(200):
        link.wants = 3_000
        link.run(0.1)
    assert link.flight.limit > 0.8 * before
    link.wants = float("inf")
    link.run(0.2)
    assert link.run(0.5) > 0.9 * link.rate


def test_a_sender_that_always_had_little_is_not_throttled():
    link = Link(12_500_000, 0.04)
    link.wants = 0
    for _ in range(100):
        link.wants += 3_000
        link.run(0.1)
        assert link.flight.limit >= LEAST_LIMIT
    link.wants = float("inf")
    link.run(1)
    assert link.run(0.5) > 0.9 * link.rate


def test_nothing_is_known_of_a_new_carrier():
    link = Link(125_000_000, 0.1)
    link.run(3)
    assert link.flight.limit > FIRST_LIMIT
    link.flight.reset()
    assert link.flight.limit == FIRST_LIMIT
    assert link.flight.round_trip is None


def test_a_ping_measures_the_round_trip_too():
    flight = Flight()
    flight.measured(0.2, 1.0)
    assert flight.round_trip == 0.2
    flight.measured(0.1, 2.0)
    flight.measured(0.3, 3.0)
    assert flight.round_trip == 0.1
    assert flight.limit == FIRST_LIMIT


def test_a_clock_that_stands_still_divides_nothing_by_zero():
    flight = Flight()
    for _ in range(100):
        flight.acknowledged(65_536, 0.0, flight.departed(0.0, True, True))
    assert flight.limit >= LEAST_LIMIT

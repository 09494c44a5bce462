"""Credit windows: they grow for links that need it, for nobody else, and are never exceeded."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockgw.protocol.errors import LocalError
from sockgw.protocol.windows import (
    MAX_CREDIT,
    WINDOW,
    CreditOverflow,
    CreditOverrun,
    ReceiveWindow,
    SendWindow,
)

MOST = 16 * 1024 * 1024


class Path:
    """A sender that always has more, a link, a receiver, and the reader behind it."""

    def __init__(self, link, reader, round_trip, most=MOST, memory=1 << 40):
        self.link = link  # bytes a second that it carries
        self.reader = reader  # bytes a second that the local socket takes
        self.round_trip = round_trip
        self.now = 0.0
        self.memory = memory  # bytes that may be promised still
        self.asked = 0  # times that more was asked for
        self.send = SendWindow()
        self.receive = ReceiveWindow(WINDOW, most, 0.0)
        self.taken = 0
        self.largest = WINDOW
        self.most_held = 0
        self._data = deque()  # (when it arrives, bytes)
        self._credit = deque()

    def promise(self, count):
        if count > 0:
            self.asked += 1
            count = min(count, self.memory)
        self.memory -= count
        return count

    def run(self, seconds):
        """Let time pass; return the bytes a second that the reader got."""
        step = self.round_trip / 40
        before = self.taken
        for _ in range(round(seconds / step)):
            self.now += step
            while self._credit and self._credit[0][0] <= self.now:
                self.send.grant(self._credit.popleft()[1])
            size = min(self.send.available, int(self.link * step))
            if size:
                self.send.take(size)
                self._data.append((self.now + self.round_trip / 2, size))
            while self._data and self._data[0][0] <= self.now:
                self.receive.received(self._data.popleft()[1])
            self.most_held = max(self.most_held, self.receive.held)
            size = min(self.receive.held, int(self.reader * step))
            if size:
                self.taken += size
                grant = self.receive.consumed(size, self.now, self.round_trip, self.promise)
                assert grant >= 0
                if grant:
                    self._credit.append((self.now + self.round_trip / 2, grant))
            self.check()
        return (self.taken - before) / seconds

    def check(self):
        receive = self.receive
        self.largest = max(self.largest, receive.size)
        in_flight = sum(size for _, size in self._data)
        returning = sum(size for _, size in self._credit)
        assert receive.granted == self.send.available + in_flight + returning
        assert receive.granted + receive.held <= self.largest
        assert receive.promised == receive.size - WINDOW >= 0


FAST = 1 << 50


@pytest.mark.parametrize(
    ("link", "round_trip"), [(12_500_000, 0.1), (2_500_000, 0.5), (60_000_000, 0.2)]
)
def test_it_grows_to_what_the_link_needs(link, round_trip):
    path = Path(link, FAST, round_trip)
    product = link * round_trip
    path.run(15 * round_trip)
    assert path.run(10 * round_trip) > 0.95 * link
    assert 1.3 * product < path.receive.size < 5.2 * product


def test_it_grows_to_the_configured_maximum_and_no_further():
    path = Path(1e9, FAST, 0.2, most=1_000_000)
    path.run(10)
    assert path.receive.size == path.largest == 1_000_000


def test_a_link_that_the_first_window_fills_keeps_it():
    path = Path(1_000_000, FAST, 0.05)
    path.run(10)
    assert path.largest == WINDOW
    assert path.asked == 0


@pytest.mark.parametrize("reader", [10_000, 100_000, 1_000_000])
def test_a_slow_reader_keeps_the_first_window(reader):
    """However fast the link is: it is not the window that limits."""
    path = Path(1e9, reader, 0.1)
    path.run(20)
    assert path.largest == WINDOW
    assert path.most_held <= WINDOW
    assert path.run(5) > 0.9 * reader


def test_a_reader_that_takes_nothing_holds_one_window():
    path = Path(1e9, 0, 0.1)
    path.run(5)
    assert path.receive.held == WINDOW
    assert path.receive.granted == 0


def test_a_reader_that_becomes_slow_loses_its_window_again():
    path = Path(100_000_000, FAST, 0.1)
    path.run(5)
    assert path.receive.size > 8_000_000
    promised = (1 << 40) - path.memory
    assert promised == path.receive.promised
    path.reader = 200_000
    path.run(120)  # what it had been granted comes first
    assert path.receive.size <= 2 * WINDOW
    assert path.receive.held <= 2 * WINDOW
    assert (1 << 40) - path.memory == path.receive.promised
    # It was not starved meanwhile, and grows again where it is fast again.
    assert path.run(5) > 0.9 * 200_000
    path.reader = FAST
    path.run(5)
    assert path.run(5) > 0.95 * path.link


def test_without_memory_it_does_not_grow():
    path = Path(100_000_000, FAST, 0.1, memory=100_000)
    path.run(5)
    assert path.receive.size == path.largest == WINDOW + 100_000
    assert path.memory == 0
    assert path.asked > 1
    assert path.run(1) > 0


def test_without_a_round_trip_it_does_not_grow():
    window = ReceiveWindow(WINDOW, MOST)
    for number in range(100):
        window.received(WINDOW)
        assert window.consumed(WINDOW, number / 10, None, lambda count: count) == WINDOW


def test_the_turns_of_the_processes_are_no_round_trip():
    """On a link of some microseconds the time goes elsewhere."""
    window = ReceiveWindow(WINDOW, MOST)
    now = 0.0
    for _ in range(1_000):
        now += 0.0006
        window.received(WINDOW // 4)
        window.consumed(WINDOW // 4, now, 0.000_01, lambda count: count)
    assert window.size == WINDOW


def test_credit_comes_back_at_a_quarter_of_the_window():
    window = ReceiveWindow()
    window.received(WINDOW)
    part = WINDOW // 16
    grants = [window.consumed(part, 0.0, None, lambda count: count) for _ in range(16)]
    assert grants == [0, 0, 0, WINDOW // 4] * 4


def test_what_was_granted_is_not_taken_back_but_withheld():
    window = ReceiveWindow(WINDOW, MOST)
    window.size = 4 * WINDOW
    window.granted = 4 * WINDOW
    now = 0.0
    granted = 0
    for _ in range(8):
        now += 1.0
        window.received(WINDOW // 2)
        granted += window.consumed(WINDOW // 2, now, 0.1, lambda count: count)
        assert window.granted >= 0
    assert window.size == WINDOW
    assert granted == WINDOW  # of the four that were used: three were withheld
    assert window.granted == WINDOW


def test_overrun():
    window = ReceiveWindow()
    window.received(WINDOW)
    with pytest.raises(CreditOverrun):
        window.received(1)
    assert window.held == WINDOW


def test_more_is_consumed_than_came():
    window = ReceiveWindow()
    window.received(5)
    with pytest.raises(LocalError):
        window.consumed(6, 0.0, None, lambda count: count)


@pytest.mark.parametrize("count", [0, MAX_CREDIT, MAX_CREDIT - WINDOW + 1, 0xFFFF_FFFF])
def test_senseless_credit(count):
    window = SendWindow()
    with pytest.raises(CreditOverflow):
        window.grant(count)
    assert window.available == WINDOW


def test_the_most_credit_that_there_may_be():
    window = SendWindow()
    window.grant(MAX_CREDIT - WINDOW)
    assert window.available == MAX_CREDIT


def test_sending_beyond_the_credit_is_our_own_fault():
    window = SendWindow(10)
    window.take(10)
    with pytest.raises(LocalError):
        window.take(1)


@given(
    st.lists(st.tuples(st.integers(0, WINDOW), st.integers(0, 8), st.floats(0, 2)), max_size=60),
    st.integers(0, 4 * WINDOW),
    st.sampled_from([None, 0.0, 0.05, 1.0]),
)
def test_the_books_are_in_order_whatever_comes(steps, memory, round_trip):
    sender, window = SendWindow(), ReceiveWindow(WINDOW, 2 * MOST, 0.0)
    now = 0.0
    left = memory

    def promise(count):
        nonlocal left
        count = min(count, left)
        left -= count
        return count

    largest = WINDOW
    for count, share, seconds in steps:
        now += seconds
        count = min(count, sender.available)
        if count:
            sender.take(count)
            window.received(count)
        grant = window.consumed(window.held * share // 8, now, round_trip, promise)
        if grant:
            sender.grant(grant)
        largest = max(largest, window.size)
        assert window.granted == sender.available >= 0
        assert 0 <= window.held <= largest
        assert window.granted + window.held <= largest
        assert window.promised == memory - left
        assert left >= 0
    # And it never runs dry while the reader takes what comes.
    for _ in range(100):
        now += 1.0
        sender.available += window.consumed(window.held, now, round_trip, promise)
        assert sender.available
        count = min(sender.available, 50_000)
        sender.take(count)
        window.received(count)

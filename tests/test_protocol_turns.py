"""Turns: whoever has little is quick, whoever has much shares, nobody is forgotten."""

from sockgw.protocol.frames import MAX_DATA
from sockgw.protocol.turns import SHARED_FRAME, Turns


class Waiting:
    """A stream with so much to send."""

    def __init__(self, size, high_water=0):
        self.size = size
        self.sent = 0
        self.closed = False
        self.scheduled = False
        self.paused = size > high_water > 0
        self.high_water = high_water

    @property
    def sendable(self):
        return self.size > 0

    def take_frame(self, limit, parts):
        assert self.scheduled
        assert not self.closed
        size = min(limit, self.size)
        self.size -= size
        self.sent += size
        parts.append((self, size))
        return size + 9

    def relieved(self):
        if self.paused and self.size <= self.high_water:
            self.paused = False
            return True
        return False


def fill(turns, target=65_536, size=0):
    """Return who sent how much in the next message."""
    parts = []
    relieved = []
    frames = turns.fill(parts, size, target, relieved)
    assert frames == len(parts)
    return parts, relieved


def who(parts):
    return [stream for stream, _ in parts]


def test_alone_it_has_large_frames():
    turns, stream = Turns(), Waiting(200_000)
    assert not turns
    turns.add(stream, True)
    assert turns
    sizes = []
    while turns:
        sizes += [size for _, size in fill(turns)[0]]
    assert sizes == [MAX_DATA, MAX_DATA, MAX_DATA, 200_000 - 3 * MAX_DATA]
    assert not stream.scheduled


def test_several_take_turns_with_small_frames():
    turns = Turns()
    streams = [Waiting(100_000) for _ in range(3)]
    for stream in streams:
        turns.add(stream, False)
    parts, _ = fill(turns)
    assert who(parts) == [*streams, streams[0]]
    assert {size for _, size in parts} == {SHARED_FRAME}
    parts, _ = fill(turns)
    assert who(parts) == [streams[1], streams[2], streams[0], streams[1]]


def test_on_a_slow_link_frames_are_smaller():
    turns = Turns()
    for _ in range(2):
        turns.add(Waiting(100_000), False)
    parts, _ = fill(turns, target=4_096)
    assert [size for _, size in parts] == [4_096]


def test_a_message_has_as_much_as_it_may_and_a_frame():
    turns = Turns()
    for _ in range(4):
        turns.add(Waiting(1_000_000), False)
    assert len(fill(turns, size=65_536)[0]) == 0
    assert len(fill(turns, size=65_535)[0]) == 1
    assert len(fill(turns, size=0)[0]) == 4


def test_who_has_just_come_waits_for_one_frame_and_not_for_one_of_each():
    turns = Turns()
    bulk = [Waiting(10_000_000) for _ in range(50)]
    for stream in bulk:
        turns.add(stream, False)
    fill(turns)
    small = Waiting(100)
    turns.add(small, True)
    parts, _ = fill(turns)
    assert small in who(parts)[:2]


def test_who_always_has_a_little_silences_nobody():
    """Every other turn is theirs, and no more."""
    turns = Turns()
    bulk = Waiting(10_000_000)
    turns.add(bulk, False)
    chatty = [Waiting(0) for _ in range(20)]
    turn = 0
    for _ in range(200):
        for stream in chatty:
            if not stream.scheduled:
                stream.size = 100
                turns.add(stream, True)
        parts, _ = fill(turns, target=SHARED_FRAME)
        turn += len(parts)
    assert bulk.sent >= turn // 2 * SHARED_FRAME - SHARED_FRAME
    served = [stream.sent for stream in chatty]
    assert min(served) > 0
    assert max(served) - min(served) <= 100


def test_who_has_more_than_a_frame_waits_with_the_others_then():
    turns = Turns()
    others = [Waiting(1_000_000) for _ in range(5)]
    for stream in others:
        turns.add(stream, False)
    late = Waiting(1_000_000)
    turns.add(late, True)
    order = []
    for _ in range(6):
        order += who(fill(turns)[0])
    first = order.index(late)
    assert first <= 1
    assert order.index(late, first + 1) - first >= 5


def test_everybody_gets_the_same():
    turns = Turns()
    streams = [Waiting(10_000_000) for _ in range(7)]
    for number, stream in enumerate(streams):
        turns.add(stream, bool(number % 2))
    for _ in range(500):
        fill(turns)
    shares = [stream.sent for stream in streams]
    assert max(shares) - min(shares) <= 2 * SHARED_FRAME


def test_who_is_closed_or_has_nothing_any_more_is_passed_over():
    turns = Turns()
    closed, empty, last = Waiting(10), Waiting(0), Waiting(10)
    closed.closed = True
    for stream in (closed, empty, last):
        turns.add(stream, True)
    parts, _ = fill(turns)
    assert who(parts) == [last]
    assert not any(stream.scheduled for stream in (closed, empty, last))
    assert not turns


def test_sources_that_may_go_on_are_told_once():
    turns = Turns()
    stream = Waiting(200_000, high_water=100_000)
    turns.add(stream, True)
    told = []
    while turns:
        told += fill(turns)[1]
    assert told == [stream]


def test_nothing_is_left_after_the_end():
    turns = Turns()
    turns.add(Waiting(5), True)
    turns.add(Waiting(5), False)
    turns.clear()
    assert not turns
    assert fill(turns) == ([], [])

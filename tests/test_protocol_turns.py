"""Turns: whoever has little is quick, whoever has much shares, nobody is forgotten."""

from collections import Counter
from itertools import count

from sockgw.protocol.frames import MAX_DATA, decode
from sockgw.protocol.streams import LOW_WATER, Phase, Stream
from sockgw.protocol.turns import SHARED_FRAME, Turns
from sockgw.protocol.windows import MAX_CREDIT, WINDOW, ReceiveWindow

BLOCK = bytes(10_000_000)


class Link:
    """A session that leaves the turns to the test."""

    def schedule(self, stream, fresh):
        pass


link = Link()
numbers = count(1, 2)


def waiting(size):
    """Return a stream with so much to send, and credit for more."""
    outgoing, incoming = Phase.BODY, Phase.BODY
    stream = Stream(next(numbers), link, ReceiveWindow(), outgoing=outgoing, incoming=incoming)
    stream.receive_credit(MAX_CREDIT - WINDOW)
    stream.write(BLOCK[:size])
    return stream


def fill(turns, target=65_536, size=0):
    """Return which streams sent how much in the next message, and those that may go on."""
    parts = []
    relieved = []
    frames = turns.fill(parts, size, target, relieved)
    sent = [(number, len(payload)) for _, _, number, payload in decode(b"".join(parts))]
    assert frames == len(sent)
    return sent, relieved


def who(sent):
    return [number for number, _ in sent]


def ids(*streams):
    return [stream.id for stream in streams]


def test_alone_it_has_large_frames():
    turns, stream = Turns(), waiting(200_000)
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
    streams = [waiting(100_000) for _ in range(3)]
    for stream in streams:
        turns.add(stream, False)
    parts, _ = fill(turns)
    assert who(parts) == ids(*streams, streams[0])
    assert {size for _, size in parts} == {SHARED_FRAME}
    parts, _ = fill(turns)
    assert who(parts) == ids(streams[1], streams[2], streams[0], streams[1])


def test_on_a_slow_link_frames_are_smaller():
    turns = Turns()
    for _ in range(2):
        turns.add(waiting(100_000), False)
    parts, _ = fill(turns, target=4_096)
    assert [size for _, size in parts] == [4_096]


def test_a_message_has_as_much_as_it_may_and_a_frame():
    turns = Turns()
    for _ in range(4):
        turns.add(waiting(1_000_000), False)
    assert len(fill(turns, size=65_536)[0]) == 0
    assert len(fill(turns, size=65_535)[0]) == 1
    assert len(fill(turns, size=0)[0]) == 4


def test_who_has_just_come_waits_for_one_frame_and_not_for_one_of_each():
    turns = Turns()
    bulk = [waiting(10_000_000) for _ in range(50)]
    for stream in bulk:
        turns.add(stream, False)
    fill(turns)
    small = waiting(100)
    turns.add(small, True)
    parts, _ = fill(turns)
    assert small.id in who(parts)[:2]


def test_who_always_has_a_little_silences_nobody():
    """Every other turn is theirs, and no more."""
    turns = Turns()
    bulk = waiting(10_000_000)
    turns.add(bulk, False)
    chatty = [waiting(0) for _ in range(20)]
    turn = 0
    sent = Counter()
    for _ in range(200):
        for stream in chatty:
            if not stream.scheduled:
                stream.write(bytes(100))
                turns.add(stream, True)
        parts, _ = fill(turns, target=SHARED_FRAME)
        turn += len(parts)
        for number, size in parts:
            sent[number] += size
    assert sent[bulk.id] >= turn // 2 * SHARED_FRAME - SHARED_FRAME
    served = [sent[stream.id] for stream in chatty]
    assert min(served) > 0
    assert max(served) - min(served) <= 100


def test_who_has_more_than_a_frame_waits_with_the_others_then():
    turns = Turns()
    others = [waiting(1_000_000) for _ in range(5)]
    for stream in others:
        turns.add(stream, False)
    late = waiting(1_000_000)
    turns.add(late, True)
    order = []
    for _ in range(6):
        order += who(fill(turns)[0])
    first = order.index(late.id)
    assert first <= 1
    assert order.index(late.id, first + 1) - first >= 5


def test_everybody_gets_the_same():
    turns = Turns()
    streams = [waiting(10_000_000) for _ in range(7)]
    for number, stream in enumerate(streams):
        turns.add(stream, bool(number % 2))
    sent = Counter()
    for _ in range(500):
        for number, size in fill(turns)[0]:
            sent[number] += size
    shares = [sent[stream.id] for stream in streams]
    assert max(shares) - min(shares) <= 2 * SHARED_FRAME


def test_who_is_closed_or_has_nothing_any_more_is_passed_over():
    turns = Turns()
    closed, empty, last = waiting(10), waiting(0), waiting(10)
    closed.closed = True
    for stream in (closed, empty, last):
        turns.add(stream, True)
    parts, _ = fill(turns)
    assert who(parts) == ids(last)
    assert not any(stream.scheduled for stream in (closed, empty, last))
    assert not turns


def test_sources_that_may_go_on_are_told_once():
    turns = Turns()
    stream = waiting(200_000)
    assert stream.congested  # its source is told to pause
    turns.add(stream, True)
    told = []
    while turns:
        told += [(each, each.queued) for each in fill(turns)[1]]
    assert [each for each, _ in told] == [stream]
    assert told[0][1] <= LOW_WATER


def test_nothing_is_left_after_the_end():
    turns = Turns()
    turns.add(waiting(5), True)
    turns.add(waiting(5), False)
    turns.clear()
    assert not turns
    assert fill(turns) == ([], [])

"""What slow readers hold is bounded, for a tunnel and for the process; who holds most gives up."""

import pytest

from sockgw.protocol.errors import StreamCode
from sockgw.protocol.frames import FIN, FrameType, decode, encode
from sockgw.protocol.heads import RequestHead
from sockgw.protocol.memory import Limits, Memory, Pool
from sockgw.protocol.payloads import Destination, decode_reset, encode_open
from sockgw.protocol.session import Session
from sockgw.protocol.windows import WINDOW

OPEN = encode_open(RequestHead(b"GET", b"/", []), Destination("http", "a", 80))
PIECE = 10_000  # bytes


class Reader:
    """A stream's handler, whose socket takes what it is told to take."""

    def __init__(self, stream):
        self.stream = stream
        self.held = 0
        self.code = None

    def data_received(self, data):
        assert self.code is None
        self.held += len(data)

    def take(self, count):
        self.held -= count
        self.stream.consumed(count)

    def ended(self, trailers):
        pass

    def reset(self, code, detail):
        assert self.code is None
        self.code = code
        self.held = 0


class Inner:
    """A session to whose streams bodies are uploaded."""

    def __init__(self, memory=None, **limits):
        self.readers = {}
        self.memory = memory or Memory()
        self.now = 0.0
        self.session = Session(
            self,
            opens=False,
            limits=Limits(**limits),
            memory=self.memory,
            seconds=lambda: self.now,
        )

    def output_ready(self):
        pass

    def opened(self, stream, head, to, complete):
        reader = self.readers[stream.id] = Reader(stream)
        return reader

    def handler_failed(self, stream):
        raise AssertionError

    def open(self, count):
        """Open so many streams, and return their readers."""
        first = self.session._last_id + 2
        numbers = range(first, first + 2 * count, 2)
        for number in numbers:
            self.session.receive(encode(FrameType.OPEN, 0, number, OPEN))
        return [self.readers[number] for number in numbers]

    def upload(self, reader, size, flags=0):
        while size:
            piece = min(size, PIECE)
            size -= piece
            self.session.receive(encode(FrameType.DATA, flags, reader.stream.id, bytes(piece)))
        self.check()

    def check(self):
        held = sum(stream.receiving.held for stream in self.session.streams.values())
        assert self.session.buffered == held

    @property
    def resets(self):
        """The streams that the peer is told of, with the reason."""
        result = []
        while message := self.session.next_message():
            result += [
                (stream, decode_reset(payload)[0])
                for kind, _, stream, payload in decode(message)
                if kind == FrameType.RESET
            ]
        return result


def test_within_the_bound_everybody_stays():
    inner = Inner(max_buffered=100_000)
    readers = inner.open(4)
    for reader in readers:
        inner.upload(reader, 25_000)
    assert inner.session.buffered == inner.memory.buffered.used == 100_000
    assert [reader.code for reader in readers] == [None] * 4


def test_beyond_the_bound_who_holds_most_is_given_up():
    inner = Inner(max_buffered=100_000)
    small, large, middle = inner.open(3)
    inner.upload(small, 10_000)
    inner.upload(large, 50_000)
    inner.upload(middle, 40_000)
    inner.upload(small, 10_000)  # it comes to too much by this one, which is not the slowest
    assert [reader.code for reader in (small, large, middle)] == [
        None,
        StreamCode.OVERLOADED,
        None,
    ]
    assert inner.resets == [(large.stream.id, StreamCode.OVERLOADED)]
    assert inner.session.buffered == 60_000


def test_no_more_are_given_up_than_is_needed():
    inner = Inner(max_buffered=100_000)
    readers = inner.open(50)
    for reader in readers:
        inner.upload(reader, PIECE)
    assert sum(reader.code is None for reader in readers) == 10
    assert inner.session.buffered == 100_000


def test_who_reads_is_not_given_up():
    inner = Inner(max_buffered=100_000)
    slow, quick = inner.open(2)
    inner.upload(slow, 90_000)
    for _ in range(20):
        inner.upload(quick, PIECE)
        quick.take(PIECE)
    assert (slow.code, quick.code) == (None, None)


def test_one_tunnel_may_not_use_what_belongs_to_all():
    memory = Memory(buffered=Pool(1_000_000))
    greedy, modest = Inner(memory, max_buffered=100_000), Inner(memory, max_buffered=100_000)
    other = modest.open(1)[0]
    modest.upload(other, 100_000)
    for reader in greedy.open(20):
        greedy.upload(reader, 50_000)
    assert greedy.session.buffered <= 100_000
    assert other.code is None
    assert memory.buffered.used == greedy.session.buffered + 100_000


def test_beyond_the_bound_of_the_process_the_tunnel_that_holds_most_gives_up():
    memory = Memory(buffered=Pool(200_000))
    tunnels = [Inner(memory) for _ in range(3)]
    readers = [tunnel.open(2) for tunnel in tunnels]
    for number, tunnel in enumerate(tunnels):
        for reader in readers[number]:
            tunnel.upload(reader, 20_000 * (number + 1))
    # 40,000 + 80,000 + 120,000: the last has the most, and one of its streams is enough.
    assert [reader.code for reader in (*readers[0], *readers[1])] == [None] * 4
    assert sorted(reader.code is None for reader in readers[2]) == [False, True]
    assert memory.buffered.used <= 200_000
    # The one by whose data it comes to too much need not be it.
    tunnels[0].upload(readers[0][0], 30_000)
    assert memory.buffered.used <= 200_000
    assert readers[0][0].code is None


def test_what_was_ended_or_reset_is_not_counted_any_more():
    inner = Inner()
    first, second, third = inner.open(3)
    for reader in (first, second, third):
        inner.upload(reader, 50_000)
    first.stream.reset(StreamCode.CANCELLED)
    inner.session.receive(encode(FrameType.RESET, 0, second.stream.id, bytes(2)))
    inner.check()
    assert inner.memory.buffered.used == 50_000
    inner.session.receive(encode(FrameType.DATA, FIN, third.stream.id, b""))
    third.take(50_000)
    assert inner.memory.buffered.used == 0


def test_the_end_of_a_tunnel_gives_everything_back():
    memory = Memory()
    inner, other = Inner(memory), Inner(memory)
    for tunnel in (inner, other):
        for reader in tunnel.open(3):
            tunnel.upload(reader, 30_000)
    assert memory.holders == {inner.session, other.session}
    inner.session.end(StreamCode.TUNNEL_LOST, "over")
    assert memory.buffered.used == other.session.buffered == 90_000
    assert memory.holders == {other.session}
    other.session.end(StreamCode.TUNNEL_LOST, "over")
    assert memory.buffered.used == memory.promised.used == memory.resend.used == 0
    assert memory.holders == set()


def grow(inner, reader, rounds=10):
    """Read as fast as a link of 100 ms brings it, so that the window grows."""
    inner.session.measured(0.1)
    for _ in range(rounds):
        for _ in range(4):
            inner.now += 0.026
            left = reader.stream.receiving.granted
            while left:
                count = min(left, 100_000)
                left -= count
                inner.upload(reader, count)
                reader.take(count)


def test_larger_windows_are_promised_within_the_bound_of_the_process():
    memory = Memory(promised=Pool(1_000_000))
    tunnels = [Inner(memory) for _ in range(3)]
    for tunnel in tunnels:
        grow(tunnel, tunnel.open(1)[0])
    promised = [
        stream.receiving.promised
        for tunnel in tunnels
        for stream in tunnel.session.streams.values()
    ]
    assert sum(promised) == memory.promised.used == 1_000_000
    assert promised[0] > promised[1] >= promised[2]
    tunnels[0].session.end(StreamCode.TUNNEL_LOST, "over")
    assert memory.promised.used == sum(promised[1:])


def test_larger_windows_are_promised_within_the_bound_of_the_tunnel():
    inner = Inner(max_buffered=1_000_000)
    readers = inner.open(3)
    for reader in readers:
        grow(inner, reader)
    assert inner.memory.promised.used == 1_000_000
    readers[0].stream.reset(StreamCode.CANCELLED)
    assert inner.memory.promised.used < 1_000_000
    grow(inner, readers[1])
    assert inner.memory.promised.used <= 1_000_000


def test_a_window_grows_to_the_configured_maximum():
    inner = Inner(max_window=600_000)
    reader = inner.open(1)[0]
    grow(inner, reader)
    assert reader.stream.receiving.size == 600_000


@pytest.mark.parametrize("most", [1, WINDOW])
def test_a_maximum_below_the_first_window_means_that_none_grows(most):
    inner = Inner(max_window=most)
    reader = inner.open(1)[0]
    grow(inner, reader)
    assert reader.stream.receiving.size == WINDOW
    assert inner.memory.promised.used == 0


def test_tiny_frames_are_counted_with_what_they_cost():
    """Two bytes that wait for a socket are an object of fifty."""
    inner = Inner(max_buffered=1_000_000)
    reader = inner.open(1)[0]
    data = encode(FrameType.DATA, 0, reader.stream.id, b"ab")
    for _ in range(20_000):
        if reader.code is None:
            inner.session.receive(data)
    assert reader.code is StreamCode.OVERLOADED
    assert reader.stream.receiving.held < 20_000
    assert inner.session.buffered == inner.memory.buffered.used == 0


def test_what_tiny_frames_cost_is_given_back_with_the_last_of_them():
    inner = Inner()
    first, second = inner.open(2)
    for reader in (first, second):
        for _ in range(10):
            inner.session.receive(encode(FrameType.DATA, 0, reader.stream.id, b"ab"))
    assert inner.session.buffered > 20 * 50
    first.take(15)
    first.take(5)
    second.stream.reset(StreamCode.CANCELLED)
    assert inner.session.buffered == inner.memory.buffered.used == 0

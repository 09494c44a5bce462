"""Resuming: two sessions whose carriers break at any point lose nothing and repeat nothing."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from resumebench import World

from sockgw.protocol.errors import RemoteError, StreamCode, TunnelCode, TunnelError
from sockgw.protocol.frames import HEADER_SIZE, MAX_HEAD, MAX_MESSAGE, FrameType, decode, encode
from sockgw.protocol.heads import RequestHead
from sockgw.protocol.payloads import Destination, encode_open, u64
from sockgw.protocol.session import MESSAGE_TARGET, Session

BYTES = Random(3).randbytes(400_000)

sizes = st.sampled_from([1, 700, 16_384, 40_000, 90_000])
choice = st.integers(0, 1_000_000)


class Links(RuleBasedStateMachine):
    """Whatever is sent, paused, cut and resumed in whatever order."""

    @initialize(
        resend_buffer=st.sampled_from([1, 30_000, 200_000, 1 << 24]),
        pool=st.sampled_from([1, 100_000, 1 << 28]),
        promised=st.sampled_from([0, 300_000, 1 << 28]),
        eager=st.booleans(),
    )
    def begin(self, resend_buffer, pool, promised, eager):
        self.world = World(resend_buffer, promised, pool)
        self.world.eager = eager
        self.offset = 0

    def some(self, ends, number):
        return ends[number % len(ends)]

    # ------------------------------------------------------------------ streams

    @precondition(lambda self: self.world.outer.session.available)
    @rule(complete=st.booleans())
    def open(self, complete):
        self.world.open(complete)

    @precondition(lambda self: self.writers)
    @rule(number=choice, size=sizes)
    def write(self, number, size):
        offset = self.offset = (self.offset + 7_919) % (len(BYTES) - size)
        self.some(self.writers, number).write(BYTES[offset : offset + size])

    @property
    def writers(self):
        return [end for end in self.world.all_ends if end.may_write]

    @precondition(lambda self: self.silent)
    @rule(number=choice, status=st.sampled_from([103, 200, 204]))
    def respond(self, number, status):
        self.some(self.silent, number).respond(status)

    @property
    def silent(self):
        return [end for end in self.world.all_ends if end.alive and not end.responded]

    @precondition(lambda self: self.writers)
    @rule(number=choice, trailers=st.sampled_from([[], [(b"T", b"1")]]))
    def end(self, number, trailers):
        self.some(self.writers, number).end(trailers)

    @precondition(lambda self: self.living)
    @rule(number=choice, code=st.sampled_from([StreamCode.CANCELLED, StreamCode.ORIGIN_CLOSED]))
    def reset(self, number, code):
        self.some(self.living, number).abort(code)

    @property
    def living(self):
        return [end for end in self.world.all_ends if not end.stream.closed]

    @precondition(lambda self: self.living)
    @rule(number=choice, eager=st.booleans())
    def change_pace(self, number, eager):
        end = self.some(self.living, number)
        end.eager = eager
        if eager:
            end.take()

    @precondition(lambda self: self.living)
    @rule(number=choice, count=sizes)
    def take(self, number, count):
        self.some(self.living, number).take(count)

    # ------------------------------------------------------------------ the link

    @rule(side=st.integers(0, 1))
    def send(self, side):
        self.world.sides[side].pump()

    @precondition(lambda self: self.world.connected)
    @rule(side=st.integers(0, 1))
    def ping(self, side):
        self.world.sides[side].ping()

    @precondition(lambda self: self.world.connected)
    @rule(side=st.integers(0, 1), count=st.integers(1, 5))
    def deliver(self, side, count):
        for _ in range(count):
            self.world.deliver(self.world.sides[side])

    @precondition(lambda self: self.world.connected)
    @rule()
    def talk(self):
        self.world.run()

    @rule(milliseconds=st.sampled_from([0, 5, 40, 2_000, 20_000]))
    def time_passes(self, milliseconds):
        self.world.later(milliseconds / 1_000)

    @precondition(lambda self: self.world.connected)
    @rule(arrived=st.tuples(st.integers(0, 6), st.integers(0, 6)))
    def cut(self, arrived):
        """Each direction at its own point."""
        for side, count in zip(self.world.sides, arrived, strict=True):
            for _ in range(count):
                self.world.deliver(side)
        self.world.cut()

    @precondition(lambda self: self.world.connected)
    @rule()
    def only_one_side_notices(self):
        self.world.notice()

    @precondition(lambda self: not self.world.connected)
    @rule(count=st.integers(1, 5))
    def the_old_carrier_still_brings_something(self, count):
        for _ in range(count):
            self.world.deliver(self.world.inner)

    @precondition(lambda self: not self.world.connected)
    @rule()
    def resume(self):
        self.world.resume()

    @precondition(lambda self: not self.world.connected)
    @rule(messages=st.integers(0, 6))
    def the_welcome_is_lost(self, messages):
        """The outer side goes on with a carrier that breaks before the inner side knows of it."""
        self.world.outer_resumes()
        for _ in range(messages):
            self.world.outer.pump()
        self.world.outer.wire.clear()

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def the_books_are_in_order(self):
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self):
        if hasattr(self, "world"):
            self.world.finish()


Links.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestLinks = Links.TestCase


# ---------------------------------------------------------------------- a cut at every point


def exchange(world):
    """An exchange of everything that there is; yields whenever the link may carry something."""
    upload = world.open(complete=False)
    upload.write(BYTES[:300_000])  # more than the first window
    download = world.open(complete=True)
    yield
    origins = world.inner.ends
    origins[1].respond(103)
    yield
    origins[1].respond(200)
    origins[3].respond(200)
    origins[3].write(BYTES[100_000:230_000])
    yield
    aborted = world.open(complete=False)
    aborted.write(BYTES[:50_000])
    yield
    upload.end([(b"T", b"1")])
    world.inner.ping()
    yield
    aborted.abort(StreamCode.CANCELLED)
    download.eager = False
    origins[3].write(BYTES[:200_000])
    yield
    download.eager = True
    download.take()
    origins[3].end([(b"T", b"2")])
    yield
    origins[1].end([])
    yield


def play(cuts, direction, resend_buffer):
    """Play the exchange; before the messages with these numbers the link breaks.

    ``direction``: whose messages are lost; those of the other side still arrive. Returns the number
    of messages.
    """
    world = World(resend_buffer)
    messages = 0

    def carry():
        nonlocal messages
        busy = True
        while busy:
            busy = world.outer.pump() | world.inner.pump()
            for side in world.sides:
                while side.wire:
                    messages += 1
                    if messages in cuts:
                        if direction != "both":
                            lost = world.sides[direction]
                            while world.deliver(world.other(lost)):
                                pass
                        world.cut()
                        world.check()
                        world.resume()
                        busy = True
                        break
                    world.deliver(side)
                    busy = True
            if not busy and any(side.session.untold for side in world.sides):
                world.later()
                busy = True
            world.check()

    for _ in exchange(world):
        carry()
    world.finish()
    return messages


@pytest.mark.parametrize("resend_buffer", [1, 70_000, 1 << 24])
@pytest.mark.parametrize("direction", [0, 1, "both"])
def test_a_cut_at_each_message(direction, resend_buffer):
    total = play((), direction, resend_buffer)
    assert total > 20
    for number in range(1, total + 1):
        play({number}, direction, resend_buffer)


@pytest.mark.parametrize("direction", [0, 1, "both"])
def test_two_cuts_one_soon_after_the_other(direction):
    """The second one meets what is being sent again."""
    total = play((), direction, 1 << 24)
    for number in range(1, total + 1):
        for distance in (1, 2, 3, 5):
            play({number, number + distance}, direction, 1 << 24)


def test_a_cut_at_every_message_of_all():
    """It ends all the same: what had arrived once is not sent again."""
    play(set(range(2, 200, 2)), "both", 1 << 24)


def test_what_is_sent_again_comes_before_anything_new_and_after_what_is_urgent():
    world = World()
    end = world.open(complete=False)
    end.write(b"first")
    world.outer.pump()
    end.write(b"second")
    world.outer.ping()
    world.cut()
    world.outer.ping()
    world.resume()
    world.outer.session.ping(u64.pack(world.outer.carrier))
    world.outer.pump()
    world.outer.pump()
    kinds = [[kind for kind, *_ in decode(message)] for message in world.outer.wire]
    assert kinds == [[FrameType.PING, FrameType.OPEN, FrameType.DATA], [FrameType.DATA]]
    world.finish()
    assert world.inner.ends[1].got[0] == b"firstsecond"


def test_many_pongs_beside_what_is_sent_again_make_no_message_too_long():
    pair = [Session(Quiet(), opens=opens) for opens in (True, False)]
    outer, inner = pair
    to = Destination("http", "a", 80)
    # The longest message: one byte short of being closed, and then a frame of the largest size.
    for size in (MESSAGE_TARGET - 1, HEADER_SIZE + MAX_HEAD):
        empty = len(encode_open(RequestHead(b"GET", b"/", [(b"X", bytes(70_000))]), to)) - 70_000
        value = bytes(size - HEADER_SIZE - empty)
        if len(value) < 65_536:  # its length takes two bytes and not four
            value += bytes(2)
        head = RequestHead(b"GET", b"/", [(b"X", value)])
        outer.open(head, to, Quiet(), complete=True)
    assert len(outer.next_message()) == MESSAGE_TARGET - 1 + HEADER_SIZE + MAX_HEAD
    outer.resume(0)
    for _ in range(MESSAGE_TARGET // 17 + 1):
        outer.receive(encode(FrameType.PING, 0, 0, bytes(8)))
    messages = list(iter(outer.next_message, b""))
    assert max(map(len, messages)) <= MAX_MESSAGE
    for message in messages:
        inner.receive(message)
    assert len(inner.streams) == 2


class Quiet:
    """Handles sessions and streams, and makes nothing of it."""

    def output_ready(self):
        pass

    def opened(self, stream, head, to, complete):
        return self

    def ponged(self, payload):
        pass

    def reset(self, code, detail):
        raise AssertionError(code)


def test_what_has_arrived_is_not_sent_again():
    world = World()
    end = world.open(complete=False)
    for number in range(8):
        end.write(BYTES[:16_000])
        world.outer.pump()
        if number < 5:
            world.deliver(world.outer)
    before = world.outer.session.unacknowledged
    world.cut()
    world.resume()
    assert world.outer.session.unacknowledged < before / 2
    world.run()
    assert world.outer.session.resent == 3 * 16_009
    world.finish()


@pytest.mark.parametrize(
    ("resend_buffer", "pool"), [(1, 1 << 28), (1 << 24, 1), (1 << 24, 1 << 28)]
)
def test_who_is_held_back_goes_on_with_the_acknowledgement(resend_buffer, pool):
    """By the tunnel's bound, by that of the process, or by what the link can use."""
    world = World(resend_buffer, pool=pool)
    end = world.open(complete=False)
    world.run()
    world.outer.memory.resend.used += 1  # another tunnel's
    end.write(bytes(600_000))
    outer = world.outer.session
    while world.outer.pump():
        pass
    assert 65_536 < outer.unacknowledged <= 262_144 + 70_000
    assert end.stream.queued
    # Nothing but acknowledgements comes from the other side.
    while world.deliver(world.outer):
        pass
    before = end.stream.queued
    world.inner.session.acknowledge()
    world.inner.pump()
    world.deliver(world.inner)
    assert world.outer.pump()
    assert end.stream.queued < before
    world.outer.memory.resend.used -= 1
    world.finish()


def test_a_farewell_is_told_again():
    world = World()
    heard = []
    world.outer.going_away = lambda *arguments: heard.append(arguments)
    world.inner.session.go_away(TunnelCode.NO_ERROR, "bye")
    world.inner.pump()
    world.cut()
    world.resume()
    world.run()
    assert len(heard) == 1
    assert not world.outer.session.available


@pytest.mark.parametrize("received", [0, 3, 4, 2**64 - 1])
def test_it_goes_on_only_from_where_the_peer_can_be(received):
    """It has acknowledged one frame, and two were sent."""
    world = World()
    end = world.open(complete=False)
    world.run()
    end.write(b"x")
    world.outer.pump()
    outer = world.outer.session
    assert [count for count in range(6) if outer.resumable(count)] == [1, 2]
    assert not outer.resumable(received)
    with pytest.raises(TunnelError):
        outer.resume(received)


def test_nothing_goes_on_after_the_end():
    world = World()
    world.open(complete=True)
    world.outer.session.end(StreamCode.TUNNEL_LOST, "over")
    assert not world.outer.session.resumable(0)
    assert world.outer.session.next_message() == b""


@given(st.lists(st.one_of(st.binary(max_size=40), st.integers(0, 5)), max_size=8), st.booleans())
def test_junk_between_resumptions_raises_only_what_the_peer_is_to_blame_for(items, opens):
    world = World()
    world.open(complete=False).write(BYTES[:100])
    world.run()
    side = world.outer if opens else world.inner
    side.going_away = lambda *arguments: None
    side.ponged = lambda payload: None
    try:
        for item in items:
            if isinstance(item, int):
                side.awake = False
                side.session.resume(item)
            else:
                side.session.receive(item)
                side.session.receive(encode(FrameType.ACK, 0, 0, u64.pack(len(item) % 4)))
    except RemoteError:
        pass


def test_exchanges_that_are_aborted_at_random_points_leave_nothing():
    """By either side, with a cut now and then; the tables are empty and nothing is held."""
    random = Random(11)
    world = World()
    for number in range(1_500):
        end = world.open(complete=False)
        end.eager = world.eager = random.random() < 0.5
        end.write(BYTES[: random.randrange(20_000)])
        for _ in range(random.randrange(6)):
            side = random.choice(world.sides)
            side.pump()
            world.deliver(side)
        origin = world.inner.ends.get(end.stream.id)
        if origin is not None:
            origin.respond(200)
            origin.write(BYTES[: random.randrange(20_000)])
        if number % 50 == 0:
            world.cut()
            world.resume()
        (random.choice([end, origin]) or end).abort(StreamCode.CANCELLED)
        if random.random() < 0.3:
            world.run()
        if len(world.outer.session.streams) >= 8:
            world.run()
    world.run()
    for side in world.sides:
        assert not side.session.streams
        assert not side.session.unacknowledged
        assert side.memory.resend.used == 0
        assert side.memory.buffered.used == 0
        assert side.memory.promised.used == 0
        assert not side.session._turns or side.session.next_message() == b""

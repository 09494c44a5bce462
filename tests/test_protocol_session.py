"""Sessions: a pair of them in memory, with handlers that check every promise as it is made."""

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockgw.protocol.errors import LocalError, StreamCode, TunnelCode, TunnelError
from sockgw.protocol.frames import FIN, MAX_DATA, FrameType, decode, encode, pack_header
from sockgw.protocol.heads import RequestHead, ResponseHead
from sockgw.protocol.memory import Limits
from sockgw.protocol.payloads import (
    Destination,
    decode_reset,
    encode_open,
    encode_response,
    u32,
    u64,
)
from sockgw.protocol.session import (
    ACK_BYTES,
    FLOOD_BUDGET,
    MAX_CONTROL,
    Session,
    TunnelFull,
)
from sockgw.protocol.streams import HIGH_WATER
from sockgw.protocol.windows import WINDOW

TO = Destination("http", "origin.test", 80)
GET = RequestHead(b"GET", b"/", [(b"Host", b"a"), (b"X", b"1"), (b"X", b"2")])
OK = ResponseHead(200, b"OK", [(b"A", b"b")])


class Handler:
    """A strict stream handler: raises on anything after the end."""

    def __init__(self, consume=True):
        self.consume = consume
        self.stream = None
        self.heads = []
        self.body = b""
        self.trailers = None
        self.code = None
        self.detail = ""
        self.drains = 0
        self.unconsumed = 0

    def _alive(self):
        assert self.code is None, "called after reset"
        assert self.trailers is None, "called after the end"

    def head_received(self, head):
        self._alive()
        self.heads.append(head)

    def data_received(self, data):
        self._alive()
        assert data
        self.body += data
        self.unconsumed += len(data)
        assert self.unconsumed <= self.stream.receiving.size, "more than one window without credit"
        if self.consume:
            self.take()

    def take(self):
        count, self.unconsumed = self.unconsumed, 0
        self.stream.consumed(count)

    def ended(self, trailers):
        self._alive()
        self.trailers = trailers

    def reset(self, code, detail):
        assert self.code is None
        self.code, self.detail = code, detail

    def drained(self):
        self.drains += 1


class Side:
    """A session handler that keeps what it is told."""

    def __init__(self, opens, max_streams=100):
        self.wakes = 0
        self.handlers = []
        self.pongs = []
        self.gone = None
        self.failures = []
        self.consume = True
        self.session = Session(self, opens=opens, limits=Limits(max_streams=max_streams))

    def output_ready(self):
        self.wakes += 1

    def opened(self, stream, head, to, complete):
        handler = Handler(self.consume)
        handler.stream = stream
        handler.request = (head, to, complete)
        self.handlers.append(handler)
        return handler

    def ponged(self, payload):
        self.pongs.append(payload)

    def going_away(self, last, code, detail):
        self.gone = (last, code, detail)

    def handler_failed(self, stream):
        self.failures.append(stream.id)


class Pair:
    """An outer and an inner session with a wire between them."""

    def __init__(self, max_streams=100, inner_streams=None):
        self.outer = Side(True, max_streams)
        self.inner = Side(False, inner_streams or max_streams)

    def open(self, head=GET, complete=True, consume=True):
        handler = Handler(consume)
        handler.stream = self.outer.session.open(head, TO, handler, complete=complete)
        return handler

    def run(self):
        """Carry messages until both sides are silent."""
        busy = True
        while busy:
            busy = False
            for here, there in ((self.outer, self.inner), (self.inner, self.outer)):
                message = here.session.next_message()
                if message:
                    busy = True
                    there.session.receive(message)
            if not busy:
                for side in (self.outer, self.inner):
                    busy = busy or side.session.untold
                    side.session.acknowledge()


@pytest.fixture
def pair():
    return Pair()


def test_a_request_and_its_answer(pair):
    client = pair.open()
    pair.run()
    origin = pair.inner.handlers[0]
    assert origin.request == (GET, TO, True)
    origin.stream.respond(ResponseHead(103, b"", []))
    origin.stream.respond(OK)
    origin.stream.write(b"hello ")
    origin.stream.write(b"world")
    origin.stream.end()
    pair.run()
    assert [head.status for head in client.heads] == [103, 200]
    assert client.heads[1] == OK
    assert client.body == b"hello world"
    assert client.trailers == []
    assert not pair.outer.session.streams
    assert not pair.inner.session.streams


def test_head_body_and_end_leave_in_one_message_and_few_frames(pair):
    pair.open()
    pair.run()
    stream = pair.inner.handlers[0].stream
    stream.respond(OK)
    stream.write(b"hello")
    stream.end()
    kinds = [(kind, flags) for kind, flags, *_ in decode(pair.inner.session.next_message())]
    assert kinds == [(FrameType.HEAD, 0), (FrameType.DATA, FIN)]


def test_trailers_both_ways(pair):
    client = pair.open(complete=False)
    client.stream.write(b"up")
    client.stream.end([(b"T", b"1")])
    pair.run()
    origin = pair.inner.handlers[0]
    assert (origin.body, origin.trailers) == (b"up", [(b"T", b"1")])
    origin.stream.respond(OK)
    origin.stream.write(b"down")
    origin.stream.end([(b"T", b"2")])
    pair.run()
    assert (client.body, client.trailers) == (b"down", [(b"T", b"2")])
    assert client.stream.closed
    assert origin.stream.closed


def test_the_origin_is_told_to_the_gateway_where_only_the_inner_layer_knows_it(pair):
    client = pair.open()
    pair.run()
    origin = ("https", "crm.internal", 8443)
    pair.inner.handlers[0].stream.respond(ResponseHead(200, b"", [], origin))
    pair.run()
    assert client.heads[0].origin == origin


def test_a_reader_that_takes_nothing_gets_one_window_and_no_more(pair):
    client = pair.open(consume=False)
    pair.run()
    stream = pair.inner.handlers[0].stream
    stream.respond(OK)
    stream.write(bytes(3 * WINDOW))
    stream.end()
    assert stream.congested
    pair.run()
    assert len(client.body) == WINDOW
    assert client.trailers is None
    assert pair.inner.session.stalls > 0
    client.take()
    pair.run()
    assert len(client.body) == 2 * WINDOW
    client.consume = True
    client.take()
    pair.run()
    assert len(client.body) == 3 * WINDOW
    assert client.trailers == []


def test_congestion_ends_once_and_only_when_there_is_room(pair):
    pair.open()
    pair.run()
    handler = pair.inner.handlers[0]
    handler.stream.respond(OK)
    handler.stream.write(bytes(HIGH_WATER))
    assert not handler.stream.congested
    handler.stream.write(b"x")
    assert handler.stream.congested
    assert handler.drains == 0
    pair.run()
    assert handler.drains == 1
    assert not handler.stream.congested


def test_many_streams_share_and_control_frames_go_first(pair):
    for _ in range(3):
        pair.open()
    pair.run()
    for handler in pair.inner.handlers:
        handler.stream.respond(OK)
        handler.stream.write(bytes(200_000))
    pair.inner.session.next_message()  # heads are out
    pair.inner.session.ping(bytes(8))
    frames = list(decode(pair.inner.session.next_message()))
    assert frames[0][0] == FrameType.PING
    frames += decode(pair.inner.session.next_message())
    data = [(stream, len(payload)) for kind, _, stream, payload in frames if kind == FrameType.DATA]
    assert {stream for stream, _ in data} == {1, 3, 5}
    assert all(size == 16_384 for _, size in data)


def test_one_stream_alone_uses_large_frames(pair):
    pair.open()
    pair.run()
    stream = pair.inner.handlers[0].stream
    stream.respond(OK)
    stream.write(bytes(200_000))
    sizes = [len(p) for kind, _, _, p in decode(pair.inner.session.next_message()) if kind == 0x12]
    assert sizes == [MAX_DATA]


def test_reset_drops_what_waits_and_reaches_the_other_side(pair):
    client = pair.open()
    pair.run()
    origin = pair.inner.handlers[0]
    origin.stream.respond(OK)
    origin.stream.write(bytes(100))
    origin.stream.reset(StreamCode.ORIGIN_CLOSED, "gone")
    pair.run()
    assert (client.code, client.detail) == (StreamCode.ORIGIN_CLOSED, "gone")
    assert client.body == b""
    client.stream.write(b"ignored")
    client.stream.end()
    client.stream.consumed(5)
    client.stream.reset(StreamCode.CANCELLED)
    pair.run()
    assert not pair.outer.session.streams


def test_frames_for_a_stream_that_was_just_reset_are_ignored(pair):
    client = pair.open()
    pair.run()
    origin = pair.inner.handlers[0]
    origin.stream.respond(OK)
    origin.stream.write(b"late")
    client.stream.reset(StreamCode.CANCELLED)
    pair.run()
    assert origin.code is StreamCode.CANCELLED
    assert client.heads == []


def test_limit_of_streams():
    pair = Pair(max_streams=2)
    pair.open()
    pair.open()
    assert not pair.outer.session.available
    with pytest.raises(TunnelFull):
        pair.open()


def test_the_inner_side_refuses_beyond_its_own_limit():
    pair = Pair(inner_streams=1)
    pair.open()
    second = pair.open()
    pair.run()
    assert second.code is StreamCode.REFUSED
    assert len(pair.inner.handlers) == 1


def test_going_away(pair):
    pair.open()
    pair.inner.session.go_away(TunnelCode.NO_ERROR, "bye")
    pair.run()
    assert pair.outer.gone[1:] == (TunnelCode.NO_ERROR, "bye")
    assert not pair.outer.session.available


def test_what_the_peer_says_it_never_accepted_was_not_worked_on(pair):
    """It left while the opening was on its way: another tunnel may have the request."""
    accepted = pair.open()
    pair.run()
    late = pair.open()
    pair.outer.session.next_message()  # on its way, and never arrives
    pair.inner.session.go_away(TunnelCode.CLOSED, "bye")
    pair.outer.session.receive(pair.inner.session.next_message())
    assert pair.outer.gone == (accepted.stream.id, TunnelCode.CLOSED, "bye")
    pair.outer.session.end(StreamCode.TUNNEL_LOST, "bye")
    assert accepted.code is StreamCode.TUNNEL_LOST
    assert late.code is StreamCode.REFUSED


def test_the_end_of_the_tunnel_resets_every_stream(pair):
    handlers = [pair.open() for _ in range(3)]
    pair.run()
    unheard = pair.open()
    pair.outer.session.end(StreamCode.TUNNEL_LOST, "cut")
    assert {handler.code for handler in handlers} == {StreamCode.TUNNEL_LOST}
    assert unheard.code is StreamCode.REFUSED  # its OPEN has never left: nobody worked on it
    assert pair.outer.session.next_message() == b""
    assert not pair.outer.session.available


def test_ping_and_pong(pair):
    pair.outer.session.ping(b"12345678")
    pair.run()
    assert pair.outer.pongs == [b"12345678"]


def test_acknowledgements_count_the_frames_of_streams(pair):
    client = pair.open(complete=False)
    client.stream.write(b"x")
    pair.inner.session.receive(pair.outer.session.next_message())
    origin = pair.inner.handlers[0]
    origin.stream.respond(OK)
    message = pair.inner.session.next_message()
    acks = [u64.unpack(p)[0] for kind, _, _, p in decode(message) if kind == FrameType.ACK]
    assert acks == [2]  # OPEN and DATA


def test_long_one_way_traffic_is_acknowledged_by_itself(pair):
    client = pair.open()
    pair.run()
    origin = pair.inner.handlers[0]
    origin.stream.respond(OK)
    for _ in range(40):
        origin.stream.write(bytes(50_000))
        while message := pair.inner.session.next_message():
            pair.outer.session.receive(message)
            while message := pair.outer.session.next_message():
                pair.inner.session.receive(message)
        assert pair.inner.session.unacknowledged <= ACK_BYTES + MAX_DATA
    assert len(client.body) == 2_000_000


def test_a_raising_handler_ends_its_stream_alone(pair):
    first, second = pair.open(), pair.open()
    pair.run()

    def fail(data):
        raise RuntimeError("a bug")

    first.data_received = fail
    for handler in pair.inner.handlers:
        handler.stream.respond(OK)
        handler.stream.write(b"data")
        handler.stream.end()
    pair.run()
    assert pair.outer.failures == [1]
    assert second.body == b"data"
    assert second.trailers == []


# ---------------------------------------------------------------- a peer that breaks the rules


def opened(side, number=1, flags=FIN):
    side.session.receive(encode(FrameType.OPEN, flags, number, encode_open(GET, TO)))
    return side.handlers[-1]


def resets(side):
    return [
        (stream, decode_reset(payload)[0])
        for kind, _, stream, payload in decode(side.session.next_message())
        if kind == FrameType.RESET
    ]


@pytest.mark.parametrize(
    "message",
    [
        encode(FrameType.OPEN, 0, 2, encode_open(GET, TO)),
        encode(FrameType.OPEN, 0, 1, encode_open(GET, TO)) * 2,
        encode(FrameType.DATA, 0, 1, b"x"),
        encode(FrameType.CREDIT, 0, 7, u32.pack(1)),
        encode(FrameType.ACK, 0, 0, u64.pack(1)),
        encode(FrameType.HELLO, 0, 0, b"x"),
        pack_header(FrameType.PING, 0, 0, 9) + bytes(9),
    ],
)
def test_errors_that_end_the_tunnel(message):
    with pytest.raises(TunnelError):
        Side(False).session.receive(message)


def test_an_ack_may_not_go_back(pair):
    pair.open()
    pair.open()
    pair.outer.session.next_message()
    pair.outer.session.receive(encode(FrameType.ACK, 0, 0, u64.pack(2)))
    with pytest.raises(TunnelError, match="ACK of 1"):
        pair.outer.session.receive(encode(FrameType.ACK, 0, 0, u64.pack(1)))


def test_an_inner_layer_may_not_open(pair):
    with pytest.raises(TunnelError):
        pair.outer.session.receive(encode(FrameType.OPEN, 0, 1, encode_open(GET, TO)))
    with pytest.raises(LocalError):
        pair.inner.session.open(GET, TO, Handler(), complete=True)


def test_who_overruns_its_credit_is_cut_off():
    side = Side(False)
    side.consume = False
    handler = opened(side, flags=0)
    for _ in range(WINDOW // MAX_DATA):
        side.session.receive(encode(FrameType.DATA, 0, 1, bytes(MAX_DATA)))
    assert handler.code is None
    with pytest.raises(TunnelError) as caught:
        side.session.receive(encode(FrameType.DATA, 0, 1, b"x"))
    assert caught.value.code is TunnelCode.FLOW_CONTROL_ERROR
    assert len(handler.body) == WINDOW


@pytest.mark.parametrize("credit", [0, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_credit_of_nothing_or_of_too_much(credit):
    side = Side(False)
    opened(side)
    with pytest.raises(TunnelError) as caught:
        side.session.receive(encode(FrameType.CREDIT, 0, 1, u32.pack(credit)))
    assert caught.value.code is TunnelCode.FLOW_CONTROL_ERROR


@pytest.mark.parametrize(
    "frames",
    [
        [(FrameType.DATA, 0, b"early")],
        [(FrameType.HEAD, FIN, encode_response(ResponseHead(100, b"", [])))],
        [(FrameType.HEAD, 0, encode_response(OK))] * 2,
        [(FrameType.HEAD, 0, b"\x80")],  # trailers without FIN
        [(FrameType.HEAD, FIN, b"\x80")],  # trailers without a head
        [(FrameType.HEAD, 0, b"\xc1")],
        [(FrameType.HEAD, 0, b"\x81\xa6status\x01")],
        [(FrameType.HEAD, FIN, encode_response(OK)), (FrameType.DATA, 0, b"after the end")],
    ],
)
def test_answers_out_of_order_reset_the_stream(pair, frames):
    client = pair.open(complete=False)
    other = pair.open()
    pair.run()
    for kind, flags, payload in frames:
        pair.outer.session.receive(encode(kind, flags, 1, payload))
    assert client.code is StreamCode.PROTOCOL_ERROR or client.trailers is not None
    assert (1, StreamCode.PROTOCOL_ERROR) in resets(pair.outer)
    assert other.code is None


@pytest.mark.parametrize(
    "payload",
    [b"\x00", b"\x80", b"\xc1", b"\x81\xa6method\xc4\x01G", b"\xdf\xff\xff\xff\xff", b"\x92" * 500],
)
def test_open_that_makes_no_sense_resets_the_stream_alone(payload):
    side = Side(False)
    side.session.receive(encode(FrameType.OPEN, 0, 1, payload))
    assert resets(side) == [(1, StreamCode.PROTOCOL_ERROR)]
    assert not side.handlers
    opened(side, 3)


def test_a_flood_of_empty_frames_ends_the_tunnel():
    side = Side(False)
    ping = encode(FrameType.PING, 0, 0, bytes(8))
    side.session.receive(ping * FLOOD_BUDGET)
    with pytest.raises(TunnelError) as caught:
        side.session.receive(ping)
    assert caught.value.code is TunnelCode.FLOODED


@pytest.mark.parametrize("upload", [False, True])
def test_the_credit_for_a_long_transfer_is_no_flood(pair, upload):
    client = pair.open(complete=False)
    pair.run()
    origin = pair.inner.handlers[0]
    origin.stream.respond(OK)
    pair.run()
    for side in (pair.outer, pair.inner):
        side.session._budget = 20
    source, sink = (client, origin) if upload else (origin, client)
    for _ in range(200):
        source.stream.write(bytes(65_536))
        pair.run()
    assert len(sink.body) == 200 * 65_536


def test_a_flood_of_openings_is_refused_and_then_ends_the_tunnel():
    side = Side(False, max_streams=10)
    message = encode(FrameType.OPEN, FIN, 1, encode_open(GET, TO))
    flood = (message[:5] + u32.pack(number) + message[9:] for number in range(1, 100_000, 2))
    with pytest.raises(TunnelError) as caught:
        deque(map(side.session.receive, flood), maxlen=0)
    assert caught.value.code is TunnelCode.FLOODED
    assert len(side.handlers) == 10
    assert side.session._control_size < 2_000_000


def test_heads_that_pile_up_while_there_is_no_carrier_are_no_flood():
    """The origins' doing, not the peer's; and what may be open at a time bounds it."""
    pair = Pair(max_streams=500)
    clients = [pair.open() for _ in range(500)]
    pair.run()
    large = ResponseHead(200, b"OK", [(b"A", b"x" * 5_000)])
    for origin in pair.inner.handlers:
        origin.stream.respond(large, end=True)
    pair.inner.session.receive(encode(FrameType.PING, 0, 0, bytes(8)))
    pair.run()
    assert {client.heads[0].headers[0][1] for client in clients} == {b"x" * 5_000}


def test_answers_that_nobody_takes_end_the_tunnel():
    """Pongs, and refusals of what makes no sense; earned by data, so that it is no flood."""
    ping = encode(FrameType.PING, 0, 0, bytes(8)) * 8
    senseless = encode(FrameType.OPEN, 0, 1, b"\x80")
    for answered in (ping, None):
        side = Side(False)
        opened(side, flags=0)
        data = encode(FrameType.DATA, 0, 1, b"x")
        messages = (
            data + (answered or senseless[:5] + u32.pack(number) + senseless[9:])
            for number in range(3, 200_000, 2)
        )
        with pytest.raises(TunnelError) as caught:
            deque(map(side.session.receive, messages), maxlen=0)
        assert side.session._control_size < 1_200_000
        assert caught.value.code is TunnelCode.FLOODED


def test_answers_that_are_taken_are_forgotten():
    side = Side(False)
    opened(side, flags=0)
    message = encode(FrameType.DATA, 0, 1, b"x") + encode(FrameType.PING, 0, 0, bytes(8)) * 8
    for _ in range(30_000):
        side.session.receive(message)
        side.session.next_message()


def test_time_forgives_pings():
    side = Side(False)
    ping = encode(FrameType.PING, 0, 0, bytes(8))
    for _ in range(3 * FLOOD_BUDGET // 100):
        side.session.receive(ping * 99)
        side.session.replenish()


# ---------------------------------------------------------------- properties


junk_frames = st.lists(
    st.tuples(
        st.sampled_from([*FrameType, 0x7F]),
        st.integers(0, 3),
        st.sampled_from([0, 1, 2, 3, 5, 99]),
        st.one_of(
            st.binary(max_size=20),
            st.just(encode_open(GET, TO)),
            st.just(encode_response(OK)),
            st.just(u32.pack(5)),
        ),
    ).map(lambda f: pack_header(f[0], f[1], f[2], len(f[3])) + f[3]),
    max_size=12,
).map(b"".join)


@given(st.booleans(), st.lists(st.one_of(junk_frames, st.binary(max_size=60)), max_size=6))
def test_junk_raises_only_what_the_peer_is_to_blame_for(opens, messages):
    side = Side(opens)
    if opens:
        for _ in range(2):
            handler = Handler()
            handler.stream = side.session.open(GET, TO, handler, complete=False)
    try:
        for message in messages:
            side.session.receive(message)
            side.session.next_message()
    except TunnelError:
        pass
    assert side.failures == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_bytes_in_are_bytes_out_whatever_pauses(seed, count):
    """Random writes, pauses, consumption and message order on several streams at once."""
    rng = random.Random(seed)
    pair = Pair()
    clients = [pair.open(complete=False, consume=False) for _ in range(count)]
    pair.inner.consume = False
    pair.run()
    origins = pair.inner.handlers
    for origin in origins:
        origin.stream.respond(OK)
    ends = [*clients, *origins]
    peers = [*origins, *clients]
    sent = [bytearray() for _ in ends]
    limits = [rng.randrange(0, 3 * WINDOW) for _ in ends]
    finished = [False] * len(ends)
    wires = {pair.outer: [], pair.inner: []}
    for _ in range(100_000):
        if all(finished) and all(peer.trailers is not None for peer in peers):
            break
        match rng.randrange(5):
            case 0:
                i = rng.randrange(len(ends))
                if not finished[i] and not ends[i].stream.congested:
                    data = rng.randbytes(rng.choice([1, 100, 20_000, 65_536]))
                    sent[i] += data
                    ends[i].stream.write(data)
                    if len(sent[i]) >= limits[i]:
                        finished[i] = True
                        ends[i].stream.end()
            case 1:
                end = rng.choice(ends)
                end.take()
            case 2:
                side = rng.choice([pair.outer, pair.inner])
                message = side.session.next_message()
                if message:
                    wires[side].append(message)
            case 3:
                side, other = rng.sample([pair.outer, pair.inner], 2)
                if wires[side]:
                    other.session.receive(wires[side].pop(0))
            case 4:  # some milliseconds have passed
                rng.choice([pair.outer, pair.inner]).session.acknowledge()
    else:
        pytest.fail("a stream never ended")
    assert pair.outer.failures == pair.inner.failures == []
    for data, peer in zip(sent, peers, strict=True):
        assert peer.body == data
    assert not pair.outer.session.streams
    assert not pair.inner.session.streams


@given(st.lists(st.integers(1, WINDOW), min_size=1, max_size=20))
def test_credit_never_exceeds_the_window(counts):
    from sockgw.protocol.windows import ReceiveWindow

    window = ReceiveWindow()
    outstanding = 0
    for count in counts:
        count = min(count, window.granted)
        if count:
            window.received(count)
            outstanding += count
        taken = outstanding // 2
        window.consumed(taken, 0.0, None, lambda count: count)
        outstanding -= taken
        assert 0 <= window.granted <= WINDOW - outstanding


def blocked(side):
    """The peer acknowledges nothing, and no more is kept: frames of streams wait from now on."""
    opened(side, flags=0)
    stream = side.handlers[-1].stream
    stream.respond(OK)
    stream.write(bytes(WINDOW))
    while side.session.next_message():
        pass
    assert side.session._outbox.full
    return stream


def test_openings_by_who_acknowledges_nothing_do_not_make_us_grow():
    """Each is answered with a head that waits for the carrier, and is reset by the peer then."""
    side = Side(False)
    side.session._outbox._bound = 1
    blocked(side)
    large = ResponseHead(200, b"OK", [(b"A", b"x" * 1_000)])
    message = encode(FrameType.OPEN, FIN, 1, encode_open(GET, TO))
    reset = encode(FrameType.RESET, 0, 1, bytes(2))

    def flood():
        for number in range(3, 400_000, 2):
            known = len(side.handlers)
            side.session.receive(message[:5] + u32.pack(number) + message[9:])
            if len(side.handlers) > known:
                side.handlers[-1].stream.respond(large)
            side.session.receive(reset[:5] + u32.pack(number) + reset[9:])
            side.session.next_message()

    with pytest.raises(TunnelError) as caught:
        flood()
    assert caught.value.code is TunnelCode.FLOODED
    assert side.session._control_size < 3 * MAX_CONTROL
    assert len(side.session._turns.fresh) < 2_000


def test_credit_that_nobody_takes_ends_the_tunnel():
    """A peer that acknowledges nothing, and counts on credit that it has not been sent."""
    side = Side(False)
    side.session._outbox._bound = 1
    stream = blocked(side)
    data = encode(FrameType.DATA, 0, stream.id, bytes(65_536))

    def flood():
        for _ in range(200_000):
            side.session.receive(data)
            side.handlers[-1].body = b""
            side.session.next_message()

    with pytest.raises(TunnelError) as caught:
        flood()
    assert caught.value.code is TunnelCode.FLOODED
    assert side.session._control_size < 2 * MAX_CONTROL


def test_a_peer_with_a_lower_limit_of_streams_is_no_reason_to_end_the_tunnel():
    """It refuses what is too much for it, as often as it must."""
    pair = Pair(max_streams=50, inner_streams=10)
    first = [pair.open() for _ in range(10)]
    pair.run()
    for _ in range(2 * FLOOD_BUDGET // 40):
        refused = [pair.open() for _ in range(40)]
        pair.run()
        assert {handler.code for handler in refused} == {StreamCode.REFUSED}
    assert [handler.code for handler in first] == [None] * 10


def test_streams_that_all_fail_are_no_flood():
    """An origin that is down: each request is answered with RESET, and nothing else comes."""
    pair = Pair()
    for _ in range(FLOOD_BUDGET + 10):
        client = pair.open()
        pair.run()
        pair.inner.handlers.pop().stream.reset(StreamCode.CONNECTION_REFUSED)
        pair.run()
        assert client.code is StreamCode.CONNECTION_REFUSED


def test_pending_says_whether_another_message_may_come(pair):
    """Of each kind there is more than fits into one."""
    session = pair.outer.session

    def messages():
        count = 0
        while session.pending:
            count += bool(session.next_message())
        assert session.next_message() == b""
        return count

    for _ in range(8_000):
        session.ping(bytes(8))
    assert messages() > 1
    large = RequestHead(b"GET", b"/", [(b"a", b"a" * 50_000)])
    handlers = [pair.open(large, complete=False) for _ in range(4)]
    assert messages() > 1
    for handler in handlers:
        handler.stream.write(bytes(50_000))
    assert messages() > 1

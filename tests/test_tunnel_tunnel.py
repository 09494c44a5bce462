"""A tunnel: when it writes, what it makes of silence, and how it ends."""

from types import SimpleNamespace

import pytest
from tunnelpair import TunnelPair, carriers
from twisted.internet.task import Clock

from sockgw.protocol.errors import StreamCode, TunnelCode, TunnelError
from sockgw.protocol.frames import MAX_STREAM_ID, FrameType, decode, encode, pack_header
from sockgw.protocol.heads import RequestHead, ResponseHead
from sockgw.protocol.payloads import Destination, decode_goaway, encode_goaway, u64
from sockgw.protocol.session import SPARE_IDS

GET = RequestHead(b"GET", b"/", [])
TO = Destination("http", "origin.test", 80)


class Recorder:
    def __init__(self):
        self.events = []
        self.stream = None

    def head_received(self, head):
        self.events.append(head.status)

    def data_received(self, data):
        self.events.append(data)
        self.stream.consumed(len(data))

    def ended(self, trailers):
        self.events.append("end")

    def reset(self, code, detail):
        self.events.append(code)

    def drained(self):
        self.events.append("drained")


class Origin:
    """Opens nothing but records; answers are the test's."""

    def __init__(self):
        self.streams = []

    def __call__(self, tunnel, stream, head, to, complete):
        self.streams.append(stream)
        recorder = Recorder()
        recorder.stream = stream
        return recorder


@pytest.fixture
def origin():
    return Origin()


@pytest.fixture
def pair(origin):
    pair = TunnelPair(origin)
    pair.run()
    return pair


def open_stream(pair):
    recorder = Recorder()
    recorder.stream = pair.outer.open(GET, TO, recorder, complete=True)
    return recorder


def test_a_request_crosses_and_bytes_are_counted(pair, origin):
    client = open_stream(pair)
    pair.run()
    origin.streams[0].respond(ResponseHead(200, b"OK", []))
    origin.streams[0].write(b"hello")
    origin.streams[0].end()
    pair.run()
    assert client.events == [200, b"hello", "end"]
    assert pair.outer.bytes_out == pair.inner.bytes_in > 0
    assert pair.inner.bytes_out == pair.outer.bytes_in > 0


def test_several_streams_share_one_message_of_the_turn(pair):
    open_stream(pair)
    open_stream(pair)
    assert pair.outer_carrier.sent == []
    pair.clock.advance(0)
    assert len(pair.outer_carrier.sent) == 1


def test_a_handler_that_goes_on_within_a_flush_keeps_the_order(pair, origin):
    client = open_stream(pair)
    pair.run()
    stream = origin.streams[0]
    stream.respond(ResponseHead(200, b"OK", []))
    written = []

    def write():
        while not stream.congested and len(written) < 40:
            written.append(b"%02d" % len(written) * 15_000)
            stream.write(written[-1])

    def drained():
        drains.append(len(written))
        write()
        pair.inner.resume()  # as the transport might

    drains = []
    stream.handler.drained = drained
    write()
    pair.run()
    assert drains
    assert len(written) == 40
    assert b"".join(event for event in client.events if type(event) is bytes) == b"".join(written)


def test_a_message_is_life(pair):
    pair.outer_carrier.deliver = pair.inner_carrier.deliver = lambda: False
    for _ in range(100):
        pair.clock.advance(5)
        for tunnel in (pair.outer, pair.inner):
            tunnel.message_received(encode(FrameType.PONG, 0, 0, bytes(8)))
    assert pair.ended == []


def test_nothing_is_sent_while_the_transport_is_full(pair, origin):
    client = open_stream(pair)
    pair.run()
    pair.inner.pause()
    origin.streams[0].respond(ResponseHead(200, b"", []))
    origin.streams[0].write(b"x" * 1000)
    pair.run()
    assert client.events == []
    pair.inner.resume()
    pair.run()
    assert client.events == [200, b"x" * 1000]


def test_round_trip_is_measured(pair):
    assert pair.outer.round_trip == 0.0
    pair.clock.advance(10)
    pair.clock.advance(5)
    pair.clock.advance(0)
    pair.clock.advance(0.25)
    pair.outer_carrier.deliver()
    pair.inner_carrier.deliver()
    pair.run()
    assert pair.outer.round_trip == 0.25


def test_a_silent_peer_is_dead_within_interval_and_timeout(pair):
    client = open_stream(pair)
    pair.run()
    pair.outer_carrier.deliver = pair.inner_carrier.deliver = lambda: False
    elapsed = 0
    while not pair.ended:
        pair.clock.advance(0.5)
        elapsed += 0.5
        assert elapsed <= 25
    assert elapsed > 10
    assert client.events == [StreamCode.TUNNEL_LOST]
    assert "no sign of life" in dict(pair.ended)[pair.outer]


def test_any_byte_is_life(pair):
    pair.outer_carrier.deliver = pair.inner_carrier.deliver = lambda: False
    for _ in range(100):
        pair.clock.advance(5)
        pair.outer.heard()
        pair.inner.heard()
    assert pair.ended == []


def test_a_broken_protocol_ends_both_sides_and_says_why(pair):
    client = open_stream(pair)
    pair.run()
    pair.outer.message_received(pack_header(FrameType.PING, 0, 0, 99))
    assert {tunnel for tunnel, _ in pair.ended} == {pair.outer, pair.inner}
    assert client.events == [StreamCode.TUNNEL_LOST]
    assert not pair.outer_carrier.open


def test_closing_tells_the_peer(pair):
    pair.outer.close(TunnelCode.REVOKED, "the key is no longer accepted")
    assert pair.inner.leaving
    assert [reason for _, reason in pair.ended] == ["the key is no longer accepted"] * 2


def test_after_the_end_nothing_happens_any_more(pair):
    pair.outer.close(TunnelCode.CLOSED, "bye")
    ended = list(pair.ended)
    pair.outer.message_received(encode(FrameType.PING, 0, 0, bytes(8)))
    pair.outer.closed("again", False)
    pair.outer.resume()
    pair.clock.advance(100)
    assert pair.ended == ended
    assert pair.clock.getDelayedCalls() == []


def test_the_limit_of_messages_is_raised_only_for_tunnels(pair):
    assert pair.outer_carrier.large
    assert pair.inner_carrier.large


# ---------------------------------------------------------------------- another carrier

WINDOW = 30.0  # seconds


@pytest.fixture
def lasting(origin):
    """A pair that outlives its carrier."""
    pair = TunnelPair(origin, resume_window=WINDOW)
    pair.run()
    return pair


def kinds(carrier):
    return [kind for message in carrier.sent for kind, *_ in decode(message)]


def test_a_lost_carrier_suspends_the_tunnel_and_the_next_one_goes_on(lasting, origin):
    client = open_stream(lasting)
    lasting.run()
    origin.streams[0].respond(ResponseHead(200, b"OK", []))
    origin.streams[0].write(b"hel")
    lasting.clock.advance(0)
    lasting.cut()
    assert lasting.outer.suspended
    assert lasting.inner.suspended
    assert not lasting.outer.available
    assert {tunnel for tunnel, _ in lasting.owner.suspensions} == {lasting.outer, lasting.inner}
    origin.streams[0].write(b"lo")
    origin.streams[0].end()
    lasting.clock.advance(WINDOW - 1)
    assert client.events == []
    lasting.reconnect()
    assert not lasting.outer.suspended
    assert lasting.outer.available
    lasting.run()
    assert client.events == [200, b"hel", b"lo", "end"]
    assert lasting.ended == []
    assert lasting.inner.session.resent > 0


def test_what_waited_for_the_old_carrier_goes_out_on_the_new_one(lasting):
    """It was full when it broke; or the turn had not ended in which something was to be sent."""
    for pause in (False, True):
        client = open_stream(lasting)
        if pause:
            lasting.outer.pause()
            lasting.clock.advance(0)
        lasting.cut()
        lasting.reconnect()
        lasting.run()
        assert client.stream.id in lasting.inner.session.streams


def test_without_a_window_it_ends_with_its_carrier(pair):
    client = open_stream(pair)
    pair.run()
    pair.cut()
    assert len(pair.ended) == 2
    assert client.events == [StreamCode.TUNNEL_LOST]
    assert pair.owner.suspensions == []
    assert pair.clock.getDelayedCalls() == []


def test_a_tunnel_that_the_peer_never_knew_of_is_not_kept(origin):
    """WELCOME may never have arrived: then nobody comes back to it."""
    pair = TunnelPair(origin, resume_window=WINDOW)
    pair.cut()
    assert [tunnel for tunnel, _ in pair.ended] == [pair.outer]
    assert [tunnel for tunnel, _ in pair.owner.suspensions] == [pair.inner]


def test_not_resumed_in_time(lasting):
    client = open_stream(lasting)
    lasting.run()
    lasting.cut()
    lasting.clock.advance(WINDOW - 0.1)
    assert lasting.ended == []
    lasting.clock.advance(0.2)
    assert {tunnel for tunnel, _ in lasting.ended} == {lasting.outer, lasting.inner}
    assert dict(lasting.ended)[lasting.outer] == "not resumed in time after: cut"
    assert client.events == [StreamCode.TUNNEL_LOST]
    assert lasting.outer.suspended  # as it was at its end
    assert not lasting.outer.available
    assert lasting.clock.getDelayedCalls() == []


def test_a_resumed_tunnel_has_its_whole_window_again(lasting):
    for _ in range(5):
        lasting.cut()
        lasting.clock.advance(WINDOW - 1)
        lasting.reconnect()
        lasting.run()
    assert lasting.ended == []


def test_silence_suspends_too(lasting):
    lasting.outer_carrier.deliver = lasting.inner_carrier.deliver = lambda: False
    for _ in range(50):
        lasting.clock.advance(0.5)
    assert lasting.ended == []
    assert "no sign of life" in dict(lasting.owner.suspensions)[lasting.outer]
    assert not lasting.outer_carrier.open
    lasting.reconnect()
    lasting.run()
    for _ in range(100):
        lasting.clock.advance(0.5)
        lasting.run()
    assert not lasting.outer.suspended


def test_a_newer_carrier_takes_over_at_once(lasting, origin):
    """The old one looks alive, and still brings something, which must not count."""
    client = open_stream(lasting)
    lasting.run()
    stream = origin.streams[0]
    stream.respond(ResponseHead(200, b"OK", []))
    lasting.clock.advance(0)
    old_outer, old_inner = lasting.outer_carrier, lasting.inner_carrier
    old_inner.open = False
    lasting.inner.closed("cut", False)
    on_its_way = list(old_inner.sent)
    assert on_its_way
    assert not lasting.outer.suspended
    lasting.reconnect()
    assert not old_outer.open
    for message in on_its_way:
        old_outer.listener.message_received(message)
        old_outer.listener.heard()
        old_outer.listener.resume()
    old_outer.listener.closed("late", False)
    assert not lasting.outer.suspended
    stream.end()
    lasting.run()
    assert client.events == [200, "end"]
    assert [tunnel for tunnel, _ in lasting.owner.suspensions] == [lasting.inner]


def test_what_the_peer_cannot_have_received_is_refused(lasting):
    lasting.cut()
    with pytest.raises(TunnelError):
        lasting.outer.resume_on(carriers()[0], 1_000)


def test_closing_a_suspended_tunnel(lasting):
    client = open_stream(lasting)
    lasting.run()
    lasting.cut()
    lasting.outer.close(TunnelCode.REVOKED, "no more")
    lasting.inner.close(TunnelCode.CLOSED, "no more")
    assert client.events == [StreamCode.TUNNEL_LOST]
    assert len(lasting.ended) == 2
    assert lasting.clock.getDelayedCalls() == []


@pytest.mark.parametrize("code", [code for code in TunnelCode if code is not TunnelCode.NO_ERROR])
def test_an_end_that_the_peer_wants_is_one_also_with_a_window(lasting, code):
    client = open_stream(lasting)
    lasting.run()
    lasting.inner.close(code, "over")
    lasting.run()
    assert len(lasting.ended) == 2
    assert lasting.owner.suspensions == []
    assert client.events == [StreamCode.TUNNEL_LOST]
    assert lasting.clock.getDelayedCalls() == []


def test_pings_go_out_at_once_on_the_new_carrier_and_old_pongs_measure_nothing(lasting):
    for seconds in (10, 5, 0):
        lasting.clock.advance(seconds)
    assert u64.pack(2) in lasting.outer_carrier.sent[-1]
    lasting.cut()
    lasting.clock.advance(5)
    lasting.reconnect()
    lasting.clock.advance(0)
    assert FrameType.PING in kinds(lasting.outer_carrier)
    lasting.clock.advance(0.25)
    lasting.outer.message_received(encode(FrameType.PONG, 0, 0, u64.pack(2)))
    assert lasting.outer.round_trip == 0.0
    lasting.run()
    assert lasting.outer.round_trip == 0.25


# ---------------------------------------------------------------------- acknowledgements


def test_what_came_is_acknowledged_within_five_milliseconds(pair, origin):
    open_stream(pair)
    pair.clock.advance(0)
    pair.outer_carrier.deliver()
    pair.clock.advance(0.004)
    assert pair.inner_carrier.sent == []
    pair.clock.advance(0.002)
    pair.clock.advance(0)
    assert kinds(pair.inner_carrier) == [FrameType.ACK]
    pair.inner_carrier.deliver()
    assert pair.outer.session.unacknowledged == 0
    pair.clock.advance(1)
    assert pair.inner_carrier.sent == []


def test_an_acknowledgement_rides_with_what_leaves_before(pair, origin):
    open_stream(pair)
    pair.clock.advance(0)
    pair.outer_carrier.deliver()
    origin.streams[0].respond(ResponseHead(200, b"OK", []))
    pair.clock.advance(0)
    assert kinds(pair.inner_carrier) == [FrameType.HEAD, FrameType.ACK]
    pair.inner_carrier.sent.clear()
    pair.clock.advance(0.01)
    pair.clock.advance(0)
    assert pair.inner_carrier.sent == []


def test_acknowledgements_are_not_acknowledged(pair):
    """Or both sides would talk for ever."""
    open_stream(pair)
    pair.run()
    for _ in range(100):
        pair.clock.advance(0.005)
        assert not pair.outer_carrier.deliver() | pair.inner_carrier.deliver()


# ---------------------------------------------------------------------- leaving


def test_leaving_lets_go_on_what_is_open(lasting, origin):
    client = open_stream(lasting)
    lasting.run()
    lasting.outer.leave("restarting")
    lasting.run()
    assert lasting.owner.left == [lasting.inner]
    assert lasting.inner.leaving
    assert lasting.ended == []
    # It is the other side that is to open another tunnel; this one serves meanwhile.
    second = open_stream(lasting)
    lasting.run()
    assert second.events == []
    assert len(origin.streams) == 2
    for stream in origin.streams:
        stream.respond(ResponseHead(200, b"OK", []), end=True)
    lasting.run()
    assert client.events == second.events == [200, "end"]
    assert lasting.ended == []


def test_leaving_is_said_again_on_the_next_carrier(lasting):
    lasting.outer.leave("restarting")
    lasting.clock.advance(0)
    lasting.cut()
    lasting.reconnect()
    lasting.run()
    assert lasting.owner.left == [lasting.inner]


@pytest.mark.parametrize("side", ["outer", "inner"])
def test_finishing_ends_with_the_last_stream(lasting, origin, side):
    client = open_stream(lasting)
    lasting.run()
    getattr(lasting, side).finish("draining")
    lasting.run()
    assert not lasting.outer.available
    assert lasting.ended == []
    origin.streams[0].respond(ResponseHead(200, b"OK", []), end=True)
    lasting.run()
    assert client.events == [200, "end"]
    assert [reason for _, reason in lasting.ended] == ["draining"] * 2
    assert lasting.clock.getDelayedCalls() == []


def test_finishing_without_a_stream_ends_at_once(lasting):
    lasting.outer.finish("draining")
    lasting.outer.finish("again")
    lasting.run()
    assert [reason for _, reason in lasting.ended] == ["draining"] * 2
    assert lasting.clock.getDelayedCalls() == []


def test_finishing_goes_on_over_a_lost_carrier(lasting, origin):
    client = open_stream(lasting)
    lasting.run()
    lasting.inner.finish("draining")
    lasting.clock.advance(0)
    origin.streams[0].respond(ResponseHead(200, b"OK", []), end=True)
    lasting.cut()
    lasting.reconnect()
    lasting.run()
    assert client.events == [200, "end"]
    assert len(lasting.ended) == 2


def test_finishing_waits_for_the_acknowledgement_of_the_last_byte(lasting, origin):
    client = open_stream(lasting)
    lasting.run()
    lasting.inner.finish("draining")
    origin.streams[0].respond(ResponseHead(200, b"OK", []), end=True)
    lasting.clock.advance(0)
    assert not lasting.inner.session.streams
    assert lasting.ended == []
    lasting.cut()
    lasting.reconnect()
    lasting.run()
    assert client.events == [200, "end"]


def test_what_is_opened_while_the_peer_finishes_was_not_worked_on(lasting, origin):
    lasting.inner.finish("draining")
    late = open_stream(lasting)
    lasting.run()
    assert late.events == [StreamCode.REFUSED]
    assert origin.streams == []


def test_a_finished_tunnel_that_ends_before_has_no_timer_left(lasting):
    lasting.outer.finish("draining")
    lasting.outer.close(TunnelCode.CLOSED, "now")
    lasting.clock.advance(0)
    assert lasting.clock.getDelayedCalls() == []
    assert len(lasting.ended) == 2


# ---------------------------------------------------------------------- worn


def test_a_tunnel_whose_numbers_run_out_asks_for_another_once(lasting, origin):
    lasting.outer.session._last_id = MAX_STREAM_ID - 2 * SPARE_IDS - 2
    open_stream(lasting)
    lasting.run()
    assert lasting.owner.left == []
    assert not lasting.outer.session.worn
    for _ in range(3):
        open_stream(lasting)
        lasting.run()
    assert lasting.outer.session.worn
    assert lasting.owner.left == [lasting.inner]
    # It serves on until its successor is there.
    assert lasting.outer.available
    assert len(origin.streams) == 4


def test_numbers_never_wrap(lasting, origin):
    lasting.outer.session._last_id = MAX_STREAM_ID - 4
    open_stream(lasting)
    last = open_stream(lasting)
    assert last.stream.id == MAX_STREAM_ID
    assert not lasting.outer.available
    lasting.run()
    assert [stream.id for stream in origin.streams] == [MAX_STREAM_ID - 2, MAX_STREAM_ID]


def test_whoever_hears_of_a_lost_stream_does_not_find_the_tunnel_any_more(pair):
    client = open_stream(pair)
    pair.run()
    known = []
    client.reset = lambda code, detail: known.extend(tunnel for tunnel, _ in pair.ended)
    pair.outer.close(TunnelCode.CLOSED, "over")
    assert pair.outer in known


# ---------------------------------------------------------------------- what a peer may say


def test_a_peer_that_says_goodbye_in_the_middle_of_a_message(lasting):
    client = open_stream(lasting)
    lasting.run()
    bye = encode(FrameType.GOAWAY, 0, 0, encode_goaway(1, TunnelCode.CLOSED, ""))
    lasting.outer.message_received(bye + encode(FrameType.DATA, 0, 99, b"x"))
    assert client.events == [StreamCode.TUNNEL_LOST]
    assert dict(lasting.ended)[lasting.outer] == "closed"


def test_the_peer_is_told_why(lasting):
    messages = []
    lasting.inner_carrier.listener = SimpleNamespace(
        heard=lambda: None, closed=lambda *_: None, message_received=messages.append
    )
    lasting.outer.message_received(pack_header(FrameType.PING, 0, 0, 99))
    (payload,) = [
        payload
        for message in messages
        for kind, _, _, payload in decode(message)
        if kind == FrameType.GOAWAY
    ]
    assert decode_goaway(payload)[1:] == (TunnelCode.FRAME_SIZE_ERROR, "PING of 99 bytes")


def test_a_tunnel_that_ends_in_any_state_leaves_no_timer(origin):
    for state in ("new", "connected", "acknowledging", "suspended", "resumed", "finishing"):
        for how in ("close", "closed"):
            clock = Clock()
            pair = TunnelPair(origin, clock=clock, resume_window=WINDOW)
            if state != "new":
                pair.run()
                client = open_stream(pair)
                pair.clock.advance(0)
                pair.outer_carrier.deliver()
            if state in ("suspended", "resumed"):
                pair.cut()
            if state == "resumed":
                pair.reconnect()
                pair.clock.advance(0)
            if state == "finishing":
                pair.outer.finish("draining")
                pair.inner.finish("draining")
            for tunnel in (pair.outer, pair.inner):
                if how == "close":
                    tunnel.close(TunnelCode.CLOSED, "over")
                else:
                    tunnel.closed("broken", False)
            if how == "closed":
                clock.advance(WINDOW)
                clock.advance(WINDOW)
            clock.advance(0)
            assert clock.getDelayedCalls() == [], (state, how)
            assert len(pair.ended) == 2
            assert not pair.outer.session.streams
            if state != "new":
                assert client.events == [StreamCode.TUNNEL_LOST]

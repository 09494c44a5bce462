"""A tunnel: when it writes, what it makes of silence, and how it ends."""

import pytest
from tunnelpair import TunnelPair

from sockgw.protocol.errors import StreamCode, TunnelCode
from sockgw.protocol.frames import FrameType, encode, pack_header
from sockgw.protocol.heads import RequestHead, ResponseHead
from sockgw.protocol.payloads import Destination

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


def test_one_stream_alone_is_sent_at_once_when_told_to_hurry(pair):
    open_stream(pair)
    pair.outer.hurry()
    assert len(pair.outer_carrier.sent) == 1


def test_several_streams_share_one_message_of_the_turn(pair):
    open_stream(pair)
    open_stream(pair)
    pair.outer.hurry()
    assert pair.outer_carrier.sent == []
    pair.clock.advance(0)
    assert len(pair.outer_carrier.sent) == 1


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

"""What a carrier takes before Autobahn: to whoever listens, as if Autobahn had done it all."""

import base64
import hashlib
import os
import random
import struct
from itertools import pairwise

import pytest
from autobahn.websocket.protocol import WebSocketProtocol
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from sockgw.protocol.frames import MAX_MESSAGE
from sockgw.tunnel import masking
from sockgw.tunnel.carrier import SUBPROTOCOL, client_factory, server_resource

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
EDGES = (0, 1, 125, 126, 127, 255, 256, 257, 65_535, 65_536, 65_545, MAX_MESSAGE)
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


class Transport:
    """Keeps what is written; strict about its end."""

    def __init__(self):
        self.written = b""
        self.end = ""

    def write(self, data):
        assert type(data) is bytes
        self.written += data

    def writeSequence(self, parts):
        for part in parts:
            self.write(part)

    def loseConnection(self):
        self.end = self.end or "lost"

    def abortConnection(self):
        self.end = "aborted"

    def registerProducer(self, producer, streaming):
        pass

    def unregisterProducer(self):
        pass

    def getPeer(self):
        return IPv4Address("TCP", "192.0.2.1", 1)

    getHost = getPeer

    def setTcpNoDelay(self, enabled):
        pass


class Listener:
    """Keeps what it is told. Some messages make it do something at once."""

    def __init__(self, carrier):
        self.carrier = carrier
        self.events = []
        self.alive = False

    def heard(self):
        self.alive = True

    def message_received(self, message):
        assert type(message) is bytes
        self.alive = True
        self.events.append(message if len(message) < 300 else (len(message), hash(message)))
        if message in (b"close", b"refuse", b"abort"):
            getattr(self.carrier, message.decode())()

    def pause(self):
        pass

    def resume(self):
        pass

    def closed(self, reason, refused):
        self.events.append((reason, refused))


def carrier_of(server, known="known"):
    """Return an open carrier. ``autobahn`` means one that Autobahn has for itself."""
    opened = []
    clock = Clock()
    if server:
        factory = server_resource(clock, 5.0, opened.append)._factory
        address = IPv4Address("TCP", "192.0.2.1", 1)
        carrier = factory.buildProtocol(address)
    else:
        factory = client_factory(clock, "ws://localhost:3001", 5.0, opened.append, pytest.fail)
        carrier = factory.buildProtocol(None)
    transport = Transport()
    carrier.makeConnection(transport)
    if server:
        carrier.dataReceived(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Protocol: " + SUBPROTOCOL.encode() + b"\r\n\r\n"
        )
    else:
        key = transport.written.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        carrier.dataReceived(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n"
            b"Sec-WebSocket-Protocol: " + SUBPROTOCOL.encode() + b"\r\n\r\n"
        )
    assert opened == [carrier]
    transport.written = b""
    carrier.listener = Listener(carrier)
    if known != "stranger":
        carrier.allow_large()
    if known == "autobahn":
        carrier._known = False
        carrier._allowance = None
    return carrier


def frame(first, payload, key=b"", size=None, field=None):
    """Return a frame. ``size`` is what it says of its length, in a field of so many bytes."""
    size = len(payload) if size is None else size
    if field is None:
        field = 0 if size < 126 else 2 if size < 65_536 else 8
    bit = 0x80 if key else 0
    if field == 0:
        head = struct.pack(">BB", first, bit | size)
    elif field == 2:
        head = struct.pack(">BBH", first, bit | 126, size)
    else:
        head = struct.pack(">BBQ", first, bit | 127, size)
    if key:
        payload = masking._by_numbers(key, payload)
    return head + key + payload


def outcome(server, known, reads):
    """Return all that can be seen of a carrier that reads this, one after the other.

    Where a read is called "close" or "abort", our side does that.
    """
    carrier = carrier_of(server, known)
    random.seed(1)  # Autobahn draws the keys of its control frames from there
    listener = carrier.listener
    signs = []
    ends = []
    for data in reads:
        listener.alive = False
        if data in ("close", "abort"):
            getattr(carrier, data)()
        else:
            carrier.dataReceived(data)
        signs.append(listener.alive)
        ends.append(carrier.transport.end)
    state = carrier.state
    carrier.connectionLost(Failure(ConnectionDone()))
    for call in carrier.factory.reactor.getDelayedCalls():
        call.cancel()
    return listener.events, signs, ends, state, carrier.transport.written


def cut(data, places):
    places = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in pairwise(places) if begin < end]


def same(server, reads):
    ours = outcome(server, "known", reads)
    assert ours == outcome(server, "autobahn", reads)
    return ours


keys = st.binary(min_size=4, max_size=4)
payloads = st.one_of(
    st.binary(max_size=140),
    st.sampled_from([b"close", b"refuse", b"abort"]),
    st.sampled_from(EDGES).map(lambda size: (b"sockgw" * (size // 6 + 1))[:size]),
)


@st.composite
def good(draw, server):
    """A binary message."""
    return frame(0x80 | BINARY, draw(payloads), draw(keys) if server else b"")


@st.composite
def fair(draw, server):
    """What is allowed, and rare."""
    key = draw(keys) if server else b""
    kind = draw(st.sampled_from(["control", "fragments", "close"]))
    if kind == "control":
        return frame(0x80 | draw(st.sampled_from([PING, PONG])), draw(st.binary(max_size=125)), key)
    if kind == "fragments":
        between = frame(0x80 | PING, b"?", key) * draw(st.integers(0, 1))
        return (
            frame(BINARY, draw(payloads), key)
            + between
            + frame(CONTINUATION, draw(st.binary(max_size=3)), key) * draw(st.integers(0, 2))
            + frame(0x80 | CONTINUATION, draw(payloads), key)
        )
    code = draw(st.sampled_from([b"", b"\x03\xe8", b"\x03\xf0bye", b"\x03\xf0\xff"]))
    return frame(0x80 | CLOSE, code, key)


@st.composite
def bad(draw, server):
    """What is not."""
    key = draw(keys) if server else b""
    payload = draw(payloads)
    size = len(payload)
    kind = draw(st.sampled_from(["mask", "length", "first", "size", "over", "junk"]))
    if kind == "mask":
        return frame(0x80 | BINARY, payload, b"" if server else draw(keys))
    if kind == "length":
        return frame(0x80 | BINARY, payload, key, field=8 if size > 125 else 2)
    if kind == "first":
        return frame(draw(st.integers(0, 255)), payload, key)
    if kind == "size":
        return frame(0x80 | BINARY, payload, key, size=draw(st.integers(0, 2**64 - 1)), field=8)
    if kind == "over":
        return frame(0x80 | BINARY, payload, key, size=MAX_MESSAGE + draw(st.integers(0, 2)))
    return draw(st.binary(min_size=1, max_size=20))


@pytest.mark.parametrize("server", [True, False], ids=["outer", "inner"])
@settings(max_examples=200)
@given(data=st.data())
def test_any_frames_in_any_pieces(server, data):
    frames = data.draw(
        st.lists(st.one_of(good(server), good(server), fair(server), bad(server)), max_size=7)
    )
    places = data.draw(st.lists(st.integers(0, 2**20), max_size=8))
    near = data.draw(st.lists(st.integers(-3, 16), max_size=6))
    begin = 0
    for one, offset in zip(frames, near, strict=False):  # heads are where cuts are worth most
        places.append(max(0, begin + offset))
        begin += len(one)
    same(server, cut(b"".join(frames), places))


@pytest.mark.parametrize("server", [True, False], ids=["outer", "inner"])
def test_each_kind_byte_by_byte(server):
    key = b"\x01\xfe\x00\x80" if server else b""
    sequence = (
        frame(0x82, b"", key)
        + frame(0x82, b"one", key)
        + frame(0x89, b"?", key)
        + frame(0x82, b"x" * 126, key)
        + frame(0x02, b"a", key)
        + frame(0x89, b"!", key)
        + frame(0x80, b"b", key)
        + frame(0x82, b"y" * 300, key)
        + frame(0x88, b"\x03\xe8", key)
        + frame(0x82, b"late", key)
    )
    for step in (1, 2, 3, 7, len(sequence)):
        reads = [sequence[i : i + step] for i in range(0, len(sequence), step)]
        events, *_ = same(server, reads)
        assert events == [
            b"",
            b"one",
            b"x" * 126,
            b"ab",
            (300, hash(b"y" * 300)),
            ("closed with code 1000", False),
        ]


@pytest.mark.parametrize("server", [True, False], ids=["outer", "inner"])
def test_each_first_byte(server):
    """Alone, after a frame of Autobahn's, and within a message that has begun."""
    key = b"1234" if server else b""
    for before in (b"", frame(0x89, b"", key), frame(0x02, b"a", key)):
        for first in range(256):
            sequence = before + frame(first, b"some", key) + frame(0x82, b"more", key)
            for place in (0, len(before)):
                events, *_ = same(server, cut(sequence, [place]))
                whole = first == 0x82 and before[:1] != b"\x02"
                assert (events[:2] == [b"some", b"more"]) == whole


@pytest.mark.parametrize("server", [True, False], ids=["outer", "inner"])
def test_what_looks_like_a_frame_within_the_head_of_another(server):
    key = b"\x80\0\0\0" if server else b""
    small = frame(0x82, b"ab", key)
    large = frame(0x82, bytes(0x8200), key)
    for sequence, place in ((small, 1), (large, 2), (large, 3)):
        events, *_ = same(server, cut(sequence, [place]))
        assert len(events) == 2


@pytest.mark.parametrize("server", [True, False], ids=["outer", "inner"])
def test_an_end_of_ours_in_the_middle_of_a_message(server):
    key = b"1234" if server else b""
    message = frame(0x82, b"too late", key)
    rest = message[9:] + message + frame(0x88, b"\x03\xe8", key) + message
    for end in ("close", "abort"):
        for place in range(len(rest) + 1):
            events, *_ = same(server, [message[:9], end, *cut(rest, [place])])
            assert len(events) == 1
    for end in (b"close", b"abort"):
        for before in (b"", frame(0x89, b"", key)):
            for after in (message, frame(0x88, b"\x03\xe8", key), frame(0x89, b"?", key)):
                events, *_ = same(server, [before + frame(0x82, end, key) + after, after])
                assert len(events) == 2


@pytest.mark.parametrize("server", [True, False], ids=["outer", "inner"])
def test_a_transfer_never_reaches_autobahn(server, monkeypatch):
    """Not even after a ping, and with messages that begin and end anywhere in a read."""
    key = b"\x01\xfe\x00\x80" if server else b""
    message = os.urandom(65_545)
    stream = frame(0x89, b"?", key) + frame(0x82, message, key) * 20
    seen = []
    process = WebSocketProtocol.processData
    monkeypatch.setattr(
        WebSocketProtocol, "processData", lambda self: seen.append(len(self.data)) or process(self)
    )
    carrier = carrier_of(server)
    seen.clear()
    for begin in range(0, len(stream), 65_536):
        carrier.dataReceived(stream[begin : begin + 65_536])
    assert carrier.listener.events == [(len(message), hash(message))] * 20
    assert len(seen) <= 2 + len(stream) // 65_536  # the ping, and heads that were cut


@pytest.mark.parametrize("server", [True, False], ids=["outer", "inner"])
def test_a_message_in_small_pieces_costs_no_more_than_its_bytes(server):
    key = b"\x01\xfe\x00\x80" if server else b""
    carrier = carrier_of(server)
    sequence = frame(0x82, bytes(MAX_MESSAGE), key)
    sequence = sequence[:-1]
    for begin in range(0, len(sequence), 16):
        carrier.dataReceived(sequence[begin : begin + 16])
    assert carrier.listener.events == []
    assert len(carrier._half) <= MAX_MESSAGE
    assert carrier._half.__sizeof__() < 1.2 * MAX_MESSAGE
    assert carrier.listener.alive


@pytest.mark.parametrize("server", [True, False], ids=["outer", "inner"])
def test_nothing_is_reserved_for_what_is_only_announced(server):
    carrier = carrier_of(server)
    carrier.dataReceived(frame(0x82, b"x", b"1234" if server else b"", size=MAX_MESSAGE, field=8))
    assert carrier._half.__sizeof__() < 200


@pytest.mark.parametrize("server", [True, False], ids=["outer", "inner"])
def test_what_is_sent_is_what_autobahn_reads(server):
    sender, reader = carrier_of(server), carrier_of(not server, "autobahn")
    for size in EDGES:
        message = os.urandom(size)
        sender.send(message)
        wire, sender.transport.written = sender.transport.written, b""
        reader.dataReceived(wire)
        expected = message if size < 300 else (size, hash(message))
        assert reader.listener.events[-1] == expected
        assert len(wire) - size == (2 if size < 126 else 4 if size < 65_536 else 10) + (
            0 if server else 4
        )
    assert len(reader.listener.events) == len(EDGES)


@pytest.mark.parametrize("known", ["known", "stranger"])
@pytest.mark.parametrize("server", [True, False], ids=["outer", "inner"])
def test_nothing_too_long_is_sent(server, known):
    carrier = carrier_of(server, known)
    limit = carrier.maxMessagePayloadSize
    carrier.send(bytes(limit))
    written = len(carrier.transport.written)
    assert written > limit
    with pytest.raises(Exception, match="exceeding payload limit"):
        carrier.send(bytes(limit + 1))
    assert len(carrier.transport.written) == written


@pytest.mark.parametrize("end", ["close", "refuse", "abort"])
def test_nothing_is_sent_after_an_end(end):
    for server in (True, False):
        carrier = carrier_of(server)
        getattr(carrier, end)()
        written = carrier.transport.written
        carrier.send(b"late")
        assert carrier.transport.written == written


def test_each_message_has_a_key_of_its_own_from_the_system(monkeypatch):
    source = random.Random(5)
    drawn = []

    def urandom(count):
        drawn.append(source.randbytes(count))
        return drawn[-1]

    monkeypatch.setattr(os, "urandom", urandom)
    used = []
    carriers = [carrier_of(False), carrier_of(False)]
    drawn.clear()
    for _ in range(600):
        for carrier in carriers:
            carrier.send(b"\0" * 8)
            wire, carrier.transport.written = carrier.transport.written, b""
            assert wire[:2] == b"\x82\x88"
            assert wire[2:6] * 2 == wire[6:]
            used.append(wire[2:6])
    assert len(set(used)) == len(used) == 1_200
    pool = b"".join(drawn)
    available = {pool[i : i + 4] for i in range(0, len(pool), 4)}
    assert set(used) <= available


@given(keys, st.one_of(st.binary(max_size=600), st.sampled_from(EDGES).map(bytes)))
def test_masking(key, data):
    expected = bytes(byte ^ key[i % 4] for i, byte in enumerate(data[:2_000]))
    for function in (masking.mask, masking._by_numbers):
        masked = function(key, data)
        assert type(masked) is bytes
        assert masked[:2_000] == expected
        assert function(key, masked) == data
        assert function(key, bytearray(data)) == masked


def test_native_masking_is_there_and_judged():
    assert masking.FAST
    assert masking.mask is masking._native
    assert not masking._works(lambda key, data: data)
    assert not masking._works(None)

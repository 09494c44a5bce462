"""Whatever an origin sends in HTTP/2, the contract with the handler holds and nothing else does."""

from itertools import pairwise
from typing import Any

from h2peer import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from originfakes import Bench, Handler
from test_http_h2origin import ORIGIN, H2Bench, nothing_is_logged  # noqa: F401
from twisted.internet.error import ConnectionDone, ConnectionLost

from sockgw.http.h2frames import FrameFault, FrameScanner, GoAway
from sockgw.protocol.errors import StreamCode

STREAMS = st.sampled_from([1, 1, 1, 3, 3, 5, 7, 0, 2])
FIELDS = st.lists(
    st.sampled_from(
        [
            (":status", "200"),
            (":status", "103"),
            (":status", "204"),
            ("content-length", "5"),
            ("content-length", "0"),
            ("x", "y"),
            ("X", "y"),
            ("connection", "close"),
            (":path", "/"),
            ("long", "y" * 500),
        ]
    ),
    max_size=5,
)
BLOCKS = st.one_of(
    st.sampled_from([[(":status", "200")], [(":status", "200"), ("content-length", "5")]]), FIELDS
).map(lambda fields: Encoder().encode(fields))


def number(size: int) -> Any:
    return st.integers(0, 256**size - 1).map(lambda value: value.to_bytes(size, "big"))


SETTING = st.tuples(st.integers(0, 9), st.sampled_from([0, 1, 100, 16_384, 2**31 - 1, 2**32 - 1]))
FRAMES = st.one_of(
    st.builds(frame, st.just(HEADERS), st.sampled_from([4, 4, 5, 5, 0, 1, 44]), STREAMS, BLOCKS),
    st.builds(frame, st.just(DATA), st.sampled_from([0, 1, 8]), STREAMS, st.just(b"hello")),
    st.builds(frame, st.just(DATA), st.sampled_from([0, 1]), STREAMS, st.binary(max_size=9)),
    st.builds(
        frame,
        st.just(RST_STREAM),
        st.just(0),
        STREAMS,
        st.integers(0, 14).map(lambda code: code.to_bytes(4, "big")),
    ),
    st.builds(frame, st.just(CONTINUATION), st.sampled_from([0, 4]), STREAMS, BLOCKS),
    st.builds(
        frame,
        st.just(WINDOW_UPDATE),
        st.just(0),
        STREAMS,
        st.sampled_from([bytes(4), b"\0\0\1\0", b"\x7f\xff\xff\xff"]),
    ),
    st.builds(
        frame,
        st.just(GOAWAY),
        st.just(0),
        st.just(0),
        st.tuples(
            st.sampled_from([0, 1, 3, 2**31 - 1]).map(lambda value: value.to_bytes(4, "big")),
            st.sampled_from([bytes(4), b"\0\0\0\x0d"]),
        ).map(b"".join),
    ),
    st.builds(
        frame,
        st.just(SETTINGS),
        st.sampled_from([0, 0, 1]),
        st.just(0),
        st.lists(
            SETTING.map(lambda pair: pair[0].to_bytes(2, "big") + pair[1].to_bytes(4, "big")),
            max_size=3,
        ).map(b"".join),
    ),
    st.builds(frame, st.just(PING), st.sampled_from([0, 1]), st.just(0), number(8)),
    st.builds(frame, st.just(PRIORITY), st.just(0), STREAMS, number(5)),
    st.builds(frame, st.just(PUSH_PROMISE), st.just(4), STREAMS, BLOCKS),
    st.builds(frame, st.integers(0, 255), st.integers(0, 255), STREAMS, st.binary(max_size=20)),
    st.binary(max_size=12),
)
WIRES = st.lists(FRAMES, max_size=12).map(b"".join)


def cut(data: st.DataObject, wire: bytes) -> list[bytes]:
    places = data.draw(st.lists(st.integers(0, len(wire)), max_size=8).map(sorted))
    return [wire[a:b] for a, b in pairwise([0, *places, len(wire)]) if a < b]


def outcome(handler: Handler) -> Any:
    status = handler.head and handler.head.status
    return (handler.interim, status, handler.body, handler.trailers, handler.failure)


@settings(max_examples=150)
@given(st.data(), WIRES)
def test_the_contract_holds(data: st.DataObject, wire: bytes) -> None:
    bench = Bench(max_header_size=1_000, max_header_count=6)
    handlers = [Handler() for _ in range(4)]
    acts = st.sampled_from(["", "", "", "abort", "pause", "resume", "write", "finish", "request"])

    def act() -> None:
        handler = data.draw(st.sampled_from(handlers))
        action = data.draw(acts)
        if handler.exchange is None:
            return
        if action == "abort" and not handler.over:
            handler.abort()
        elif action == "pause":
            handler.exchange.pause_response()
        elif action == "resume":
            handler.exchange.resume_response()
        elif action == "write":
            handler.exchange.write(b"x" * 40_000)
        elif action == "finish":
            handler.exchange.finish([(b"x", b"y")])
        elif action == "request" and len(handlers) < 6:
            handlers.append(Handler())
            bench.request(origin=ORIGIN, handler=handlers[-1])

    for handler in handlers:
        for event in ("informed", "responded", "body_received", "body_ended", "request_drained"):
            handler.hooks[event] = act
        method, whole = data.draw(st.sampled_from([("GET", True), ("HEAD", True), ("POST", False)]))
        bench.request(method, complete=whole, origin=ORIGIN, handler=handler)
    first = bench.transport
    if data.draw(st.booleans()):
        first.decrypted(frame(SETTINGS))
    for part in cut(data, wire):
        first.decrypted(part)
        act()
        if data.draw(st.booleans()) and not first.closing:
            first.drain()
    number = 0
    while number < len(bench.transports):  # more are dialled for what is sent again
        transport = bench.transports[number]
        number += 1
        if not transport.lost:
            transport.end(data.draw(st.sampled_from([ConnectionDone(), ConnectionLost(), None])))
    bench.turn(20)
    assert all(handler.over for handler in handlers)
    assert all(handler.code is not StreamCode.INTERNAL_ERROR for handler in handlers)
    closed = bench.pool.close()
    for transport in bench.transports:
        if not transport.lost:
            transport.end()
    assert closed.called
    bench.turn(1)
    assert bench.clock.getDelayedCalls() == []


@settings(max_examples=100)
@given(st.data(), WIRES)
def test_any_cut_gives_the_same(data: st.DataObject, wire: bytes) -> None:
    outcomes = []
    for parts in ([wire] if wire else [], cut(data, wire)):
        bench = Bench(max_header_size=1_000, max_header_count=6)
        handlers = [bench.request(origin=ORIGIN) for _ in range(3)]
        for part in parts:
            bench.transports[0].decrypted(part)
        outcomes.append([outcome(handler) for handler in handlers])
    assert outcomes[0] == outcomes[1]


@settings(max_examples=100)
@given(st.data(), st.lists(FRAMES, max_size=12))
def test_the_scanner_loses_nothing(data: st.DataObject, frames: list[bytes]) -> None:
    results = []
    wire = b"".join(frames)
    for parts in ([wire], cut(data, wire), [wire[at : at + 1] for at in range(len(wire))]):
        scanner = FrameScanner(300)
        seen: list[bytes | GoAway] = []
        fault = ""
        try:
            for part in parts:
                seen.extend(scanner.scan(part))
        except FrameFault as error:
            fault = error.detail
        results.append((seen, fault, scanner.spare))
        whole = b"".join(each if isinstance(each, bytes) else b"" for each in seen)
        if not any(isinstance(each, GoAway) for each in seen):
            assert wire.startswith(whole)
    assert results[0] == results[1] == results[2]


@settings(max_examples=30)
@given(st.data())
def test_bytes_in_are_bytes_out(data: st.DataObject) -> None:
    """Uploads and downloads of several exchanges at random paces, and pauses of both sides."""
    bench = H2Bench()
    count = data.draw(st.integers(1, 4))
    handlers = [bench.request("POST", complete=False) for _ in range(count)]
    peer = bench.peer
    streams = peer.requests
    sent, answered = [b""] * count, [b""] * count
    unread = [0] * count
    seen = 0

    def read() -> None:
        nonlocal seen
        peer.pump()
        new, seen = peer.events[seen:], len(peer.events)
        for event in new:
            stream = getattr(event, "stream_id", 0)
            if stream in streams and hasattr(event, "flow_controlled_length"):
                unread[streams.index(stream)] += event.flow_controlled_length

    for stream in streams:
        peer.head(stream)
    for step in range(data.draw(st.integers(1, 60))):
        which = data.draw(st.integers(0, count - 1))
        exchange, stream = handlers[which].exchange, streams[which]
        piece = bytes((step,)) * data.draw(st.sampled_from([1, 100, 20_000, 90_000]))
        action = data.draw(st.sampled_from(["up", "up", "down", "down", "read", "pause", "resume"]))
        if action == "up" and not exchange.congested:
            exchange.write(piece)
            sent[which] += piece
        elif action == "down":
            piece = piece[: min(peer.h2.local_flow_control_window(stream), 16_384)]
            peer.data(stream, piece)
            answered[which] += piece
        elif action == "read":
            read()
            if unread[which]:
                peer.h2.acknowledge_received_data(unread[which], stream)
                unread[which] = 0
                peer.send()
        elif action == "pause":
            exchange.pause_response()
        else:
            exchange.resume_response()
    for handler in handlers:
        handler.exchange.resume_response()
        handler.exchange.finish()
    for _ in range(1_000):
        if all(map(peer.ended, streams)):
            break
        read()
        for which, stream in enumerate(streams):
            if unread[which]:
                peer.h2.acknowledge_received_data(unread[which], stream)
                unread[which] = 0
        peer.send()
    for stream in streams:
        peer.data(stream, end=True)
    assert [peer.body(stream) for stream in streams] == sent
    assert [handler.body for handler in handlers] == answered
    assert all(handler.trailers == [] for handler in handlers)


def test_the_parts_have_no_dictionary() -> None:
    """Slots only: a misspelt attribute is an error, and an exchange is small."""
    bench = H2Bench()
    handler = bench.request()
    assert not hasattr(handler.exchange, "__dict__")
    assert not hasattr(bench.transport.protocol, "__dict__")

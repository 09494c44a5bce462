"""Whatever a client sends in HTTP/2, and when, the contract with the application holds."""

from itertools import pairwise
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded
from h2client import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    GET,
    HEADERS,
    PING,
    POST,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    H2Server,
    frame,
)
from h2client import settings as settings_frame
from hpack import Encoder
from http_clients import Handler
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import LogLevel, globalLogPublisher

from sockgw.http.h2server import PREFACE
from sockgw.protocol.heads import ResponseHead

STREAMS = st.sampled_from([1, 1, 1, 3, 3, 5, 7, 9, 0, 2])
SOCKET = [(":method", "CONNECT"), (":protocol", "websocket"), *GET[1:]]
FIELD = st.sampled_from(
    [
        ("content-length", "5"),
        ("content-length", "0"),
        ("expect", "100-continue"),
        ("x", "y"),
        ("X", "y"),
        ("connection", "close"),
        (":path", "/"),
        ("cookie", "a=1"),
        ("host", "b.example"),
        ("long", "y" * 900),
        ("longer", "y" * 9_000),
    ]
)
BLOCKS = st.builds(
    lambda head, more: Encoder().encode([*head, *more]),
    st.sampled_from([GET, GET, POST, POST, SOCKET, [(":method", "HEAD"), *GET[1:]], []]),
    st.lists(FIELD, max_size=3),
)


def number(size: int) -> Any:
    return st.integers(0, 256**size - 1).map(lambda value: value.to_bytes(size, "big"))


SETTING = st.tuples(st.integers(0, 9), st.sampled_from([0, 1, 100, 16_384, 2**31 - 1, 2**32 - 1]))
NONE = st.just(0)
FRAMES = st.one_of(
    st.builds(frame, st.just(HEADERS), st.sampled_from([4, 4, 5, 5, 0, 1, 44]), STREAMS, BLOCKS),
    st.builds(frame, st.just(HEADERS), st.sampled_from([4, 5]), STREAMS, BLOCKS),
    st.builds(frame, st.just(DATA), st.sampled_from([0, 1, 8]), STREAMS, st.just(b"hello")),
    st.builds(frame, st.just(DATA), st.sampled_from([0, 1]), STREAMS, st.binary(max_size=9)),
    st.builds(frame, st.just(RST_STREAM), NONE, STREAMS, number(4)),
    st.builds(
        frame, st.just(CONTINUATION), st.sampled_from([0, END_HEADERS]), STREAMS, st.just(b"")
    ),
    st.builds(
        frame,
        st.just(WINDOW_UPDATE),
        NONE,
        STREAMS,
        st.sampled_from([bytes(4), b"\0\0\0\1", b"\0\1\0\0", b"\x7f\xff\xff\xff"]),
    ),
    st.builds(frame, st.just(7), NONE, NONE, st.just(bytes(8))),
    st.builds(lambda pairs: settings_frame(*pairs), st.lists(SETTING, max_size=3)),
    st.builds(frame, st.just(PING), st.sampled_from([0, ACK]), NONE, number(8)),
    st.builds(frame, st.just(PRIORITY), NONE, STREAMS, number(5)),
    st.builds(frame, st.integers(0, 255), st.integers(0, 255), STREAMS, st.binary(max_size=20)),
    st.binary(max_size=12),
)
WIRES = st.lists(FRAMES, max_size=14).map(b"".join)
BEGINNINGS = st.sampled_from([PREFACE + frame(SETTINGS)] * 9 + [PREFACE])


@pytest.fixture(autouse=True)
def nothing_fails() -> Any:
    """No exception is logged: what a client sends is no fault of ours."""
    failures: list[Any] = []

    def observe(event: Any) -> None:
        if event["log_level"] >= LogLevel.error:
            failures.append(event.get("log_failure") or event)

    globalLogPublisher.addObserver(observe)
    yield
    globalLogPublisher.removeObserver(observe)
    assert not failures, failures[0].getTraceback()


def cut(data: st.DataObject, wire: bytes) -> list[bytes]:
    places = data.draw(st.lists(st.integers(0, len(wire)), max_size=8).map(sorted))
    return [wire[a:b] for a, b in pairwise([0, *places, len(wire)]) if a < b]


def check(handler: Handler) -> None:
    """What an application was told is in order; :class:`Handler` looks at most of it."""
    kinds = [event[0] for event in handler.events]
    assert kinds.count("end") <= 1
    assert kinds.count("lost") <= 1
    if "lost" in kinds:
        assert kinds[-1] == "lost"


@settings(max_examples=150, deadline=None)
@given(st.data(), BEGINNINGS, WIRES)
def test_the_contract_holds(data: st.DataObject, beginning: bytes, wire: bytes) -> None:
    peer = H2Server(
        start=b"",
        flushing=data.draw(st.booleans()),
        max_header_size=1_000,
        max_header_count=6,
        max_body_size=data.draw(st.sampled_from([0, 8])),
        max_h2_streams=3,
        max_h2_resets=4,
    )
    acts = st.sampled_from(
        ["", "", "inform", "respond", "respond", "write", "finish", "abort", "drop", "pause"]
        + ["resume", "trailers", "drain"]
    )

    def act(exchange: Any = None) -> None:
        if exchange is None:
            if not peer.handlers:
                return
            exchange = data.draw(st.sampled_from(peer.handlers)).exchange
        action = data.draw(acts)
        if action == "inform":
            exchange.inform(103, [])
        elif action == "respond" and not (exchange.responded or exchange.over):
            status = data.draw(st.sampled_from([200, 204, 404]))
            length = data.draw(st.sampled_from([[], [(b"Content-Length", b"3")]]))
            try:
                exchange.respond(ResponseHead(status, b"", length))
            except ValueError:
                assert exchange.head.upgrade
        elif action == "write" and (exchange.responded or exchange.over):
            exchange.write(data.draw(st.sampled_from([b"abc", bytes(70_000)])))
        elif action == "finish" and (exchange.responded or exchange.over):
            exchange.finish()
        elif action == "trailers" and (exchange.responded or exchange.over):
            exchange.finish([(b"x", b"y")])
        elif action == "abort":
            exchange.abort()
        elif action == "drop":
            exchange.drop()
        elif action == "pause":
            exchange.pause_request()
        elif action == "resume":
            exchange.resume_request()
        elif action == "drain":
            exchange.connection.drain(1.0)

    peer.application.on_request = act
    peer.application.on_end = act
    peer.application.on_body = act
    for part in cut(data, beginning + wire):
        peer.feed(part)
        act()
        if data.draw(st.integers(0, 9)) == 0:
            peer.advance(data.draw(st.sampled_from([1, 20, 400])))
        if data.draw(st.integers(0, 3)) == 0:
            peer.transport.flush()
    over = peer.closing
    if not peer.transport.lost and not peer.transport.aborted:
        peer.transport.close_by_peer()
    peer.advance(5)
    assert peer.transport.lost
    assert peer.application.connections == 0
    for handler in peer.handlers:
        check(handler)
        assert not over or handler.exchange.over
        assert not handler.exchange.queue
        assert not handler.exchange.pieces
    peer.advance(0)
    assert not peer.deadlines.watched


@settings(max_examples=60, deadline=None)
@given(st.data(), WIRES)
def test_any_cut_gives_the_same(data: st.DataObject, wire: bytes) -> None:
    wire = PREFACE + frame(SETTINGS) + wire
    outcomes = []
    for parts in ([wire], cut(data, wire), [wire[i : i + 1] for i in range(len(wire))]):
        peer = H2Server(start=b"", max_header_size=1_000, max_header_count=6)
        for part in parts:
            peer.feed(part)
        told = [
            (
                handler.exchange.head.method,
                [name for name, _ in handler.exchange.head.headers],  # a key is random
                handler.body,
                [event for event in handler.events if event[0] != "body"],
            )
            for handler in peer.handlers
        ]
        outcomes.append((told, peer.closing, peer.application.refusals))
    assert outcomes[0] == outcomes[1] == outcomes[2]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_bytes_in_are_bytes_out(data: st.DataObject) -> None:
    """Uploads and downloads of several streams at random paces, and pauses of both sides."""
    peer = H2Server(start=b"", flushing=data.draw(st.booleans()))
    client = H2Connection(H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    count = data.draw(st.integers(1, 4))
    streams = [2 * n + 1 for n in range(count)]
    for stream in streams:
        client.send_headers(stream, POST)
    seen = 0
    sent, answered, received = [b""] * count, [b""] * count, [b""] * count
    unread = [0] * count
    ended: set[int] = set()

    def exchange_bytes() -> None:
        nonlocal seen
        peer.feed(client.data_to_send())
        written = bytes(peer.transport.written[seen:])
        seen += len(written)
        for event in client.receive_data(written):
            if isinstance(event, DataReceived):
                which = streams.index(event.stream_id)
                received[which] += event.data
                unread[which] += event.flow_controlled_length
            elif isinstance(event, StreamEnded):
                ended.add(event.stream_id)

    exchange_bytes()
    exchanges = [handler.exchange for handler in peer.handlers]
    for each in exchanges:
        each.respond(ResponseHead(200, b"", []))
    for step in range(data.draw(st.integers(1, 60))):
        which = data.draw(st.integers(0, count - 1))
        exchange, stream = exchanges[which], streams[which]
        piece = bytes((step,)) * data.draw(st.sampled_from([1, 100, 20_000, 90_000]))
        action = data.draw(
            st.sampled_from(["up", "up", "down", "down", "read", "pause", "resume", "flush"])
        )
        if action == "down" and not exchange.congested:
            exchange.write(piece)
            answered[which] += piece
        elif action == "up":
            piece = piece[: min(client.local_flow_control_window(stream), 16_384)]
            client.send_data(stream, piece)
            sent[which] += piece
        elif action == "read":
            exchange_bytes()
            if unread[which]:
                client.acknowledge_received_data(unread[which], stream)
                unread[which] = 0
        elif action == "pause":
            exchange.pause_request()
        elif action == "resume":
            exchange.resume_request()
        else:
            peer.transport.flush()
    for exchange, stream in zip(exchanges, streams, strict=True):
        exchange.resume_request()
        exchange.finish()
        client.end_stream(stream)
    for _ in range(1_000):
        if len(ended) == count:
            break
        exchange_bytes()
        peer.transport.flush()
        for which, stream in enumerate(streams):
            if unread[which]:
                client.acknowledge_received_data(unread[which], stream)
                unread[which] = 0
    assert received == answered
    for handler, up in zip(peer.handlers, sent, strict=True):
        # Once its answer is complete nothing more is wanted.
        assert up.startswith(handler.body)
    assert not peer.connection._other.busy

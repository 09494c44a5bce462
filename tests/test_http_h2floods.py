"""What a client of HTTP/2 could do to us with little effort, and where that ends."""

import tracemalloc
from typing import Any

import pytest
from h2client import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    HEADERS,
    PADDED,
    POST,
    PRIORITY,
    H2Server,
    data,
    frame,
    ping,
    rst,
    settings,
    window,
)
from http_clients import answer

from sockgw.http.h2frames import MAX_SPARE
from sockgw.http.h2server import PREFACE
from sockgw.protocol.heads import ResponseHead

PROTOCOL, CALM = 1, 11
RESETS = 20


def server(**options: Any) -> H2Server:
    made = H2Server(**options)
    made.application.on_end = lambda exchange: answer(exchange, b"hello")
    return made


def respond(exchange: Any, *pieces: bytes) -> None:
    exchange.respond(ResponseHead(200, b"OK", [(b"date", b"now")]))
    for piece in pieces:
        exchange.write(piece)


# ---------------------------------------------------------------------- frames without content

EMPTY = {
    "ping": ping(),
    "ping answers": ping(ACK),
    "settings": settings(),
    "settings that change": settings((4, 70_000), (1, 0)),
    "settings answers": frame(4, ACK),
    "window updates": window(0, 1),
    "window updates of a stream": window(1, 1),
    "priority": frame(PRIORITY, 0, 1, b"\0\0\0\0\x10"),
    "unknown": frame(0x77, 0, 1, b"x"),
    "empty data": data(1),
    "data that is padding": frame(DATA, PADDED, 1, b"\1\0"),
    "data for a stream that is no more": data(3, b"x"),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_a_flood_of_frames_without_content_is_ended(kind: str) -> None:
    peer = H2Server()
    peer.feed(peer.head(1, POST, end=False), peer.head(3), rst(3))
    flood = EMPTY[kind] * (MAX_SPARE // 10)
    for _ in range(9):
        peer.feed(flood)
        assert not peer.closing
    for _ in range(2):
        peer.feed(flood)
    assert (peer.goaway, peer.closing) == (CALM, True)
    assert peer.handlers[0].lost
    peer.feed(flood)  # is not looked at any more
    assert sum(f.kind == 7 for f in peer.frames) == 1


# Each of these makes more work than a frame that carries nothing.
HEAVY = {
    "many settings": settings(*[(code, 1) for code in range(1_000, 3_700)]),
    "windows of many streams": settings((4, 0)) + settings((4, 1)),
}


@pytest.mark.parametrize("kind", HEAVY)
def test_a_flood_of_heavier_frames_is_ended_sooner(kind: str) -> None:
    peer = H2Server(start=PREFACE + settings((4, 0)))
    peer.feed(*[peer.head(stream) for stream in range(1, 200, 2)])
    for handler in peer.handlers:
        respond(handler.exchange, bytes(20_000))
    count = 0
    while not peer.closing and count < 1_000:
        peer.feed(HEAVY[kind])
        count += 1
    assert (peer.goaway, peer.closing) == (CALM, True)
    assert 20 < count < 500


def test_what_comes_with_content_is_no_flood() -> None:
    peer = H2Server()
    peer.feed(peer.head(1, POST, end=False))
    for _ in range(MAX_SPARE // 1_000 + 2):
        peer.feed((data(1, b"x" * 10) + ping() + window(0, 1)) * 1_000)
    assert not peer.closing


def test_pings_now_and_then_are_no_flood() -> None:
    peer = H2Server()
    peer.feed(peer.head(1))
    for _ in range(30):
        peer.feed(ping() * 1_000)
        peer.clock.advance(100)
    assert not peer.closing


def test_a_client_that_pings_and_does_not_read() -> None:
    peer = H2Server(flushing=False)
    for _ in range(7):
        peer.feed(ping() * 1_000)
    assert not peer.closing
    peer.feed(ping() * 1_000)
    assert (peer.goaway, peer.closing) == (CALM, True)
    assert len(peer.transport.written) < 2 * 65_536 + 17_500


# ---------------------------------------------------------------------- header blocks


def test_a_block_without_end_is_ended_before_it_is_kept() -> None:
    peer = server()
    peer.feed(frame(HEADERS, END_STREAM, 1, b""))
    tracemalloc.start()
    sent = 0
    while not peer.closing and sent < 2**20:
        peer.feed(frame(CONTINUATION, 0, 1, bytes(1_000)))
        sent += 1_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (peer.goaway, sent < 10_000) == (CALM, True)  # the limit is some 5 KB here
    assert peak < 200_000


def test_a_block_of_empty_frames_without_end() -> None:
    peer = server()
    peer.feed(frame(HEADERS, END_STREAM, 1, b""))
    peer.feed(frame(CONTINUATION, 0, 1) * (MAX_SPARE + 1))
    assert peer.closing
    assert not peer.handlers


def test_a_block_that_drips_has_a_deadline() -> None:
    peer = server(head_timeout=10.0)
    peer.feed(peer.head(1))
    peer.feed(frame(HEADERS, END_STREAM, 3, b"\x82"))
    for _ in range(11):
        peer.advance(1)
        if not peer.closing:
            peer.feed(frame(CONTINUATION, 0, 3, b"\x86"))
    assert (peer.goaway, peer.closing) == (CALM, True)


@pytest.mark.parametrize("size", [100, 3_000])
def test_a_bomb_of_indexed_fields(size: int) -> None:
    """A field in the dynamic table, and then one byte for each time that it comes again."""
    peer = server(max_header_size=2_048)
    peer.feed(peer.head(1, [*GET, ("x", "y" * size)]))  # 3,000 is refused, and in the table
    block = peer.encoder.encode(GET) + b"\xbe" * 3_000
    tracemalloc.start()
    peer.feed(frame(HEADERS, END_HEADERS | END_STREAM, 3, block))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (peer.goaway, peer.closing) == (CALM, True)
    assert peak < 1_000_000


@pytest.mark.parametrize("acknowledged", [False, True])
def test_a_list_of_fields_is_measured_as_it_is_unpacked(acknowledged: bool) -> None:
    peer = server(max_header_size=2_048, max_header_count=20)  # so the limit is some 5 KB
    if acknowledged:
        peer.feed(frame(4, ACK))
    peer.feed(peer.head(1, [*GET, ("x", "y" * 100)]))
    block = peer.encoder.encode(GET)
    peer.feed(frame(HEADERS, END_HEADERS | END_STREAM, 3, block + b"\xbe" * 35))
    assert (peer.status(3), peer.closing) == ("431", False)
    peer.feed(frame(HEADERS, END_HEADERS | END_STREAM, 5, block + b"\xbe" * 45))
    assert (peer.goaway, peer.closing) == (CALM, True)


def test_a_cookie_in_crumbs_is_one_that_is_too_large() -> None:
    peer = server()
    peer.feed(peer.head(1, [*GET, *[("cookie", f"a{i}=1") for i in range(110)]]))
    assert peer.handlers[0].ended
    peer.feed(peer.head(3, [*GET, *[("cookie", "a" * 100)] * 25]))
    assert peer.status(3) == "431"


def test_settings_nobody_knows_are_not_kept() -> None:
    peer = server()
    peer.feed(settings((77, 1)))
    for first in range(16, 65_536, 2_048):
        peer.feed(settings(*[(code, 1) for code in range(first, min(first + 2_048, 65_536))]))
    assert len(peer.h2.remote_settings._settings) < 10


def test_a_table_that_a_client_offers_is_not_filled() -> None:
    peer = server()
    peer.decoder.max_allowed_table_size = 2**32
    peer.feed(settings((1, 2**32 - 1)))
    peer.feed(peer.head(1))
    assert peer.h2.encoder.header_table_size == 4_096
    peer.feed(settings((1, 0)))
    assert peer.h2.encoder.header_table_size == 0


# ---------------------------------------------------------------------- streams that end early


def test_rapid_reset() -> None:
    """CVE-2023-44487."""
    peer = H2Server(max_h2_resets=RESETS)
    for number in range(RESETS):
        stream = 2 * number + 1
        peer.feed(peer.head(stream) + rst(stream))
        assert not peer.closing
        assert peer.handlers[-1].lost
    peer.feed(peer.head(101) + rst(101))
    assert (peer.goaway, peer.closing) == (CALM, True)


def test_rapid_reset_in_one_segment() -> None:
    peer = H2Server(max_h2_resets=RESETS)
    peer.feed(*[peer.head(s) + rst(s) for s in range(1, 400, 2)])
    assert (peer.goaway, peer.closing) == (CALM, True)
    assert len(peer.handlers) == RESETS + 1
    assert all(handler.lost for handler in peer.handlers)


def late_head(peer: H2Server, stream: int) -> bytes:
    return peer.head(stream) + peer.head(stream, [("x", "y")])


# Each makes us reset a stream for which an application was asked: CVE-2025-8671.
MADE = {
    "a window that overflows": lambda s, i: s.head(i) + window(i, 2**31 - 1),
    "data behind the end": lambda s, i: s.head(i) + data(i, b"x"),
    "a head behind the end": late_head,
    "trailers that are malformed": lambda s, i: s.head(i, POST, end=False) + s.head(i, [("X", "")]),
    "too many trailers": lambda s, i: (
        s.head(i, POST, end=False) + s.head(i, [(f"x{n}", "") for n in range(21)])
    ),
    "more than was announced": lambda s, i: (
        s.head(i, [*POST, ("content-length", "1")], end=False) + data(i, b"xx")
    ),
    "less than was announced": lambda s, i: (
        s.head(i, [*POST, ("content-length", "2")], end=False) + data(i, b"x", end=True)
    ),
    "more than is allowed": lambda s, i: s.head(i, POST, end=False) + data(i, bytes(101)),
}


@pytest.mark.parametrize("way", MADE)
def test_resets_that_a_client_makes_us_send(way: str) -> None:
    peer = H2Server(max_h2_resets=RESETS, max_body_size=100)
    for number in range(RESETS):
        peer.feed(MADE[way](peer, 2 * number + 1))
        assert not peer.closing
        assert peer.handlers[-1].lost
    peer.feed(MADE[way](peer, 101))
    assert (peer.goaway, peer.closing) == (CALM, True)


def test_requests_that_are_malformed() -> None:
    peer = H2Server(max_h2_resets=RESETS)
    peer.feed(*[peer.head(s, [*GET, ("X", "")]) for s in range(1, 2 * RESETS, 2)])
    assert not peer.closing
    peer.feed(peer.head(101, [*GET, ("X", "")]))
    assert (peer.goaway, peer.closing) == (CALM, True)


def test_what_ends_well_and_time_give_resets_back() -> None:
    peer = server(max_h2_resets=RESETS)
    stream = 1
    for _ in range(3 * RESETS):
        peer.feed(peer.head(stream), peer.head(stream + 2, POST, end=False), rst(stream + 2))
        stream += 4
    assert not peer.closing
    for _ in range(RESETS - 1):
        peer.feed(peer.head(stream, POST, end=False), rst(stream))
        stream += 2
    peer.clock.advance(15.5)  # half of them
    for _ in range(RESETS // 2):
        peer.feed(peer.head(stream, POST, end=False), rst(stream))
        stream += 2
    assert not peer.closing
    peer.feed(peer.head(stream, POST, end=False), rst(stream))
    assert peer.closing


def test_no_more_streams_than_we_allow() -> None:
    peer = H2Server(max_h2_streams=5)
    peer.feed(*[peer.head(s) for s in range(1, 14, 2)])
    assert len(peer.handlers) == 5
    assert [peer.reset(s) for s in (9, 11, 13)] == [None, 7, 7]  # REFUSED_STREAM
    answer(peer.handlers[0].exchange)
    peer.feed(peer.head(15))
    assert len(peer.handlers) == 6
    assert dict(s for f in peer.frames[:1] for s in pairs(f.payload))[3] == 5


def pairs(payload: bytes) -> list[tuple[int, int]]:
    return [
        (int.from_bytes(payload[i : i + 2], "big"), int.from_bytes(payload[i + 2 : i + 6], "big"))
        for i in range(0, len(payload), 6)
    ]


# ---------------------------------------------------------------------- windows


def test_an_upload_that_waits_stops_no_other() -> None:
    """Each stream holds its own window, all of them at once, and the connection goes on."""
    peer = H2Server()
    peer.application.on_request = lambda exchange: exchange.pause_request()
    streams = range(1, 200, 2)
    for stream in streams:
        peer.feed(peer.head(stream, POST, end=False))
        for _ in range(8):
            peer.feed(data(stream, bytes(16_384)))
    sent = 8 * 16_384 * len(streams)
    assert not peer.closing
    assert 65_535 + peer.credit(0) - sent >= 2**20
    assert not any(peer.credit(stream) for stream in streams)
    assert not any(handler.body for handler in peer.handlers)
    peer.handlers[7].exchange.resume_request()
    assert len(peer.handlers[7].body) == 8 * 16_384
    assert peer.credit(15) == 131_072
    peer.feed(data(15, bytes(16_384)))
    assert len(peer.handlers[7].body) == 9 * 16_384


def test_who_sends_more_than_the_window_is_in_error() -> None:
    peer = H2Server()
    peer.application.on_request = lambda exchange: exchange.pause_request()
    peer.feed(peer.head(1, POST, end=False))
    for _ in range(9):
        peer.feed(data(1, bytes(16_384)))
    assert (peer.goaway, peer.closing) == (3, True)


def test_what_streams_held_is_not_lost_with_them() -> None:
    peer = H2Server()
    peer.application.on_request = lambda exchange: exchange.pause_request()
    sent = 0
    for stream in range(1, 2 * 160, 2):
        peer.feed(peer.head(stream, POST, end=False))
        for _ in range(8):
            peer.feed(data(stream, bytes(16_384)))
        peer.feed(rst(stream))
        sent += 8 * 16_384
    assert not peer.closing
    assert 65_535 + peer.credit(0) - sent >= 2**20


def test_tiny_pieces_that_wait_cost_what_they_weigh() -> None:
    peer = H2Server()
    peer.application.on_request = lambda exchange: exchange.pause_request()
    peer.feed(peer.head(1, POST, end=False))
    pieces = data(1, b"xy") * 5_000
    tracemalloc.start()
    peer.feed(pieces)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 100_000  # of 10,000; as objects of their own they are 300,000
    peer.handlers[0].exchange.resume_request()
    assert peer.handlers[0].body == b"xy" * 5_000


def test_tiny_pieces_of_an_answer_cost_what_they_weigh() -> None:
    peer = H2Server(start=PREFACE + settings((4, 0)))
    peer.feed(peer.head(1))
    exchange = peer.handlers[0].exchange
    respond(exchange)
    peer.advance(0)
    tracemalloc.start()
    for _ in range(25_000):
        exchange.write(b"xy")
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 400_000
    peer.feed(window(1, 50_000))
    assert peer.body(1) == b"xy" * 25_000


def test_a_window_opened_byte_by_byte_is_a_flood() -> None:
    """CVE-2019-9511: a frame of 1 byte for each of WINDOW_UPDATE."""
    peer = H2Server(start=PREFACE + settings((4, 0)))
    peer.feed(peer.head(1))
    respond(peer.handlers[0].exchange, bytes(60_000))
    for _ in range(10):
        peer.feed(window(1, 1) * (MAX_SPARE // 20))
        assert not peer.closing
    peer.feed(window(1, 1) * 1_000)
    assert (peer.goaway, peer.closing) == (CALM, True)
    assert peer.handlers[0].lost


def test_a_window_that_stays_shut() -> None:
    peer = H2Server(start=PREFACE + settings((4, 0)), idle_timeout=10.0)
    peer.feed(peer.head(1))
    exchange = peer.handlers[0].exchange
    respond(exchange, bytes(70_000))
    assert exchange.congested
    for _ in range(4):  # a byte now and then is no progress
        peer.advance(2)
        peer.feed(window(1, 1))
    assert peer.reset(1) is None
    peer.advance(3)
    assert peer.reset(1) == 8
    assert peer.handlers[0].lost


def test_a_slow_reader_is_given_its_time() -> None:
    peer = H2Server(start=PREFACE + settings((4, 0)) + window(0, 10_000), idle_timeout=10.0)
    peer.feed(peer.head(1))
    exchange = peer.handlers[0].exchange
    respond(exchange, bytes(70_000))
    exchange.finish()
    for _ in range(34):
        peer.advance(5)
        peer.feed(window(1, 2_100))
    assert (len(peer.body(1)), peer.ended(1)) == (70_000, True)


def test_a_client_that_does_not_read_at_all() -> None:
    peer = H2Server(
        start=PREFACE + settings((4, 2**20)),
        flushing=False,
        idle_timeout=10.0,
        keep_alive_timeout=20.0,
    )
    for stream in (1, 3, 5):
        peer.feed(peer.head(stream))
        respond(peer.handlers[-1].exchange, bytes(100_000))
    written = len(peer.transport.written)
    assert written < 2 * 65_536 + 32_768
    peer.advance(11)
    assert all(handler.lost for handler in peer.handlers)
    peer.advance(21)
    assert peer.closing
    peer.advance(11)
    assert peer.transport.lost
    assert len(peer.transport.written) < written + 500


def test_answers_wait_behind_one_that_is_not_read() -> None:
    """A page of many small answers beside a large one, over a slow link, is no attack."""
    peer = H2Server(start=PREFACE + settings((4, 2**20)), flushing=False)
    peer.feed(peer.head(1))
    respond(peer.handlers[0].exchange, bytes(100_000))
    peer.feed(*[peer.head(stream) for stream in range(3, 200, 2)])
    fields = [(b"date", b"now"), (b"x", b"y" * 1_500)]
    for handler in peer.handlers[1:]:
        handler.exchange.respond(ResponseHead(204, b"", fields))
        handler.exchange.finish()
    peer.advance(0)
    peer.feed(ping())
    assert not peer.closing
    assert len(peer.transport.written) < 3 * 65_536
    peer.transport.flushing = True
    peer.transport.flush()
    peer.advance(1)
    assert [peer.status(stream) for stream in range(3, 200, 2)] == ["204"] * 99


def test_who_writes_often_has_one_turn() -> None:
    peer = H2Server(start=PREFACE + settings((4, 2**20)))
    peer.feed(*[peer.head(stream) for stream in (1, 3, 5)])
    respond(peer.handlers[0].exchange, bytes(65_535))  # all of the connection's window
    respond(peer.handlers[1].exchange, *[bytes(3_000)] * 20)
    respond(peer.handlers[2].exchange, bytes(60_000))
    peer.advance(0)
    peer.feed(window(0, 2**20))
    order = [f.stream for f in peer.frames if f.kind == DATA and f.stream != 1]
    assert order[:8] == [3, 5] * 4
    assert not peer.connection._other.sender._ready


def test_streams_take_turns() -> None:
    peer = H2Server(start=PREFACE + settings((4, 2**20)))
    peer.feed(*[peer.head(stream) for stream in (1, 3, 5, 7)])
    respond(peer.handlers[0].exchange, bytes(65_535))  # all of the connection's window
    for handler in peer.handlers[1:]:
        respond(handler.exchange, bytes(60_000))
    peer.feed(window(0, 2**20))
    order = [f.stream for f in peer.frames if f.kind == DATA]
    assert order == [1] * 4 + [3, 5, 7] * 4
    assert all(len(peer.body(stream)) == 60_000 for stream in (3, 5, 7))

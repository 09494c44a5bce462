"""What RFC 9113 and RFC 7541 say of a client's frames, section by section, as h2spec asks it."""

from collections.abc import Callable
from typing import Any

import pytest
from h2client import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    POST,
    PRIORITIZED,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    H2Server,
    data,
    frame,
    ping,
    rst,
    settings,
    window,
)
from http_clients import answer

from sockgw.http.h2server import PREFACE

NO_ERROR, PROTOCOL, INTERNAL, FLOW_CONTROL, SETTINGS_TIMEOUT, CLOSED, SIZE = range(7)
REFUSED, CANCEL, COMPRESSION, CONNECT, CALM = range(7, 12)


def server(**options: Any) -> H2Server:
    made = H2Server(**options)
    made.application.on_end = lambda exchange: answer(exchange, b"hello")
    return made


def without(name: str, fields: list[tuple[str, str]] = GET) -> list[tuple[str, str]]:
    return [field for field in fields if field[0] != name]


def still_works(peer: H2Server, stream: int = 99) -> bool:
    peer.feed(peer.head(stream))
    return peer.status(stream) == "200" and peer.body(stream) == b"hello"


# What ends the connection, and with which code; after a first request that was fine.
ENDS: dict[str, tuple[Callable[[H2Server], bytes], set[int]]] = {
    "4.1 a frame too long": (lambda s: data(1, bytes(16_385)), {SIZE}),
    "4.2 SETTINGS that is cut": (lambda s: frame(SETTINGS, 0, 0, bytes(5)), {SIZE}),
    "4.3 a block that is no HPACK": (
        lambda s: frame(HEADERS, 5, 3, b"\xff\xff\xff\xff"),
        {COMPRESSION, PROTOCOL},
    ),
    "4.3 another frame within a block": (
        lambda s: s.head(3, flags=0) + ping(),
        {PROTOCOL},
    ),
    "4.3 another stream's head within a block": (
        lambda s: s.head(3, flags=0) + s.head(5),
        {PROTOCOL},
    ),
    "5.1 DATA on an idle stream": (lambda s: data(7, b"x"), {PROTOCOL}),
    "5.1 RST_STREAM on an idle stream": (lambda s: rst(7), {PROTOCOL}),
    "5.1 WINDOW_UPDATE on an idle stream": (lambda s: window(7, 1), {PROTOCOL}),
    "5.1 CONTINUATION on an idle stream": (
        lambda s: frame(CONTINUATION, END_HEADERS, 7, b""),
        {PROTOCOL},
    ),
    "5.1 HEADERS on a closed stream": (lambda s: s.head(1), {CLOSED, PROTOCOL}),
    "5.1.1 an even stream": (lambda s: s.head(2), {PROTOCOL}),
    "5.1.1 a lower stream": (lambda s: s.head(9, POST, end=False) + s.head(7), {PROTOCOL, CLOSED}),
    "5.3.1 a stream that depends on itself": (
        lambda s: frame(PRIORITY, 0, 3, b"\0\0\0\3\x10"),
        {PROTOCOL},
    ),
    "6.1 DATA on stream 0": (lambda s: data(0, b"x"), {PROTOCOL}),
    "6.1 padding longer than the frame": (
        lambda s: s.head(3, POST, end=False) + frame(DATA, PADDED, 3, b"\x09x"),
        {PROTOCOL},
    ),
    "6.2 HEADERS on stream 0": (lambda s: s.head(0), {PROTOCOL}),
    "6.2 padding longer than the head": (
        lambda s: frame(HEADERS, END_HEADERS | PADDED, 3, b"\xffx"),
        {PROTOCOL},
    ),
    "6.3 PRIORITY on stream 0": (lambda s: frame(PRIORITY, 0, 0, b"\0\0\0\1\x10"), {PROTOCOL}),
    "6.3 PRIORITY of a wrong size": (lambda s: frame(PRIORITY, 0, 3, bytes(4)), {PROTOCOL, SIZE}),
    "6.4 RST_STREAM on stream 0": (lambda s: rst(0), {PROTOCOL}),
    "6.4 RST_STREAM of a wrong size": (
        lambda s: s.head(3, POST, end=False) + frame(RST_STREAM, 0, 3, bytes(3)),
        {SIZE, PROTOCOL},
    ),
    "6.5 SETTINGS on a stream": (lambda s: frame(SETTINGS, 0, 3), {PROTOCOL}),
    "6.5 an ACK with content": (
        lambda s: frame(SETTINGS, ACK, 0, bytes(6)),
        {SIZE, PROTOCOL},
    ),
    "6.5.2 ENABLE_PUSH of 2": (lambda s: settings((2, 2)), {PROTOCOL}),
    "6.5.2 a window too large": (lambda s: settings((4, 2**31)), {FLOW_CONTROL}),
    "6.5.2 a frame size too small": (lambda s: settings((5, 16_383)), {PROTOCOL}),
    "6.5.2 a frame size too large": (lambda s: settings((5, 2**24)), {PROTOCOL}),
    "6.6 PUSH_PROMISE of a client": (
        lambda s: frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2"),
        {PROTOCOL},
    ),
    "6.7 PING on a stream": (lambda s: frame(PING, 0, 3, bytes(8)), {PROTOCOL}),
    "6.7 PING of a wrong size": (lambda s: frame(PING, 0, 0, bytes(6)), {SIZE, PROTOCOL}),
    "6.8 GOAWAY on a stream": (lambda s: frame(GOAWAY, 0, 3, bytes(8)), {PROTOCOL}),
    "6.9 a WINDOW_UPDATE of 0": (lambda s: window(0, 0), {PROTOCOL}),
    "6.9 WINDOW_UPDATE of a wrong size": (
        lambda s: frame(WINDOW_UPDATE, 0, 0, bytes(3)),
        {SIZE, PROTOCOL},
    ),
    "6.9.1 a window that overflows": (
        lambda s: window(0, 2**31 - 1) + window(0, 2**31 - 1),
        {FLOW_CONTROL},
    ),
    "6.10 CONTINUATION after a whole head": (
        lambda s: s.head(3, POST, end=False) + frame(CONTINUATION, END_HEADERS, 3),
        {PROTOCOL},
    ),
    "6.10 CONTINUATION on stream 0": (
        lambda s: s.head(3, flags=0) + frame(CONTINUATION, END_HEADERS, 0),
        {PROTOCOL},
    ),
    "8.1 a second head without the end": (
        lambda s: s.head(3, POST, end=False) + s.head(3, [("x", "y")], end=False),
        {PROTOCOL},
    ),
    "HPACK 2.3.3 an index beyond the tables": (
        lambda s: frame(HEADERS, 5, 3, b"\xbf\xff\xff"),
        {COMPRESSION, PROTOCOL},
    ),
    "HPACK 6.1 the index 0": (lambda s: frame(HEADERS, 5, 3, b"\x80"), {COMPRESSION, PROTOCOL}),
    "HPACK 6.3 a table larger than we allow": (
        lambda s: frame(HEADERS, 5, 3, b"\x3f\xe2\x1f" + b"\x82\x86\x84\x41\x01a"),
        {COMPRESSION, PROTOCOL},
    ),
    "HPACK 5.2 EOS within a string": (
        lambda s: frame(HEADERS, 5, 3, b"\x82\x86\x84\x41\x84\xff\xff\xff\xff"),
        {COMPRESSION, PROTOCOL},
    ),
}


@pytest.mark.parametrize("step", [0, 1], ids=["whole", "bytewise"])
@pytest.mark.parametrize("case", ENDS)
def test_ends_the_connection(case: str, step: int) -> None:
    build, codes = ENDS[case]
    peer = server()
    peer.feed(peer.head(1))
    peer.feed(build(peer), step=step)
    assert peer.goaway in codes
    assert peer.closing
    assert not [handler for handler in peer.handlers[1:] if handler.ended]


# What ends a stream, with PROTOCOL_ERROR or that code, and leaves the others alone.
MALFORMED: dict[str, list[tuple[str, str]]] = {
    "8.2.1 a name in upper case": [*GET, ("X-A", "y")],
    "8.2.1 a name with a space": [*GET, ("x a", "y")],
    "8.2.1 an empty name": [*GET, ("", "y")],
    "8.2.1 a name with a colon within": [*GET, ("x:a", "y")],
    "8.2.1 a line end in a value": [*GET, ("x", "y\r\nHost: b")],
    "8.2.1 NUL in a value": [*GET, ("x", "y\0")],
    "8.2.1 space before a value": [*GET, ("x", " y")],
    "8.2.1 space behind a value": [*GET, ("x", "y\t")],
    "8.2.2 connection": [*GET, ("connection", "close")],
    "8.2.2 proxy-connection": [*GET, ("proxy-connection", "close")],
    "8.2.2 keep-alive": [*GET, ("keep-alive", "timeout=5")],
    "8.2.2 transfer-encoding": [*GET, ("transfer-encoding", "chunked")],
    "8.2.2 upgrade": [*GET, ("upgrade", "websocket")],
    "8.2.2 te": [*GET, ("te", "trailers, deflate")],
    "8.3 an unknown pseudo-header field": [*GET, (":x", "y")],
    "8.3 a response's": [*GET, (":status", "200")],
    "8.3 one behind a field": [*without(":path"), ("x", "y"), (":path", "/")],
    "8.3.1 no :method": without(":method"),
    "8.3.1 no :scheme": without(":scheme"),
    "8.3.1 no :path": without(":path"),
    "8.3.1 an empty :path": [*without(":path"), (":path", "")],
    "8.3.1 two :method": [(":method", "GET"), *GET],
    "8.3.1 two :path": [(":path", "/"), *GET],
    "8.3.1 two :authority": [(":authority", "a.example"), *GET],
    "8.3.1 a line end in :path": [*without(":path"), (":path", "/ HTTP/1.1\r\nx: y")],
    "8.3.1 a line end in :method": [*without(":method"), (":method", "GET / HTTP/1.1\r\n")],
    "8.3.1 a Host that differs": [*GET, ("host", "b.example")],
    "8.3.1 two Hosts": [*without(":authority"), ("host", "a.example"), ("host", "a.example")],
    "8.5 CONNECT with :path": [(":method", "CONNECT"), *GET[1:]],
    "8441 :protocol without CONNECT": [*GET, (":protocol", "websocket")],
    "8.1.1 a length without content": [*GET, ("content-length", "5")],
    "8.1.1 a length that is none": [*GET, ("content-length", "5x")],
    "8.1.1 a signed length": [*GET, ("content-length", "+0")],
    "8.1.1 two lengths": [*GET, ("content-length", "0"), ("content-length", "0")],
    "8.1.1 a list of lengths": [*GET, ("content-length", "0, 0")],
}


@pytest.mark.parametrize("case", MALFORMED)
def test_ends_the_stream(case: str) -> None:
    peer = server()
    peer.feed(peer.head(1, POST, end=False))
    peer.feed(peer.head(3, MALFORMED[case]))
    assert peer.reset(3) == PROTOCOL
    assert not peer.status(3)
    assert len(peer.handlers) == 1
    peer.feed(data(1, b"x", end=True))
    assert peer.body(1) == b"hello"
    assert still_works(peer)


# What HTTP/1.1 answers with a status is answered with it.
REFUSALS: dict[str, tuple[list[tuple[str, str]], str]] = {
    "CONNECT": ([(":method", "CONNECT"), (":authority", "a.example:443")], "501"),
    "TRACE": ([(":method", "TRACE"), *GET[1:]], "501"),
    "RTSP": ([(":method", "SETUP"), *GET[1:]], "505"),
    "a method that is none": ([(":method", "G T"), *GET[1:]], "400"),
    "no host": (without(":authority"), "400"),
    "an empty :authority": ([*without(":authority"), (":authority", "")], "400"),
    "a user in :authority": ([*without(":authority"), (":authority", "u@a.example")], "400"),
    "a path in :authority": ([*without(":authority"), (":authority", "a.example/b")], "400"),
    "a comma in :authority": ([*without(":authority"), (":authority", "a.example,b")], "400"),
    "another scheme": ([*without(":scheme"), (":scheme", "ftp")], "400"),
    "a :path that is a URL": ([*without(":path"), (":path", "http://b.example/")], "400"),
    "a :path without a slash": ([*without(":path"), (":path", "x")], "400"),
    "a space in :path": ([*without(":path"), (":path", "/a b")], "400"),
    "a fragment in :path": ([*without(":path"), (":path", "/a#b")], "400"),
    "* for GET": ([*without(":path"), (":path", "*")], "400"),
    "something else expected": ([*GET, ("expect", "a pony")], "417"),
    "too many fields": ([*GET, *[(f"x{i}", "y") for i in range(21)]], "431"),
    "fields too large": ([*GET, ("x", "y" * 2048)], "431"),
    "another protocol": (
        [(":method", "CONNECT"), *GET[1:], (":protocol", "connect-udp")],
        "501",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_is_refused(case: str) -> None:
    fields, status = REFUSALS[case]
    peer = server()
    peer.feed(peer.head(1, fields))
    assert (peer.status(1), peer.ended(1)) == (status, True)
    assert peer.body(1)
    assert not peer.handlers
    assert still_works(peer)


def test_a_refused_head_has_no_body() -> None:
    peer = server()
    peer.feed(peer.head(1, [(":method", "HEAD"), *GET[1:-1]]))
    assert (peer.status(1), peer.body(1), peer.ended(1)) == ("400", b"", True)


def test_host_may_stand_for_authority() -> None:
    peer = server()
    peer.feed(peer.head(1, [*without(":authority"), ("host", "b.example:81")]))
    peer.feed(peer.head(3, [*GET, ("host", "A.example:80")]))
    assert [handler.exchange.host for handler in peer.handlers] == [b"b.example:81", b"a.example"]
    assert all(b"host" not in dict(handler.exchange.head.headers) for handler in peer.handlers)


def test_crumbs_of_a_cookie_are_joined() -> None:
    peer = server()
    peer.feed(peer.head(1, [*GET, ("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")]))
    assert dict(peer.handlers[0].exchange.head.headers)[b"cookie"] == b"a=1; b=2"


def test_options_of_the_server() -> None:
    peer = server()
    peer.feed(peer.head(1, [(":method", "OPTIONS"), *without(":path")[1:], (":path", "*")]))
    assert peer.handlers[0].exchange.head.target == b"*"


@pytest.mark.parametrize(
    ("pieces", "length"), [((b"xx",), 1), ((b"x", b"xx"), 2), ((b"x",), 2), ((), 1)]
)
def test_content_is_as_long_as_it_says(pieces: tuple[bytes, ...], length: int) -> None:
    peer = server()
    peer.feed(peer.head(1, [*POST, ("content-length", str(length))], end=False))
    peer.feed(*[data(1, piece) for piece in pieces])
    peer.feed(data(1, b"", end=True))
    assert peer.reset(1) == PROTOCOL
    assert peer.handlers[0].lost
    assert not peer.handlers[0].ended
    assert still_works(peer)


def test_trailers_are_checked() -> None:
    peer = server()
    for stream, trailer in ((1, (":path", "/")), (3, ("connection", "x")), (5, ("X", "y"))):
        peer.feed(peer.head(stream, POST, end=False), data(stream, b"x"))
        peer.feed(peer.head(stream, [trailer]))
        assert peer.reset(stream) == PROTOCOL
    assert all(handler.lost and not handler.ended for handler in peer.handlers)
    peer.feed(peer.head(7, POST, end=False), data(7, b"x"), peer.head(7, [("x-sum", "1")]))
    assert peer.handlers[-1].events[-1] == ("end", [(b"x-sum", b"1")])
    assert peer.status(7) == "200"


# What is fine, or to be ignored.
FINE: dict[str, Callable[[H2Server], bytes]] = {
    "4.1 a frame of an unknown type": lambda s: frame(0x16, 0xFF, 0, b"x" * 99),
    "4.1 flags without a meaning": lambda s: frame(PING, 0xFE, 0, bytes(8)),
    "4.1 the reserved bit": lambda s: frame(WINDOW_UPDATE, 0, 1 << 31, b"\0\0\0\1"),
    "5.1 WINDOW_UPDATE on a closed stream": lambda s: window(1, 100),
    "5.1 RST_STREAM on a closed stream": lambda s: rst(1),
    "5.3 PRIORITY on an idle stream": lambda s: frame(PRIORITY, 0, 77, b"\0\0\0\1\x10"),
    "5.5 PRIORITY_UPDATE": lambda s: frame(0x10, 0, 0, b"\0\0\0\1u=1"),
    "6.2 a head with priority and padding": lambda s: frame(
        HEADERS,
        END_HEADERS | END_STREAM | PADDED | PRIORITIZED,
        3,
        b"\x02\0\0\0\0\x10" + s.encoder.encode(GET) + bytes(2),
    ),
    "6.5 an unknown setting": lambda s: settings((0x1234, 5), (0, 0)),
    "6.5.2 a large frame size": lambda s: settings((5, 2**24 - 1)),
    "6.7 an answer to no PING": lambda s: ping(ACK),
    "6.10 a head in many pieces": lambda s: in_pieces(s, 5),
}


def in_pieces(peer: H2Server, stream: int) -> bytes:
    whole = peer.head(stream)[9:]
    middle = [frame(CONTINUATION, 0, stream, whole[i : i + 1]) for i in range(1, len(whole))]
    return b"".join(
        (
            frame(HEADERS, END_STREAM, stream, whole[:1]),
            *middle,
            frame(CONTINUATION, END_HEADERS, stream),
        )
    )


@pytest.mark.parametrize("step", [0, 1], ids=["whole", "bytewise"])
@pytest.mark.parametrize("case", FINE)
def test_is_fine(case: str, step: int) -> None:
    peer = server()
    peer.feed(peer.head(1))
    peer.feed(FINE[case](peer), step=step)
    assert peer.goaway is None
    assert still_works(peer)
    assert all(handler.ended for handler in peer.handlers)


def test_settings_and_pings_are_answered() -> None:
    peer = server(start=b"")
    came = peer.feed(PREFACE, settings((1, 100)), ping())
    assert came[0].kind == SETTINGS
    assert came[0].flags == 0
    answers = [(f.kind, f.flags, f.payload) for f in came if f.flags == ACK]
    assert answers == [(SETTINGS, ACK, b""), (PING, ACK, b"abcdefgh")]


def test_a_first_frame_that_is_not_settings() -> None:
    peer = server(start=b"")
    peer.feed(PREFACE, ping())
    assert (peer.goaway, peer.closing) == (PROTOCOL, True)


def test_a_stream_window_that_overflows() -> None:
    peer = server()
    peer.feed(peer.head(1, POST, end=False), window(1, 2**31 - 1), window(1, 2**31 - 1))
    assert peer.reset(1) == FLOW_CONTROL
    assert peer.handlers[0].lost
    assert still_works(peer)


def test_frames_on_a_half_closed_stream() -> None:
    peer = H2Server()
    for stream, late in ((1, data(1, b"x")), (3, peer.head(3, [("x", "y")]))):
        peer.feed(peer.head(stream))
        peer.feed(late)
        assert peer.reset(stream) == CLOSED
    assert all(handler.lost for handler in peer.handlers)


@pytest.mark.parametrize("size", [1, 5, 100])
def test_no_more_is_sent_than_the_window_allows(size: int) -> None:
    peer = server()
    peer.feed(settings((4, size)))
    peer.feed(peer.head(1))
    assert peer.body(1) == b"hello"[:size]
    peer.feed(settings((4, size + 2)))
    assert peer.body(1) == b"hello"[: size + 2]
    peer.feed(window(1, 10))
    assert (peer.body(1), peer.ended(1)) == (b"hello", True)


def test_a_window_that_becomes_negative() -> None:
    peer = server()
    peer.feed(settings((4, 3)))
    peer.feed(peer.head(1))
    peer.feed(settings((4, 1)))
    peer.feed(window(1, 2))
    assert peer.body(1) == b"hel"
    peer.feed(window(1, 1))
    assert peer.body(1) == b"hell"


def test_no_more_is_sent_than_the_frame_size() -> None:
    peer = H2Server(start=PREFACE + settings((5, 2**24 - 1), (4, 2**20)) + window(0, 2**20))
    peer.application.on_end = lambda exchange: answer(exchange, bytes(100_000))
    peer.feed(peer.head(1))
    assert len(peer.body(1)) == 100_000
    assert max(len(f.payload) for f in peer.of(1)) <= 16_384

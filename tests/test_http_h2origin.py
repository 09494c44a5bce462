"""Requests over HTTP/2: what is sent, what is read, and how both may go wrong."""

from collections.abc import Iterator
from typing import Any

import pytest
from h2.errors import ErrorCodes
from h2.events import PingAckReceived, PingReceived, TrailersReceived, WindowUpdated
from h2.settings import SettingCodes
from h2peer import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    SETTINGS,
    H2Peer,
    frame,
)
from originfakes import Bench, Handler
from twisted.logger import LogEvent, globalLogPublisher

from sockgw.http.client import Origin
from sockgw.http.h2connections import H2Limits
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.heads import Headers

ORIGIN = Origin("http", "origin.example", 80, http2=True)
HOST = (b"Host", b"a.example")
WINDOW = 262_144


@pytest.fixture(autouse=True)
def nothing_is_logged() -> Iterator[None]:
    """Whatever an origin does, it is no fault of ours."""
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    yield
    globalLogPublisher.removeObserver(events.append)
    failures = [event["log_failure"] for event in events if "log_failure" in event]
    assert not failures, failures[0].getTraceback()


class H2Bench(Bench):
    """Makes requests over HTTP/2; ``peers`` are the origin's ends of its connections."""

    def __init__(self, *, settings: dict[int, int] | None = None, **limits: Any) -> None:
        super().__init__(**limits)
        self.settings = settings
        self.peers: list[H2Peer] = []

    def request(self, *arguments: Any, **options: Any) -> Handler:
        options.setdefault("origin", ORIGIN)
        handler = super().request(*arguments, **options)
        self.meet()
        return handler

    def meet(self) -> None:
        """Have a peer at the other end of each connection."""
        while len(self.peers) < len(self.transports):
            self.peers.append(H2Peer(self.transports[len(self.peers)], self.settings))
        for peer in self.peers:
            if not peer.transport.closing:
                peer.pump()

    @property
    def peer(self) -> H2Peer:
        return self.peers[-1]


@pytest.fixture
def bench() -> H2Bench:
    return H2Bench()


# Requests


def test_a_request_without_a_body(bench: H2Bench) -> None:
    bench.request(
        "GET",
        "/a?b=c",
        [HOST, (b"X-A", b" 1 "), (b"TE", b"trailers"), (b"Cookie", b"a=b"), (b"x-b", b"\xe9")],
    )
    assert bench.peer.fields(1) == [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":authority", b"a.example"),
        (b":path", b"/a?b=c"),
        (b"x-a", b"1"),
        (b"x-b", b"\xe9"),
        (b"te", b"trailers"),
        (b"cookie", b"a=b"),  # h2 has moved it
    ]
    assert bench.peer.ended(1)
    assert bench.transport.no_delay


def test_fields_of_a_connection_do_not_go() -> None:
    bench = H2Bench()
    fields = [HOST, (b"Connection", b"x"), (b"Keep-Alive", b"1"), (b"Upgrade", b"x"), (b"a", b"")]
    bench.request(headers=fields, origin=Origin("https", "origin.example", 443, http2=True))
    names = [name for name, _ in bench.peer.fields(1)]
    assert names == [b":method", b":scheme", b":authority", b":path", b"a", b"te"]
    assert (b":scheme", b"https") in bench.peer.fields(1)


def test_secrets_stay_out_of_the_table_of_fields(bench: H2Bench) -> None:
    for _ in range(2):
        bench.request(headers=[HOST, (b"Authorization", b"Basic c2VjcmV0")])
    sizes = [len(each) for each in bench.transport.sent.split(b"\x1f\x08")]
    assert len(sizes) == 3  # literal, never indexed, the name from the static table (index 23)


def test_a_body_goes_as_it_comes_and_ends_with_the_request(bench: H2Bench) -> None:
    handler = bench.request("POST", complete=False)
    handler.exchange.write(b"he")
    assert bench.peer.body(1) == b"he"
    handler.exchange.write(b"")
    handler.exchange.write(b"llo")
    assert bench.peer.body(1) == b"hello"
    assert not bench.peer.ended(1)
    handler.exchange.finish()
    handler.exchange.finish()
    assert bench.peer.ended(1)
    assert bench.peer.body(1) == b"hello"


def test_nothing_is_written_after_the_end(bench: H2Bench) -> None:
    handler = bench.request("POST", complete=False)
    handler.exchange.finish()
    handler.exchange.write(b"more")
    assert handler.code is StreamCode.PROTOCOL_ERROR


def test_trailers_of_a_request(bench: H2Bench) -> None:
    handler = bench.request("POST", complete=False)
    handler.exchange.write(b"hello")
    handler.exchange.finish([(b"X-Sum", b"1"), (b"Content-Length", b"5"), (b"X-Last", b"2")])
    (trailers,) = (each for each in bench.peer.pump() if isinstance(each, TrailersReceived))
    assert list(trailers.headers) == [(b"x-sum", b"1"), (b"x-last", b"2")]
    assert bench.peer.ended(1)


def test_a_length_is_kept_and_insisted_upon(bench: H2Bench) -> None:
    headers = [HOST, (b"Content-Length", b"5")]
    whole, short, long = (bench.request("PUT", headers=headers, complete=False) for _ in range(3))
    whole.exchange.write(b"hello")
    whole.exchange.finish()
    assert (b"content-length", b"5") in bench.peer.fields(1)
    assert bench.peer.ended(1)
    short.exchange.write(b"hell")
    short.exchange.finish()
    assert short.code is StreamCode.PROTOCOL_ERROR
    long.exchange.write(b"hello!")
    assert long.code is StreamCode.PROTOCOL_ERROR
    assert bench.peer.resets() == [(3, ErrorCodes.CANCEL), (5, ErrorCodes.CANCEL)]
    assert not whole.over


@pytest.mark.parametrize(
    ("method", "target", "headers", "complete"),
    [
        ("GE T", "/", [HOST], True),
        ("CONNECT", "a.example:80", [HOST], True),
        ("GET", "/a b", [HOST], True),
        ("GET", "/", [(b"Ho st", b"a")], True),
        ("GET", "/", [(b":path", b"/b")], True),
        ("GET", "/", [(b"X", b"a\r\nY: z")], True),
        ("GET", "/", [(b"Host", b"a\0")], True),
        ("GET", "/", [(b"Content-Length", b"1")], True),
        ("POST", "/", [(b"Content-Length", b"1"), (b"Content-Length", b"1")], False),
        ("POST", "/", [HOST, (b"host", b"b.example")], False),
    ],
)
def test_what_cannot_be_sent_is_refused(
    bench: H2Bench, method: str, target: str, headers: Headers, complete: bool
) -> None:
    handler = bench.request(method, target, headers, complete=complete)
    assert not handler.over
    handler.exchange.write(b"x")
    bench.turn()
    assert handler.code is StreamCode.PROTOCOL_ERROR
    assert bench.transports == []


def test_windows_hold_an_upload_back(bench: H2Bench) -> None:
    handler = bench.request("POST", complete=False)
    handler.exchange.write(b"x" * 65_535)  # what a peer allows that has not said otherwise
    assert not handler.exchange.congested
    handler.exchange.write(b"y" * 100_000)
    assert handler.exchange.congested
    handler.exchange.finish()
    assert len(bench.peer.body(1)) == 65_535
    bench.peer.h2.increment_flow_control_window(50_000, 1)
    bench.peer.send()
    assert len(bench.peer.body(1)) == 65_535  # the connection's window is used up, too
    bench.peer.h2.increment_flow_control_window(70_000)
    bench.peer.send()
    assert len(bench.peer.body(1)) == 115_535
    assert handler.drains == 0
    bench.peer.h2.increment_flow_control_window(200_000, 1)
    bench.peer.h2.increment_flow_control_window(200_000)
    bench.peer.send()
    assert bench.peer.body(1) == b"x" * 65_535 + b"y" * 100_000
    assert bench.peer.ended(1)
    assert handler.drains == 1
    assert not handler.exchange.congested


def test_small_pieces_that_wait_are_put_together(bench: H2Bench) -> None:
    handler = bench.request("POST", complete=False)
    exchange = handler.exchange
    exchange.write(b"x" * 40_000)
    for number in range(25_535):
        exchange.write(b"%d" % (number % 10))
    assert len(exchange.held) < 20  # while it may be sent again
    exchange.write(b"x" * 10)
    assert exchange.held is None
    for number in range(50_000):
        exchange.write(b"%d" % (number % 10))
    assert len(exchange.queue) < 30
    exchange.finish()
    for _ in range(2):
        bench.peer.h2.increment_flow_control_window(30_000)
        bench.peer.h2.increment_flow_control_window(30_000, 1)
        bench.peer.send()
    body = bench.peer.body(1)
    assert body == b"x" * 40_000 + _digits(25_535) + b"x" * 10 + _digits(50_000)


def _digits(count: int) -> bytes:
    return (b"0123456789" * (count // 10 + 1))[:count]


def test_a_window_that_the_settings_open(bench: H2Bench) -> None:
    handler = bench.request("POST", complete=False)
    bench.peer.h2.increment_flow_control_window(1_000_000)
    handler.exchange.write(b"x" * 200_000)
    bench.peer.send()
    assert len(bench.peer.body(1)) == 65_535
    assert handler.exchange.congested
    bench.peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 300_000})
    bench.peer.send()
    assert len(bench.peer.body(1)) == 200_000
    assert handler.drains == 1


def test_uploads_share_a_transport_that_is_full(bench: H2Bench) -> None:
    large = {SettingCodes.INITIAL_WINDOW_SIZE: 1_000_000}
    bench.settings = large
    handlers = [bench.request("POST", complete=False) for _ in range(8)]
    bench.peer.h2.increment_flow_control_window(10_000_000)
    bench.peer.send()
    for handler in handlers:
        handler.exchange.write(b"x" * 300_000)
    assert all(handler.exchange.congested for handler in handlers)
    transport = bench.transport
    for _ in range(6):
        bench.peer.h2.receive_data(transport.buffered)
        transport.sent, transport.buffered = b"", b""
        transport.producer_paused = False
        transport.producer.resumeProducing()
        assert len(transport.buffered) < 65_536 + 16_384 + 100
    left = [sum(map(len, handler.exchange.queue)) for handler in handlers]
    assert max(left) - min(left) <= 100_000  # the first had the whole transport once
    bench.meet()
    assert all(handler.drains == 1 for handler in handlers)
    assert not any(handler.exchange.congested for handler in handlers)


# Responses


def test_a_response(bench: H2Bench) -> None:
    handler = bench.request()
    bench.peer.head(1, (":status", "200"), ("x-a", "1"), ("content-length", "5"))
    assert handler.head.status == 200
    assert handler.head.reason == b"OK"
    assert handler.head.headers == [(b"x-a", b"1"), (b"content-length", b"5")]
    bench.peer.data(1, b"hel")
    assert handler.chunks == [b"hel"]
    bench.peer.data(1, b"lo", end=True)
    assert handler.body == b"hello"
    assert handler.trailers == []
    assert bench.peer.resets() == []


def test_trailers(bench: H2Bench) -> None:
    handler = bench.request()
    bench.peer.head(1)
    bench.peer.data(1, b"hello")
    bench.peer.h2.send_headers(1, [("grpc-status", "0"), ("x-a", "1")], end_stream=True)
    bench.peer.send()
    assert handler.trailers == [(b"grpc-status", b"0"), (b"x-a", b"1")]


def test_what_ends_at_a_hop_stays_here(bench: H2Bench) -> None:
    handler = bench.request()
    bench.peer.head(1, (":status", "200"), ("proxy-authenticate", "Basic"), ("te", "x"), ("a", "1"))
    assert handler.head.headers == [(b"a", b"1")]
    bench.peer.h2.send_headers(1, [("http2-settings", "x"), ("a", "1")], end_stream=True)
    bench.peer.send()
    assert handler.trailers == [(b"a", b"1")]


def test_nothing_but_a_head(bench: H2Bench) -> None:
    handler = bench.request("POST", complete=False)
    bench.peer.head(1, (":status", "200"), ("grpc-status", "5"), end=True)
    assert handler.head.headers == [(b"grpc-status", b"5")]
    assert handler.body == b""
    assert handler.trailers == []


def test_interim_responses(bench: H2Bench) -> None:
    handler = bench.request()
    bench.peer.send(
        bench.peer.raw_head(1, [(":status", "100")]),
        bench.peer.raw_head(1, [(":status", "103"), ("link", "x")]),
        bench.peer.raw_head(1, [(":status", "204")], END_HEADERS | END_STREAM),
    )
    assert handler.interim == [100, 103]
    assert handler.head.status == 204
    assert handler.trailers == []


@pytest.mark.parametrize(("method", "status"), [("HEAD", "200"), ("GET", "304")])
def test_a_length_without_a_body(bench: H2Bench, method: str, status: str) -> None:
    handler = bench.request(method)
    bench.peer.head(1, (":status", status), ("content-length", "5"), end=True)
    assert handler.trailers == []
    assert handler.body == b""


MALFORMED: dict[str, list[tuple[str, str]]] = {
    "no status": [("x", "y")],
    "nothing": [],
    "status late": [("x", "y"), (":status", "200")],
    "two": [(":status", "200"), (":status", "200")],
    "99": [(":status", "99")],
    "600": [(":status", "600")],
    "2x0": [(":status", "2x0")],
    "101": [(":status", "101")],
    "empty status": [(":status", "")],
    "of requests": [(":status", "200"), (":path", "/")],
    "unknown pseudo": [(":status", "200"), (":x", "/")],
    "upper case": [(":status", "200"), ("X-A", "1")],
    "no token": [(":status", "200"), ("x a", "1")],
    "empty name": [(":status", "200"), ("", "1")],
    "line end": [(":status", "200"), ("x", "a\r\ny: z")],
    "nul": [(":status", "200"), ("x", "a\0")],
    "space before": [(":status", "200"), ("x", " a")],
    "space behind": [(":status", "200"), ("x", "a\t")],
    "connection": [(":status", "200"), ("connection", "close")],
    "transfer-encoding": [(":status", "200"), ("transfer-encoding", "chunked")],
    "upgrade": [(":status", "200"), ("upgrade", "x")],
    "keep-alive": [(":status", "200"), ("keep-alive", "x")],
    "proxy-connection": [(":status", "200"), ("proxy-connection", "x")],
    "length": [(":status", "200"), ("content-length", "x")],
    "signed length": [(":status", "200"), ("content-length", "+1")],
    "two lengths": [(":status", "200"), ("content-length", "1"), ("content-length", "1")],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_response_costs_its_own_stream(bench: H2Bench, name: str) -> None:
    handler, other = bench.request(), bench.request()
    bench.peer.send(bench.peer.raw_head(1, MALFORMED[name]))
    assert handler.code is StreamCode.ORIGIN_MALFORMED
    assert bench.peer.resets() == [(1, ErrorCodes.CANCEL)]
    bench.peer.send(bench.peer.raw_head(3, [(":status", "200")], END_HEADERS | END_STREAM))
    assert other.trailers == []


@pytest.mark.parametrize(
    "fields", [[(":status", "200")], [("connection", "x")], [("X-A", "1")], [("x", "a\n")]]
)
def test_malformed_trailers(bench: H2Bench, fields: list[tuple[str, str]]) -> None:
    handler, other = bench.request(), bench.request()
    bench.peer.send(
        bench.peer.raw_head(1, [(":status", "200")]),
        frame(DATA, 0, 1, b"hello"),
        bench.peer.raw_head(1, fields, END_HEADERS | END_STREAM),
    )
    assert handler.body == b"hello"
    assert handler.code is StreamCode.ORIGIN_MALFORMED
    assert not other.over


@pytest.mark.parametrize(
    ("method", "status", "length", "body", "whole"),
    [
        ("GET", "200", 5, b"hello", True),
        ("GET", "200", 0, b"", True),
        ("GET", "200", 5, b"hell", False),
        ("GET", "200", 5, b"hello!", False),
        ("GET", "200", 5, b"", False),
        ("HEAD", "200", 5, b"hello", False),
        ("GET", "304", 5, b"hello", False),
        ("GET", "204", None, b"x", False),
    ],
)
def test_a_body_is_as_long_as_it_says(
    bench: H2Bench, method: str, status: str, length: int | None, body: bytes, whole: bool
) -> None:
    handler, other = bench.request(method), bench.request()
    fields = [(":status", status)]
    if length is not None:
        fields.append(("content-length", str(length)))
    bench.peer.send(bench.peer.raw_head(1, fields), frame(DATA, END_STREAM, 1, body))
    assert (handler.trailers == []) is whole
    assert whole or handler.code is StreamCode.ORIGIN_MALFORMED
    assert not other.over


def test_a_body_is_as_long_as_it_says_also_before_trailers(bench: H2Bench) -> None:
    handler = bench.request()
    bench.peer.send(
        bench.peer.raw_head(1, [(":status", "200"), ("content-length", "5")]),
        frame(DATA, 0, 1, b"hell"),
        bench.peer.raw_head(1, [("x", "y")], END_HEADERS | END_STREAM),
    )
    assert handler.code is StreamCode.ORIGIN_MALFORMED


def test_what_is_too_long_does_not_wait_for_its_end(bench: H2Bench) -> None:
    handler = bench.request()
    bench.peer.send(
        bench.peer.raw_head(1, [(":status", "200"), ("content-length", "5")]),
        frame(DATA, 0, 1, b"hello!"),
    )
    assert handler.code is StreamCode.ORIGIN_MALFORMED
    assert handler.body == b""


def test_padding_is_no_body(bench: H2Bench) -> None:
    handler = bench.request()
    bench.peer.head(1)
    for _ in range(100):
        bench.peer.h2.send_data(1, b"x" * 4_000, pad_length=255)
        bench.peer.send()
        bench.peer.pump()
    assert handler.body == b"x" * 400_000


# Pausing


def test_a_paused_response_holds_its_own_origin_back(bench: H2Bench) -> None:
    paused, other = bench.request(), bench.request()
    peer = bench.peer
    for stream in (1, 3):
        peer.head(stream)
    paused.exchange.pause_response()
    paused.exchange.pause_response()
    while peer.h2.local_flow_control_window(1):
        peer.data(1, b"x" * min(16_384, peer.h2.local_flow_control_window(1)))
        peer.pump()
    assert len(paused.body) == WINDOW
    for _ in range(1_000):
        peer.data(3, b"y" * 16_384)
        peer.pump()
    assert len(other.body) == 1_000 * 16_384
    assert peer.h2.local_flow_control_window(1) == 0
    assert bench.transport.reading
    paused.exchange.resume_response()
    peer.pump()
    assert peer.h2.local_flow_control_window(1) == WINDOW
    for _ in range(29):
        bench.turn(10)
        bench.meet()
    assert not paused.over


def test_no_time_runs_while_paused(bench: H2Bench) -> None:
    handler = bench.request()
    bench.peer.head(1)
    handler.exchange.pause_response()
    bench.peer.data(1, b"x")
    for _ in range(100):
        bench.turn(10)
        bench.meet()
    assert not handler.over
    handler.exchange.resume_response()
    for _ in range(31):
        bench.turn(10)
        bench.meet()
    assert handler.code is StreamCode.IDLE_TIMEOUT


# Ends


def test_abort_resets_the_stream(bench: H2Bench) -> None:
    handler, other = bench.request(), bench.request()
    handler.abort()
    assert bench.peer.resets() == [(1, ErrorCodes.CANCEL)]
    handler.exchange.write(b"x")
    handler.exchange.finish()
    handler.exchange.abort()
    bench.peer.answer(3)
    assert other.body == b"ok"
    # What was under way is no error.
    bench.peer.send(bench.peer.raw_head(1, [(":status", "200")]), frame(DATA, 0, 1, b"x"))
    assert not bench.transport.closing


@pytest.mark.parametrize("code", [ErrorCodes.CANCEL, ErrorCodes.NO_ERROR, 4711])
def test_a_reset_breaks_the_response(bench: H2Bench, code: int) -> None:
    handler, within = bench.request(), bench.request()
    bench.peer.head(3)
    bench.peer.send(
        frame(3, 0, 1, int(code).to_bytes(4, "big")), frame(3, 0, 3, int(code).to_bytes(4, "big"))
    )
    assert handler.code is StreamCode.ORIGIN_CLOSED
    assert within.code is StreamCode.ORIGIN_CLOSED


def test_an_early_answer_ends_the_upload(bench: H2Bench) -> None:
    handler = bench.request("POST", complete=False)
    handler.exchange.write(b"x" * 100_000)
    bench.peer.answer(1)
    assert handler.body == b"ok"
    assert handler.trailers == []
    assert bench.peer.resets() == [(1, ErrorCodes.NO_ERROR)]
    assert not bench.transport.closing
    assert handler.drains == 0


def test_an_early_answer_and_a_reset(bench: H2Bench) -> None:
    """RFC 9113, section 8.1: stop the upload, and that is all."""
    handler = bench.request("POST", complete=False)
    bench.peer.send(
        bench.peer.raw_head(1, [(":status", "200")], END_HEADERS | END_STREAM),
        frame(3, 0, 1, bytes(4)),
    )
    assert handler.trailers == []
    assert not bench.transport.closing


# Sending again


def test_a_refused_stream_is_sent_again_whatever_its_method(bench: H2Bench) -> None:
    handler = bench.request("POST", complete=False)
    handler.exchange.write(b"hello")
    bench.peer.reset(1, ErrorCodes.REFUSED_STREAM)
    assert bench.peer.body(3) == b"hello"
    handler.exchange.write(b" world")
    handler.exchange.finish()
    assert bench.peer.body(3) == b"hello world"
    bench.peer.answer(3)
    assert handler.body == b"ok"


def test_a_stream_that_is_refused_again_and_again(bench: H2Bench) -> None:
    handler = bench.request()
    for stream in (1, 3, 5):
        assert not handler.over
        bench.peer.reset(stream, ErrorCodes.REFUSED_STREAM)
        bench.meet()
    assert handler.code is StreamCode.REFUSED
    assert bench.peer.requests == [1, 3, 5]


def test_a_refused_stream_whose_request_is_gone(bench: H2Bench) -> None:
    handler = bench.request("PUT", complete=False)
    handler.exchange.write(b"x" * 65_536)
    bench.peer.reset(1, ErrorCodes.REFUSED_STREAM)
    assert handler.code is StreamCode.REFUSED


def test_a_goaway_lets_finish_what_was_begun(bench: H2Bench) -> None:
    handlers = [bench.request("POST", complete=False) for _ in range(3)]
    for handler in handlers:
        handler.exchange.write(b"hello")
    old = bench.peer
    old.head(1)
    old.send(frame(GOAWAY, 0, 0, (3).to_bytes(4, "big") + bytes(4) + b"later"))
    bench.meet()
    new = bench.peer
    assert new is not old
    assert new.body(1) == b"hello"  # the third, again
    handlers[0].exchange.write(b"!")
    assert old.body(1) == b"hello!"
    old.data(1, b"first", end=True)
    old.answer(3, b"second")
    new.answer(1, b"third")
    assert [handler.body for handler in handlers] == [b"first", b"second", b"third"]
    assert old.transport.closing == "loseConnection"
    assert not new.transport.closing
    bench.request()
    assert new.requests == [1, 3]


def test_a_goaway_in_two_steps_and_in_pieces(bench: H2Bench) -> None:
    handlers = [bench.request(), bench.request()]
    old = bench.peer
    wire = b"".join(
        (
            frame(GOAWAY, 0, 0, b"\x7f\xff\xff\xff" + bytes(4)),
            old.raw_head(1, [(":status", "200")]),
            frame(DATA, END_STREAM, 1, b"hello"),
            frame(GOAWAY, 0, 0, (1).to_bytes(4, "big") + bytes(4)),
        )
    )
    for place in range(len(wire)):
        old.transport.decrypted(wire[place : place + 1])
    bench.meet()
    assert handlers[0].body == b"hello"
    assert old.transport.closing == "loseConnection"
    bench.peer.answer(1)
    assert handlers[1].body == b"ok"


def test_what_has_moved_is_not_sent_where_it_was() -> None:
    bench = H2Bench(http2=H2Limits(max_streams=3))
    first = bench.request("POST", complete=False)
    also = bench.request("POST", complete=False)
    moved = bench.request("POST", complete=False)
    old = bench.peer
    old.h2.increment_flow_control_window(1_000_000)
    old.h2.increment_flow_control_window(1_000_000, 1)
    old.send()
    other = bench.request("POST", complete=False)
    new = bench.peer
    other.exchange.write(b"z" * 65_535)  # all that the connection takes
    first.exchange.write(b"x" * 100_000)
    moved.exchange.write(b"y" * 60_000)  # waits for the transport
    old.send(frame(GOAWAY, 0, 0, (3).to_bytes(4, "big") + bytes(4)))
    bench.meet()
    assert old.body(1) == b"x" * 100_000
    assert old.body(3) == b""
    assert not also.over
    assert new.body(3) == b""
    new.h2.increment_flow_control_window(100_000)
    new.send()
    assert new.body(3) == b"y" * 60_000


def test_a_lost_connection_and_what_may_be_repeated(bench: H2Bench) -> None:
    first = bench.request()
    bench.peer.answer(1)
    again = bench.request("PUT", complete=False)
    again.exchange.write(b"hello")
    never = bench.request("POST", complete=False)
    begun = bench.request()
    informed = bench.request()
    bench.peer.head(7)
    bench.peer.send(bench.peer.raw_head(9, [(":status", "103")]))
    bench.transport.reset()
    assert first.body == b"ok"
    assert never.code is StreamCode.ORIGIN_CLOSED
    assert begun.code is StreamCode.ORIGIN_CLOSED
    assert informed.code is StreamCode.ORIGIN_CLOSED
    bench.meet()
    assert bench.peer.body(1) == b"hello"
    bench.peer.answer(1)
    assert again.body == b"ok"


def test_the_first_request_of_a_connection_is_not_repeated(bench: H2Bench) -> None:
    handler = bench.request()
    bench.transport.reset()
    assert handler.code is StreamCode.ORIGIN_CLOSED
    assert len(bench.transports) == 1


# Limits


def test_a_head_too_large_costs_its_own_stream() -> None:
    bench = H2Bench(max_header_size=1_000, max_header_count=10)
    size, count, other = (bench.request() for _ in range(3))
    bench.peer.send(
        bench.peer.raw_head(1, [(":status", "200"), ("x", "y" * 1_000)]),
        bench.peer.raw_head(3, [(":status", "200"), *[("x", "y")] * 11]),
    )
    assert size.code is StreamCode.TOO_LARGE
    assert count.code is StreamCode.TOO_LARGE
    assert not other.over
    bench.peer.send(
        bench.peer.raw_head(5, [(":status", "200")]),
        bench.peer.raw_head(5, [*[("x", "y")] * 11], END_HEADERS | END_STREAM),
    )
    assert other.code is StreamCode.TOO_LARGE
    assert not bench.transport.closing


def test_too_many_interim_responses(bench: H2Bench) -> None:
    handler = bench.request()
    for _ in range(17):
        assert not handler.over
        bench.peer.send(bench.peer.raw_head(1, [(":status", "103")]))
    assert handler.code is StreamCode.ORIGIN_MALFORMED


FAULTS: dict[str, bytes] = {
    "a bomb of header fields": frame(
        HEADERS, END_HEADERS, 1, b"\x88\x40\x01x\x7f\xa1\x1e" + b"y" * 4_000 + b"\xbe" * 40
    ),
    "a header block without end": frame(HEADERS, 0, 1, b"\x88")
    + frame(CONTINUATION, 0, 1, b"y" * 16_000) * 9,
    "a header block in nothings": frame(HEADERS, 0, 1, b"\x88") + frame(CONTINUATION, 0, 1) * 70,
    "a long frame": (16_385).to_bytes(3, "big") + bytes((DATA, 0)) + bytes((0, 0, 0, 1)),
    "a push": frame(PUSH_PROMISE, END_HEADERS, 1, bytes((0, 0, 0, 2)) + b"\x82"),
    "a broken block": frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"),
    "settings out of range": frame(SETTINGS, 0, 0, b"\0\x04\xff\xff\xff\xff"),
    "a ping too short": frame(PING, 0, 0, b"1234567"),
    "a goaway too short": frame(GOAWAY, 0, 0, b"1234567"),
    "a goaway on a stream": frame(GOAWAY, 0, 1, bytes(8)),
    "data before a head": frame(DATA, 0, 1, b"hello"),
    "a stream of its own": frame(HEADERS, END_HEADERS, 2, b"\x88"),
    "a window of nothing": frame(8, 0, 0, bytes(4)),
    "a window too large": frame(8, 0, 0, b"\x7f\xff\xff\xff"),
    "no frames": b"220 mail.example ESMTP\r\n" * 3,
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_ends_a_connection(name: str) -> None:
    bench = H2Bench(max_header_size=50_000, max_header_count=100)
    handlers = [bench.request(), bench.request("POST", complete=False)]
    bench.transport.decrypted(FAULTS[name])
    assert bench.transport.closing
    for handler in handlers:
        assert handler.code is StreamCode.ORIGIN_MALFORMED
    bench.transport.end()
    bench.request()
    bench.peer.answer(1)


@pytest.mark.parametrize(
    "flood",
    [
        frame(PING, 0, 0, bytes(8)),
        frame(PING, ACK, 0, bytes(8)),
        frame(SETTINGS),
        frame(SETTINGS, 0, 0, b"\0\x01\0\0\x10\0"),
        frame(8, 0, 0, bytes((0, 0, 0, 1))),
        frame(PRIORITY, 0, 1, bytes(4) + b"\x10"),
        frame(DATA, 0, 1),
        frame(DATA, 8, 1, b"\0"),
        frame(200, 0, 0, b"x"),
        frame(3, 0, 5, bytes(4)),
    ],
    ids=str,
)
def test_a_flood_of_frames_ends_a_connection(bench: H2Bench, flood: bytes) -> None:
    bench.request()
    gone = bench.request()
    also = bench.request()
    also.abort()
    gone.abort()
    bench.meet()
    bench.peer.head(1)
    for _ in range(2_000):
        for _ in range(10):
            bench.transport.decrypted(flood)
            assert len(bench.transport.buffered) < 200_000
        if bench.transport.closing:
            break
        bench.transport.drain()
    assert bench.transport.closing


def test_pings_beside_content_are_no_flood(bench: H2Bench) -> None:
    handler = bench.request()
    bench.peer.head(1)
    bench.transport.protocol._scanner.spare = 100
    for _ in range(1_000):
        bench.transport.decrypted(frame(DATA, 0, 1, b"x") + frame(PING, 0, 0, bytes(8)))
        bench.transport.drain()
    assert len(handler.body) == 1_000
    assert not bench.transport.closing


def test_window_updates_for_what_was_sent_are_no_flood(bench: H2Bench) -> None:
    handler = bench.request("POST", complete=False)
    update = (1).to_bytes(4, "big")
    bench.transport.protocol._scanner.spare = 100
    for _ in range(1_000):
        handler.exchange.write(b"x")
        bench.transport.decrypted(frame(8, 0, 0, update) + frame(8, 0, 1, update))
        bench.transport.buffered = b""
    assert not bench.transport.closing


def test_heads_that_answer_requests_are_no_flood(bench: H2Bench) -> None:
    for stream in range(1, 41, 2):
        handler = bench.request()
        if stream == 1:
            bench.transport.protocol._scanner.spare = 4
        for status in ("103", "103", "200"):
            end = END_STREAM if status == "200" else 0
            bench.peer.send(bench.peer.raw_head(stream, [(":status", status)], END_HEADERS | end))
        assert handler.trailers == []


def test_requests_to_an_origin_that_is_slow_to_read_are_no_answers(bench: H2Bench) -> None:
    handler = bench.request("POST", complete=False)
    bench.peer.h2.increment_flow_control_window(1_000_000)
    bench.peer.h2.increment_flow_control_window(1_000_000, 1)
    bench.peer.send()
    handler.exchange.write(b"x" * 80_000)  # the transport is full
    for number in range(50):
        value = b"%d" % number + b"\xff" * 2_000
        Bench.request(bench, headers=[HOST, (b"x", value)], origin=ORIGIN)
    assert len(bench.transport.buffered) > 150_000
    bench.transport.decrypted(frame(PING, 0, 0, bytes(8)))
    assert not bench.transport.closing


def test_an_origin_that_reads_its_answers_late(bench: H2Bench) -> None:
    handler = bench.request("POST", complete=False)
    bench.peer.h2.increment_flow_control_window(1_000_000)
    bench.peer.h2.increment_flow_control_window(1_000_000, 1)
    bench.peer.send()
    for _ in range(3):
        handler.exchange.write(b"x" * 80_000)  # the transport is full
        for _ in range(3_000):
            bench.transport.decrypted(frame(PING, 0, 0, bytes(8)))
        bench.transport.protocol._scanner.spare = 10_000
        bench.meet()
    assert not bench.transport.closing


def test_an_origin_that_does_not_read_its_answers(bench: H2Bench) -> None:
    handler = bench.request("POST", complete=False)
    bench.peer.h2.increment_flow_control_window(1_000_000)
    bench.peer.h2.increment_flow_control_window(1_000_000, 1)
    bench.peer.send()
    handler.exchange.write(b"x" * 70_000)  # the transport is full
    bench.transport.decrypted(bench.peer.raw_head(1, [(":status", "200")]))
    for _ in range(10_000):
        bench.transport.decrypted(frame(PING, 0, 0, bytes(8)) + frame(DATA, 0, 1, b"x"))
        if bench.transport.closing:
            break
    assert bench.transport.closing
    assert len(bench.transport.buffered) < 250_000
    assert handler.code is StreamCode.ORIGIN_MALFORMED


def test_an_origin_has_no_say_in_our_memory(bench: H2Bench) -> None:
    size = 0x7FFF_FFFF
    bench.settings = {SettingCodes.HEADER_TABLE_SIZE: size}
    bench.request()
    bench.peer.h2.decoder.max_allowed_table_size = size
    for number in range(300):
        bench.request(headers=[HOST, (b"x", b"y" * 1_000 + b"%d" % number)]).abort()
    connection = bench.transport.protocol
    assert connection._h2.encoder.header_table_size == 4_096
    assert len(connection._h2.streams) < 10


def test_an_origin_that_speaks_something_else(bench: H2Bench) -> None:
    handler = Bench.request(bench, origin=ORIGIN)
    bench.transport.decrypted(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert handler.failure == (StreamCode.ORIGIN_MALFORMED, "the origin answers in HTTP/1.1")


# Time


def test_an_idle_connection_is_closed(bench: H2Bench) -> None:
    bench.request()
    bench.peer.answer(1)
    bench.turn(14.9)
    bench.request()
    assert len(bench.transports) == 1
    bench.peer.answer(3)
    bench.turn(15.6)
    assert bench.transport.closing == "loseConnection"
    bench.turn(3)
    assert bench.transport.closing == "abortConnection"
    bench.transport.end()
    bench.turn(1)
    assert bench.clock.getDelayedCalls() == []


def test_pings_do_not_keep_an_idle_connection(bench: H2Bench) -> None:
    bench.request()
    bench.peer.answer(1)
    for _ in range(16):
        bench.turn(1)
        if not bench.transport.closing:
            bench.transport.decrypted(frame(PING, 0, 0, bytes(8)))
    assert bench.transport.closing


def test_silence_is_asked_about_once(bench: H2Bench) -> None:
    handler = bench.request()
    for _ in range(25):
        bench.turn(10)
        bench.meet()
    pings = [event for event in bench.peer.events if isinstance(event, PingReceived)]
    assert len(pings) == 1  # gRPC's servers take more for abuse
    assert not handler.over


def test_an_origin_without_a_sign_of_life(bench: H2Bench) -> None:
    bench.request()
    bench.peer.answer(1)
    never = bench.request("POST")
    again = bench.request("GET")
    silent = bench.transport
    bench.turn(21)
    Bench.request(bench, origin=ORIGIN)
    assert len(bench.transports) == 1
    bench.turn(10.5)
    Bench.request(bench, origin=ORIGIN)
    assert len(bench.transports) == 2  # nothing more goes there
    assert not silent.closing
    bench.turn(49)
    assert not never.over
    bench.turn(2)
    assert silent.closing == "abortConnection"
    assert never.code is StreamCode.ORIGIN_CLOSED
    assert len(bench.transports) == 3  # the second has said nothing either
    H2Peer(bench.transport).answer(1)
    assert again.body == b"ok"


def test_an_origin_that_was_only_busy(bench: H2Bench) -> None:
    handler = bench.request()
    bench.turn(50)
    busy = bench.peer
    busy.pump()
    for _ in range(10):
        bench.turn(10)
        busy.pump()
    busy.answer(1)
    assert handler.body == b"ok"
    assert busy.transport.closing == "loseConnection"
    bench.request()
    assert bench.peer is not busy


def test_an_origin_that_talks_is_not_asked(bench: H2Bench) -> None:
    bench.request()
    bench.peer.head(1)
    for _ in range(12):
        bench.turn(5)
        bench.peer.data(1, b"x")
        bench.meet()
    assert not any(isinstance(event, PingReceived) for event in bench.peer.events)


def test_silence_of_both_sides(bench: H2Bench) -> None:
    bench = H2Bench(idle_timeout=20.0)
    handler = bench.request()
    bench.turn(12)
    bench.meet()
    bench.transport.decrypted(frame(PING, 0, 0, bytes(8)))  # no progress of an exchange
    bench.turn(9)
    assert handler.code is StreamCode.IDLE_TIMEOUT
    assert bench.peer.resets() == [(1, ErrorCodes.CANCEL)]


def test_a_suspended_handler_is_waited_for() -> None:
    bench = H2Bench(idle_timeout=20.0)
    handler = bench.request()
    handler.suspended = True  # type: ignore[misc]
    for _ in range(10):
        bench.turn(10)
        bench.meet()
    assert not handler.over
    handler.suspended = False  # type: ignore[misc]
    for _ in range(3):
        bench.turn(10)
        bench.meet()
    assert handler.code is StreamCode.IDLE_TIMEOUT


def test_pings_are_answered(bench: H2Bench) -> None:
    bench.request()
    bench.peer.h2.ping(b"12345678")
    bench.peer.send()
    assert any(isinstance(event, PingAckReceived) for event in bench.peer.pump())


def test_the_windows_that_an_origin_gets(bench: H2Bench) -> None:
    bench.request()
    assert bench.peer.h2.remote_settings.initial_window_size == WINDOW
    assert bench.peer.h2.outbound_flow_control_window == 16 * 1024 * 1024
    assert bench.peer.h2.remote_settings.enable_push == 0
    assert any(isinstance(event, WindowUpdated) for event in bench.peer.events)

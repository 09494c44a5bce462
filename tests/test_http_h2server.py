"""A client's connection of HTTP/2: what an application is told, and what the client gets."""

import re
from base64 import b64encode
from hashlib import sha1
from typing import Any

import pytest
from h2client import GET, GOAWAY, POST, H2Server, data, frame, ping, rst, settings, window
from http_clients import answer

from sockgw.http.h2server import PREFACE
from sockgw.protocol.heads import ResponseHead

PROTOCOL, INTERNAL, CANCEL, CALM = 1, 2, 8, 11
HEAD = [(":method", "HEAD"), *GET[1:]]
SOCKET = [
    (":method", "CONNECT"),
    (":protocol", "websocket"),
    *GET[1:],
    ("sec-websocket-version", "13"),
    ("origin", "http://a.example"),
]


def server(**options: Any) -> H2Server:
    made = H2Server(**options)
    made.application.on_end = lambda exchange: answer(exchange, b"hello")
    return made


def begin(exchange: Any, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    exchange.respond(ResponseHead(status, b"", [(b"Date", b"now"), *headers]))


def fields(peer: H2Server, stream: int) -> list[dict[str, str]]:
    return [dict(f.fields) for f in peer.of(stream) if f.fields is not None]


# ---------------------------------------------------------------------- which protocol


@pytest.mark.parametrize("step", [0, 1, 7])
def test_prior_knowledge(step: int) -> None:
    peer = server(start=b"")
    head = peer.head(1, [*POST, ("x", "y")], end=False)
    peer.feed(PREFACE, settings(), head, data(1, b"a"), data(1, b"b", end=True), step=step)
    (handler,) = peer.handlers
    exchange = handler.exchange
    assert (exchange.head.method, exchange.head.target) == (b"POST", b"/")
    assert (exchange.host, exchange.protocol) == (b"a.example", "HTTP/2.0")
    assert exchange.head.headers == [(b"x", b"y")]
    assert (handler.body, handler.ended, exchange.bytes_received) == (b"ab", True, 2)
    assert (peer.status(1), peer.body(1), peer.ended(1)) == ("200", b"hello", True)
    assert peer.application.connections == 1


@pytest.mark.parametrize("beginning", [b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r"])
def test_a_preface_that_does_not_go_on(beginning: bytes) -> None:
    peer = server(start=b"", head_timeout=5.0)
    peer.feed(beginning)
    peer.advance(4)
    assert not peer.closing
    peer.advance(2)
    assert peer.closing
    assert not peer.transport.written
    peer.advance(1)
    assert peer.application.connections == 0


@pytest.mark.parametrize("step", [0, 1])
def test_what_only_begins_like_the_preface_is_http_1(step: int) -> None:
    peer = server(start=b"")
    request = b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n"
    pieces = [request[i : i + 1] for i in range(len(request))] if step else [request]
    for piece in pieces:
        peer.connection.dataReceived(piece)
    peer.clock.advance(0)
    assert peer.transport.written.startswith(b"HTTP/1.1 200 OK")


def test_a_preface_that_is_none_is_refused_in_http_1() -> None:
    peer = server(start=b"")
    peer.connection.dataReceived(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n")
    peer.clock.advance(0)
    assert re.match(rb"HTTP/1\.1 [45]\d\d ", peer.transport.written)
    assert not peer.handlers


def test_http_1_goes_on_with_http_1() -> None:
    peer = server(start=b"")
    peer.connection.dataReceived(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
    peer.clock.advance(0)
    peer.connection.dataReceived(PREFACE)
    peer.advance(1)
    assert len(peer.handlers) == 1
    assert peer.closing


def test_one_connection_too_many() -> None:
    peer = H2Server(start=b"")
    peer.application.admit = False  # from now on: it takes the place of what it was before
    peer.connection.dataReceived(PREFACE)
    assert peer.transport.aborted
    peer.advance(0)
    assert peer.application.connections == 0


# ---------------------------------------------------------------------- responses


def test_the_head_goes_along_with_what_is_known() -> None:
    peer = server()
    peer.feed(peer.head(1))
    kinds = [(f.kind, f.end) for f in peer.of(1)]
    assert kinds == [(1, False), (0, True)]


def test_a_response_that_comes_in_pieces() -> None:
    peer = H2Server()
    peer.feed(peer.head(1))
    exchange = peer.handlers[0].exchange
    begin(exchange)
    peer.advance(0)
    assert peer.status(1) == "200"
    for piece in (b"a", b"bc"):
        exchange.write(piece)
        assert peer.body(1).endswith(piece)
    assert not peer.ended(1)
    assert exchange.finish([(b"X-Sum", b"1"), (b"Connection", b"x"), (b"Content-Length", b"1")])
    assert (peer.ended(1), fields(peer, 1)[-1]) == (True, {"x-sum": "1"})
    assert exchange.bytes_sent == 3
    assert not peer.connection._other.busy


def test_interim_responses() -> None:
    peer = H2Server()
    peer.feed(peer.head(1, [*POST, ("expect", "100-continue")], end=False))
    exchange = peer.handlers[0].exchange
    assert exchange.expects_continue
    exchange.inform(100, [])
    exchange.inform(103, [(b"Link", b"</a>"), (b"Connection", b"x")])
    with pytest.raises(ValueError, match="no interim"):
        exchange.inform(101, [])
    answer(exchange)
    exchange.inform(103, [])
    peer.advance(0)
    assert [each.get(":status") for each in fields(peer, 1)] == ["100", "103", "200"]
    assert fields(peer, 1)[1] == {":status": "103", "link": "</a>"}


@pytest.mark.parametrize(
    ("request_head", "status", "length"),
    [(HEAD, 200, "5"), (GET, 304, "5"), (GET, 204, None), (HEAD, 204, None)],
)
def test_responses_without_a_body(
    request_head: list[tuple[str, str]], status: int, length: str | None
) -> None:
    peer = H2Server()
    peer.feed(peer.head(1, request_head))
    exchange = peer.handlers[0].exchange
    begin(exchange, status, (b"Content-Length", b"5"))
    exchange.write(b"hello")
    assert exchange.finish()
    assert [(f.kind, f.end) for f in peer.of(1)] == [(1, True)]
    assert fields(peer, 1)[0].get("content-length") == length
    assert exchange.bytes_sent == 0


def test_fields_of_one_connection_are_not_sent() -> None:
    peer = H2Server()
    peer.feed(peer.head(1))
    ours = [b"Connection", b"Keep-Alive", b"Transfer-Encoding", b"Upgrade", b"Proxy-Connection"]
    begin(peer.handlers[0].exchange, 200, *[(name, b"x") for name in ours], (b"X-A", b" y "))
    peer.advance(0)
    assert fields(peer, 1) == [{":status": "200", "date": "now", "x-a": "y"}]


def test_a_date_is_set_where_there_is_none() -> None:
    peer = H2Server()
    peer.feed(peer.head(1))
    peer.handlers[0].exchange.respond(ResponseHead(200, b"OK", []))
    peer.advance(0)
    assert fields(peer, 1)[0]["date"] == "Thu, 01 Jan 1970 00:00:00 GMT"


@pytest.mark.parametrize("field", [(b"x", b"a\r\nb"), (b"x y", b""), (b":status", b"200")])
def test_a_head_that_cannot_be_sent(field: tuple[bytes, bytes]) -> None:
    peer = H2Server()
    peer.feed(peer.head(1))
    exchange = peer.handlers[0].exchange
    with pytest.raises(ValueError, match="header"):
        begin(exchange, 200, field)
    answer(exchange)  # nothing was sent
    peer.advance(0)
    assert peer.status(1) == "200"
    begin(exchange)  # over: does nothing


def test_a_response_that_is_longer_than_it_says() -> None:
    peer = H2Server()
    peer.feed(peer.head(1))
    exchange = peer.handlers[0].exchange
    begin(exchange, 200, (b"Content-Length", b"5"))
    exchange.write(b"hell")
    exchange.write(b"oo")
    assert peer.handlers[0].lost
    peer.advance(0)
    assert (peer.reset(1), peer.ended(1)) == (INTERNAL, False)


def test_a_response_that_is_shorter_than_it_says() -> None:
    peer = H2Server()
    peer.feed(peer.head(1))
    exchange = peer.handlers[0].exchange
    begin(exchange, 200, (b"Content-Length", b"5"))
    exchange.write(b"hell")
    assert not exchange.finish()
    peer.advance(0)
    assert (peer.reset(1), peer.ended(1)) == (INTERNAL, False)
    assert not peer.handlers[0].lost  # it knows


def test_a_response_that_is_given_up() -> None:
    peer = server()
    peer.application.on_end = None
    peer.feed(peer.head(1), peer.head(3))
    exchange = peer.handlers[0].exchange
    begin(exchange)
    exchange.write(b"some")
    peer.advance(0)
    exchange.abort()
    assert (peer.reset(1), peer.ended(1)) == (INTERNAL, False)
    answer(peer.handlers[1].exchange)
    peer.advance(0)
    assert peer.body(3) == b"ok"


def test_a_response_that_is_dropped_while_it_waits() -> None:
    peer = H2Server(start=PREFACE + settings((4, 0)))
    peer.feed(peer.head(1))
    exchange = peer.handlers[0].exchange
    answer(exchange, bytes(70_000))
    assert exchange.congested
    exchange.drop()
    assert peer.reset(1) == INTERNAL
    assert peer.handlers[0].events == [("end", []), ("drained",)]
    assert not exchange.queue


def test_congestion_is_each_stream_for_itself() -> None:
    peer = H2Server(start=PREFACE + settings((4, 1_000)))
    peer.feed(peer.head(1), peer.head(3))
    one, other = (handler.exchange for handler in peer.handlers)
    begin(one)
    one.write(bytes(100_000))
    begin(other)
    other.write(b"x" * 500)
    peer.advance(0)
    assert (one.congested, other.congested) == (True, False)
    assert peer.body(3) == b"x" * 500
    peer.feed(window(0, 2**20), window(1, 60_000))
    assert one.congested
    peer.feed(window(1, 10_000))
    assert not one.congested
    assert peer.handlers[0].events == [("end", []), ("drained",)]
    one.finish()
    peer.feed(window(1, 50_000))
    assert (len(peer.body(1)), peer.ended(1)) == (100_000, True)


def test_an_answer_before_the_end_of_the_request() -> None:
    peer = H2Server()
    peer.feed(peer.head(1, POST, end=False))
    answer(peer.handlers[0].exchange)
    peer.advance(0)
    assert (peer.body(1), peer.ended(1), peer.reset(1)) == (b"ok", True, 0)
    peer.feed(data(1, b"late"), data(1, b"later"))  # was on its way
    assert peer.goaway is None
    assert not peer.handlers[0].body


@pytest.mark.parametrize("rest", [b"", b"too much"])
def test_an_answer_before_the_frame_that_ends_a_whole_body(rest: bytes) -> None:
    peer = H2Server()
    peer.feed(peer.head(1, POST, ("content-length", "3"), end=False), data(1, b"abc"))
    answer(peer.handlers[0].exchange)
    peer.advance(0)
    assert (peer.body(1), peer.ended(1), peer.reset(1)) == (b"ok", True, None)
    peer.feed(data(1, rest, end=True), peer.head(3))
    assert peer.goaway is None
    answer(peer.handlers[1].exchange)
    peer.advance(0)
    assert (peer.body(3), peer.ended(3)) == (b"ok", True)
    assert peer.handlers[0].body == b"abc"


def test_an_answer_within_the_call() -> None:
    peer = H2Server()
    peer.application.on_request = lambda exchange: answer(exchange, b"now")
    peer.feed(peer.head(1), peer.head(3, POST, end=False), data(3, b"x", end=True))
    assert (peer.body(1), peer.body(3)) == (b"now", b"now")
    assert all(not handler.events for handler in peer.handlers)
    assert not peer.connection._other.busy


def test_an_application_that_fails_on_one_request() -> None:
    peer = server()

    def fail(exchange: Any) -> None:
        if exchange.head.target == b"/bad":
            raise RuntimeError("no")

    peer.application.on_request = fail
    bad = [*[field for field in GET if field[0] != ":path"], (":path", "/bad")]
    peer.feed(peer.head(1, bad), peer.head(3))
    assert (peer.reset(1), peer.status(1)) == (INTERNAL, "")
    assert peer.body(3) == b"hello"


# ---------------------------------------------------------------------- a client that leaves


def test_a_reset_tells_at_once() -> None:
    peer = server()
    peer.application.on_end = None
    peer.feed(peer.head(1, POST, end=False), data(1, b"x"), peer.head(3))
    peer.feed(rst(1))
    assert [handler.lost for handler in peer.handlers] == [True, False]
    exchange = peer.handlers[0].exchange
    begin(exchange)  # all calls do nothing
    exchange.write(b"x")
    exchange.finish()
    exchange.abort()
    exchange.resume_request()
    peer.advance(0)
    assert not peer.of(1)
    answer(peer.handlers[1].exchange)


def test_a_connection_that_is_lost() -> None:
    peer = H2Server()
    peer.feed(peer.head(1), peer.head(3, POST, end=False))
    begin(peer.handlers[0].exchange)
    peer.transport.close_by_peer()
    assert all(handler.lost for handler in peer.handlers)
    assert peer.application.connections == 0
    peer.advance(5)


def test_a_client_that_says_goodbye_gets_its_answers() -> None:
    peer = server()
    peer.application.on_end = None
    peer.feed(peer.head(1, POST, end=False))
    peer.feed(frame(GOAWAY, 0, 0, bytes(8)))
    peer.feed(data(1, b"x", end=True))
    assert not peer.closing
    answer(peer.handlers[0].exchange)
    peer.advance(0)
    assert peer.body(1) == b"ok"
    assert peer.closing


# ---------------------------------------------------------------------- time


def test_no_first_request() -> None:
    peer = server(head_timeout=5.0)
    peer.advance(4)
    peer.feed(ping())
    peer.advance(2)
    assert (peer.goaway, peer.closing) == (0, True)


def test_no_further_request() -> None:
    peer = server(keep_alive_timeout=10.0)
    for stream in range(1, 20, 2):  # each is answered at once, and begins the time anew
        peer.feed(peer.head(stream))
        peer.advance(6)
        assert not peer.closing
    peer.advance(5)
    assert (peer.goaway, peer.closing) == (0, True)


def test_a_request_under_way_has_its_own_time() -> None:
    peer = server(keep_alive_timeout=2.0, head_timeout=2.0)
    peer.application.on_end = None
    peer.feed(peer.head(1))
    peer.advance(30)
    assert not peer.closing


def test_a_body_that_does_not_come() -> None:
    peer = H2Server(idle_timeout=10.0)
    peer.feed(peer.head(1, POST, end=False), data(1, b"x"))
    peer.advance(8)
    peer.feed(data(1, b"x"))
    peer.advance(8)
    assert peer.status(1) == ""
    peer.advance(3)
    assert (peer.status(1), peer.reset(1)) == ("408", 0)
    assert peer.handlers[0].lost
    assert peer.handlers[0].exchange.refused
    assert not peer.closing


def test_a_body_that_does_not_come_within_an_answer() -> None:
    peer = H2Server(idle_timeout=10.0)
    peer.feed(peer.head(1, POST, end=False))
    begin(peer.handlers[0].exchange)
    peer.advance(11)
    assert peer.reset(1) == CANCEL
    assert peer.handlers[0].lost


def test_an_upload_that_we_keep_waiting_has_time() -> None:
    peer = H2Server(idle_timeout=10.0)
    peer.application.on_request = lambda exchange: exchange.pause_request()
    peer.feed(peer.head(1, POST, end=False))
    peer.advance(30)
    assert peer.reset(1) is None
    peer.handlers[0].exchange.resume_request()
    peer.advance(11)
    assert peer.status(1) == "408"


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large(announced: bool) -> None:
    peer = H2Server(max_body_size=1_000)
    more = [("content-length", "1001")] if announced else []
    peer.feed(peer.head(1, [*POST, *more], end=False))
    peer.feed(data(1, bytes(1_001)))
    assert (peer.status(1), peer.ended(1), peer.reset(1)) == ("413", True, 0)
    assert len(peer.handlers) == (0 if announced else 1)
    assert all(handler.lost and not handler.body for handler in peer.handlers)


# ---------------------------------------------------------------------- draining


def goaways(peer: H2Server) -> list[tuple[int, int]]:
    peer.came()
    said = [f for f in peer.frames if f.kind == GOAWAY]
    return [(int.from_bytes(f.payload[:4], "big"), f.code) for f in said]


def test_draining_lets_requests_end() -> None:
    peer = H2Server()
    peer.feed(peer.head(1), peer.head(3))
    peer.connection._other.drain(5.0)
    assert goaways(peer) == [(2**31 - 1, 0)]
    peer.feed(peer.head(5))  # was on its way
    assert len(peer.handlers) == 3
    peer.advance(6)
    assert goaways(peer) == [(2**31 - 1, 0), (5, 0)]
    peer.feed(peer.head(7))
    assert (len(peer.handlers), peer.reset(7)) == (3, 7)
    for handler in peer.handlers:
        assert not peer.closing
        answer(handler.exchange, bytes(1_000))
        peer.advance(0)
    assert peer.closing
    assert [len(peer.body(stream)) for stream in (1, 3, 5)] == [1_000] * 3


def test_draining_an_idle_connection() -> None:
    peer = server()
    peer.feed(peer.head(1))
    peer.connection._other.drain(5.0)
    peer.advance(4)
    assert not peer.closing
    peer.advance(2)
    assert peer.closing
    assert goaways(peer) == [(2**31 - 1, 0), (1, 0)]


def test_a_connection_that_comes_while_we_drain() -> None:
    peer = H2Server(start=b"")
    peer.connection.drain(5.0)
    peer.feed(PREFACE, settings(), peer.head(1))
    assert len(peer.handlers) == 1
    answer(peer.handlers[0].exchange)
    peer.advance(6)
    assert peer.body(1) == b"ok"
    assert peer.closing


# ---------------------------------------------------------------------- WebSocket


def accept_for(peer: H2Server) -> bytes:
    keys = [v for n, v in peer.handlers[-1].exchange.head.headers if n == b"sec-websocket-key"]
    (key,) = keys
    return b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


def switch(peer: H2Server, accept: bytes, *headers: tuple[bytes, bytes]) -> None:
    fields = [(b"Sec-WebSocket-Accept", accept), (b"Connection", b"Upgrade"), *headers]
    head = ResponseHead(101, b"Switching Protocols", fields, None, b"websocket")
    peer.handlers[-1].exchange.respond(head)


def test_connect_is_offered() -> None:
    assert b"\0\x08\0\0\0\1" in server().frames[0].payload


def test_a_websocket() -> None:
    peer = H2Server()
    mine = ("sec-websocket-key", "bWluZQ==")
    peer.feed(peer.head(1, [*SOCKET, mine, ("content-length", "0")], end=False))
    exchange = peer.handlers[0].exchange
    head = exchange.head
    assert (head.method, head.target, head.upgrade) == (b"GET", b"/", b"websocket")
    assert {b"content-length", b"expect"}.isdisjoint(dict(head.headers))
    assert not exchange.body_expected
    peer.feed(data(1, b"early"))
    assert not peer.handlers[0].events
    switch(peer, accept_for(peer), (b"Sec-WebSocket-Protocol", b"chat"))
    peer.advance(0)
    assert fields(peer, 1) == [{":status": "200", "sec-websocket-protocol": "chat"}]
    assert peer.handlers[0].body == b"early"
    exchange.write(b"hi")
    peer.feed(data(1, b" bird"))
    assert (peer.body(1), peer.handlers[0].body) == (b"hi", b"early bird")
    peer.advance(1_000)  # silence is no fault
    assert not peer.closing
    peer.feed(data(1, b"", end=True))
    assert peer.handlers[0].ended
    exchange.write(b" bye")
    exchange.finish()
    assert (peer.body(1), peer.ended(1)) == (b"hi bye", True)
    assert not peer.connection._other.busy


def test_a_websocket_that_we_end_first() -> None:
    peer = H2Server()
    peer.feed(peer.head(1, SOCKET, end=False))
    switch(peer, accept_for(peer))
    exchange = peer.handlers[0].exchange
    exchange.write(b"x")
    exchange.finish()
    assert (peer.ended(1), peer.reset(1)) == (True, None)
    peer.feed(data(1, b"more"), data(1, b"", end=True))
    assert peer.handlers[0].body == b"more"
    assert peer.handlers[0].ended
    assert not peer.connection._other.busy


def test_a_websocket_whose_end_waits() -> None:
    peer = H2Server()
    peer.feed(peer.head(1, SOCKET, end=False))
    switch(peer, accept_for(peer))
    exchange = peer.handlers[0].exchange
    exchange.pause_request()
    peer.feed(data(1, b"last words", end=True))
    exchange.finish()
    assert (peer.ended(1), peer.handlers[0].events) == (True, [])
    exchange.resume_request()
    assert peer.handlers[0].events == [("body", b"last words"), ("end", [])]
    assert not peer.connection._other.busy
    peer.advance(1)
    assert peer.reset(1) is None


@pytest.mark.parametrize("accept", [b"", b"c29tZSBvdGhlciBrZXkncwo="])
def test_a_websocket_with_a_wrong_answer(accept: bytes) -> None:
    peer = H2Server()
    peer.feed(peer.head(1, SOCKET, end=False))
    with pytest.raises(ValueError, match="key"):
        switch(peer, accept)
    assert not peer.of(1)


def test_a_websocket_that_is_refused() -> None:
    peer = H2Server()
    peer.feed(peer.head(1, SOCKET, end=False), data(1, b"early"))
    exchange = peer.handlers[0].exchange
    with pytest.raises(ValueError, match="neither"):
        begin(exchange, 200)
    answer(exchange, b"no", 403)
    peer.advance(0)
    assert (peer.status(1), peer.body(1), peer.ended(1), peer.reset(1)) == ("403", b"no", True, 0)
    assert not peer.handlers[0].body
    peer.feed(peer.head(3))
    assert len(peer.handlers) == 2


def test_a_websocket_that_is_reset() -> None:
    peer = H2Server()
    peer.feed(peer.head(1, SOCKET, end=False))
    switch(peer, accept_for(peer))
    peer.feed(rst(1))
    assert peer.handlers[0].lost
    assert not peer.connection._other.busy


def test_header_fields_within_a_websocket() -> None:
    peer = H2Server()
    peer.feed(peer.head(1, SOCKET, end=False))
    switch(peer, accept_for(peer))
    peer.feed(peer.head(1, [("x", "y")]))
    assert peer.reset(1) == PROTOCOL
    assert peer.handlers[0].lost


def test_connect_with_content() -> None:
    peer = H2Server()
    peer.feed(peer.head(1, [*SOCKET, ("content-length", "5")], end=False))
    assert peer.reset(1) == PROTOCOL
    assert not peer.handlers


def test_a_websocket_ignores_what_is_for_bodies() -> None:
    peer = H2Server(max_body_size=10)
    peer.feed(peer.head(1, SOCKET, end=False))
    switch(peer, accept_for(peer))
    for _ in range(40):
        peer.feed(data(1, bytes(10_000)))
    assert len(peer.handlers[0].body) == 400_000
    assert peer.credit(1) >= 400_000 - 65_536

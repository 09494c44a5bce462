"""Upgrades on the server side: when the connection is switched, and how each direction ends."""

import pytest
from http_clients import Server, answer, request
from twisted.internet.error import ConnectionLost

from sockgw.protocol.heads import ResponseHead

ASK = request(
    b"GET /chat HTTP/1.1",
    b"Sec-WebSocket-Key: abc==",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
)
SWITCH = ResponseHead(
    101,
    b"Switching Protocols",
    [(b"Sec-WebSocket-Accept", b"xyz="), (b"Content-Length", b"7")],
    upgrade=b"websocket",
)
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Sec-WebSocket-Accept: xyz=\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
)


def switched(ask=ASK, secure=False, **options):
    server = Server(**options)
    server.connection.secure = secure
    server.feed(ask)
    server.exchange.respond(SWITCH)
    return server


@pytest.mark.parametrize("step", [0, 1, 7])
def test_bytes_go_both_ways_as_they_are(step):
    server = Server()
    server.feed(ASK, step)
    (handler,) = server.handlers
    assert server.exchange.head.upgrade == b"websocket"
    assert handler.events == []  # not ended: it may go on
    server.exchange.respond(SWITCH)
    assert bytes(server.written) == SWITCHED
    assert server.transport.kept_alive
    server.feed(b"GET / HTTP/1.1\r\n\r\n", step)
    assert handler.body == b"GET / HTTP/1.1\r\n\r\n"
    server.exchange.write(b"\x81\x02hi")
    assert bytes(server.written) == SWITCHED + b"\x81\x02hi"
    assert server.exchange.bytes_received == 18
    assert server.exchange.bytes_sent == 4


def test_early_bytes_wait_for_the_answer():
    server = Server()
    server.feed(ASK + b"\x81\x80early")
    server.connection.dataReceived(b" and more")  # as TLS does
    assert server.handlers[0].events == []
    assert not server.transport.reading  # and no more of them are read
    server.exchange.respond(SWITCH)
    assert server.handlers[0].body == b"\x81\x80early and more"
    assert server.transport.reading


@pytest.mark.parametrize("early", [b"", b"early"])
def test_the_connections_end_that_was_asked_for_does_not_end_it(early):
    ask = request(b"GET / HTTP/1.1", b"Upgrade: websocket", b"Connection: close, Upgrade")
    server = switched(ask + early)
    server.feed(b"later")
    assert server.handlers[0].body == early + b"later"


def test_a_refused_upgrade_leaves_an_ordinary_connection():
    server = Server()
    server.feed(ASK + request(b"POST /next HTTP/1.1", b"Content-Length: 2", body=b"ab"))
    assert len(server.handlers) == 1
    answer(server.exchange, b"no", 426)
    assert [handler.exchange.head.target for handler in server.handlers] == [b"/chat", b"/next"]
    assert server.handlers[1].body == b"ab"
    answer(server.exchange, b"yes")
    assert server.statuses == [426, 200]
    assert not server.closing


def test_what_follows_a_refused_upgrade_is_judged_as_always():
    server = Server()
    server.feed(ASK + request(b"GET / HTTP/1.1", host=b""))
    answer(server.exchange, b"no", 403)
    assert server.statuses == [403, 400]


@pytest.mark.parametrize(
    "ask",
    [
        request(b"GET / HTTP/1.1", b"Upgrade: h2c", b"Connection: Upgrade"),
        request(b"GET / HTTP/1.1", b"Upgrade: websocket"),
        request(b"GET / HTTP/1.0", b"Upgrade: websocket", b"Connection: Upgrade"),
        request(
            b"POST / HTTP/1.1",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Content-Length: 1",
            body=b"x",
        ),
    ],
)
def test_where_none_is_asked_for_there_is_none(ask):
    server = Server()
    server.feed(ask)
    assert server.exchange.head.upgrade == b""
    assert server.handlers[0].ended
    with pytest.raises(ValueError, match="final"):
        server.exchange.respond(SWITCH)
    answer(server.exchange)
    assert server.statuses == [200]


def test_of_several_all_but_h2c_are_asked_for():
    server = Server()
    server.feed(
        request(
            b"GET / HTTP/1.1", b"Upgrade: h2c, a/1", b"Upgrade: WebSocket", b"Connection: upgrade"
        )
    )
    assert server.exchange.head.upgrade == b"a/1, WebSocket"


def test_a_101_without_a_protocol_is_none():
    server = Server()
    server.feed(ASK)
    with pytest.raises(ValueError, match="final"):
        server.exchange.respond(ResponseHead(101, b"", []))
    assert server.written == b""


def test_the_client_ends_first():
    server = switched()
    (handler,) = server.handlers
    server.transport.half_close_by_peer()
    assert handler.ended
    server.exchange.write(b"last words")
    server.advance(1000)
    assert not server.closing  # silence is no fault
    server.exchange.finish()
    server.advance(0)
    assert server.written.endswith(b"last words")
    assert server.transport.lost
    assert not handler.lost
    assert server.application.connections == 0


def test_we_end_first():
    server = switched()
    (handler,) = server.handlers
    server.exchange.finish()
    server.advance(0)
    assert server.transport.write_closed
    server.feed(b"last words")
    assert handler.body == b"last words"
    assert not handler.ended
    server.transport.half_close_by_peer()
    server.advance(0)
    assert handler.ended
    assert server.transport.lost
    assert not server.transport.aborted
    assert not handler.lost


def test_a_client_that_does_not_read_for_long_is_not_given_up():
    server = switched(flushing=False)
    server.exchange.write(b"x" * 100_000)
    assert server.exchange.congested
    server.advance(1000)
    assert not server.transport.aborted


def test_our_end_waits_for_a_client_that_does_not_read():
    server = switched(flushing=False)
    server.exchange.write(b"x" * 100_000)
    assert server.exchange.congested
    server.exchange.finish()
    assert not server.transport.write_closing
    server.transport.flush()
    server.transport.flush()
    assert server.handlers[0].events == [("drained",)]
    assert server.transport.write_closed


def test_over_tls_one_end_ends_both():
    server = switched(secure=True)
    (handler,) = server.handlers
    server.exchange.finish()
    server.advance(0)
    assert handler.ended
    assert server.transport.lost
    assert not handler.lost


@pytest.mark.parametrize("secure", [False, True])
def test_a_client_that_closes_both_ways_in_good_order(secure):
    server = switched(secure=secure)
    (handler,) = server.handlers
    server.feed(b"bye")
    server.transport.close_by_peer()
    assert handler.events == [("body", b"bye"), ("left",)]
    server.exchange.write(b"nobody hears")
    server.exchange.finish()


def test_what_a_pause_held_back_comes_before_the_end():
    server = switched()
    (handler,) = server.handlers
    server.exchange.pause_request()
    assert not server.transport.reading
    server.connection.dataReceived(b"still read")  # as TLS does
    server.transport.close_by_peer()
    assert handler.events == [("body", b"still read"), ("left",)]


def test_a_client_that_breaks_off():
    server = switched()
    server.transport._lose(ConnectionLost())
    assert server.handlers[0].events == [("lost",)]


def test_a_broken_stream_looks_broken():
    server = switched()
    server.exchange.abort()
    assert server.transport.aborted


def test_pauses():
    server = switched()
    (handler,) = server.handlers
    server.exchange.pause_request()
    assert not server.transport.reading
    server.exchange.resume_request()
    assert server.transport.reading
    server.feed(b"on")
    assert handler.body == b"on"


def test_a_client_that_has_half_closed_before_the_answer():
    server = Server()
    server.feed(ASK)
    server.transport.half_close_by_peer()
    server.exchange.respond(SWITCH)
    assert server.handlers[0].events == [("end", [])]
    server.exchange.write(b"answer")
    server.exchange.finish()
    server.advance(0)
    assert server.written.endswith(b"answer")
    assert server.transport.lost

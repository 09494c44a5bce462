"""The server side of HTTP while draining: nobody loses a request of which we had let him hope."""

import pytest
from http_clients import GET, Server, answer, request

from sockgw.protocol.heads import ResponseHead

GRACE = 1.0
LATE = GRACE + 0.75  # with the ticks of the deadlines
POST = request(b"POST / HTTP/1.1", b"Content-Length: 5")


def closes(data):
    return b"\r\nConnection: close\r\n" in data


def begin(server, length=5):
    server.exchange.respond(ResponseHead(200, b"OK", [(b"Content-Length", b"%d" % length)]))


def test_an_idle_connection_closes_after_the_grace():
    server = Server()
    server.connection.drain(GRACE)
    server.advance(GRACE)
    assert not server.closing
    server.advance(LATE - GRACE)
    assert server.transport.lost
    assert server.written == b""


def test_one_more_request_is_served_and_no_further():
    server = Server()
    server.feed(GET)
    answer(server.exchange)
    assert not closes(server.written)
    server.advance(10)
    server.connection.drain(GRACE)
    server.advance(GRACE)
    server.transport.written.clear()
    server.feed(GET)
    server.advance(LATE)
    assert not server.closing, "the request is under way"
    answer(server.exchange)
    assert closes(server.written)
    assert server.closing
    server.advance(3)
    assert server.transport.lost
    assert len(server.handlers) == 2


def test_an_answer_that_has_not_begun_tells_the_end():
    server = Server()
    server.feed(GET)
    server.connection.drain(GRACE)
    server.advance(20)
    assert not server.closing
    answer(server.exchange)
    assert closes(server.written)
    assert server.closing


def test_after_an_answer_that_had_begun_a_request_is_awaited():
    """Its head let the client believe that the connection stays."""
    server = Server()
    server.feed(GET)
    begin(server)
    server.connection.drain(GRACE)
    server.advance(20)
    server.exchange.write(b"hello")
    server.exchange.finish()
    server.advance(GRACE)
    assert not server.closing
    server.transport.written.clear()
    server.feed(GET)
    answer(server.exchange)
    assert closes(server.written)
    assert server.closing


def test_after_an_answer_that_had_begun_silence_is_awaited():
    server = Server()
    server.feed(GET)
    begin(server)
    server.connection.drain(GRACE)
    server.exchange.write(b"hello")
    server.exchange.finish()
    server.advance(LATE)
    assert server.transport.lost


def test_pipelined_requests_are_answered_and_the_last_one_tells_the_end():
    server = Server()
    server.feed(GET * 3)
    server.connection.drain(GRACE)
    for number in range(3):
        server.transport.written.clear()
        answer(server.exchange)
        server.advance(0)
        assert closes(server.written) is (number == 2)
    assert server.closing
    assert len(server.handlers) == 3


def test_an_upload_goes_on():
    server = Server()
    server.feed(POST)
    server.connection.drain(GRACE)
    server.advance(20)
    server.feed(b"hello")
    (handler,) = server.handlers
    assert handler.body == b"hello"
    assert handler.ended
    answer(server.exchange)
    assert server.statuses == [200]
    assert closes(server.written)


def test_a_head_that_is_on_its_way_may_arrive():
    server = Server()
    server.feed(GET[:10])
    server.connection.drain(GRACE)
    server.advance(5)
    server.feed(GET[10:])
    answer(server.exchange)
    assert server.statuses == [200]
    assert closes(server.written)


def test_a_head_does_not_get_more_time_than_usual():
    server = Server(head_timeout=3.0)
    server.feed(GET[:10])
    server.connection.drain(GRACE)
    server.advance(3.75)
    assert server.statuses == [408]


def test_other_limits_that_are_shorter_stay():
    server = Server(keep_alive_timeout=0.5, head_timeout=0.5)
    server.connection.drain(GRACE)
    server.advance(1.0)
    assert server.transport.lost


def test_who_comes_while_draining():
    """The kernel had let him in before the listener was closed."""
    server = Server(start=False)
    server.application.on_connected = lambda connection: connection.drain(GRACE)
    server.start()
    server.feed(GET)
    answer(server.exchange)
    assert closes(server.written)
    mute = Server(start=False)
    mute.application.on_connected = lambda connection: connection.drain(GRACE)
    mute.start()
    mute.advance(LATE)
    assert mute.transport.lost


@pytest.mark.parametrize("flushing", [True, False])
def test_draining_what_is_closing_already_changes_nothing(flushing):
    server = Server(flushing)
    server.feed(request(b"GET / HTTP/1.1", b"Connection: close"))
    answer(server.exchange)
    server.connection.drain(GRACE)
    server.transport.flush()
    server.advance(5)
    assert server.transport.lost
    server.connection.drain(GRACE)
    server.advance(5)
    assert server.clock.getDelayedCalls() == []


def test_a_client_that_does_not_read_keeps_its_time():
    server = Server(flushing=False)
    server.feed(GET)
    begin(server, 100_000)
    server.exchange.write(b"x" * 100_000)
    server.exchange.finish()
    server.connection.drain(GRACE)
    server.advance(20)
    assert not server.transport.lost
    server.transport.flushing = True
    server.transport.flush()
    server.advance(LATE)
    assert server.transport.lost


def test_busy():
    server = Server()
    assert not server.connection.busy
    server.feed(GET * 2)
    assert server.connection.busy
    answer(server.exchange)
    assert server.connection.busy
    answer(server.exchange)
    assert not server.connection.busy

"""Which connection carries a request over HTTP/2, and who has to wait for one."""

from dataclasses import replace
from typing import Any

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from h2peer import GOAWAY, H2Peer, frame
from originfakes import Bench, Handler
from test_http_h2origin import HOST, ORIGIN, H2Bench

from sockgw.http.client import OriginError
from sockgw.http.h2connections import H2Limits
from sockgw.http.negotiated import NegotiatedFactory
from sockgw.http.originconnection import OriginConnection
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.heads import RequestHead

FEW = {SettingCodes.MAX_CONCURRENT_STREAMS: 2}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def test_many_exchanges_on_one_connection() -> None:
    bench = H2Bench(settings={SettingCodes.MAX_CONCURRENT_STREAMS: 1_000})
    handlers = [bench.request() for _ in range(250)]
    assert len(bench.transports) == 1
    for handler, stream in zip(handlers, bench.peer.requests, strict=True):
        bench.peer.answer(stream, b"%d" % stream)
        assert handler.body == b"%d" % stream


def test_a_full_connection_gets_company() -> None:
    bench = H2Bench(settings=FEW)
    handlers = [bench.request() for _ in range(5)]
    assert [peer.requests for peer in bench.peers] == [[1, 3], [1, 3], [1]]
    bench.peers[0].answer(1)
    assert handlers[0].body == b"ok"
    bench.request()
    assert bench.peers[0].requests == [1, 3, 5]


def test_settings_that_allow_less_come_late() -> None:
    bench = H2Bench()
    for _ in range(4):
        bench.request()
    bench.peer.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
    bench.peer.send()
    bench.request()
    assert [peer.requests for peer in bench.peers] == [[1, 3, 5, 7], [1]]


def test_before_the_settings_no_more_than_usual() -> None:
    bench = Bench()
    for _ in range(150):
        bench.request(origin=ORIGIN)
    assert len(bench.transports) == 2


def test_who_finds_no_room_waits_for_it() -> None:
    bench = H2Bench(settings=FEW, http2=H2Limits(max_connections=1))
    handlers = [bench.request() for _ in range(2)]
    waiting = bench.request("POST", complete=False)
    waiting.exchange.write(b"hello")
    waiting.exchange.finish()
    assert len(bench.transports) == 1
    handlers[1].abort()
    bench.meet()
    assert bench.peer.body(5) == b"hello"
    assert bench.peer.ended(5)
    bench.peer.answer(5)
    assert waiting.body == b"ok"


def test_waiting_has_an_end() -> None:
    bench = H2Bench(settings=FEW, http2=H2Limits(max_connections=1, wait=3.0))
    for _ in range(2):
        bench.request()
    waiting = bench.request()
    bench.turn(2.9)
    assert not waiting.over
    bench.turn(0.75)
    assert waiting.code is StreamCode.CONNECTION_TIMEOUT


def test_not_everybody_may_wait() -> None:
    bench = H2Bench(settings=FEW, http2=H2Limits(max_connections=1, max_waiting=2))
    for _ in range(2):
        bench.request()
    handlers = [bench.request() for _ in range(3)]
    bench.turn()
    assert [handler.code for handler in handlers] == [None, None, StreamCode.REFUSED]
    handlers[0].abort()
    assert not bench.request().over


def test_who_waits_is_asked_to_pause_before_it_grows() -> None:
    bench = H2Bench(dial_at_once=False)
    handler = bench.request("POST", complete=False)
    handler.exchange.write(b"x" * 65_000)
    assert not handler.exchange.congested
    handler.exchange.write(b"y" * 10_000)
    assert handler.exchange.congested
    bench.answer_dial()
    bench.meet()
    assert handler.exchange.congested  # the origin's window has taken 65,535 bytes
    bench.peer.h2.increment_flow_control_window(100_000)
    bench.peer.h2.increment_flow_control_window(100_000, 1)
    bench.peer.send()
    assert bench.peer.body(1) == b"x" * 65_000 + b"y" * 10_000
    assert handler.drains == 1


def test_one_dial_for_all_who_wait() -> None:
    bench = H2Bench(dial_at_once=False)
    handlers = [bench.request() for _ in range(3)]
    assert len(bench.waiting) == 1
    bench.answer_dial()
    bench.meet()
    assert bench.peer.requests == [1, 3, 5]
    assert not any(handler.over for handler in handlers)


def test_one_dial_after_the_other_while_somebody_waits() -> None:
    bench = H2Bench(dial_at_once=False, http2=H2Limits(max_streams=2))
    for _ in range(5):
        bench.request()
    while bench.waiting:
        assert len(bench.waiting) == 1
        bench.answer_dial()
    bench.meet()
    assert [peer.requests for peer in bench.peers] == [[1, 3], [1, 3], [1]]


def test_a_dial_that_fails() -> None:
    bench = H2Bench(dial_at_once=False)
    handlers = [bench.request() for _ in range(2)]
    bench.answer_dial(OriginError(StreamCode.CONNECTION_REFUSED, "nobody there"))
    bench.turn()
    for handler in handlers:
        assert handler.failure == (StreamCode.CONNECTION_REFUSED, "nobody there")
    assert not bench.request().over
    assert len(bench.waiting) == 1


def test_a_further_dial_that_fails_costs_nobody_his_place() -> None:
    bench = H2Bench(settings=FEW)
    first = bench.request()
    bench.request()
    bench.dial_at_once = False
    waiting = bench.request()
    bench.answer_dial(OriginError(StreamCode.CONNECTION_REFUSED, "nobody there"))
    bench.turn()
    assert not waiting.over
    bench.peer.answer(1)
    assert first.body == b"ok"
    bench.meet()
    bench.peer.answer(5)
    assert waiting.body == b"ok"


def test_a_connection_that_is_closed_when_the_dial_is_done() -> None:
    bench = H2Bench(dial_at_once=False)
    handler = Bench.request(bench, origin=ORIGIN)
    bench.closed_at_once = True
    bench.answer_dial()
    bench.turn()
    assert handler.code is StreamCode.ORIGIN_CLOSED


def test_abort_of_all_who_wait_cancels_the_dial() -> None:
    bench = H2Bench(dial_at_once=False)
    one, other = bench.request(), bench.request()
    one.abort()
    assert bench.cancelled == 0
    other.abort()
    assert bench.cancelled == 1
    bench.turn(1)
    assert bench.clock.getDelayedCalls() == []


def test_goaway_without_any_room_left() -> None:
    bench = H2Bench(http2=H2Limits(max_connections=1))
    bench.request()
    old = bench.peer
    old.head(1)
    old.send(frame(GOAWAY, 0, 0, (1).to_bytes(4, "big") + bytes(4)))
    bench.request()
    assert bench.peer is not old  # the one that leaves does not count


@pytest.mark.parametrize("how", ["goaway", "lost"])
def test_who_waits_gets_the_place_of_a_connection_that_leaves(how: str) -> None:
    bench = H2Bench(settings=FEW, http2=H2Limits(max_connections=1))
    for _ in range(2):
        bench.request("POST")
    old = bench.peer
    old.head(1)
    waiting = bench.request("POST")
    if how == "goaway":
        old.send(frame(GOAWAY, 0, 0, (3).to_bytes(4, "big") + bytes(4)))
    else:
        old.transport.reset()
    bench.meet()
    assert bench.peer is not old
    bench.peer.answer(1)
    assert waiting.body == b"ok"


def test_closing_the_pool() -> None:
    bench = H2Bench(settings=FEW, http2=H2Limits(max_connections=1))
    handlers = [bench.request() for _ in range(3)]
    closed = bench.pool.close()
    assert [handler.code for handler in handlers] == [StreamCode.CANCELLED] * 3
    assert not closed.called
    bench.transport.end()
    assert closed.called
    late = bench.request()
    bench.turn()
    assert late.code is StreamCode.REFUSED
    bench.turn(1)
    assert bench.clock.getDelayedCalls() == []


@pytest.mark.parametrize("cancellable", [True, False])
def test_closing_the_pool_while_dialling(cancellable: bool) -> None:
    bench = H2Bench(dial_at_once=False)
    bench.cancellable = cancellable
    handler = bench.request()
    closed = bench.pool.close()
    assert handler.code is StreamCode.CANCELLED
    for transport in bench.transports:
        assert transport.closing
        transport.end()
    assert closed.called


# HTTP/1.1 after all


class Choosing(H2Bench):
    """An origin that chooses by ALPN."""

    def __init__(self, choice: bytes | None, **limits: Any) -> None:
        super().__init__(**limits)
        self.choice = choice

    def connect(self, factory: Any) -> Any:
        if isinstance(factory, NegotiatedFactory):
            assert factory.offers == (b"h2", b"http/1.1")
            factory = factory.negotiated(self.choice)  # type: ignore[assignment]
        return super().connect(factory)

    def meet(self) -> None:
        if self.choice == b"h2":
            super().meet()


@pytest.mark.parametrize("choice", [b"http/1.1", None])
def test_an_origin_that_chooses_http1(choice: bytes | None) -> None:
    bench = Choosing(choice)
    first = bench.request("POST", complete=False)
    assert type(bench.transport.protocol) is OriginConnection
    first.exchange.write(b"hello")
    first.exchange.finish([(b"X-A", b"1")])
    assert bench.transport.drain().endswith(
        b"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-A: 1\r\n\r\n"
    )
    bench.transport.receive(OK)
    assert first.body == b"ok"
    second = bench.request()  # on the same
    assert bench.transport.drain().startswith(b"GET / HTTP/1.1\r\n")
    bench.transport.receive(OK)
    assert second.body == b"ok"
    assert len(bench.transports) == 1


def test_all_who_waited_go_over_http1() -> None:
    bench = Choosing(b"http/1.1", dial_at_once=False)
    handlers = [bench.request("POST", complete=False) for _ in range(3)]
    handlers[0].exchange.write(b"x" * 70_000)
    assert handlers[0].exchange.congested
    handlers[1].exchange.pause_response()
    handlers[1].exchange.finish([(b"x-b", b"2")])
    handlers[2].abort()
    while bench.waiting:
        bench.answer_dial()
    first, second = bench.transports
    assert b"x" * 70_000 in first.drain()
    assert handlers[0].drains == 1
    assert not handlers[0].exchange.congested
    assert second.drain().endswith(b"0\r\nx-b: 2\r\n\r\n")
    assert not second.reading
    handlers[1].exchange.resume_response()
    second.receive(OK)
    assert handlers[1].body == b"ok"
    handlers[0].abort()
    assert first.closing == "abortConnection"
    bench.turn(400)
    assert not handlers[1].failure


def test_an_origin_is_asked_again_after_a_while() -> None:
    bench = Choosing(b"http/1.1")
    bench.request()
    bench.transport.receive(OK)
    bench.choice = b"h2"
    bench.turn(59)
    Bench.request(bench, origin=ORIGIN)
    assert type(bench.transport.protocol) is OriginConnection
    bench.turn(2)
    Bench.request(bench, origin=ORIGIN)
    assert type(bench.transport.protocol) is not OriginConnection


def test_an_origin_that_requires_http1_for_a_request() -> None:
    bench = H2Bench()
    handler = bench.request("POST", complete=False)
    handler.exchange.write(b"hello")
    other = bench.request()
    peer = bench.peer
    bench.choice = b"http/1.1"  # type: ignore[attr-defined]
    peer.reset(1, ErrorCodes.HTTP_1_1_REQUIRED)
    transport = bench.transports[1]
    assert b"hello" in transport.drain()
    transport.receive(OK)
    assert handler.body == b"ok"
    peer.answer(3)
    assert other.body == b"ok"


def test_an_upgrade_goes_over_http1() -> None:
    bench = H2Bench()
    handler = Handler()
    head = RequestHead(b"GET", b"/", [HOST], upgrade=b"websocket")
    handler.exchange = bench.pool.request(
        ORIGIN, head, complete=False, handler=handler, host=b"a.example"
    )
    assert b"\r\nUpgrade: websocket\r\n" in bench.transport.drain()
    assert bench.dialled == [replace(ORIGIN, http2=False)]


def test_a_peer_of_ones_own() -> None:
    """The fake is a server of its own right: it would not take just anything."""
    bench = Bench()
    bench.request(origin=ORIGIN)
    peer = H2Peer(bench.transport)
    assert peer.requests == [1]

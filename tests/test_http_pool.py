"""Connections are used again, but never a stale, foreign or doubtful one; over real sockets too."""

import tempfile
from collections.abc import Callable
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from inner_certificates import Authority, Listener, ServerContext
from originfakes import ORIGIN, Bench, Handler
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from sockgw.deadlines import Deadlines
from sockgw.http.client import FRESH, Origin, OriginPool
from sockgw.http.outgoing import MAX_HELD
from sockgw.inner.tls import TLSEndpoint, client_context
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.heads import RequestHead

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def served(bench: Bench, method: str = "GET", **options: Any) -> Handler:
    """Make a request and answer it."""
    handler = bench.request(method, **options)
    handler.exchange.connection.transport.receive(OK)
    assert handler.body == b"ok"
    return handler


def several(bench: Bench, count: int, **options: Any) -> None:
    """Leave so many idle connections."""
    handlers = [bench.request(**options) for _ in range(count)]
    for transport in bench.transports[-count:]:
        transport.receive(OK)
    assert all(handler.over for handler in handlers)


# Reuse


def test_a_connection_is_used_again() -> None:
    bench = Bench()
    assert [served(bench).exchange.reused for _ in range(3)] == [False, True, True]
    assert len(bench.transports) == 1


def test_a_connection_serves_its_origin_only() -> None:
    bench = Bench()
    for origin in (
        ORIGIN,
        Origin("https", ORIGIN.hostname, ORIGIN.port),
        Origin(ORIGIN.protocol, "other.example", ORIGIN.port),
        Origin(ORIGIN.protocol, ORIGIN.hostname, 81),
        Origin(ORIGIN.protocol, ORIGIN.hostname, ORIGIN.port, "/run/app.sock"),
    ):
        assert not served(bench, origin=origin).exchange.reused
        assert served(bench, origin=Origin(**_parts(origin))).exchange.reused
    assert len(bench.transports) == 5


def _parts(origin: Origin) -> dict[str, Any]:
    return {part.name: getattr(origin, part.name) for part in fields(origin) if part.init}


def test_an_origin_is_known_by_all_of_its_parts() -> None:
    parts = _parts(ORIGIN)
    others = {"protocol": "https", "hostname": "x", "port": 81, "socket": "/x", "http2": True}
    assert others.keys() == parts.keys()
    keys = {ORIGIN.key, *(Origin(**parts | {name: other}).key for name, other in others.items())}
    assert len(keys) == 6
    assert Origin("http", "a', 80", 80).key != Origin("http", "a", 80).key


def test_the_last_used_comes_first() -> None:
    bench = Bench()
    several(bench, 3)
    first = bench.request()
    second = bench.request()
    assert first.exchange.connection.transport is bench.transports[2]
    assert second.exchange.connection.transport is bench.transports[1]
    bench.transports[1].receive(OK)
    third = bench.request()
    assert third.exchange.connection.transport is bench.transports[1]


def test_too_many_idle_connections_to_one_origin_are_kept_while_they_are_fresh() -> None:
    bench = Bench(max_idle=2)
    several(bench, 4)
    bench.turn(FRESH)
    assert [transport.closing for transport in bench.transports] == [""] * 4
    bench.turn(0.5)
    assert [transport.closing for transport in bench.transports] == [
        "loseConnection",
        "loseConnection",
        "",
        "",
    ]
    assert len(bench.pool.idle) == 2
    bench.turn(10)
    assert len(bench.pool.idle) == 2


def test_a_load_above_the_bound_dials_once() -> None:
    bench = Bench(max_idle=2)
    for _ in range(20):
        handlers = [bench.request("POST") for _ in range(10)]
        for handler in handlers:
            handler.exchange.connection.transport.receive(OK)
        bench.turn(FRESH / 2)
    assert len(bench.transports) == 10
    for _ in range(8):  # now two are enough
        handlers = [bench.request() for _ in range(2)]
        for handler in handlers:
            handler.exchange.connection.transport.receive(OK)
        bench.turn(FRESH / 4)
    assert len(bench.pool.idle) == 2
    assert len(bench.transports) == 10
    served(bench)
    bench.turn(10)
    assert len(bench.pool.idle) == 2  # the others' second is not theirs


def test_too_many_idle_connections_that_were_busy_for_long() -> None:
    bench = Bench(max_idle=2)
    handlers = [bench.request() for _ in range(100)]
    bench.turn(20)  # nobody looks at their deadlines any more but now and then
    for handler in handlers:
        handler.exchange.connection.transport.receive(OK)
    bench.turn(FRESH + 0.5)
    assert len(bench.pool.idle) == 2


def test_a_short_keep_alive_after_a_long_exchange() -> None:
    bench = Bench(keep_alive=1, max_idle=100)
    handlers = [bench.request() for _ in range(100)]
    bench.turn(20)
    for handler in handlers:
        handler.exchange.connection.transport.receive(OK)
    bench.turn(1.5)
    assert {transport.closing for transport in bench.transports} == {"loseConnection"}


def test_too_many_idle_connections_in_all() -> None:
    bench = Bench(max_idle_total=2)
    several(bench, 2)
    served(bench, origin=Origin("http", "other.example", 80))
    assert [bool(transport.closing) for transport in bench.transports] == [True, False, False]


def test_no_idle_connections_at_all() -> None:
    bench = Bench(max_idle=0)
    assert not served(bench).exchange.reused
    assert not served(bench).exchange.reused
    assert bench.transport.closing == "loseConnection"


def test_an_idle_connection_is_kept_for_a_while() -> None:
    bench = Bench(keep_alive=15)
    served(bench)
    bench.turn(14.9)
    assert served(bench).exchange.reused
    bench.turn(14.9)
    assert not bench.transport.closing
    bench.turn(0.8)
    assert bench.transport.closing == "loseConnection"
    assert len(bench.pool.idle) == 0
    assert not served(bench).exchange.reused


def test_a_peer_that_does_not_close_is_cut_off() -> None:
    bench = Bench(keep_alive=15)
    served(bench)
    bench.turn(16)
    assert bench.transport.closing == "loseConnection"
    bench.turn(3)
    assert bench.transport.closing == "abortConnection"
    bench.transport.end()
    bench.turn(1)
    assert bench.clock.getDelayedCalls() == []


def test_a_closed_idle_connection_is_forgotten_at_once() -> None:
    bench = Bench()
    served(bench)
    bench.transport.end()
    assert len(bench.pool.idle) == 0
    assert not served(bench).exchange.reused


@pytest.mark.parametrize("method", ["POST", "PATCH", "get", "PROPFIND"])
def test_what_must_not_be_repeated_takes_only_fresh_connections(method: str) -> None:
    bench = Bench()
    served(bench)
    bench.turn(FRESH - 0.01)
    assert served(bench, method).exchange.reused
    bench.turn(FRESH)
    assert not served(bench, method).exchange.reused
    bench.turn(FRESH)
    assert served(bench, "GET").exchange.reused


# Stale connections: closed by the origin just before, or while, the request was written


@pytest.mark.parametrize("reason", [ConnectionDone(), ConnectionLost()])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"])
def test_a_stale_connection_is_replaced(method: str, reason: Exception) -> None:
    bench = Bench()
    served(bench)
    handler = bench.request(method)
    assert handler.exchange.reused
    bench.transport.end(reason)
    assert not handler.exchange.reused
    assert len(bench.transports) == 2
    assert bench.transport.drain() == f"{method} / HTTP/1.1\r\nHost: a.example\r\n\r\n".encode()
    bench.transport.receive(b"HTTP/1.1 204 No\r\n\r\n")
    assert handler.trailers == []


def test_it_is_replaced_once_only() -> None:
    bench = Bench()
    served(bench)
    handler = bench.request()
    bench.transport.end()
    bench.transport.end()
    assert handler.code is StreamCode.ORIGIN_CLOSED
    assert len(bench.dialled) == 2


def test_it_is_replaced_by_a_new_one_not_by_another_stale_one() -> None:
    bench = Bench()
    several(bench, 2)
    handler = bench.request()
    handler.exchange.connection.transport.end()
    assert len(bench.transports) == 3
    assert handler.exchange.connection.transport is bench.transport


@pytest.mark.parametrize("method", ["POST", "PATCH", "PROPFIND"])
def test_what_must_not_be_repeated_fails(method: str) -> None:
    bench = Bench()
    served(bench)
    handler = bench.request(method)
    assert handler.exchange.reused
    bench.transport.end()
    assert handler.code is StreamCode.ORIGIN_CLOSED
    assert len(bench.dialled) == 1


@pytest.mark.parametrize("start", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_origin_that_began_to_answer_has_taken_the_request(start: bytes) -> None:
    bench = Bench()
    served(bench)
    handler = bench.request()
    bench.transport.receive(start)
    bench.transport.end()
    assert handler.code is StreamCode.ORIGIN_CLOSED
    assert len(bench.dialled) == 1


def test_a_small_body_is_sent_again_whole() -> None:
    bench = Bench()
    served(bench)
    handler = bench.request("PUT", complete=False)
    handler.exchange.write(b"hello")
    bench.transport.drain()
    handler.exchange.write(b"world")
    bench.dial_at_once = False
    bench.transport.end()
    handler.exchange.write(b"!")
    bench.answer_dial()
    handler.exchange.finish()
    assert bench.transport.drain() == (
        b"PUT / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n5\r\nworld\r\n1\r\n!\r\n0\r\n\r\n"
    )


def test_a_large_body_cannot_be_sent_again() -> None:
    bench = Bench()
    served(bench)
    handler = bench.request("PUT", complete=False)
    for _ in range(8):
        handler.exchange.write(b"x" * (MAX_HELD // 8))
        bench.transport.drain()
    assert handler.exchange.held is None
    bench.transport.end()
    assert handler.code is StreamCode.ORIGIN_CLOSED
    assert len(bench.dialled) == 1


def test_nothing_is_held_on_a_new_connection_nor_after_the_first_byte() -> None:
    bench = Bench()
    handler = bench.request("PUT", complete=False)
    assert handler.exchange.held is None
    handler.exchange.finish()
    bench.transport.receive(OK)
    handler = bench.request("PUT", complete=False)
    assert handler.exchange.held
    bench.transport.receive(b"HTTP/1.1 100 Continue\r\n\r\n")
    handler.exchange.write(b"hello")
    assert handler.exchange.held is None


def test_congestion_and_pause_outlive_a_stale_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("originfakes.HIGH_WATER", 1000)
    bench = Bench(dial_at_once=False)
    bench.request()
    bench.answer_dial()
    bench.transport.receive(OK)
    handler = bench.request("PUT", complete=False)
    handler.exchange.write(b"x" * 2000)
    handler.exchange.pause_response()
    assert handler.exchange.congested
    bench.transport.end()
    assert handler.exchange.congested
    assert handler.drains == 0
    bench.answer_dial()
    assert handler.exchange.congested
    assert not bench.transport.reading
    bench.transport.drain()
    assert handler.drains == 1


def test_a_replacement_that_cannot_be_dialled() -> None:
    bench = Bench()
    served(bench)
    handler = bench.request()
    bench.dial_error = ZeroDivisionError()
    bench.transport.end()
    bench.turn()
    assert handler.code is StreamCode.INTERNAL_ERROR


def test_an_aborted_request_is_not_repeated() -> None:
    bench = Bench()
    served(bench)
    handler = bench.request()
    handler.abort()
    bench.transport.end()
    assert len(bench.dialled) == 1


# The end


def fired(deferred: Deferred[None]) -> bool:
    return deferred.called


def test_closing_ends_everything() -> None:
    bench = Bench(max_idle=1)
    several(bench, 3)  # one idle, two closing
    busy = bench.request(origin=Origin("http", "other.example", 80))
    bench.dial_at_once = False
    dialling = bench.request(origin=Origin("http", "third.example", 80))
    closed = bench.pool.close()
    assert busy.code is StreamCode.CANCELLED
    assert dialling.code is StreamCode.CANCELLED
    assert bench.cancelled == 1
    assert {transport.closing for transport in bench.transports} == {"abortConnection"}
    late = bench.request()
    for transport in bench.transports:
        assert not fired(closed)
        transport.end()
    assert fired(closed)
    assert bench.pool.close() is closed
    assert not late.over
    bench.turn()
    assert late.code is StreamCode.REFUSED
    bench.turn(1)
    assert bench.clock.getDelayedCalls() == []


def test_closing_an_unused_pool() -> None:
    assert fired(Bench().pool.close())


def test_a_dial_that_succeeds_as_it_is_cancelled() -> None:
    bench = Bench(dial_at_once=False)
    bench.cancellable = False
    handler = bench.request()
    handler.abort()
    assert bench.transport.closing == "abortConnection"
    assert bench.transport.buffered == b""


# Real sockets


class OriginProtocol(Protocol):
    """Answers each request's head with the next step of the factory's script."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.lost: Deferred[BaseException] = Deferred()

    def connectionMade(self) -> None:
        self.origin = self.factory.script
        self.origin.connections.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.received.append(data)
        if b" HTTP/1.1\r\n" in data:
            self.origin.steps.pop(0)(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(reason.value)


def answer(data: bytes) -> Callable[[OriginProtocol], None]:
    return lambda protocol: protocol.transport.write(data)


def answer_and_close(data: bytes) -> Callable[[OriginProtocol], None]:
    def step(protocol: OriginProtocol) -> None:
        protocol.transport.write(data)
        protocol.transport.loseConnection()

    return step


class Waiting(Handler):
    """A handler that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: Deferred[None] = Deferred()
        self.hooks["body_ended"] = self.hooks["failed"] = lambda: self.ended.callback(None)


UNFINISHED = b"HTTP/1.1 200 OK\r\n\r\nhello"


class TCPOriginTests(TestCase):
    """Over real sockets, on a clock that stands still."""

    timeout = 10
    secure = False
    steps: list[Callable[[OriginProtocol], None]]

    def setUp(self) -> None:
        self.steps = []
        self.connections: list[OriginProtocol] = []
        self.clock = Clock()
        deadlines = Deadlines(self.clock)
        self.pool = OriginPool(self.clock, lambda origin: self.endpoint(), deadlines)
        self.server = Listener(reactor, OriginProtocol, self.server_context())
        self.server.wrappedFactory.script = self
        self.addCleanup(Deferred.fromCoroutine, self.server.close())
        self.addCleanup(self.pool.close)
        self.origin = Origin("https" if self.secure else "http", "localhost", self.server.port)

    def server_context(self) -> ServerContext | None:
        return None

    def endpoint(self) -> IStreamClientEndpoint:
        return TCP4ClientEndpoint(reactor, "127.0.0.1", self.server.port)

    def tcp(self, protocol: OriginProtocol) -> Any:
        """The transport below TLS."""
        return protocol.transport.transport

    def request(self, method: str = "GET", *, complete: bool = True) -> Waiting:
        handler = Waiting()
        head = RequestHead(method.encode(), b"/", [(b"Host", b"localhost")])
        handler.exchange = self.pool.request(
            self.origin, head, complete=complete, handler=handler, host=b""
        )
        return handler

    async def test_keep_alive(self) -> None:
        for reused in (False, True, True):
            self.steps.append(answer(OK))
            handler = self.request()
            await handler.ended
            assert handler.body == b"ok"
            assert handler.exchange.reused is reused
        assert len(self.connections) == 1

    async def test_a_body_that_ends_with_the_connection(self) -> None:
        self.steps.append(answer_and_close(UNFINISHED))
        handler = self.request()
        await handler.ended
        assert (handler.body, handler.trailers) == (b"hello", [])

    async def test_a_clean_close_within_a_length(self) -> None:
        self.steps.append(answer_and_close(OK[:-1]))
        handler = self.request()
        await handler.ended
        assert handler.code is StreamCode.ORIGIN_CLOSED

    async def test_a_reset_within_a_body_that_ends_with_the_connection(self) -> None:
        self.steps.append(answer(UNFINISHED))
        handler = self.request()
        handler.hooks["body_received"] = lambda: self.tcp(self.connections[0]).abortConnection()
        await handler.ended
        assert handler.code is StreamCode.ORIGIN_CLOSED

    async def test_a_close_before_any_answer(self) -> None:
        self.steps.append(lambda protocol: protocol.transport.loseConnection())
        handler = self.request()
        await handler.ended
        assert handler.code is StreamCode.ORIGIN_CLOSED

    async def test_a_connection_closed_while_idle_or_just_now(self) -> None:
        """The next request leaves before the close can be noticed; it must succeed all the same."""
        for _ in range(5):
            self.steps.append(answer_and_close(OK))
            handler = self.request()
            await handler.ended
            assert handler.body == b"ok"
        assert len(self.connections) == 5

    async def test_head_and_body_leave_in_one_piece(self) -> None:
        self.steps = [answer(OK), answer(OK)]
        await self.request().ended
        handler = self.request("PUT", complete=False)
        handler.exchange.write(b"hello")
        handler.exchange.finish()
        await handler.ended
        assert self.connections[0].received[1].endswith(b"5\r\nhello\r\n0\r\n\r\n")

    async def test_an_early_answer(self) -> None:
        self.steps.append(
            answer_and_close(b"HTTP/1.1 413 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        )
        handler = self.request("POST", complete=False)
        await handler.ended
        assert handler.head.status == 413
        handler.exchange.write(b"x" * 100_000)
        handler.exchange.finish()
        await self.connections[0].lost

    async def test_abort_is_seen_by_the_origin(self) -> None:
        self.steps.append(answer(UNFINISHED))
        handler = self.request()
        handler.hooks["body_received"] = handler.abort
        while not self.connections:
            await deferLater(reactor, 0, int)
        await self.connections[0].lost
        assert handler.body == b"hello"

    async def test_an_idle_connection_closes_in_good_order(self) -> None:
        self.steps.append(answer(OK))
        await self.request().ended
        for _ in range(64):
            self.clock.advance(0.25)
        reason = await self.connections[0].lost
        assert isinstance(reason, ConnectionDone)

    async def test_a_large_upload_to_a_slow_origin(self) -> None:
        def pause(protocol: OriginProtocol) -> None:
            protocol.transport.pauseProducing()

        self.steps.append(pause)
        handler = self.request("PUT", complete=False)
        body = bytes(range(256)) * 256
        count = 0
        while not handler.exchange.congested or not self.connections:
            handler.exchange.write(body)
            count += 1
            await deferLater(reactor, 0, int)
        while not handler.exchange.congested or count < 64:
            handler.exchange.write(body)
            count += 1
        drained: Deferred[None] = Deferred()
        handler.hooks["request_drained"] = lambda: drained.callback(None)
        origin = self.connections[0]
        while not origin.received:
            await deferLater(reactor, 0, int)
        assert not drained.called
        origin.transport.resumeProducing()
        await drained
        handler.exchange.finish()
        expected = b"10000\r\n" + b"\r\n10000\r\n".join([body] * count) + b"\r\n0\r\n\r\n"
        while sum(map(len, origin.received)) < len(expected):
            await deferLater(reactor, 0, int)
        received = b"".join(origin.received).partition(b"\r\n\r\n")[2]
        assert sha256(received).digest() == sha256(expected).digest()
        origin.transport.write(OK)
        await handler.ended
        assert handler.body == b"ok"

    async def test_a_large_download_to_a_slow_reader(self) -> None:
        body = bytes(range(256)) * 16_384
        self.steps = [
            answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body),
            answer(OK),
        ]
        handler = self.request()
        pauses = []

        def pause() -> None:
            handler.exchange.pause_response()
            pauses.append(reactor.callLater(0, handler.exchange.resume_response))

        handler.hooks["body_received"] = pause
        await handler.ended
        assert sha256(handler.body).digest() == sha256(body).digest()
        assert len(pauses) > 10
        handler = self.request()
        await handler.ended
        assert handler.exchange.reused


class TLSOriginTests(TCPOriginTests):
    """The same over TLS, and what only TLS can tell apart."""

    secure = True

    @classmethod
    def setUpClass(cls) -> None:
        cls.directory = tempfile.TemporaryDirectory()
        authority = Authority(Path(cls.directory.name), "authority")
        cls.certificate = authority.issue("server", ["localhost"])
        cls.context = client_context([authority.file], system_roots=False)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.directory.cleanup()

    def server_context(self) -> ServerContext:
        return ServerContext(*self.certificate)

    def endpoint(self) -> IStreamClientEndpoint:
        return TLSEndpoint(reactor, super().endpoint(), "localhost", self.context)

    def tcp(self, protocol: OriginProtocol) -> Any:
        return protocol.transport.transport.transport

    async def test_a_cut_without_close_notify_is_no_end_of_a_body(self) -> None:
        self.steps.append(answer(UNFINISHED))
        handler = self.request()
        handler.hooks["body_received"] = lambda: self.tcp(self.connections[0]).loseConnection()
        await handler.ended
        assert handler.body == b"hello"
        assert handler.code is StreamCode.ORIGIN_CLOSED

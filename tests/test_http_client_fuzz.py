"""Whatever an origin sends, the contract with the handler holds and no answer goes astray."""

from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from originfakes import Bench, Handler
from test_http_client import CASES
from twisted.internet.error import ConnectionDone, ConnectionLost

from sockgw.http.originconnection import OriginConnection
from sockgw.protocol.errors import StreamCode

# What a response is made of, and what it should not be made of.
PIECES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Hints\r\n",
        b"HTTP/1.1 101 Switching\r\n",
        b"HTTP/1.1 204 No\r\n",
        b"HTTP/1.1 304 No\r\n",
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/2.0 200 OK\r\n",
        b"HTTP/1.1 999\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Connection: close\r\n",
        b"Connection: upgrade\r\nUpgrade: x\r\n",
        b"X: y\r\n",
        b"X" * 300 + b": y\r\n",
        b"\r\n",
        b"\r\n",
        b"\n",
        b"hello",
        b"5\r\nhello\r\n",
        b"5\r\nhel",
        b"0\r\n",
        b"0\r\n\r\n",
        b"1;" + b"e" * 200 + b"\r\n",
        b"\0",
        b"\xff",
    ]
)
WIRES = st.one_of(
    st.lists(PIECES | st.binary(max_size=8), max_size=12).map(b"".join),
    st.sampled_from(list(CASES.values())).map(lambda case: case.wire),
    st.tuples(
        st.sampled_from(list(CASES.values())).map(lambda case: case.wire), st.binary(max_size=20)
    ).map(b"".join),
)
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT"])
SMALL = {"max_header_size": 400, "max_header_count": 4}


def cut(data: st.DataObject, wire: bytes) -> list[bytes]:
    places = data.draw(st.lists(st.integers(0, len(wire)), max_size=6).map(sorted))
    edges = [0, *places, len(wire)]
    parts = [wire[a:b] for a, b in pairwise(edges)]
    return [part for part in parts if part]


def outcome(handler: Handler) -> Any:
    status = handler.head and handler.head.status
    return (handler.interim, status, handler.body, handler.trailers, handler.code)


@settings(max_examples=200, deadline=None)
@given(st.data(), WIRES, METHODS, st.booleans())
def test_the_contract_holds(data: st.DataObject, wire: bytes, method: str, reused: bool) -> None:
    bench = Bench(**SMALL)
    if reused:
        bench.request()
        bench.transport.receive(b"HTTP/1.1 204 No\r\n\r\n")
    handler = Handler()
    actions = st.sampled_from(["", "", "abort", "pause", "resume", "write", "finish"])

    def act() -> None:
        action = data.draw(actions)
        if action == "abort":
            handler.abort()
        elif action == "pause":
            handler.exchange.pause_response()
        elif action == "resume":
            handler.exchange.resume_response()
        elif action == "write":
            handler.exchange.write(b"x" * 70_000)
        elif action == "finish":
            handler.exchange.finish()

    for event in ("informed", "responded", "body_received", "body_ended"):
        handler.hooks[event] = act
    bench.request(method, complete=data.draw(st.booleans()), handler=handler)
    transport = bench.transport
    for part in cut(data, wire):
        transport.decrypted(part)
        act()
    transport.end(data.draw(st.sampled_from([ConnectionDone(), ConnectionLost(), None])))
    if not handler.over:  # sent again: the replacement is not another one
        assert reused
        assert wire == b""
        bench.transport.end()
    assert handler.over
    bench.turn(1000)
    assert bench.clock.getDelayedCalls() == []
    assert len(bench.pool.idle) == 0


@settings(max_examples=200, deadline=None)
@given(st.data(), WIRES, METHODS)
def test_any_cut_gives_the_same(data: st.DataObject, wire: bytes, method: str) -> None:
    outcomes = []
    for parts in ([wire] if wire else [], cut(data, wire)):
        bench = Bench()
        handler = bench.request(method)
        for part in parts:
            bench.transport.decrypted(part)
        bench.transport.end(ConnectionDone())
        outcomes.append(outcome(handler))
    assert outcomes[0] == outcomes[1]


@settings(max_examples=200, deadline=None)
@given(WIRES, METHODS)
def test_what_is_left_over_poisons_nobody(wire: bytes, method: str) -> None:
    """A connection kept after anything at all gives the next request its own answer."""
    bench = Bench()
    bench.request(method)
    bench.transport.decrypted(wire)
    if len(bench.pool.idle) == 0:
        return
    handler = bench.request()
    bench.transport.receive(b"HTTP/1.1 404 Mine\r\nContent-Length: 4\r\n\r\nmine")
    assert outcome(handler) == ([], 404, b"mine", [], None)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_no_answer_goes_to_another_request(data: st.DataObject) -> None:
    """Origins answer each request with its own path, are slow, close and reset; callers leave."""
    bench = Bench(max_idle=2, idle_timeout=10, keep_alive=5)
    handlers: dict[str, Handler] = {}
    for number in range(data.draw(st.integers(1, 40))):
        step = data.draw(st.sampled_from(["request", "request", "answer", "end", "abort", "time"]))
        open_ones = [transport for transport in bench.transports if not transport.lost]
        busy = [transport for transport in open_ones if transport.buffered]
        if step == "request":
            path = f"/{number}"
            handlers[path] = bench.request(data.draw(METHODS), path)
        elif step == "answer" and busy:
            transport = data.draw(st.sampled_from(busy))
            if not transport.closing:
                method, path = transport.drain().decode().split()[:2]
                body = b"" if method == "HEAD" else path.encode()
                head = b"HTTP/1.1 200 %s\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(path))
                transport.receive(head + body)
                assert handlers[path].over
        elif step == "end" and open_ones:
            reason = data.draw(st.sampled_from([ConnectionDone(), ConnectionLost()]))
            data.draw(st.sampled_from(open_ones)).end(reason)
        elif step == "abort" and handlers:
            handler = data.draw(st.sampled_from(list(handlers.values())))
            if not handler.over:
                handler.abort()
        elif step == "time":
            bench.turn(data.draw(st.sampled_from([0.1, 1.0, 6.0])))
    for path, handler in handlers.items():
        if handler.trailers is not None:
            assert handler.head.reason == path.encode()
            assert handler.body in (b"", path.encode())
    closed = bench.pool.close()
    for transport in bench.transports:
        if not transport.lost:
            transport.end()
    assert closed.called
    assert all(handler.over for handler in handlers.values())
    assert all(handler.code is not StreamCode.INTERNAL_ERROR for handler in handlers.values())
    bench.turn(1)
    assert bench.clock.getDelayedCalls() == []


def test_connections_have_no_dictionary() -> None:
    """Slots only: a misspelt attribute is an error, and a connection is small."""
    assert not hasattr(OriginConnection(Bench().pool), "__dict__")

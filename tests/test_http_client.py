"""Requests as they are written, responses as they are read, and how both may go wrong."""

from collections.abc import Callable, Iterator

import pytest
from originfakes import Bench, Handler, Transport
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.logger import LogEvent, globalLogPublisher

from sockgw.http import outgoing
from sockgw.http.client import OriginError
from sockgw.http.outgoing import MAX_HELD
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.heads import Headers

HOST = (b"Host", b"a.example")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


# Requests


def test_a_request_without_a_body_gets_no_framing(bench: Bench) -> None:
    bench.request("GET", "/a?b=c", [HOST, (b"X-A", b"1"), (b"x-a", b"\xe9")])
    assert bench.transport.drain() == (
        b"GET /a?b=c HTTP/1.1\r\nHost: a.example\r\nX-A: 1\r\nx-a: \xe9\r\n\r\n"
    )
    assert bench.transport.no_delay


@pytest.mark.parametrize("method", ["POST", "DELETE", "PROPFIND"])
def test_an_empty_length_passes_with_a_complete_request(bench: Bench, method: str) -> None:
    bench.request(method, headers=[HOST, (b"Content-Length", b"0")])
    assert bench.transport.drain().endswith(b"\r\nContent-Length: 0\r\n\r\n")


def test_a_body_with_a_length_goes_as_it_is(bench: Bench) -> None:
    handler = bench.request("PUT", headers=[HOST, (b"content-length", b"5")], complete=False)
    handler.exchange.write(b"he")
    handler.exchange.write(b"")
    handler.exchange.write(b"llo")
    handler.exchange.finish([(b"X-Sum", b"1")])
    assert bench.transport.drain().endswith(b"content-length: 5\r\n\r\nhello")
    assert not handler.over


def test_a_body_without_a_length_goes_in_chunks(bench: Bench) -> None:
    handler = bench.request("POST", complete=False)
    handler.exchange.write(b"hello")
    handler.exchange.write(b"")
    handler.exchange.write(b"x" * 26)
    handler.exchange.finish(
        [
            (b"X-Sum", b"1"),
            (b"Content-Length", b"31"),
            (b"transfer-encoding", b"chunked"),
            (b"HOST", b"b.example"),
            (b"Authorization", b"Basic e"),
            (b"x-last", b"2"),
        ]
    )
    handler.exchange.finish()
    assert bench.transport.drain().endswith(
        b"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1a\r\n"
        + b"x" * 26
        + b"\r\n0\r\nX-Sum: 1\r\nx-last: 2\r\n\r\n"
    )


def test_an_empty_body_in_chunks(bench: Bench) -> None:
    handler = bench.request("POST", complete=False)
    handler.exchange.finish()
    assert bench.transport.drain().endswith(b"chunked\r\n\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    ("method", "target", "headers", "complete"),
    [
        ("", "/", [HOST], True),
        ("GE T", "/", [HOST], True),
        ("GET\r\n", "/", [HOST], True),
        ("CONNECT", "a.example:80", [HOST], True),
        ("GET", "", [HOST], True),
        ("GET", "/a b", [HOST], True),
        ("GET", "/a\r\nX: y", [HOST], True),
        ("GET", "/\x7f", [HOST], True),
        ("GET", "/\xe9", [HOST], True),
        ("GET", "/", [(b"Ho st", b"a")], True),
        ("GET", "/", [(b"", b"a")], True),
        ("GET", "/", [(b"X", b"a\r\nY: z")], True),
        ("GET", "/", [(b"X", b"a\0")], True),
        ("GET", "/", [(b"Content-Length", b"1")], True),
        ("POST", "/", [(b"Content-Length", b"1"), (b"Content-Length", b"1")], False),
        ("POST", "/", [(b"Content-Length", b"1, 1")], False),
        ("POST", "/", [(b"Content-Length", b"+1")], False),
        ("POST", "/", [(b"Content-Length", b"1_0")], False),
        ("POST", "/", [(b"Content-Length", b"")], False),
        ("POST", "/", [(b"Content-Length", b"9" * 19)], False),
        ("POST", "/", [HOST, (b"host", b"b.example")], True),
    ],
)
def test_what_cannot_be_sent_is_refused(
    bench: Bench, method: str, target: str, headers: Headers, complete: bool
) -> None:
    handler = bench.request(method, target, headers, complete=complete)
    assert not handler.over
    handler.exchange.write(b"x")
    handler.exchange.pause_response()
    bench.turn()
    assert handler.code is StreamCode.PROTOCOL_ERROR
    assert bench.dialled == []


@pytest.mark.parametrize("coding", [b"chunked", b"identity", b"gzip, chunked"])
def test_the_framing_is_ours_whatever_the_head_says_of_it(bench: Bench, coding: bytes) -> None:
    headers = [(b"transfer-Encoding", coding), (b"Connection", b"X, TE"), (b"X", b"1")]
    handler = bench.request("POST", headers=[*headers, (b"te", b"Trailers"), HOST], complete=False)
    handler.exchange.write(b"x")
    assert bench.transport.drain() == (
        b"POST / HTTP/1.1\r\nHost: a.example\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n"
        b"Connection: TE\r\n\r\n1\r\nx\r\n"
    )
    bench.request(headers=headers)
    assert bench.transport.drain() == b"GET / HTTP/1.1\r\nHost: b.example\r\n\r\n"


def test_what_is_remembered_of_requests_is_bounded(bench: Bench) -> None:
    for number in range(3_000):
        bench.request(target=f"/{number}").abort()
    bench.request(target="/" + "x" * 3_000)
    assert 0 < len(outgoing._known) <= 1_024
    assert max(map(len, outgoing._known)) <= 256


def test_a_refused_request_may_be_aborted_first(bench: Bench) -> None:
    handler = bench.request("", "/")
    handler.abort()
    bench.turn()


def test_more_body_than_announced_fails(bench: Bench) -> None:
    handler = bench.request("PUT", headers=[(b"Content-Length", b"4")], complete=False)
    handler.exchange.write(b"123")
    handler.exchange.write(b"45")
    assert handler.code is StreamCode.PROTOCOL_ERROR
    assert bench.transport.buffered.endswith(b"\r\n\r\n123")
    assert bench.transport.closing == "abortConnection"


@pytest.mark.parametrize("headers", [[(b"Content-Length", b"1")], [HOST]])
def test_body_after_its_end_fails(bench: Bench, headers: Headers) -> None:
    handler = bench.request("PUT", headers=headers, complete=False)
    handler.exchange.write(b"1")
    handler.exchange.finish()
    handler.exchange.write(b"2")
    assert handler.code is StreamCode.PROTOCOL_ERROR


def test_body_for_a_complete_request_fails(bench: Bench) -> None:
    handler = bench.request("GET")
    handler.exchange.write(b"2")
    assert handler.code is StreamCode.PROTOCOL_ERROR


def test_less_body_than_announced_fails(bench: Bench) -> None:
    handler = bench.request("PUT", headers=[(b"Content-Length", b"4")], complete=False)
    handler.exchange.write(b"123")
    handler.exchange.finish()
    assert handler.code is StreamCode.PROTOCOL_ERROR
    assert bench.transport.closing == "abortConnection"


def test_a_bad_trailer_fails(bench: Bench) -> None:
    handler = bench.request("PUT", complete=False)
    handler.exchange.finish([(b"X", b"a\r\n\r\nGET / HTTP/1.1")])
    assert handler.code is StreamCode.PROTOCOL_ERROR
    assert b"GET" not in bench.transport.buffered


# Responses: each whole, byte by byte and followed by bytes that do not belong to it


class Case:
    def __init__(
        self,
        wire: bytes,
        status: int = 200,
        body: bytes = b"",
        *,
        method: str = "GET",
        trailers: Headers | None = None,
        interim: list[int] | None = None,
        kept: bool = True,
    ) -> None:
        self.wire = wire
        self.method = method
        self.kept = kept
        self.expected = (status, body, trailers or [], interim or [])


CASES = {
    "length": Case(OK, body=b"ok"),
    "empty": Case(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "without a reason": Case(b"HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n", 404),
    "chunked": Case(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
        b"2;a=b\r\nab\r\n3\r\ncde\r\n0\r\nX-Sum: 1\r\nx-sum: 2\r\n\r\n",
        body=b"abcde",
        trailers=[(b"X-Sum", b"1"), (b"x-sum", b"2")],
    ),
    "interim": Case(
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        b"HTTP/1.1 199 Odd\r\nContent-Length: 0\r\n\r\n" + OK,
        body=b"ok",
        interim=[100, 103, 199],
    ),
    "204": Case(b"HTTP/1.1 204 No\r\n\r\n", 204),
    "204 with a length": Case(b"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\n", 204),
    "304 with a length": Case(b"HTTP/1.1 304 No\r\nContent-Length: 2\r\n\r\n", 304),
    "304 with a coding": Case(b"HTTP/1.1 304 No\r\nTransfer-Encoding: chunked\r\n\r\n", 304),
    "HEAD": Case(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", method="HEAD"),
    "HEAD with nothing": Case(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", method="HEAD"),
    "HEAD, chunked": Case(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", method="HEAD"),
    "HEAD without a length": Case(b"HTTP/1.1 200 OK\r\n\r\n", method="HEAD", kept=False),
    "HEAD, interim": Case(
        b"HTTP/1.1 103 X\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
        method="HEAD",
        interim=[103],
    ),
    "close": Case(
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        body=b"ok",
        kept=False,
    ),
    "HTTP/1.0": Case(
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        body=b"ok",
        kept=False,
    ),
    "HTTP/1.0, kept": Case(
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
        body=b"ok",
    ),
    "an upgrade is offered": Case(
        b"HTTP/1.1 426 No\r\nUpgrade: x\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nno",
        426,
        b"no",
    ),
}


def whole(data: bytes) -> list[bytes]:
    return [data]


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def outcome(handler: Handler) -> tuple[int, bytes, Headers, list[int]]:
    assert handler.failure is None
    assert handler.head is not None
    assert handler.trailers is not None, "not ended"
    return (handler.head.status, handler.body, handler.trailers, handler.interim)


@pytest.mark.parametrize("cut", [whole, bytewise])
@pytest.mark.parametrize("name", CASES)
def test_a_response(bench: Bench, name: str, cut: Callable[[bytes], list[bytes]]) -> None:
    case = CASES[name]
    for _ in range(3):
        handler = bench.request(case.method)
        for part in cut(case.wire):
            assert not handler.over
            bench.transport.receive(part)
        assert outcome(handler) == case.expected
    assert len(bench.transports) == (1 if case.kept else 3)
    assert bench.transport.closing == ("" if case.kept else "loseConnection")


@pytest.mark.parametrize(
    "extra",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX: y\r\n\r\npoison",
        b"H",
        b"x",
        b"x\n",
        b"5",
        b"5\r\n",
        b"0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("name", CASES)
def test_bytes_after_a_response_cost_the_connection(bench: Bench, name: str, extra: bytes) -> None:
    case = CASES[name]
    handler = bench.request(case.method)
    bench.transport.receive(case.wire + extra)
    assert outcome(handler) == case.expected
    assert bench.transport.closing
    assert len(bench.pool.idle) == 0


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].kept])
def test_unasked_bytes_cost_an_idle_connection(bench: Bench, name: str) -> None:
    case = CASES[name]
    bench.request(case.method)
    bench.transport.receive(case.wire)
    assert len(bench.pool.idle) == 1
    bench.transport.receive(b"\n")
    assert bench.transport.closing == "abortConnection"
    assert len(bench.pool.idle) == 0
    bench.request()
    assert len(bench.transports) == 2


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\n\n",
        b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: y\rz\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x" * 300 + b": y\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n\x81\x00",
        b"HTTP/1.1 101 Switching\r\n\r\n" + OK,
        b"HTTP/1.1 103 X\r\nContent-Length: 3\r\n\r\n" + OK,
        b"HTTP/1.1 100 X\r\nTransfer-Encoding: chunked\r\n\r\n" + OK,
        b"HTTP/1.1 100 X\r\n\r\n" * 17 + OK,
        CHUNKED + b"x\r\n",
        CHUNKED + b"0x1\r\na\r\n",
        CHUNKED + b"-1\r\na\r\n",
        CHUNKED + b"1\na\r\n",
        CHUNKED + b"1\r\nab\r\n",
        CHUNKED + b"FFFFFFFFFFFFFFFFF\r\nab\r\n",
        CHUNKED + b"0\r\nContent-Length: 1\r\n\r\n",
    ],
)
@pytest.mark.parametrize("cut", [whole, bytewise])
def test_what_is_not_http_fails(
    bench: Bench, wire: bytes, cut: Callable[[bytes], list[bytes]]
) -> None:
    handler = bench.request()
    for part in cut(wire):
        bench.transport.decrypted(part)
    assert handler.code is StreamCode.ORIGIN_MALFORMED
    assert bench.transport.closing == "abortConnection"


def test_sixteen_interim_responses_pass(bench: Bench) -> None:
    for _ in range(2):
        handler = bench.request()
        bench.transport.receive(b"HTTP/1.1 102 X\r\n\r\n" * 16 + OK)
        assert outcome(handler) == (200, b"ok", [], [102] * 16)


# Limits


def test_a_head_within_its_limits_passes() -> None:
    bench = Bench(max_header_size=1000, max_header_count=10)
    handler = bench.request()
    fields = b"".join(b"X-%d: %s\r\n" % (i, b"v" * 80) for i in range(9))
    bench.transport.receive(
        b"HTTP/1.1 200 OK\r\n" + fields + b"Content-Length: 5000\r\n\r\n" + b"b" * 5000
    )
    assert outcome(handler) == (200, b"b" * 5000, [], [])


@pytest.mark.parametrize("cut", [whole, bytewise])
@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"v" * 1000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 " + b"v" * 1100 + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10 + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 OK\r\nX: " + b"v" * 1000 + b"\r\n\r\n" + OK,
        CHUNKED + b"1\r\na\r\n0\r\n" + b"X: y\r\n" * 11 + b"\r\n",
        CHUNKED + b"0\r\nX: " + b"v" * 1000 + b"\r\n\r\n",
    ],
)
def test_a_head_over_a_limit_fails(wire: bytes, cut: Callable[[bytes], list[bytes]]) -> None:
    bench = Bench(max_header_size=1000, max_header_count=10)
    handler = bench.request()
    for part in cut(wire):
        bench.transport.decrypted(part)
    assert handler.code is StreamCode.TOO_LARGE
    assert bench.transport.closing == "abortConnection"


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 200 OK\r\nX",
        b"HTTP/1.1 200 ",
        CHUNKED + b"1;x=",
        CHUNKED + b"1\r\na\r\n0\r\nX: ",
    ],
)
def test_a_head_that_never_ends_fails_in_time(start: bytes) -> None:
    bench = Bench(max_header_size=1000)
    handler = bench.request()
    bench.transport.receive(start)
    for _ in range(11):
        assert handler.failure is None or handler.code is StreamCode.TOO_LARGE
        bench.transport.decrypted(b"x" * 100)
    assert handler.over


# Ends of connections


CLOSE_DELIMITED = b"HTTP/1.1 200 OK\r\n\r\nhello"


def test_a_body_without_a_length_ends_with_a_clean_close(bench: Bench) -> None:
    handler = bench.request()
    bench.transport.receive(CLOSE_DELIMITED)
    assert not handler.over
    bench.transport.end(ConnectionDone())
    assert outcome(handler) == (200, b"hello", [], [])


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (b"", ConnectionDone()),
        (b"", ConnectionLost()),
        (b"HTTP/1.1 200 OK\r\n", ConnectionDone()),
        (b"HTTP/1.1 100 Continue\r\n\r\n", ConnectionDone()),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", ConnectionDone()),
        (CHUNKED + b"1\r\na\r\n", ConnectionDone()),
        (CHUNKED + b"1\r\na\r\n0\r\n", ConnectionDone()),
        (CLOSE_DELIMITED, ConnectionLost()),
    ],
)
def test_a_truncated_response_fails(bench: Bench, wire: bytes, reason: Exception) -> None:
    handler = bench.request()
    if wire:
        bench.transport.receive(wire)
    bench.transport.end(reason)
    assert handler.code is StreamCode.ORIGIN_CLOSED
    assert len(bench.dialled) == 1


def test_an_early_answer_ends_the_request(bench: Bench) -> None:
    handler = bench.request("POST", complete=False)
    handler.exchange.write(b"a")
    bench.transport.receive(OK)
    assert outcome(handler)[:2] == (200, b"ok")
    assert bench.transport.closing == "abortConnection"
    handler.exchange.write(b"b")
    handler.exchange.finish()
    handler.exchange.pause_response()
    handler.exchange.resume_response()
    handler.exchange.abort()
    bench.transport.end()


def test_an_answer_while_the_buffer_is_full_is_early_too(bench: Bench) -> None:
    handler = bench.request("POST", complete=False)
    handler.exchange.write(b"a" * 100_000)
    handler.exchange.finish()
    bench.transport.receive(OK)
    assert outcome(handler)[:2] == (200, b"ok")
    assert bench.transport.closing == "abortConnection"


@pytest.mark.parametrize("body", [b"", b"a"])
def test_an_answer_to_the_last_byte_is_not_early(bench: Bench, body: bytes) -> None:
    length = (b"Content-Length", b"%d" % len(body))
    handler = bench.request("POST", headers=[length], complete=False)
    handler.exchange.write(body)
    bench.transport.receive(OK)
    assert outcome(handler)[:2] == (200, b"ok")
    handler.exchange.finish()
    assert len(bench.pool.idle) == 1


@pytest.mark.parametrize("event", ["informed", "responded", "body_received"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_abort_from_within(bench: Bench, event: str, method: str) -> None:
    handler = Handler()
    handler.hooks[event] = handler.abort
    bench.request(method, handler=handler)
    bench.transport.receive(
        b"HTTP/1.1 100 X\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\na\r\n1\r\nb\r\n0\r\n\r\nHTTP/1.1"
    )
    if (event, method) == ("body_received", "HEAD"):
        assert not handler.aborted
        return
    assert handler.aborted
    assert bench.transport.closing == "abortConnection"
    assert len(bench.pool.idle) == 0
    bench.transport.end()


def test_abort_drops_the_connection_at_once(bench: Bench) -> None:
    handler = bench.request()
    handler.abort()
    handler.abort()
    assert bench.transport.closing == "abortConnection"
    bench.transport.end()
    bench.turn(1000)


def test_a_request_from_within_body_ended_reuses_the_connection(bench: Bench) -> None:
    first, second = Handler(), Handler()
    first.hooks["body_ended"] = lambda: bench.request(handler=second)
    bench.request(handler=first)
    bench.transport.receive(OK)
    assert second.exchange is not None
    assert second.exchange.reused
    bench.transport.receive(OK)
    assert outcome(second)[:2] == (200, b"ok")


def test_a_handler_that_raises_ends_its_exchange(bench: Bench) -> None:
    handler = Handler()
    handler.hooks["responded"] = lambda: 1 // 0
    bench.request(handler=handler)
    bench.transport.receive(OK)
    assert handler.code is StreamCode.INTERNAL_ERROR
    assert bench.transport.closing == "abortConnection"


# Flow control


def test_a_full_buffer_is_congestion(bench: Bench) -> None:
    handler = bench.request("POST", complete=False)
    exchange = handler.exchange
    exchange.write(b"a" * 1000)
    assert not exchange.congested
    bench.transport.drain()
    exchange.write(b"a" * 100_000)
    assert exchange.congested
    exchange.write(b"a")  # pausing is advice
    assert exchange.congested
    assert handler.drains == 0
    bench.transport.drain()
    assert not exchange.congested
    assert handler.drains == 1
    bench.transport.producer.resumeProducing()
    assert handler.drains == 1


def test_draining_may_fill_the_buffer_again(bench: Bench) -> None:
    handler = bench.request("POST", complete=False)
    handler.exchange.write(b"a" * 100_000)
    handler.hooks["request_drained"] = lambda: handler.exchange.write(b"b" * 100_000)
    bench.transport.drain()
    assert handler.exchange.congested
    bench.transport.drain()
    assert handler.drains == 2


def test_pausing_the_response_is_idempotent(bench: Bench) -> None:
    handler = bench.request()
    exchange = handler.exchange
    exchange.resume_response()
    exchange.pause_response()
    exchange.pause_response()
    assert not bench.transport.reading
    exchange.resume_response()
    exchange.resume_response()
    assert bench.transport.reading


def test_a_connection_is_read_again_when_its_paused_exchange_ends(bench: Bench) -> None:
    handler = bench.request()
    handler.hooks["responded"] = lambda: handler.exchange.pause_response()
    bench.transport.receive(OK)
    assert outcome(handler)[:2] == (200, b"ok")
    assert bench.transport.reading
    handler.exchange.resume_response()
    bench.request()
    assert bench.transport.reading


def test_what_tls_delivers_after_the_pause_is_taken(bench: Bench) -> None:
    handler = bench.request()
    handler.exchange.pause_response()
    bench.transport.decrypted(OK[:-1])
    assert handler.body == b"o"
    assert not bench.transport.reading
    bench.transport.decrypted(OK[-1:])
    assert handler.over


# Timeouts


def test_an_exchange_without_a_byte_either_way_fails() -> None:
    bench = Bench(idle_timeout=10)
    handler = bench.request("POST", complete=False)
    bench.turn(9)
    handler.exchange.write(b"a")
    bench.turn(9)
    bench.transport.receive(b"HTTP/1.1 200 OK\r\n")
    bench.turn(9.5)
    assert not handler.over
    bench.turn(1.5)
    assert handler.code is StreamCode.IDLE_TIMEOUT
    assert bench.transport.closing == "abortConnection"
    bench.transport.end()
    bench.turn(1)
    assert bench.clock.getDelayedCalls() == []


@pytest.mark.parametrize("reused", [False, True])
def test_time_runs_from_the_last_byte_of_the_request(reused: bool) -> None:
    bench = Bench(idle_timeout=30, keep_alive=5)
    if reused:
        bench.request()
        bench.transport.receive(OK)
    handler = bench.request("PUT", complete=False)
    assert handler.exchange.reused is reused
    bench.turn(29)
    handler.exchange.write(b"x")
    bench.turn(29)
    assert not handler.over
    bench.turn(2)
    assert handler.code is StreamCode.IDLE_TIMEOUT


@pytest.mark.parametrize("reused", [False, True])
def test_time_runs_for_a_request_without_a_body(reused: bool) -> None:
    bench = Bench(idle_timeout=30, keep_alive=5)
    if reused:
        bench.request()
        bench.transport.receive(OK)
    handler = bench.request()
    bench.turn(29)
    assert not handler.over
    bench.turn(2)
    assert handler.code is StreamCode.IDLE_TIMEOUT


def test_draining_is_life() -> None:
    bench = Bench(idle_timeout=10)
    handler = bench.request("POST", complete=False)
    handler.exchange.write(b"a" * 100_000)
    bench.turn(9)
    bench.transport.drain()
    bench.turn(9)
    assert not handler.over
    bench.turn(2)
    assert handler.code is StreamCode.IDLE_TIMEOUT


def test_no_time_runs_while_we_are_paused() -> None:
    bench = Bench(idle_timeout=10)
    handler = bench.request()
    handler.exchange.pause_response()
    bench.turn(60)
    bench.transport.decrypted(b"HTTP/1.1 ")
    bench.turn(60)
    handler.exchange.resume_response()
    bench.turn(9)
    assert not handler.over
    bench.turn(2)
    assert handler.code is StreamCode.IDLE_TIMEOUT


# Dialling


def test_what_is_written_while_dialling_is_sent_then() -> None:
    bench = Bench(dial_at_once=False)
    handler = bench.request("POST", complete=False)
    handler.exchange.write(b"hello")
    handler.exchange.finish()
    assert not handler.exchange.congested
    bench.answer_dial()
    assert bench.transport.drain().endswith(b"chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    assert not handler.exchange.reused
    assert handler.drains == 0


def test_much_written_while_dialling_is_congestion() -> None:
    bench = Bench(dial_at_once=False)
    handler = bench.request("POST", complete=False)
    handler.exchange.write(b"a" * 60_000)
    assert not handler.exchange.congested
    handler.exchange.write(b"a" * 6_000)
    assert handler.exchange.congested
    bench.answer_dial()
    assert handler.exchange.congested  # now it is the transport that is full
    assert handler.drains == 0
    bench.transport.drain()
    assert handler.drains == 1
    assert bench.transport.sent.count(b"a" * 6_000) == 11


def test_congestion_ends_with_a_connection_that_takes_it_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("originfakes.HIGH_WATER", 1_000_000)
    bench = Bench(dial_at_once=False)
    handler = bench.request("POST", complete=False)
    handler.exchange.write(b"a" * 70_000)
    assert handler.exchange.congested
    bench.answer_dial()
    assert not handler.exchange.congested
    assert handler.drains == 1


def test_a_pause_while_dialling_holds_from_the_first_byte() -> None:
    bench = Bench(dial_at_once=False)
    handler = bench.request()
    handler.exchange.pause_response()
    bench.answer_dial()
    assert not bench.transport.reading
    assert bench.transport.buffered.startswith(b"GET / ")
    handler.exchange.resume_response()
    assert bench.transport.reading


def test_a_failed_dial_says_why() -> None:
    bench = Bench(dial_at_once=False)
    handler = bench.request()
    bench.answer_dial(OriginError(StreamCode.CONNECTION_REFUSED, "refused by 192.0.2.1"))
    bench.turn()
    assert handler.failure == (StreamCode.CONNECTION_REFUSED, "refused by 192.0.2.1")


def test_a_dial_that_fails_at_once_fails_after_request_has_returned() -> None:
    bench = Bench()
    bench.dial_error = OriginError(StreamCode.NOT_ALLOWED, "not on the list")
    handler = bench.request()
    assert not handler.over
    bench.turn()
    assert handler.code is StreamCode.NOT_ALLOWED


def test_an_error_that_the_dialler_should_not_raise(logged: list[LogEvent]) -> None:
    bench = Bench(dial_at_once=False)
    handler = bench.request()
    bench.answer_dial(ZeroDivisionError("secret"))
    bench.turn()
    assert handler.failure == (StreamCode.INTERNAL_ERROR, "dialling failed")
    assert logged[0]["log_failure"].check(ZeroDivisionError)


def test_a_handler_that_raises_when_the_dial_is_done(
    logged: list[LogEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("originfakes.HIGH_WATER", 1_000_000)
    bench = Bench(dial_at_once=False)
    handler = Handler()
    handler.hooks["request_drained"] = lambda: 1 // 0
    bench.request("POST", complete=False, handler=handler)
    handler.exchange.write(b"x" * MAX_HELD)
    bench.answer_dial()
    assert handler.drains == 1
    assert logged[0]["log_failure"].check(ZeroDivisionError)


def test_a_connection_that_is_closed_when_the_dial_is_done() -> None:
    bench = Bench(dial_at_once=False)
    handler = bench.request()
    bench.closed_at_once = True
    bench.answer_dial()
    bench.turn()
    assert handler.code is StreamCode.ORIGIN_CLOSED


def test_bytes_before_the_dial_is_done_cost_the_connection() -> None:
    bench = Bench()
    protocol = bench.pool.factory.buildProtocol(None)
    transport = Transport()
    protocol.makeConnection(transport)
    protocol.dataReceived(OK)
    assert transport.closing == "abortConnection"


def test_abort_cancels_the_dial(logged: list[LogEvent]) -> None:
    bench = Bench(dial_at_once=False)
    handler = bench.request()
    handler.abort()
    bench.turn()
    assert bench.cancelled == 1
    assert logged == []


def test_abort_between_the_failed_dial_and_its_report() -> None:
    bench = Bench(dial_at_once=False)
    handler = bench.request()
    bench.answer_dial(OriginError(StreamCode.DNS_ERROR, "no such name"))
    handler.abort()
    bench.turn()

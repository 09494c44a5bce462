"""The server side of HTTP: what it takes, what it refuses, and in which order it answers."""

import gc
import re
import weakref

import pytest
from http_clients import GET, LIMITS, Application, Server, Transport, answer, request
from twisted.internet.address import IPv6Address, UNIXAddress
from twisted.internet.task import Clock

from sockgw.deadlines import Deadlines
from sockgw.http.framing import HttpError, check_host
from sockgw.http.front import ClientFactory
from sockgw.http.patience import ServerLimits
from sockgw.protocol.heads import ResponseHead

# ---------------------------------------------------------------------- requests that are taken

# name: (bytes, method, target, host, headers without Host, body, trailers)
TAKEN = {
    "simple": (GET, b"GET", b"/", b"a.example", [], b"", []),
    "leading empty line": (b"\r\n" + GET, b"GET", b"/", b"a.example", [], b"", []),
    "query": (request(b"GET /a?b=c HTTP/1.1"), b"GET", b"/a?b=c", b"a.example", [], b"", []),
    "options": (request(b"OPTIONS * HTTP/1.1"), b"OPTIONS", b"*", b"a.example", [], b"", []),
    "two slashes": (request(b"GET //b/c HTTP/1.1"), b"GET", b"//b/c", b"a.example", [], b"", []),
    "http/1.0 without host": (
        request(b"GET / HTTP/1.0", host=b""),
        b"GET",
        b"/",
        b"",
        [],
        b"",
        [],
    ),
    "absolute": (
        request(b"GET http://A.example:80/x?y HTTP/1.1"),
        b"GET",
        b"/x?y",
        b"A.example:80",
        [],
        b"",
        [],
    ),
    "absolute, no path": (
        request(b"GET HTTPS://a.example?q HTTP/1.1"),
        b"GET",
        b"/?q",
        b"a.example",
        [],
        b"",
        [],
    ),
    "absolute, default port": (
        request(b"GET https://a.example:443/ HTTP/1.1", host=b"Host: A.example"),
        b"GET",
        b"/",
        b"a.example:443",
        [],
        b"",
        [],
    ),
    "absolute options": (
        request(b"OPTIONS http://a.example HTTP/1.1"),
        b"OPTIONS",
        b"*",
        b"a.example",
        [],
        b"",
        [],
    ),
    "absolute in 1.0": (
        request(b"GET http://b.example/ HTTP/1.0", host=b""),
        b"GET",
        b"/",
        b"b.example",
        [],
        b"",
        [],
    ),
    "white space around values": (
        request(b"GET / HTTP/1.1", b"A: \t b c \t", b"B:", host=b"Host: a.example \t"),
        b"GET",
        b"/",
        b"a.example",
        [(b"A", b"b c"), (b"B", b"")],
        b"",
        [],
    ),
    "length": (
        request(b"POST /p HTTP/1.1", b"Content-Length: 05", body=b"hello"),
        b"POST",
        b"/p",
        b"a.example",
        [(b"Content-Length", b"05")],
        b"hello",
        [],
    ),
    "length zero": (
        request(b"POST /p HTTP/1.1", b"Content-Length: 0"),
        b"POST",
        b"/p",
        b"a.example",
        [(b"Content-Length", b"0")],
        b"",
        [],
    ),
    "chunked": (
        request(
            b"POST / HTTP/1.1",
            b"Transfer-Encoding: CHUNKED ",
            body=b'5;a=b;c="d"\r\nhello\r\n01\r\n!\r\n0;z\r\n\r\n',
        ),
        b"POST",
        b"/",
        b"a.example",
        [(b"Transfer-Encoding", b"CHUNKED")],
        b"hello!",
        [],
    ),
    "trailers": (
        request(
            b"PUT / HTTP/1.1",
            b"Transfer-Encoding: chunked",
            body=b"1\r\nx\r\n0\r\nA: 1\r\nHost: evil\r\n\r\n",
        ),
        b"PUT",
        b"/",
        b"a.example",
        [(b"Transfer-Encoding", b"chunked")],
        b"x",
        [(b"A", b"1"), (b"Host", b"evil")],
    ),
    "h2c": (
        request(b"GET / HTTP/1.1", b"Upgrade: h2c", b"Connection: Upgrade"),
        b"GET",
        b"/",
        b"a.example",
        [(b"Upgrade", b"h2c"), (b"Connection", b"Upgrade")],
        b"",
        [],
    ),
    "h2c with a length": (
        request(
            b"POST / HTTP/1.1",
            b"Upgrade: H2C",
            b"Connection: Upgrade",
            b"Content-Length: 5",
            body=b"hello",
        ),
        b"POST",
        b"/",
        b"a.example",
        [(b"Upgrade", b"H2C"), (b"Connection", b"Upgrade"), (b"Content-Length", b"5")],
        b"hello",
        [],
    ),
    "h2c, chunked": (
        request(
            b"POST / HTTP/1.1",
            b"Upgrade: h2c",
            b"Connection: Upgrade",
            b"Transfer-Encoding: chunked",
            body=b"5\r\nhello\r\n0\r\nA: b\r\n\r\n",
        ),
        b"POST",
        b"/",
        b"a.example",
        [
            (b"Upgrade", b"h2c"),
            (b"Connection", b"Upgrade"),
            (b"Transfer-Encoding", b"chunked"),
        ],
        b"hello",
        [(b"A", b"b")],
    ),
    "websocket in HTTP/1.0": (
        request(
            b"POST / HTTP/1.0",
            b"Upgrade: websocket",
            b"Connection: Upgrade, keep-alive",
            b"Content-Length: 2",
            body=b"hi",
        ),
        b"POST",
        b"/",
        b"a.example",
        [
            (b"Upgrade", b"websocket"),
            (b"Connection", b"Upgrade, keep-alive"),
            (b"Content-Length", b"2"),
        ],
        b"hi",
        [],
    ),
    "upgrade that Connection does not name": (
        request(b"GET / HTTP/1.1", b"Upgrade: websocket"),
        b"GET",
        b"/",
        b"a.example",
        [(b"Upgrade", b"websocket")],
        b"",
        [],
    ),
}


@pytest.mark.parametrize("trailing", [False, True])
@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("name", TAKEN)
def test_request_is_taken(name, step, trailing):
    data, method, target, host, headers, body, trailers = TAKEN[name]
    server = Server()
    server.application.on_end = answer
    server.feed(data + GET * trailing, step)
    first = server.handlers[0]
    exchange = first.exchange
    assert (exchange.head.method, exchange.head.target) == (method, target)
    assert exchange.host == host
    assert [h for h in exchange.head.headers if h[0] != b"Host"] == headers
    assert first.body == body
    assert first.events[-1] == ("end", trailers)
    assert exchange.bytes_received == len(body)
    assert exchange.body_expected == bool(body)
    assert exchange.finished
    keep_alive = not data.split(b"\r\n")[0].endswith(b"1.0") or b"keep-alive" in data
    assert server.statuses == [200] * (2 if trailing and keep_alive else 1)
    assert server.closing is not keep_alive


def test_connection_is_described():
    server = Server()
    connection = server.connection
    assert (connection.peer_address, connection.peer_port) == ("192.0.2.7", 40000)
    assert connection.local_port == 3000
    assert connection.secure is False
    assert connection.notes is None
    server.feed(GET)
    exchange = server.exchange
    assert exchange.connection is connection
    assert exchange.http_version == (1, 1)
    assert exchange.started == server.clock.seconds()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (IPv6Address("TCP", "::ffff:192.0.2.9", 5), ("192.0.2.9", 5)),
        (IPv6Address("TCP", "::FFFF:192.0.2.9", 5), ("192.0.2.9", 5)),
        (IPv6Address("TCP", "2001:db8::1", 5), ("2001:db8::1", 5)),
        (IPv6Address("TCP", "fe80::1%eth0", 5), ("fe80::1", 5)),
        (UNIXAddress("/run/x"), ("", 0)),
    ],
)
def test_addresses(address, expected):
    server = Server()
    transport = Transport(server.clock)
    transport.getPeer = lambda: address
    transport.protocol = server.connection
    server.connection.makeConnection(transport)
    assert (server.connection.peer_address, server.connection.peer_port) == expected


# ---------------------------------------------------------------------- requests that are refused

CHUNKED = b"Transfer-Encoding: chunked"
POST = b"POST / HTTP/1.1"

# Where each line is a way to make two readers see different requests, or no request at all.
REFUSED = {
    # lengths
    "length and chunked": (400, request(POST, b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n")),
    "chunked and length": (400, request(POST, CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n")),
    "two lengths": (400, request(POST, b"Content-Length: 5", b"Content-Length: 6", body=b"hello!")),
    "same length twice": (
        400,
        request(POST, b"Content-Length: 5", b"Content-Length: 5", body=b"hello"),
    ),
    "list of lengths": (400, request(POST, b"Content-Length: 5, 5", body=b"hello")),
    "signed length": (400, request(POST, b"Content-Length: +5", body=b"hello")),
    "negative length": (400, request(POST, b"Content-Length: -5", body=b"hello")),
    "empty length": (400, request(POST, b"Content-Length:", body=b"hello")),
    "hexadecimal length": (400, request(POST, b"Content-Length: 0x5", body=b"hello")),
    "length with underscore": (400, request(POST, b"Content-Length: 1_0", body=b"hello")),
    "length that overflows": (400, request(POST, b"Content-Length: 18446744073709551621")),
    "h2c with both": (
        400,
        request(
            POST,
            b"Upgrade: h2c",
            b"Connection: Upgrade",
            b"Content-Length: 5",
            CHUNKED,
            body=b"0\r\n\r\n",
        ),
    ),
    # transfer codings
    "gzip, chunked": (501, request(POST, b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n")),
    "chunked, gzip": (400, request(POST, b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n")),
    "gzip": (501, request(POST, b"Transfer-Encoding: gzip", body=b"0\r\n\r\n")),
    "identity": (501, request(POST, b"Transfer-Encoding: identity", body=b"0\r\n\r\n")),
    "xchunked": (501, request(POST, b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n")),
    "chunked twice": (400, request(POST, CHUNKED, CHUNKED, body=b"0\r\n\r\n")),
    "gzip, then chunked": (
        501,
        request(POST, b"Transfer-Encoding: gzip", CHUNKED, body=b"0\r\n\r\n"),
    ),
    "chunked, then identity": (
        400,
        request(POST, CHUNKED, b"Transfer-Encoding: identity", body=b"0\r\n\r\n"),
    ),
    "chunked, chunked": (400, request(POST, b"Transfer-Encoding: chunked, chunked")),
    "chunked with parameter": (501, request(POST, b"Transfer-Encoding: chunked;q=1")),
    "empty coding": (400, request(POST, b"Transfer-Encoding:")),
    "coding after vertical tab": (400, request(POST, b"Transfer-Encoding: \x0bchunked")),
    "coding in http/1.0": (400, request(b"POST / HTTP/1.0", CHUNKED, body=b"0\r\n\r\n")),
    "h2c with gzip": (
        501,
        request(POST, b"Upgrade: h2c", b"Connection: Upgrade", b"Transfer-Encoding: gzip"),
    ),
    # field syntax
    "space before colon": (400, request(POST, b"Content-Length : 5", body=b"hello")),
    "obs-fold": (400, request(b"GET / HTTP/1.1", b"A: b\r\n c")),
    "space before first field": (400, request(b"GET / HTTP/1.1", host=b" Host: a")),
    "no name": (400, request(b"GET / HTTP/1.1", b": b")),
    "no colon": (400, request(b"GET / HTTP/1.1", b"abc")),
    "space in name": (400, request(b"GET / HTTP/1.1", b"a b: c")),
    "NUL in name": (400, request(b"GET / HTTP/1.1", b"a\0: c")),
    "NUL in value": (400, request(b"GET / HTTP/1.1", b"a: \0")),
    "DEL in value": (400, request(b"GET / HTTP/1.1", b"a: \x7f")),
    "bare CR in value": (400, request(b"GET / HTTP/1.1", b"a: b\rc: d")),
    "bare LF": (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    "bare LF after a field": (400, request(b"GET / HTTP/1.1", b"a: b\nc: d")),
    "high name": (400, request(b"GET / HTTP/1.1", b"\xe4: c")),
    "name too long": (431, request(b"GET / HTTP/1.1", b"a" * 257 + b": b")),
    # chunks
    "chunk size with 0x": (400, request(POST, CHUNKED, body=b"0x5\r\nhello\r\n0\r\n\r\n")),
    "chunk size signed": (400, request(POST, CHUNKED, body=b"+5\r\nhello\r\n0\r\n\r\n")),
    "chunk size negative": (400, request(POST, CHUNKED, body=b"-5\r\nhello\r\n0\r\n\r\n")),
    "chunk size empty": (400, request(POST, CHUNKED, body=b"\r\nhello\r\n0\r\n\r\n")),
    "chunk size with space": (400, request(POST, CHUNKED, body=b"5 \r\nhello\r\n0\r\n\r\n")),
    "chunk size after space": (400, request(POST, CHUNKED, body=b" 5\r\nhello\r\n0\r\n\r\n")),
    "chunk size overflows": (400, request(POST, CHUNKED, body=b"1" * 17 + b"\r\n")),
    "chunk size not hexadecimal": (400, request(POST, CHUNKED, body=b"g\r\n")),
    "chunk line with bare LF": (400, request(POST, CHUNKED, body=b"5\nhello\r\n0\r\n\r\n")),
    "LF in extension": (400, request(POST, CHUNKED, body=b"5;a\nhello\r\n0\r\n\r\n")),
    "chunk too long": (400, request(POST, CHUNKED, body=b"5\r\nhello!\r\n0\r\n\r\n")),
    "chunk ended by LF": (400, request(POST, CHUNKED, body=b"5\r\nhello\n0\r\n\r\n")),
    "length in trailers": (
        400,
        request(POST, CHUNKED, body=b"0\r\nContent-Length: 9\r\n\r\n"),
    ),
    "bad trailer": (400, request(POST, CHUNKED, body=b"0\r\na b: c\r\n\r\n")),
    # hosts
    "no host": (400, request(host=b"")),
    "two hosts": (400, request(b"GET / HTTP/1.1", b"Host: b.example")),
    "same host twice": (400, request(b"GET / HTTP/1.1", b"host: a.example")),
    "two hosts in 1.0": (400, request(b"GET / HTTP/1.0", b"Host: b.example")),
    "empty host": (400, request(host=b"Host:")),
    "list of hosts": (400, request(host=b"Host: a.example, b.example")),
    "host with path": (400, request(host=b"Host: a.example/b")),
    "host with user": (400, request(host=b"Host: me@a.example")),
    "host with space": (400, request(host=b"Host: a b")),
    "host with high byte": (400, request(host=b"Host: \xe4.example")),
    "host with escape": (400, request(host=b"Host: a%2eexample")),
    "port not a number": (400, request(host=b"Host: a.example:8o")),
    "port out of range": (400, request(host=b"Host: a.example:65536")),
    "only a port": (400, request(host=b"Host: :80")),
    "broken IPv6": (400, request(host=b"Host: [::1")),
    "IPv6 with zone": (400, request(host=b"Host: [fe80::1%25eth0]")),
    # targets
    "fragment": (400, request(b"GET /a#b HTTP/1.1")),
    "fragment, absolute": (400, request(b"GET http://a.example/#b HTTP/1.1")),
    "other authority": (400, request(b"GET http://b.example/ HTTP/1.1")),
    "other port": (400, request(b"GET http://a.example:81/ HTTP/1.1")),
    "default port of the other scheme": (400, request(b"GET http://a.example:443/ HTTP/1.1")),
    "default port of no scheme": (400, request(b"GET https://a.example:80/ HTTP/1.1")),
    "user in target": (400, request(b"GET http://me@a.example/ HTTP/1.1")),
    "no authority": (400, request(b"GET http:///a HTTP/1.1")),
    "other scheme": (400, request(b"GET ftp://a.example/ HTTP/1.1")),
    "script": (400, request(b"GET javascript:x HTTP/1.1")),
    "asterisk": (400, request(b"GET * HTTP/1.1")),
    "authority-form": (400, request(b"GET a.example:80 HTTP/1.1")),
    "relative": (400, request(b"GET a/b HTTP/1.1")),
    "high byte": (400, request(b"GET /\xe4 HTTP/1.1")),
    "control character": (400, request(b"GET /\x01 HTTP/1.1")),
    "space": (400, request(b"GET /a b HTTP/1.1")),
    # methods and versions
    "connect": (501, request(b"CONNECT a.example:443 HTTP/1.1")),
    "trace": (501, request(b"TRACE / HTTP/1.1")),
    "lower case": (400, request(b"get / HTTP/1.1")),
    "unknown": (400, request(b"BREW / HTTP/1.1")),
    "http/0.9": (505, request(b"GET / HTTP/0.9")),
    "http/0.9, simple": (505, b"GET /\r\n\r\n"),
    "http/2.0": (505, request(b"GET / HTTP/2.0")),
    "http/1.2": (400, request(b"GET / HTTP/1.2")),
    "http/2 preface": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "rtsp": (505, request(b"DESCRIBE / RTSP/1.0")),
    "rtsp with a method of both": (505, request(b"GET / RTSP/1.0")),
    "rtsp/1.1": (505, request(b"OPTIONS /x RTSP/1.1")),
    "rtsp target": (400, request(b"OPTIONS rtsp://a.example/ HTTP/1.0", host=b"")),
    "ice": (505, request(b"SOURCE / ICE/1.0")),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    # what is not implemented
    "upgrade to what is no name": (
        400,
        request(b"GET / HTTP/1.1", b'Upgrade: web"socket', b"Connection: Upgrade"),
    ),
    "upgrade to too much": (
        400,
        request(b"GET / HTTP/1.1", b"Upgrade: " + b"w" * 257, b"Connection: Upgrade"),
    ),
    "expectation": (417, request(POST, b"Expect: 200-ok", b"Content-Length: 1")),
}


@pytest.mark.parametrize("trailing", [False, True])
@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("name", REFUSED)
def test_request_is_refused(name, step, trailing):
    status, data = REFUSED[name]
    server = Server()
    server.feed(data + GET * trailing, step)
    assert server.statuses == [status]
    [(_, reason, _)] = server.application.refusals
    assert server.written.endswith(b"\r\n\r\n" + reason.encode())
    assert b"\r\nConnection: close\r\n" in server.written
    # If the application was told of it at all (its head was fine), then not as a whole one.
    for handler in server.handlers:
        assert not handler.ended
        assert handler.lost
    assert server.transport.write_closing
    server.feed(GET)
    assert server.statuses == [status]
    server.advance(3)
    assert server.transport.lost
    assert server.application.connections == 0


def test_refusal_waits_its_turn():
    server = Server()
    server.feed(GET + request(b"GET /b HTTP/1.1") + request(host=b""))
    assert server.statuses == []
    answer(server.handlers[0].exchange, b"first")
    answer(server.handlers[1].exchange, b"second")
    assert server.statuses == [200, 200, 400]
    assert server.written.index(b"first") < server.written.index(b"second")
    assert server.closing


def test_refused_head_is_told_where_there_is_one():
    server = Server()
    server.feed(request(b"GET /a HTTP/1.1", b"Expect: much"))
    head = server.application.refusals[0][2]
    assert (head.method, head.target) == (b"GET", b"/a")
    server = Server()
    server.feed(b"bad\r\n")
    assert server.application.refusals[0][2] is None


def test_refused_head_request_gets_no_body():
    server = Server()
    server.feed(request(b"HEAD / HTTP/1.1", b"Expect: much"))
    assert server.statuses == [417]
    assert server.written.endswith(b"\r\n\r\n")
    assert b"Content-Length: 33\r\n" in server.written


def test_body_that_turns_out_malformed_breaks_a_response_that_has_begun():
    server = Server()
    server.feed(request(POST, CHUNKED, body=b"5\r\nhello\r\n"))
    server.exchange.respond(ResponseHead(200, b"OK", []))
    server.exchange.write(b"half")
    server.feed(b"zz\r\n")
    assert server.handlers[0].lost
    assert server.statuses == [200]
    assert not server.written.endswith(b"0\r\n\r\n")
    assert server.closing


def test_http_error_in_words():
    error = HttpError(400, "no Host")
    assert (error.status, error.reason, str(error)) == (400, "no Host", "no Host")


@pytest.mark.parametrize(
    "host",
    [b"a", b"a.example", b"a_b.example", b"A.EXAMPLE:8080", b"192.0.2.1:1", b"[::1]", b"[::1]:80"],
)
def test_hosts_in_use(host):
    assert check_host(host) == host
    assert check_host(host) == host  # from the cache


# ---------------------------------------------------------------------- limits


def padded_head(size):
    """A head of exactly so many bytes."""
    bare = len(request(b"GET / HTTP/1.1", b"A: "))
    return request(b"GET / HTTP/1.1", b"A: " + b"x" * (size - bare))


@pytest.mark.parametrize("step", [0, 1, 100])
@pytest.mark.parametrize("before", [b"", GET])
def test_head_of_the_greatest_size(step, before):
    server = Server()
    server.application.on_end = answer
    server.feed(before + padded_head(2048), step)
    assert server.statuses == [200] * (2 if before else 1)
    server = Server()
    server.application.on_end = answer
    server.feed(before + padded_head(2049), step)
    assert server.statuses[-1] == 431
    assert len(server.handlers) == bool(before)


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: ", 431),
        (b"GET / HTTP/1.1\r\n", 431),
        (b"GET /", 414),
        (b"GET http://", 414),
        (b"\n", 431),
    ],
)
def test_unfinished_head_is_cut_off_at_the_limit(start, status):
    server = Server()
    server.feed(start)
    filler = b"\n" if start == b"\n" else b"x"
    for _ in range(len(start), 2048):
        server.feed(filler)
    assert not server.closing
    server.feed(filler)
    assert server.statuses == [status]


def test_unfinished_head_in_one_piece():
    server = Server()
    server.feed(b"GET / HTTP/1.1\r\nA: " + b"x" * 100_000)
    assert server.statuses == [431]


def test_unfinished_head_after_a_request():
    server = Server()
    server.application.on_end = answer
    server.feed(GET + b"GET / HTTP/1.1\r\nA: " + b"x" * 1000)
    server.feed(b"x" * 2049)
    assert server.statuses == [200, 431]


def test_number_of_fields():
    fields = [b"a: b"] * 19
    server = Server()
    server.feed(request(b"GET / HTTP/1.1", *fields))
    assert len(server.handlers) == 1
    server = Server()
    server.feed(request(b"GET / HTTP/1.1", *fields, b"a: b"))
    assert server.statuses == [431]
    server = Server()
    server.feed(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 22)
    assert server.statuses == [431]


def test_trailers_are_bounded():
    for trailers in (b"a: b\r\n" * 21, b"a: " + b"x" * 2048 + b"\r\n"):
        for end in (b"", b"\r\n"):
            server = Server()
            server.feed(request(POST, CHUNKED, body=b"1\r\nx\r\n0\r\n"))
            server.feed(trailers + end)
            if not end and len(trailers) < 2048:
                continue  # few bytes so far: judged at the end
            assert server.statuses[0] in (400, 431)
            assert server.handlers[0].lost
    server = Server()
    server.feed(request(POST, CHUNKED, body=b"1\r\nx\r\n0\r\n" + b"a: b\r\n" * 20 + b"\r\n"))
    assert server.handlers[0].events[-1] == ("end", [(b"a", b"b")] * 20)


@pytest.mark.parametrize("step", [1, 100, 1000])
def test_chunk_extensions_are_bounded(step):
    server = Server()
    server.feed(request(POST, CHUNKED))
    server.feed((b"1;" + b"x" * 100 + b"\r\na\r\n") * 40, step)
    assert server.statuses == [400]
    assert server.handlers[0].lost


@pytest.mark.parametrize("step", [0, 1, 100])
def test_small_chunks_are_no_abuse(step):
    server = Server()
    server.feed(request(POST, CHUNKED))
    server.feed(b"1\r\na\r\n" * 3000 + b"0\r\n\r\n", step)
    assert server.handlers[0].body == b"a" * 3000
    assert server.handlers[0].ended


def test_many_small_chunks_come_as_one_piece():
    server = Server()
    server.feed(request(POST, CHUNKED))
    server.feed(b"1\r\na\r\n" * 1000)
    assert len(server.handlers[0].events) == 1


def test_length_over_the_limit_is_refused_before_a_byte():
    server = Server(max_body_size=10)
    server.feed(request(POST, b"Content-Length: 11", b"Expect: 100-continue"))
    assert server.statuses == [413]
    assert server.handlers == []
    server = Server(max_body_size=10)
    server.feed(request(POST, b"Content-Length: 10", body=b"x" * 10))
    assert server.handlers[0].ended


@pytest.mark.parametrize("step", [0, 1])
def test_chunks_over_the_limit(step):
    server = Server(max_body_size=10)
    server.feed(request(POST, CHUNKED))
    server.feed(b"a\r\n" + b"x" * 10 + b"\r\n", step)
    assert server.handlers[0].body == b"x" * 10
    server.feed(b"1\r\nx\r\n0\r\n\r\n", step)
    assert server.statuses == [413]
    assert server.handlers[0].lost
    assert not server.handlers[0].ended


def test_connections_over_the_limit_get_nothing():
    clock = Clock()
    application = Application()
    application.admit = False
    factory = ClientFactory(application, Deadlines(clock), ServerLimits(**LIMITS), clock.seconds)
    connection = factory.buildProtocol(None)
    transport = connection.transport = Transport(clock)
    transport.protocol = connection
    connection.makeConnection(transport)
    connection.dataReceived(GET)
    assert transport.aborted
    clock.advance(1)
    assert transport.lost
    assert not transport.written
    assert application.handlers == []
    assert application.connections == 0


# ---------------------------------------------------------------------- one after the other


def test_pipelined_requests_are_answered_in_order():
    server = Server()
    server.feed(b"".join(request(b"GET /%d HTTP/1.1" % i) for i in range(5)))
    assert len(server.handlers) == 1  # the others are not even begun
    for i in range(5):
        exchange = server.handlers[i].exchange
        assert exchange.head.target == b"/%d" % i
        answer(exchange, b"answer %d." % i)
        # A second end, or anything else that comes late, harms nobody.
        assert exchange.finish() is False
        exchange.write(b"late")
        exchange.abort()
    bodies = re.findall(rb"answer (\d)\.", server.written)
    assert bodies == [b"0", b"1", b"2", b"3", b"4"]
    assert not server.closing


def test_reading_pauses_while_a_request_waits():
    server = Server()
    server.feed(GET)
    assert server.transport.reading  # one may go on: we want to know if the client leaves
    server.feed(GET)
    assert not server.transport.reading
    answer(server.handlers[0].exchange)
    assert server.transport.reading
    answer(server.handlers[1].exchange)
    assert server.transport.reading


def test_of_many_requests_few_are_parsed_ahead():
    server = Server()
    small = b"GET / HTTP/1.1\r\nHost:a\r\n\r\n"
    server.feed(small * 2500)
    assert len(server.connection._waiting) == 1
    server.connection.dataReceived(small * 10)  # what TLS may still have
    done = 0
    while done < len(server.handlers):
        answer(server.handlers[done].exchange)
        server.transport.flush()
        done += 1
    assert done == 2510
    assert server.transport.reading


def test_many_requests_answered_at_once_do_not_recurse():
    server = Server()
    server.application.on_request = answer
    server.feed(b"GET / HTTP/1.1\r\nHost:a\r\n\r\n" * 5000)
    server.advance(1)
    assert server.statuses == [200] * 5000


def test_many_ignored_upgrades_do_not_recurse():
    server = Server()
    server.application.on_end = answer
    upgrade = request(b"GET / HTTP/1.1", b"Upgrade: h2c", b"Connection: Upgrade")
    server.feed(upgrade * 1500)
    server.advance(1)
    assert server.statuses == [200] * 1500


def test_body_of_a_waiting_request():
    server = Server()
    server.feed(GET + request(POST, b"Content-Length: 10", body=b"hello"))
    assert not server.transport.reading
    answer(server.handlers[0].exchange)
    assert server.handlers[1].body == b"hello"
    assert server.transport.reading
    server.feed(b"world")
    assert server.handlers[1].body == b"helloworld"
    assert server.handlers[1].ended


def test_who_does_not_read_his_answers_gets_no_further_ones():
    server = Server(flushing=False)
    server.application.on_request = lambda exchange: answer(exchange, b"x" * 20_000)
    server.feed(GET * 100)
    assert len(server.handlers) == 4  # 80,000 bytes
    assert not server.transport.reading
    server.transport.flush()
    assert len(server.handlers) == 8
    for _ in range(40):
        server.transport.flush()
    assert len(server.handlers) == 100


def test_keep_alive():
    server = Server()
    server.application.on_end = answer
    for _ in range(3):
        server.feed(GET)
    assert server.statuses == [200] * 3
    assert b"Connection" not in server.written
    assert not server.closing


def test_client_that_asks_for_the_close():
    server = Server()
    server.feed(request(b"GET / HTTP/1.1", b"Connection: close"))
    answer(server.exchange)
    assert b"\r\nConnection: close\r\n" in server.written
    assert server.transport.disconnecting
    server.advance(0)
    assert server.transport.lost
    assert not server.handlers[0].lost


@pytest.mark.parametrize("step", [0, 1])
def test_what_comes_after_the_last_request_is_ignored(step):
    server = Server()
    server.feed(request(b"GET / HTTP/1.1", b"Connection: close") + GET, step)
    answer(server.exchange)
    assert server.statuses == [200]
    assert len(server.handlers) == 1
    assert server.transport.write_closing  # and lingers: closing now would be an RST
    assert not server.transport.disconnecting
    server.advance(3)
    assert server.transport.lost


def test_http_1_0():
    server = Server()
    server.feed(request(b"GET / HTTP/1.0"))
    assert server.exchange.http_version == (1, 0)
    answer(server.exchange)
    assert b"\r\nConnection: close\r\n" in server.written
    assert server.transport.disconnecting


def test_http_1_0_keep_alive():
    server = Server()
    for _ in range(2):
        server.feed(request(b"GET / HTTP/1.0", b"Connection: keep-alive"))
        answer(server.exchange)
    assert server.statuses == [200, 200]
    assert server.written.count(b"\r\nConnection: keep-alive\r\n") == 2
    assert not server.closing


# ---------------------------------------------------------------------- responses


def respond(
    status=200,
    headers=(),
    body=(),
    line=b"GET / HTTP/1.1",
    reason=b"OK",
    trailers=(),
    fields=(),
):
    server = Server()
    server.feed(request(line, *fields))
    exchange = server.exchange
    exchange.respond(ResponseHead(status, reason, [(b"Date", b"now"), *headers]))
    for piece in body:
        exchange.write(piece)
    complete = exchange.finish(trailers)
    return server, complete, server.written.removeprefix(b"HTTP/1.1 ")


def test_response_with_a_length():
    server, complete, data = respond(headers=[(b"content-length", b"5")], body=[b"he", b"llo"])
    assert data == b"200 OK\r\nDate: now\r\nContent-Length: 5\r\n\r\nhello"
    assert complete
    assert server.exchange.bytes_sent == 5
    assert server.exchange.finished


def test_response_without_a_length_is_chunked():
    _, complete, data = respond(body=[b"hello", b"", b"x" * 5000])
    assert data == (
        b"200 OK\r\nDate: now\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n1388\r\n" + b"x" * 5000 + b"\r\n0\r\n\r\n"
    )
    assert complete


@pytest.mark.parametrize(
    "lengths", [[b"5", b"5"], [b"+5"], [b""], [b"5, 5"], [b"1_0"], [b"9" * 30]]
)
def test_a_doubtful_length_is_not_passed_on(lengths):
    _, _, data = respond(headers=[(b"Content-Length", n) for n in lengths], body=[b"hello"])
    assert b"Content-Length" not in data
    assert data.endswith(b"chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")


def test_response_to_http_1_0_without_a_length_ends_with_the_connection():
    server, complete, data = respond(line=b"GET / HTTP/1.0", body=[b"hello"])
    assert data == b"200 OK\r\nDate: now\r\nConnection: close\r\n\r\nhello"
    assert complete
    assert server.transport.disconnecting


def test_response_to_http_1_0_that_breaks_is_reset():
    server = Server()
    server.feed(request(b"GET / HTTP/1.0"))
    server.exchange.respond(ResponseHead(200, b"OK", []))
    server.exchange.write(b"half")
    server.exchange.abort()
    assert server.transport.aborted  # an orderly end would make it complete


@pytest.mark.parametrize(
    ("line", "status", "length"),
    [
        (b"HEAD / HTTP/1.1", 200, True),
        (b"GET / HTTP/1.1", 304, True),
        (b"GET / HTTP/1.1", 204, False),
        (b"HEAD / HTTP/1.1", 204, False),
    ],
)
def test_responses_without_a_body(line, status, length):
    server, complete, data = respond(
        status, [(b"Content-Length", b"7")], [b"content"], line, b"Whatever"
    )
    assert (b"\r\nContent-Length: 7\r\n" in data) is length
    assert b"Transfer-Encoding" not in data
    assert data.endswith(b"\r\n\r\n")
    assert complete
    assert not server.closing
    assert server.exchange.bytes_sent == 0


def test_head_without_a_length():
    _, _, data = respond(line=b"HEAD / HTTP/1.1")
    assert data == b"200 OK\r\nDate: now\r\n\r\n"


def test_reset_content():
    _, _, data = respond(205, [(b"Content-Length", b"0")], reason=b"Reset Content")
    assert data == b"205 Reset Content\r\nDate: now\r\nContent-Length: 0\r\n\r\n"


def test_date_is_added_where_it_is_missing():
    server = Server()
    server.feed(GET)
    server.advance(0)
    server.wall_clock = 784111777.9
    server.exchange.respond(ResponseHead(200, b"OK", []))
    assert b"\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n" in server.written


def test_framing_is_not_the_applications():
    _, _, data = respond(
        headers=[
            (b"Transfer-Encoding", b"gzip"),
            (b"Connection", b"close, X"),
            (b"Keep-Alive", b"timeout=5"),
            (b"X", b"y"),
        ]
    )
    assert data == (b"200 OK\r\nDate: now\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")


def test_unusual_statuses():
    assert respond(299, reason=b"Fine")[2].startswith(b"299 Fine\r\n")
    assert respond(200, reason=b"")[2].startswith(b"200 \r\n")


@pytest.mark.parametrize(
    "head",
    [
        ResponseHead(200, b"OK\r\nEvil: 1", []),
        ResponseHead(200, b"OK", [(b"a", b"b\r\nEvil: 1")]),
        ResponseHead(200, b"OK", [(b"a", b"b\nEvil: 1")]),
        ResponseHead(200, b"OK", [(b"a b", b"c")]),
        ResponseHead(200, b"OK", [(b"a", b"\0")]),
        ResponseHead(100, b"Continue", []),
        ResponseHead(99, b"Less", []),
        ResponseHead(1000, b"More", []),
    ],
)
def test_head_that_cannot_be_written(head):
    server = Server()
    server.feed(GET)
    with pytest.raises(ValueError, match=r"."):
        server.exchange.respond(head)
    assert server.written == b""
    answer(server.exchange, b"sorry", 502, b"Bad Gateway")
    assert server.statuses == [502]


def test_trailers():
    _, _, data = respond(
        body=[b"x"],
        trailers=[(b"A", b"1"), (b"Content-Length", b"9"), (b"Connection", b"B"), (b"B", b"2")],
    )
    assert data.endswith(b"\r\n\r\n1\r\nx\r\n0\r\nA: 1\r\n\r\n")
    _, _, data = respond(headers=[(b"Content-Length", b"1")], body=[b"x"], trailers=[(b"A", b"1")])
    assert data.endswith(b"\r\n\r\nx")


def test_trailers_that_cannot_be_written():
    server = Server()
    server.feed(GET)
    server.exchange.respond(ResponseHead(200, b"OK", []))
    before = server.written
    with pytest.raises(ValueError, match="control"):
        server.exchange.finish([(b"a", b"b\r\n\r\n")])
    assert server.written == before


def test_body_that_is_too_long_is_cut_off():
    server = Server()
    server.feed(GET)
    server.exchange.respond(ResponseHead(200, b"OK", [(b"Content-Length", b"5")]))
    server.exchange.write(b"hel")
    server.exchange.write(b"lo!")
    assert server.written.endswith(b"\r\n\r\nhel")
    assert server.closing
    server.exchange.write(b"more")
    server.advance(0)
    assert server.handlers[0].lost


def test_body_that_is_too_long_and_finished():
    server = Server()
    server.feed(GET)
    server.exchange.respond(ResponseHead(200, b"OK", [(b"Content-Length", b"5")]))
    server.exchange.write(b"hello!")
    assert server.exchange.finish() is False
    server.advance(1)
    assert not server.handlers[0].lost  # whoever ends it needs not be told of its end


def test_body_that_is_too_short_is_cut_off():
    server = Server()
    server.feed(GET + GET)
    server.exchange.respond(ResponseHead(200, b"OK", [(b"Content-Length", b"5")]))
    server.exchange.write(b"hel")
    assert server.exchange.finish() is False
    assert not server.exchange.finished
    server.advance(1)
    assert server.transport.lost
    assert len(server.handlers) == 1
    assert not server.handlers[0].lost


def test_abort():
    server = Server()
    server.feed(GET)
    server.exchange.respond(ResponseHead(200, b"OK", []))
    server.exchange.write(b"half")
    server.exchange.abort()
    server.exchange.abort()
    server.exchange.write(b"more")
    assert server.written.endswith(b"4\r\nhalf\r\n")
    assert server.transport.disconnecting
    server.advance(0)
    assert server.transport.lost
    assert not server.handlers[0].lost


def test_abort_before_the_response():
    server = Server()
    server.feed(GET)
    server.exchange.abort()
    server.advance(0)
    assert server.transport.lost
    assert server.written == b""


def test_misuse_is_told():
    server = Server()
    server.feed(GET)
    with pytest.raises(RuntimeError):
        server.exchange.write(b"x")
    with pytest.raises(RuntimeError):
        server.exchange.finish()
    server.exchange.respond(ResponseHead(200, b"OK", []))
    with pytest.raises(RuntimeError):
        server.exchange.respond(ResponseHead(200, b"OK", []))


def test_interim_responses():
    server = Server()
    server.feed(GET)
    exchange = server.exchange
    exchange.inform(103, [(b"Link", b"</x>"), (b"Content-Length", b"3"), (b"Connection", b"x")])
    exchange.inform(199, [])
    with pytest.raises(ValueError, match="interim"):
        exchange.inform(101, [])
    with pytest.raises(ValueError, match="interim"):
        exchange.inform(200, [])
    with pytest.raises(ValueError, match="control"):
        exchange.inform(103, [(b"a", b"b\r\nc")])
    assert server.written == b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 199 \r\n\r\n"
    answer(exchange)
    assert server.statuses == [103, 199, 200]


def test_http_1_0_knows_no_interim_responses():
    server = Server()
    server.feed(request(b"GET / HTTP/1.0"))
    server.exchange.inform(103, [])
    assert server.written == b""


# ---------------------------------------------------------------------- bodies that come in


def test_expect_100_continue():
    server = Server()
    server.feed(request(POST, b"Expect: 100-Continue", b"Content-Length: 5"))
    exchange = server.exchange
    assert exchange.expects_continue
    assert exchange.body_expected
    exchange.inform(100, [])
    assert server.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    server.feed(b"hello")
    assert server.handlers[0].body == b"hello"
    answer(exchange)
    assert b"Connection" not in server.written
    server.feed(GET)
    assert len(server.handlers) == 2


def test_expectation_that_means_nothing():
    server = Server()
    server.feed(request(b"POST / HTTP/1.0", b"Expect: 100-continue", b"Content-Length: 5"))
    assert not server.exchange.expects_continue
    server = Server()
    server.feed(request(b"GET / HTTP/1.1", b"Expect: 100-continue"))
    assert not server.exchange.expects_continue


def test_answer_instead_of_100_closes():
    server = Server()
    server.feed(request(POST, b"Expect: 100-continue", b"Content-Length: 5"))
    answer(server.exchange, status=403, reason=b"Forbidden")
    assert b"\r\nConnection: close\r\n" in server.written
    server.feed(b"hello" + GET)  # the client may send it all the same
    assert server.statuses == [403]
    assert server.handlers[0].body == b""
    assert server.transport.write_closing


def test_early_answer_lingers():
    server = Server()
    server.feed(request(POST, b"Content-Length: 1000000", body=b"x" * 1000))
    answer(server.exchange, b"enough", 413, b"Content Too Large")
    assert b"\r\nConnection: close\r\n" in server.written
    assert server.transport.write_closing
    assert not server.transport.disconnecting
    server.feed(b"x" * 60_000)  # goes nowhere
    assert server.handlers[0].body == b"x" * 1000
    server.transport.half_close_by_peer()
    assert server.transport.disconnecting
    server.advance(0)
    assert server.transport.lost


def test_early_answer_to_a_paused_request_reads_on():
    server = Server()
    server.feed(request(POST, b"Content-Length: 1000", body=b"x"))
    server.exchange.pause_request()
    answer(server.exchange)
    assert server.transport.reading  # the client may read nothing before it has sent everything


def test_lingering_begins_with_our_fin():
    server = Server(flushing=False)
    server.feed(request(POST, b"Content-Length: 1000"))
    answer(server.exchange)
    server.advance(1.5)
    server.transport.flush()  # the answer is out, and the FIN behind it
    server.advance(1.5)
    assert not server.transport.disconnecting
    server.advance(1)
    assert server.transport.disconnecting


def test_lingering_ends():
    server = Server()
    server.feed(request(POST, b"Content-Length: 1000000"))
    answer(server.exchange)
    server.advance(1.5)
    server.feed(b"x" * 60_000)
    assert not server.transport.disconnecting
    server.advance(1)
    assert server.transport.lost


def test_answer_within_the_request_keeps_the_connection_if_all_is_there():
    server = Server()
    server.application.on_request = answer
    server.feed(request(POST, b"Content-Length: 5", body=b"hello") + GET)
    assert server.statuses == [200, 200]
    assert not server.closing
    assert server.handlers[0].events == []  # it is over before its body is told


def test_paused_request():
    server = Server()
    server.feed(request(POST, b"Content-Length: 20", body=b"12345"))
    exchange = server.exchange
    exchange.pause_request()
    exchange.pause_request()
    assert not server.transport.reading
    server.connection.dataReceived(b"67890")  # TLS had it already
    assert server.handlers[0].body == b"12345"
    exchange.resume_request()
    exchange.resume_request()
    assert server.transport.reading
    assert server.transport.resumed == 1
    assert server.handlers[0].body == b"1234567890"


def test_pause_from_within_the_body():
    server = Server()
    server.application.on_body = lambda exchange: exchange.pause_request()
    server.feed(request(POST, b"Content-Length: 5"))
    server.connection.dataReceived(b"he")
    server.connection.dataReceived(b"llo")
    assert server.handlers[0].body == b"he"
    server.exchange.resume_request()
    assert server.handlers[0].body == b"hello"
    assert server.handlers[0].ended
    # Nothing is left to come, so there is nothing to pause; and one sees whether the client leaves.
    assert server.transport.reading


def test_pause_from_within_the_request():
    server = Server()
    server.application.on_request = lambda exchange: exchange.pause_request()
    server.feed(request(POST, b"Content-Length: 5", body=b"he"))
    assert server.handlers[0].events == []
    assert not server.transport.reading
    server.exchange.resume_request()
    assert server.handlers[0].body == b"he"


# ---------------------------------------------------------------------- clients that read slowly


def test_congestion():
    server = Server(flushing=False)
    server.feed(GET)
    exchange = server.exchange
    exchange.respond(ResponseHead(200, b"OK", []))
    assert not exchange.congested
    exchange.write(b"x" * 70_000)
    assert exchange.congested
    exchange.write(b"y" * 10)  # what was under way already; pauses again
    server.transport.flush()
    assert not exchange.congested
    assert server.handlers[0].events == [("end", []), ("drained",)]
    exchange.finish()
    server.transport.flush()
    assert server.handlers[0].events == [("end", []), ("drained",)]


def test_finished_exchange_is_told_once_when_the_rest_is_taken():
    server = Server(flushing=False)
    server.feed(GET)
    answer(server.exchange, b"x" * 70_000)
    assert server.transport.producer_paused
    server.feed(GET)  # waits
    assert len(server.handlers) == 1
    server.transport.flush()
    assert len(server.handlers) == 2
    assert server.handlers[0].events == [("end", []), ("drained",)]
    assert server.handlers[1].events == [("end", [])]
    answer(server.exchange, b"y")
    server.transport.flush()
    assert len(server.handlers[0].events) == 2


def test_finished_exchange_is_told_when_the_client_goes_without_taking_the_rest():
    server = Server(flushing=False)
    server.feed(GET)
    answer(server.exchange, b"x" * 70_000)
    assert server.handlers[0].events == [("end", [])]
    server.transport.close_by_peer()
    assert server.handlers[0].events == [("end", []), ("drained",)]


def test_a_client_that_is_dropped_is_cut_off_at_once():
    server = Server(flushing=False)
    server.feed(GET)
    answer(server.exchange, b"x" * 70_000)
    server.connection.drop()
    assert server.transport.aborted


def test_client_that_does_not_read_is_cut_off():
    server = Server(flushing=False)
    server.feed(GET)
    server.exchange.respond(ResponseHead(200, b"OK", []))
    server.exchange.write(b"x" * 70_000)
    server.advance(299)
    assert not server.closing
    server.advance(2)
    assert server.transport.aborted
    assert server.handlers[0].lost
    assert server.application.connections == 0


def test_client_that_does_not_read_the_last_answer_is_cut_off():
    server = Server(flushing=False)
    server.feed(request(b"GET / HTTP/1.1", b"Connection: close"))
    answer(server.exchange, b"x" * 70_000)
    assert server.transport.disconnecting
    server.advance(301)
    assert server.transport.aborted
    assert server.transport.lost


def test_refusal_while_the_client_does_not_read():
    server = Server(flushing=False)
    server.feed(GET)
    answer(server.exchange, b"x" * 70_000)
    server.feed(request(POST, CHUNKED))
    server.connection.dataReceived(b"zz\r\n")
    assert server.statuses == [200]
    server.transport.reading = True  # as if the FIN had come before the pause
    server.transport.half_close_by_peer()
    server.transport.flush()
    assert server.statuses == [200, 400]
    assert len(server.handlers) == 1


def test_client_that_reads_steadily_is_not_cut_off():
    server = Server(flushing=False)
    server.feed(GET)
    handler = server.handlers[0]
    handler.response_drained = lambda: handler.exchange.write(b"x" * 70_000)
    server.exchange.respond(ResponseHead(200, b"OK", []))
    server.exchange.write(b"x" * 70_000)
    for _ in range(5):
        server.advance(200)
        server.transport.flush()  # which writes and congests again within
    assert not server.closing
    server.advance(301)
    assert handler.lost


def test_lingering_waits_for_the_reader():
    server = Server(flushing=False)
    server.feed(request(POST, b"Content-Length: 9"))
    answer(server.exchange, b"x" * 70_000)
    server.advance(10)
    assert not server.transport.disconnecting
    server.transport.flush()
    server.advance(1.5)
    assert not server.transport.disconnecting
    server.advance(1.5)
    assert server.transport.disconnecting


# ---------------------------------------------------------------------- time


def test_silent_client():
    server = Server()
    server.advance(9.5)
    assert not server.closing
    server.advance(1)
    assert server.transport.lost
    assert server.written == b""


def test_dripping_head():
    server = Server()
    for byte in GET[:-1]:
        server.feed(bytes([byte]))
        server.advance(0.5)
        if server.closing:
            break
    assert server.statuses == [408]
    assert 10 <= server.clock.seconds() <= 11


def test_kept_alive_client_leaves_in_silence():
    server = Server()
    server.application.on_end = answer
    for _ in range(3):
        server.feed(GET)
        server.advance(70)
    server.advance(4.5)
    assert not server.closing
    server.advance(1)
    assert server.transport.lost
    assert server.statuses == [200] * 3


def test_second_head_has_its_own_time():
    server = Server()
    server.application.on_end = answer
    server.feed(GET)
    server.advance(30)
    server.feed(b"GET / ")
    server.advance(9)
    assert not server.closing
    server.advance(2)
    assert server.statuses == [200, 408]


def test_body_that_does_not_come():
    server = Server()
    server.feed(request(POST, b"Content-Length: 5"))
    server.advance(200)
    server.feed(b"h")
    server.advance(299)
    assert not server.closing
    server.advance(2)
    assert server.statuses == [408]
    assert server.handlers[0].lost
    assert server.application.refusals[0][2].method == b"POST"


def test_body_that_does_not_come_breaks_a_response():
    server = Server()
    server.feed(request(POST, b"Content-Length: 5"))
    server.exchange.respond(ResponseHead(200, b"OK", []))
    server.advance(301)
    assert server.statuses == [200]
    assert server.handlers[0].lost
    assert server.transport.lost


def test_body_that_we_do_not_want_yet_has_time():
    server = Server()
    server.feed(request(POST, b"Content-Length: 5", body=b"h"))
    server.exchange.pause_request()
    server.advance(1000)
    assert not server.closing
    server.exchange.resume_request()
    server.advance(299)
    assert not server.closing
    server.advance(2)
    assert server.statuses == [408]


def test_application_has_all_time():
    server = Server()
    server.feed(GET)
    server.advance(5000)
    answer(server.exchange)
    assert server.statuses == [200]
    assert not server.closing


def test_no_timer_is_left():
    server = Server()
    server.feed(GET)
    server.transport.close_by_peer()
    server.advance(1)
    assert server.clock.getDelayedCalls() == []


# ---------------------------------------------------------------------- clients that leave


def test_client_that_leaves():
    server = Server()
    server.feed(GET + GET)
    server.transport.close_by_peer()
    handler = server.handlers[0]
    assert handler.lost
    assert len(server.handlers) == 1  # what waited was never begun
    assert server.application.connections == 0
    exchange = handler.exchange
    exchange.inform(103, [])
    exchange.respond(ResponseHead(200, b"OK", []))
    exchange.write(b"x")
    exchange.pause_request()
    exchange.resume_request()
    assert exchange.finish() is False
    exchange.abort()
    assert server.written == b""


def test_client_that_leaves_after_its_answer():
    server = Server()
    server.feed(GET)
    answer(server.exchange)
    server.transport.close_by_peer()
    assert not server.handlers[0].lost
    assert server.application.connections == 0


@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET])
def test_fin_without_a_request(sent):
    server = Server()
    server.application.on_end = answer
    server.feed(sent)
    server.transport.half_close_by_peer()
    assert server.transport.disconnecting
    server.advance(0)
    assert server.transport.lost


def test_fin_in_the_middle_of_a_request():
    server = Server()
    server.feed(request(POST, b"Content-Length: 5", body=b"hell"))
    server.transport.half_close_by_peer()
    assert server.handlers[0].lost
    assert server.transport.aborted


def test_fin_after_a_request_and_nothing_to_write():
    server = Server()
    server.feed(GET)
    server.transport.half_close_by_peer()
    server.advance(0.5)
    assert not server.handlers[0].lost
    server.advance(1)
    assert server.handlers[0].lost
    assert server.transport.aborted


def test_half_closed_client_gets_its_whole_answer():
    server = Server()
    server.feed(GET)
    server.transport.half_close_by_peer()
    exchange = server.exchange
    exchange.respond(ResponseHead(200, b"OK", []))
    server.advance(10)
    exchange.write(b"hello")
    server.advance(10)
    exchange.finish()
    assert server.written.endswith(b"5\r\nhello\r\n0\r\n\r\n")
    assert b"\r\nConnection: close\r\n" in server.written
    assert server.transport.disconnecting
    assert not server.handlers[0].lost


def test_half_closed_client_that_answers_with_rst_has_left():
    server = Server()
    server.feed(GET)
    server.transport.half_close_by_peer()
    server.exchange.respond(ResponseHead(200, b"OK", []))
    server.transport.handle.error = 32  # EPIPE
    server.advance(1.5)
    assert server.handlers[0].lost
    assert server.transport.aborted


def test_half_closed_client_that_reads_slowly():
    server = Server(flushing=False)
    server.feed(GET)
    server.exchange.respond(ResponseHead(200, b"OK", []))
    server.exchange.write(b"x" * 70_000)
    server.transport.half_close_by_peer()
    server.advance(10)
    assert not server.handlers[0].lost
    server.transport.flush()
    server.advance(10)
    assert not server.handlers[0].lost
    server.exchange.finish()
    assert server.transport.disconnecting


def test_fin_after_a_refused_request():
    """The refusal waits for its turn when the FIN comes."""
    server = Server()
    server.feed(GET + request(host=b""))
    assert server.transport.reading
    server.transport.half_close_by_peer()
    answer(server.exchange)
    assert server.statuses == [200, 400]
    assert server.transport.disconnecting


def test_fin_in_a_request_that_waits():
    server = Server()
    server.feed(GET + request(POST, b"Content-Length: 5", body=b"hell"))
    server.transport.reading = True  # as if it had come before the pause
    server.transport.half_close_by_peer()
    answer(server.exchange)
    assert server.statuses == [200]
    assert len(server.handlers) == 1
    assert server.transport.disconnecting


def test_pipelined_requests_before_a_fin_are_all_answered():
    server = Server()
    server.feed(GET + GET)
    answer(server.handlers[0].exchange)
    server.transport.half_close_by_peer()
    answer(server.handlers[1].exchange)
    assert server.statuses == [200, 200]
    assert server.written.count(b"Connection: close") == 1
    assert server.transport.disconnecting


@pytest.mark.parametrize("how", ["on_request", "on_end", "abort", "lost"])
def test_what_is_over_is_freed_at_once(how):
    server = Server()
    if how.startswith("on"):
        setattr(server.application, how, answer)
    gc.disable()  # reference counts alone must do
    try:
        server.feed(GET)
        if how == "abort":
            server.exchange.abort()
        handler = weakref.ref(server.handlers.pop())
        if how.startswith("on"):
            assert handler() is None
        server.transport.close_by_peer()
        assert handler() is None
        server.transport.protocol = None  # Twisted's transports forget it too
        connection = weakref.ref(server.connection)
        del server.connection
        assert connection() is None
    finally:
        gc.enable()


# ---------------------------------------------------------------------- applications that fail


def explode(exchange):
    raise ZeroDivisionError("the application")


@pytest.mark.parametrize("where", ["on_request", "on_body", "on_end"])
def test_application_that_fails(where, monkeypatch):
    logged = []
    monkeypatch.setattr("sockgw.http.server._log.failure", lambda *a, **k: logged.append(a))
    server = Server()
    setattr(server.application, where, explode)
    server.feed(request(POST, b"Content-Length: 5", body=b"hello") + GET)
    server.advance(0)
    assert len(logged) == 1
    assert server.transport.lost
    assert server.application.connections == 0
    assert server.written == b""
    assert len(server.handlers) == 1
    if where != "on_request":
        assert server.handlers[0].lost


def test_application_that_fails_when_told_of_the_end(monkeypatch):
    logged = []
    monkeypatch.setattr("sockgw.http.server._log.failure", lambda *a, **k: logged.append(a))
    server = Server()
    server.feed(GET)
    server.handlers[0].client_lost = lambda: explode(None)
    server.application.disconnected = explode
    server.transport.close_by_peer()
    assert len(logged) == 2


def test_application_that_fails_when_drained(monkeypatch):
    logged = []
    monkeypatch.setattr("sockgw.http.server._log.failure", lambda *a, **k: logged.append(a))
    server = Server(flushing=False)
    server.feed(GET)
    server.handlers[0].response_drained = lambda: explode(None)
    server.exchange.respond(ResponseHead(200, b"OK", []))
    server.exchange.write(b"x" * 70_000)
    server.transport.flush()
    assert len(logged) == 1
    assert server.closing


def test_application_that_fails_to_refuse(monkeypatch):
    logged = []
    monkeypatch.setattr("sockgw.http.server._log.failure", lambda *a, **k: logged.append(a))
    server = Server()
    server.application.refused = lambda *a: explode(None)
    server.feed(b"bad\r\n")
    assert len(logged) == 1
    assert server.transport.aborted


def test_failure_does_not_reach_whom_finishes_the_response_before(monkeypatch):
    monkeypatch.setattr("sockgw.http.server._log.failure", lambda *a, **k: None)
    server = Server()
    server.feed(GET + GET)
    server.application.on_request = explode
    assert answer(server.exchange) is True
    assert server.closing

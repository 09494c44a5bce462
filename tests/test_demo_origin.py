"""The demonstration's origin: what it answers, and that it holds nothing."""

import json
import re
from hashlib import sha256

import pytest
from http_clients import LIMITS, Transport, request
from twisted.internet.task import Clock

from sockgw.deadlines import Deadlines
from sockgw.demo import origin
from sockgw.demo.origin import Origin, blocks
from sockgw.http.front import ClientFactory
from sockgw.http.patience import ServerLimits

BLOCK = 64 * 1024  # bytes


class Server:
    """A client's connection to the origin."""

    def __init__(self, flushing=True):
        self.clock = Clock()
        factory = ClientFactory(
            Origin(self.clock),
            Deadlines(self.clock),
            ServerLimits(**LIMITS),
            self.clock.seconds,
        )
        self.connection = factory.buildProtocol(None)
        self.transport = Transport(self.clock, flushing)
        self.transport.protocol = self.connection
        self.connection.makeConnection(self.transport)

    def send(self, *data):
        for piece in data:
            self.connection.dataReceived(piece)
            self.clock.advance(0)

    @property
    def written(self):
        return bytes(self.transport.written)

    def answer(self):
        """The status, the headers and the body of all that has been written, as one response."""
        head, _, body = self.written.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        headers = dict(field.lower().split(": ", 1) for field in fields)
        if headers.get("transfer-encoding") == "chunked":
            body = unchunked(body)
        return int(line.split()[1]), headers, body


def unchunked(data):
    pieces = []
    while data:
        size, _, data = data.partition(b"\r\n")
        pieces.append(data[: int(size, 16)])
        assert data[int(size, 16) :].startswith(b"\r\n")
        data = data[int(size, 16) + 2 :]
    return b"".join(pieces)


def get(path, *fields, method="GET"):
    server = Server()
    server.send(request(f"{method} {path} HTTP/1.1".encode(), *fields))
    return server


# ---------------------------------------------------------------------- what is simple


def test_page():
    status, headers, body = get("/").answer()
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert body.rstrip().endswith(b"</html>")


def test_the_page_needs_nothing_from_elsewhere():
    page = get("/").answer()[2].decode()
    assert set(re.findall(r"https?://[^'\"\s]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|\ssrc=|url\(", page)
    for path in set(re.findall(r"""["'`](/[a-z0-9/]+)""", page)):
        method = "POST" if path == "/upload" else "GET"
        assert get(path, method=method).answer()[0] == 200, path


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/secret", 200, None),
        ("GET", "/nothing", 404, None),
        ("GET", "/upload", 405, "post, put"),
        ("DELETE", "/upload", 405, "post, put"),
        ("POST", "/", 405, "get, head"),
        ("POST", "/drip", 405, "get, head"),
    ],
)
def test_statuses(method, path, status, allow):
    answer = get(path, method=method).answer()
    assert answer[0] == status
    assert answer[1].get("allow") == allow


def test_what_is_no_request_is_refused():
    server = Server()
    server.send(b"junk\r\n\r\n")
    assert server.answer()[0] == 400


def test_numbers_in_a_query_are_bounded():
    for wrong in ("", "-1", "x", "1.5", "9" * 30, "%D9%A3"):
        server = get(f"/download?size={wrong}", method="HEAD")
        assert server.answer()[1]["content-length"] == str(1 << 20), wrong
    assert get("/download?size=" + "9" * 19, method="HEAD").answer()[1]["content-length"] == str(
        1 << 40
    )


# ---------------------------------------------------------------------- echo


def test_echo():
    server = Server()
    server.send(request(b"PUT /echo?a=b HTTP/1.1", b"X-A: 1", b"x-a: 2", b"Content-Length: 3"))
    assert server.written == b""
    server.send(b"ab", b"c")
    status, _, body = server.answer()
    assert status == 200
    assert body == (
        b"PUT /echo?a=b HTTP/1.1\nHost: a.example\nX-A: 1\nx-a: 2\nContent-Length: 3\n\nabc\n"
    )


def test_echo_without_a_body():
    assert get("/echo").answer()[2] == b"GET /echo HTTP/1.1\nHost: a.example\n\n\n"


def test_echo_of_a_large_body_is_cut():
    server = Server()
    server.send(request(b"POST /echo HTTP/1.1", b"Content-Length: 100000"))
    server.send(b"x" * 60000, b"y" * 40000)
    body = server.answer()[2].partition(b"\n\n")[2]
    assert body == b"x" * 60000 + b"y" * 5536 + b"\n(and 34464 bytes more)\n"


def test_echo_shows_trailers():
    server = Server()
    server.send(request(b"POST /echo HTTP/1.1", b"Transfer-Encoding: chunked"))
    server.send(b"3\r\nabc\r\n0\r\nX-Sum: 6\r\n\r\n")
    assert server.answer()[2].endswith(b"\n\nabc\nX-Sum: 6\n")


# ---------------------------------------------------------------------- upload


@pytest.mark.parametrize("method", [b"POST", b"PUT"])
def test_upload(method):
    server = Server()
    server.send(request(method + b" /upload HTTP/1.1", b"Content-Length: 200000"))
    pieces = list(blocks(200000))
    server.send(*pieces)
    status, headers, body = server.answer()
    assert (status, headers["content-type"]) == (200, "application/json")
    result = json.loads(body)
    assert result["bytes"] == 200000
    assert result["sha256"] == sha256(b"".join(pieces)).hexdigest()


def test_upload_asks_for_a_body_that_waits():
    server = Server()
    server.send(request(b"PUT /upload HTTP/1.1", b"Content-Length: 3", b"Expect: 100-continue"))
    assert server.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    server.send(b"abc")
    assert b"HTTP/1.1 200 OK" in server.written


# ---------------------------------------------------------------------- drip


def test_drip_sends_each_line_at_its_time():
    server = get("/drip?lines=3&every=500")
    counts = []
    for _ in range(4):
        counts.append(server.written.count(b" of 3\n"))
        server.clock.advance(0.5)
    assert counts == [1, 2, 3, 3]
    assert server.written.endswith(b"\r\n0\r\n\r\n")
    assert len(server.answer()[2].splitlines()) == 3


def test_drip_ends_when_the_client_leaves():
    server = get("/drip")
    server.transport.close_by_peer()
    server.clock.advance(60)
    assert server.clock.getDelayedCalls() == []


def test_head_of_a_drip_does_not_take_its_time():
    server = get("/drip", method="HEAD")
    server.send(request())
    assert server.written.count(b"HTTP/1.1 200 OK") == 2


# ---------------------------------------------------------------------- download


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK])
def test_blocks(size):
    made = list(blocks(size))
    assert sum(map(len, made)) == size
    assert made == list(blocks(size))
    assert len(set(made)) == len(made)
    assert all(len(block) == BLOCK for block in made[:-1])


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_download(size):
    server = get(f"/download?size={size}")
    server.clock.pump([0] * 20)
    status, headers, body = server.answer()
    assert (status, headers["content-length"]) == (200, str(size))
    assert body == b"".join(blocks(size))


def test_a_download_waits_for_its_reader():
    server = Server(flushing=False)
    server.send(request(b"GET /download?size=1000000 HTTP/1.1"))
    before = len(server.written)
    server.clock.pump([0] * 20)
    assert len(server.written) == before < 3 * BLOCK
    for _ in range(20):
        server.transport.flush()
    assert server.answer()[2] == b"".join(blocks(1_000_000))


def test_a_download_ends_when_the_client_leaves():
    server = Server(flushing=False)
    server.send(request(b"GET /download?size=1000000 HTTP/1.1"))
    written = server.written
    server.transport.close_by_peer()
    server.clock.pump([0] * 20)
    assert server.written == written


def test_head_of_a_download(monkeypatch):
    sizes = []
    monkeypatch.setattr(origin, "blocks", lambda size: iter(sizes.append(size) or ()))
    server = get("/download?size=1000", method="HEAD")
    server.send(request())
    assert sizes == [0]
    assert b"Content-Length: 1000\r\n" in server.written
    assert server.written.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize("size", [0, 300_000])
def test_digest_of_a_download(size):
    server = get(f"/download/sha256?size={size}")
    server.clock.pump([0] * 20)
    assert server.answer()[2].decode().strip() == sha256(b"".join(blocks(size))).hexdigest()


def test_a_digest_lets_others_go_first_and_ends_with_its_client():
    server = Server()
    server.connection.dataReceived(request(b"GET /download/sha256?size=1000000000 HTTP/1.1"))
    assert server.written == b""
    assert len(server.clock.getDelayedCalls()) == 2  # the next block, and the deadlines
    server.transport.close_by_peer()
    server.clock.advance(1)
    assert server.clock.getDelayedCalls() == []

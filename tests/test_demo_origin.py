"""The demonstration's origin: what it answers, and that it holds nothing."""

import json
import re
from base64 import b64encode
from hashlib import sha256

import pytest
from demo_server import Server, get
from http_clients import request

from sockgw.demo import origin
from sockgw.demo.origin import blocks

BLOCK = 64 * 1024  # bytes


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
    methods = {"/upload": "POST", "/cut": "POST"}
    statuses = {"/cut": 404, "/chat": 426}  # there is no line here, and no upgrade is asked for
    paths = set(re.findall(r"""["'`}](/[a-z0-9/]+)[?"'`]""", page))
    assert {"/chat", "/events", "/upload", "/download", "/cut", "/echo"} <= paths
    for path in paths:
        answer = get(path, method=methods.get(path, "GET")).answer()
        assert answer[0] == statuses.get(path, 200), path


def test_the_policy_names_what_is_in_the_page():
    _, headers, body = get("/").answer()
    policy = (
        get("/").written.partition(b"Content-Security-Policy: ")[2].partition(b"\r\n")[0].decode()
    )
    assert "unsafe" not in policy
    assert headers["content-type"] == "text/html; charset=utf-8"
    for element in (b"style", b"script"):
        (text,) = re.findall(b"<%b>(.*?)</%b>" % (element, element), body, re.S)
        digest = b64encode(sha256(text).digest()).decode()
        assert f"{element.decode()}-src 'sha256-{digest}'" in policy
    assert not re.search(rb"\sstyle=|\son[a-z]+=", body)


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/secret", 200, None),
        ("GET", "/nothing", 404, None),
        ("GET", "/upload", 405, "post, put"),
        ("DELETE", "/upload", 405, "post, put"),
        ("POST", "/", 405, "get, head"),
        ("POST", "/drip", 405, "get, head"),
        ("GET", "/cut", 405, "post"),
        ("POST", "/chat", 405, "get, head"),
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
        1 << 34
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


def test_an_upload_that_says_it_is_too_large_is_refused_at_once():
    server = Server()
    server.send(request(b"POST /upload HTTP/1.1", b"Content-Length: 1073741825"))
    status, headers, body = server.answer()
    assert (status, headers["connection"]) == (413, "close")
    assert body == b"An upload has at most 1,073,741,824 bytes here.\n"


def test_an_upload_that_becomes_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(origin, "_MAX_UPLOAD", 4)
    server = Server()
    server.send(request(b"POST /upload HTTP/1.1", b"Transfer-Encoding: chunked"), b"4\r\nabcd\r\n")
    assert server.written == b""
    server.send(b"1\r\ne\r\n")
    assert server.answer()[0] == 413
    server.send(b"1\r\nf\r\n0\r\n\r\n")
    assert server.written.count(b"HTTP/1.1 ") == 1


# ---------------------------------------------------------------------- events


def events(server):
    return re.findall(r"id: (\d+)\ndata: \d\d:\d\d:\d\d\n\n", server.answer()[2].decode())


def test_events_come_each_at_its_time_and_without_end():
    server = get("/events?every=500")
    assert server.answer()[1]["content-type"] == "text/event-stream"
    for count in range(1, 6):
        assert events(server) == [str(number) for number in range(1, count + 1)]
        server.clock.advance(0.5)


def test_events_go_on_after_the_last_that_was_seen():
    server = get("/events", b"Last-Event-ID: 41")
    assert events(server) == ["42"]


@pytest.mark.parametrize("seen", [b"", b"x", b"-1", b"9" * 30, b"\xb2"])
def test_a_strange_last_event_counts_as_none(seen):
    assert events(get("/events", b"Last-Event-ID: " + seen)) == ["1"]


def test_events_end_when_the_client_leaves():
    server = get("/events")
    server.transport.close_by_peer()
    server.clock.advance(60)
    assert server.clock.getDelayedCalls() == []


def test_head_of_events():
    server = get("/events", method="HEAD")
    assert (server.answer()[0], server.answer()[2]) == (200, b"")
    assert len(server.clock.getDelayedCalls()) == 1  # the deadlines


def test_who_does_not_read_gets_no_pile_of_events():
    server = Server(flushing=False)
    server.send(request(b"GET /events?every=100 HTTP/1.1"))
    for _ in range(4000):
        server.clock.advance(0.1)
    assert BLOCK < len(server.written) < BLOCK + 1000
    server.transport.flush()
    server.clock.advance(0.1)
    last, before = events(server)[:-3:-1]
    assert int(last) > 4000 > int(before)  # the gap tells what is missing


def test_streams_of_events_are_bounded(monkeypatch):
    monkeypatch.setattr(origin, "_MAX_STREAMS", 2)
    server = Server()
    clients = [server, server.another(), server.another()]
    for client in clients:
        client.send(request(b"GET /events HTTP/1.1"))
    assert [client.answer()[0] for client in clients] == [200, 200, 503]
    clients[0].transport.close_by_peer()
    late = server.another()
    late.send(request(b"GET /events HTTP/1.1"))
    assert late.answer()[0] == 200


def test_connections_are_bounded(monkeypatch):
    monkeypatch.setattr(origin, "_MAX_CONNECTIONS", 2)
    server = Server()
    clients = [server, server.another(), server.another()]
    assert [client.transport.aborted for client in clients] == [False, False, True]
    clients[0].transport.close_by_peer()
    assert not server.another().transport.aborted


# ---------------------------------------------------------------------- pages of others


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([], 404),
        ([b"Origin: http://a.example"], 404),
        ([b"Origin: https://a.example"], 404),
        ([b"X-Forwarded-Host: b.example:3000", b"Origin: http://b.example:3000"], 404),
        ([b"Origin: http://b.example"], 403),
        ([b"Origin: null"], 403),
        ([b"Origin: http://a.example", b"Origin: http://b.example"], 403),
    ],
)
def test_pages_of_others_cannot_cut_or_chat(fields, status):
    assert get("/cut", *fields, method="POST").answer()[0] == status
    assert get("/chat", *fields).answer()[0] == (426 if status == 404 else 403)


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

"""Failing well: each failure has its answer, and none looks like a success."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clients import Answer, Client, curl, fetch
from harness import PATIENCE, Gateway, Keys, Outer, closed_port, wait_until
from origins import Connection, Origin, Request, answering


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Gateway]:
    """A gateway with short timeouts and low limits."""
    outer = (
        *("--timeout", "500", "--idle-timeout", "700", "--head-timeout", "500"),
        *("--keep-alive-timeout", "500", "--max-body-size", "1000", "--max-header-count", "20"),
    )
    directory = tmp_path_factory.mktemp("hasty")
    with Gateway(directory, keys, outer, ["--connect-timeout", "1000"]) as gateway:
        yield gateway


def assert_refusal(answer: Answer, status: int, error: str, reason: str) -> None:
    """It is the gateway's own answer, with that error of RFC 9209 and that reason."""
    assert answer.status == status, answer
    assert answer.header("Proxy-Status") == f"sockgw; error={error}"
    assert answer.header("X-Request-ID")
    assert answer.header("Content-Type") == "text/plain; charset=utf-8"
    assert answer.complete
    assert reason in answer.text


# ---------------------------------------------------------------------- the origin


def test_origin_down(gateway: Gateway) -> None:
    with closed_port() as port, Client(gateway.port) as client:
        host = gateway.route(port)
        mark = gateway.outer.access.mark()
        answer = client.request(host, "/p")
        assert_refusal(answer, 502, "connection_refused", "the target refused the connection")
        request_id = answer.header("X-Request-ID")
        assert client.request(host).status == 502, "the client's connection goes on"
    line = gateway.outer.access.wait(rf" id={request_id} ", mark)
    assert '"GET /p HTTP/1.1" 502 ' in line
    assert line.endswith('outcome="connection refused"')


def test_origin_down_as_json(gateway: Gateway) -> None:
    with closed_port() as port:
        answer = fetch(gateway.port, gateway.route(port), Accept="application/json")
    assert answer.status == 502
    assert answer.header("Content-Type") == "application/problem+json"
    assert json.loads(answer.body) == {
        "title": "Bad Gateway",
        "status": 502,
        "detail": "the target refused the connection",
        "request_id": answer.header("X-Request-ID"),
    }


def test_origin_down_under_an_upload(gateway: Gateway) -> None:
    with closed_port() as port:
        upload = ("-i", "-H", "Expect:", "--data-binary", "@-", f"http://{gateway.route(port)}/")
        got = curl(gateway.port, *upload, input=b"x" * 3_000_000)
    assert got.returncode == 0, got.stderr
    assert got.stdout.startswith(b"HTTP/1.1 502 ")


def test_name_that_does_not_resolve(gateway: Gateway) -> None:
    answer = fetch(gateway.port, gateway.route(80, hostname="nowhere.invalid"))
    assert_refusal(answer, 502, "dns_error", "the target's name cannot be resolved")


def test_slow_origin(hasty: Gateway) -> None:
    def silent(connection: Connection, request: Request) -> None:
        connection.wait_gone(5)

    with Origin(answering(silent)) as origin:
        begun = time.monotonic()
        answer = fetch(hasty.port, hasty.route(origin))
        took = time.monotonic() - begun
    assert_refusal(answer, 504, "http_response_timeout", "the target did not answer in time")
    assert 0.5 <= took < 2


def test_origin_falls_silent_within_its_answer(hasty: Gateway) -> None:
    def stuck(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhel")
        connection.wait_gone(5)

    with Origin(answering(stuck)) as origin:
        answer = fetch(hasty.port, hasty.route(origin))
    assert (answer.status, answer.body, answer.complete) == (200, b"hel", False)


def test_slow_but_steady_origin(hasty: Gateway) -> None:
    """Timeouts are for each phase, never for the whole."""

    def steady(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(8):
            time.sleep(0.2)  # that is what it is like
            connection.chunk(b".")
        connection.send(b"0\r\n\r\n")

    with Origin(answering(steady)) as origin:
        answer = fetch(hasty.port, hasty.route(origin))
    assert (answer.body, answer.complete) == (b"." * 8, True)


def dying(
    head: bytes, body: bytes, end: Callable[[Connection], None]
) -> Callable[[Connection], None]:
    """Return a script that sends a head and a part of a body, and ends so."""

    def script(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + body)
        end(connection)

    return script


LENGTH = dying(b"Content-Length: 100\r\n", b"partial", Connection.close)
LENGTH_RESET = dying(b"Content-Length: 100\r\n", b"partial", Connection.reset)
CHUNKED = dying(b"Transfer-Encoding: chunked\r\n", b"7\r\npartial\r\n", Connection.close)
MID_CHUNK = dying(b"Transfer-Encoding: chunked\r\n", b"ff\r\npartial", Connection.close)


@pytest.mark.parametrize("script", [LENGTH, CHUNKED, MID_CHUNK])
def test_origin_dies_within_its_answer(gateway: Gateway, script: Callable[..., None]) -> None:
    with Origin(script) as origin:
        host = gateway.route(origin)
        got = curl(gateway.port, f"http://{host}/")
        answer = fetch(gateway.port, host)
    assert got.returncode in (18, 56), "curl took a broken answer for a whole one"
    assert got.stdout == b"partial"
    assert (answer.status, answer.body, answer.complete) == (200, b"partial", False)


def test_origin_resets_within_its_answer(gateway: Gateway) -> None:
    with Origin(LENGTH_RESET) as origin:
        got = curl(gateway.port, f"http://{gateway.route(origin)}/")
    # The reset may overtake even the head.
    assert got.returncode in (18, 22, 56) or b"502" in got.stdout


@pytest.mark.parametrize("script", [LENGTH, CHUNKED, MID_CHUNK])
def test_origin_dies_and_the_client_is_old(gateway: Gateway, script: Callable[..., None]) -> None:
    """For who knows no chunks, the connection's orderly end would mean a whole answer."""
    with Origin(script) as origin, Client(gateway.port) as client:
        host = gateway.route(origin)
        client.send(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        if script is LENGTH:
            answer = client.answer()
            assert (answer.body, answer.complete) == (b"partial", False)
        else:
            assert client.was_reset()


def test_answer_until_close_that_is_reset(gateway: Gateway) -> None:
    """The end of the connection delimits the answer, but not just any end."""
    seen = threading.Event()

    def resetting(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\npartial")
        assert seen.wait(PATIENCE)
        connection.reset()

    with Origin(resetting) as origin, Client(gateway.port) as client:
        client.ask(gateway.route(origin))
        assert client.head()[0] == 200
        assert client.file.read(12) == b"7\r\npartial\r\n"
        seen.set()
        assert client.file.read() == b"", "that was no end of the chunks"


def serving_once(requests: list[str]) -> Callable[[Connection], None]:
    """Return a script that answers one request of each connection and dies at the next."""

    def script(connection: Connection) -> None:
        for number in range(2):
            request = connection.request()
            if request is None:
                return
            requests.append(request.method)
            connection.body(request)
            if number == 0:
                connection.answer(b"done")

    return script


def test_get_is_sent_again_when_a_kept_connection_dies(gateway: Gateway) -> None:
    requests: list[str] = []
    with Origin(serving_once(requests)) as origin:
        host = gateway.route(origin)
        answers = [fetch(gateway.port, host) for _ in range(2)]
    assert [answer.text for answer in answers] == ["done", "done"]
    assert requests == ["GET", "GET", "GET"]
    assert origin.accepted == 2


def test_post_is_not_sent_again(gateway: Gateway) -> None:
    requests: list[str] = []
    with Origin(serving_once(requests)) as origin:
        host = gateway.route(origin)
        assert fetch(gateway.port, host).text == "done"
        answer = fetch(gateway.port, host, method="POST", Content_Length="0")
    assert_refusal(
        answer, 502, "http_response_incomplete", "closed the connection without a whole answer"
    )
    assert requests == ["GET", "POST"]


def test_origin_that_always_dies_before_answering(gateway: Gateway) -> None:
    def rude(connection: Connection) -> None:
        connection.request()

    with Origin(rude) as origin:
        answer = fetch(gateway.port, gateway.route(origin))
    assert_refusal(
        answer, 502, "http_response_incomplete", "closed the connection without a whole answer"
    )


MALFORMED = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "folded field": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "NUL in a field": b"HTTP/1.1 200 OK\r\nA: \0\r\nContent-Length: 0\r\n\r\n",
    "upgrade that nobody asked for": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_answer(gateway: Gateway, name: str) -> None:
    def malformed(connection: Connection) -> None:
        connection.request()
        connection.send(MALFORMED[name])
        connection.wait_gone()

    with Origin(malformed) as origin:
        answer = fetch(gateway.port, gateway.route(origin))
    assert_refusal(answer, 502, "http_protocol_error", "the target's answer is not valid HTTP")


def test_answer_with_too_large_a_head(gateway: Gateway) -> None:
    def boasting(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\n" + b"X-Filler: %b\r\n" % (b"x" * 900) * 100 + b"\r\n")
        connection.wait_gone()

    with Origin(boasting) as origin:
        answer = fetch(gateway.port, gateway.route(origin))
    assert_refusal(answer, 502, "http_response_header_section_size", "too large a head")


# ---------------------------------------------------------------------- the client


def noticing(gone: list[float], *, endless: bool) -> Callable[[Connection], None]:
    """Return a script that notes when its connection was closed under it."""

    def script(connection: Connection) -> None:
        request = connection.request()
        assert request
        try:
            if endless:
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
                while True:
                    connection.send(b"x" * 65_536)
            connection.wait_gone(5)
        except ConnectionError:
            pass
        gone.append(time.monotonic())

    return script


def leave(client: Client, how: str) -> float:
    left = time.monotonic()
    if how == "reset":
        client.reset()
    else:
        client.close()
    return left


@pytest.mark.parametrize("how", ["close", "reset"])
def test_client_leaves_within_a_download(gateway: Gateway, how: str) -> None:
    gone: list[float] = []
    with Origin(noticing(gone, endless=True)) as origin:
        client = Client(gateway.port)
        client.ask(gateway.route(origin))
        assert client.head()[0] == 200
        assert client.file.read(1_000_000)
        left = leave(client, how)
        wait_until(lambda: gone, "the origin notices")
    assert gone[0] - left < 1


@pytest.mark.parametrize("how", ["close", "reset"])
def test_client_leaves_within_an_upload(gateway: Gateway, how: str) -> None:
    gone: list[float] = []
    with Origin(noticing(gone, endless=False)) as origin:
        client = Client(gateway.port)
        client.ask(gateway.route(origin), method="PUT", Content_Length="100000")
        client.send(b"x" * 50_000)
        wait_until(lambda: origin.requests, "the request has arrived")
        left = leave(client, how)
        wait_until(lambda: gone, "the origin notices")
    assert gone[0] - left < 1


@pytest.mark.parametrize("how", ["close", "reset"])
def test_client_leaves_before_the_answer(gateway: Gateway, how: str) -> None:
    gone: list[float] = []
    mark = gateway.outer.access.mark()
    with Origin(noticing(gone, endless=False)) as origin:
        client = Client(gateway.port)
        client.ask(gateway.route(origin))
        wait_until(lambda: origin.requests, "the request has arrived")
        left = leave(client, how)
        wait_until(lambda: gone, "the origin notices")
    # After a FIN the client might only have closed its half: 0.75 s it is given to show that.
    assert gone[0] - left < 1.2
    assert '" 499 0 ' in gateway.outer.access.wait('outcome="client left"', mark)


# ---------------------------------------------------------------------- what is refused


def test_unknown_host(gateway: Gateway) -> None:
    mark = gateway.outer.access.mark()
    answer = fetch(gateway.port, "unknown.test")
    assert_refusal(answer, 404, "destination_not_found", "no target has this host name")
    assert " target=- " in gateway.outer.access.wait('" 404 ', mark)


@pytest.fixture
def restricted(gateway: Gateway) -> Iterator[tuple[str, Origin]]:
    """A host with the policy of the first seed's example, and its origin."""

    def tell_path(connection: Connection, request: Request) -> None:
        connection.answer(request.target.encode())

    with Origin(answering(tell_path)) as origin:
        policy = {"/helloworld": ["GET", "POST"], "^/api/v[12]/": ["*"]}
        yield gateway.route(origin, policy=policy), origin


def test_policy(gateway: Gateway, restricted: tuple[str, Origin]) -> None:
    host, origin = restricted
    assert fetch(gateway.port, host, "/helloworld?a=/b").text == "/helloworld?a=/b"
    assert fetch(gateway.port, host, "/api/v1/x", "DELETE").status == 200
    assert fetch(gateway.port, host, "/a/../helloworld").text == "/helloworld"
    allowed = len(origin.requests)
    for path, method in [
        ("/", "GET"),
        ("/helloworld/", "GET"),
        ("/helloworld", "DELETE"),
        ("/api/v1/../v3/", "GET"),
        ("/api/v1/%2e%2e/v3/", "GET"),
    ]:
        answer = fetch(gateway.port, host, path, method)
        assert answer.status == 403, path
    assert len(origin.requests) == allowed, "a forbidden request has reached the origin"


def test_policy_says_what_is_forbidden(gateway: Gateway, restricted: tuple[str, Origin]) -> None:
    host, origin = restricted
    answer = fetch(gateway.port, host, "/secret")
    reason = f"Forbidden: GET http://127.0.0.1:{origin.port}/secret is not allowed by policy."
    assert_refusal(answer, 403, "http_request_denied", reason)
    assert answer.text.strip() == reason


@pytest.mark.parametrize("path", ["/api/v1/a%2Fb", "/api/v1/a%5cb", "/api/v1/a%00b"])
def test_policy_and_paths_that_may_be_read_in_two_ways(
    gateway: Gateway, restricted: tuple[str, Origin], path: str
) -> None:
    host, origin = restricted
    answer = fetch(gateway.port, host, path)
    assert answer.status == 400
    assert answer.header("Proxy-Status") == "sockgw; error=http_request_error"
    assert origin.requests == []


def test_encoded_slash_without_a_policy(gateway: Gateway) -> None:
    def tell_path(connection: Connection, request: Request) -> None:
        connection.answer(request.target.encode())

    with Origin(answering(tell_path)) as origin:
        assert fetch(gateway.port, gateway.route(origin), "/a%2Fb/../c").text == "/a%2Fb/../c"


def test_an_upgrade_that_the_origin_ignores(gateway: Gateway, nginx_host: str) -> None:
    answer = fetch(
        gateway.port,
        nginx_host,
        "/hello",
        Connection="Upgrade",
        Upgrade="websocket",
        Sec_WebSocket_Version="13",
        Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==",
    )
    assert answer.status == 200
    assert answer.text == "hello\n"


def test_too_large_a_head(gateway: Gateway, nginx_host: str) -> None:
    with Client(gateway.port) as client:
        answer = client.request(nginx_host, "/hello", Filler="x" * 40_000)
        assert answer.status == 431
        assert client.ends()


def test_too_many_fields(hasty: Gateway) -> None:
    fields = {f"X_{number}": "" for number in range(21)}
    assert fetch(hasty.port, "any", **fields).status == 431


def test_too_large_a_body(hasty: Gateway) -> None:
    with Origin(answering(lambda connection, request: connection.answer())) as origin:
        host = hasty.route(origin)
        answer = fetch(hasty.port, host, method="POST", Content_Length="1001")
        assert answer.status == 413
        assert answer.complete
        with Client(hasty.port) as client:
            client.ask(host, method="POST", Transfer_Encoding="chunked")
            client.send(b"3e9\r\n" + b"x" * 1001 + b"\r\n")
            assert client.answer().status == 413


def test_slow_head(hasty: Gateway) -> None:
    with Client(hasty.port) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
        assert client.answer().status == 408
        assert client.ends()


def test_silent_client(hasty: Gateway) -> None:
    with Client(hasty.port) as client:
        assert client.ends()


POST = b"POST / HTTP/1.1\r\nHost: {}\r\n"
GET = b"GET / HTTP/1.1\r\nHost: {}\r\n"
MALFORMED_REQUESTS = {
    "two lengths": (400, POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    "bad length": (400, POST + b"Content-Length: +1\r\n\r\na"),
    "length and chunks": (
        400,
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "listed coding": (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "chunks in HTTP/1.0": (
        400,
        b"POST / HTTP/1.0\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "folded field": (400, GET + b"A: b\r\n c\r\n\r\n"),
    "space before the colon": (400, GET + b"A : b\r\n\r\n"),
    "NUL": (400, GET + b"A: \0\r\n\r\n"),
    "bare LF": (400, b"GET / HTTP/1.1\nHost: {}\n\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two hosts": (400, GET + b"Host: {}\r\n\r\n"),
    "no method": (400, b" / HTTP/1.1\r\nHost: {}\r\n\r\n"),
}


@pytest.mark.parametrize("name", MALFORMED_REQUESTS)
def test_malformed_request(gateway: Gateway, name: str) -> None:
    """What two servers could read in two ways reaches no origin."""
    status, request = MALFORMED_REQUESTS[name]
    with (
        Origin(answering(lambda connection, request: connection.answer())) as origin,
        Client(gateway.port) as client,
    ):
        client.send(request.replace(b"{}", gateway.route(origin).encode()))
        answer = client.answer()
        assert answer.status == status
        assert answer.header("Connection") == "close"
        assert client.ends()
        assert origin.requests == []


def test_bad_chunk(gateway: Gateway) -> None:
    def take(connection: Connection, request: Request) -> None:
        connection.body(request)
        connection.answer()

    with Origin(answering(take)) as origin, Client(gateway.port) as client:
        client.ask(gateway.route(origin), method="POST", Transfer_Encoding="chunked")
        client.send(b"1\r\na\r\nzz\r\n")
        assert client.answer().status == 400
        assert client.ends()


# ---------------------------------------------------------------------- no inner layer


def test_health(gateway: Gateway) -> None:
    for port in (gateway.port, gateway.outer.socket_port):
        for path in ("/healthz", "/readyz"):
            answer = fetch(port, "localhost", path)
            assert (answer.status, answer.text) == (200, "ok\n")


def test_no_inner_layer(tmp_path: Path, keys: Keys) -> None:
    with Outer(tmp_path, keys.certificate) as outer:
        host = outer.route(80)
        assert_refusal(
            fetch(outer.app_port, host), 502, "destination_unavailable", "no inner layer"
        )
        for port in (outer.app_port, outer.socket_port):
            assert fetch(port, "localhost", "/healthz").status == 200
            assert fetch(port, "localhost", "/readyz").status == 503


def test_target_for_another_inner_layer(gateway: Gateway) -> None:
    host = gateway.route(80, identifier="somebody-else")
    assert_refusal(fetch(gateway.port, host), 502, "destination_unavailable", "no inner layer")


def test_health_paths_of_a_target_are_its_own(gateway: Gateway) -> None:
    with Origin(answering(lambda connection, request: connection.answer(b"mine"))) as origin:
        host = gateway.route(origin)
        assert fetch(gateway.port, host, "/healthz").text == "mine"
        assert fetch(gateway.port, host, "/readyz").text == "mine"

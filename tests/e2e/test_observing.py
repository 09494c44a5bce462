"""What operators see: access log, metrics, admin page, and what systemd is told."""

import base64
import json
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from clients import Answer, Client, fetch
from harness import Gateway, Inner, Keys, Log, Outer, closed_port, wait_until
from origins import Connection, Origin, Request, answering


def basic(password: str, user: str = "admin") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# ---------------------------------------------------------------------- the access log


def test_access_log(gateway: Gateway, nginx_host: str) -> None:
    mark = gateway.outer.access.mark()
    answer = fetch(
        gateway.port, nginx_host, '/hello?a="b', User_Agent='t"\xe9', Referer="http://a/"
    )
    line = gateway.outer.access.wait("hello", mark)
    found = re.fullmatch(
        r'127\.0\.0\.1 - - \[(?P<time>[^]]+)\] "GET /hello\?a=\\"b HTTP/1\.1" 200 6'
        r' "http://a/" "t\\"\\xc3\\xa9" target=nginx\.test identifier=innerLayer id=(?P<id>\w+)'
        r" duration=(?P<duration>[\d.]+) first_byte=(?P<first>[\d.]+) bytes_in=0 tries=1 held=0"
        r" outcome=-",
        line,
    )
    assert found, line
    assert found["id"] == answer.header("X-Request-ID")
    assert 0 < float(found["first"]) <= float(found["duration"]) < 5
    when = datetime.strptime(found["time"], "%d/%b/%Y:%H:%M:%S %z")
    assert abs((datetime.now(UTC) - when).total_seconds()) < 60


def test_access_log_as_json(tmp_path: Path, keys: Keys, nginx_port: int) -> None:
    with Gateway(tmp_path, keys, outer=("--log-format", "json")) as gateway:
        # The events are JSON, too.
        for line in gateway.outer.log.lines():
            assert {"time", "level", "text", "fields"} <= json.loads(line).keys()
        host = gateway.route(nginx_port)
        answer = fetch(gateway.port, host, "/hello")
        entry = json.loads(gateway.outer.access.wait("hello"))
    assert entry["request_id"] == answer.header("X-Request-ID")
    assert entry["status"] == 200
    assert (entry["method"], entry["target"], entry["protocol"]) == ("GET", "/hello", "HTTP/1.1")
    assert (entry["bytes_in"], entry["bytes_out"]) == (0, 6)
    assert (entry["target_name"], entry["identifier"]) == (host, "innerLayer")
    assert 0 < entry["first_byte"] <= entry["duration"]


def test_access_log_is_reopened(gateway: Gateway, nginx_host: str, tmp_path: Path) -> None:
    """After logrotate has moved it away and sent SIGHUP."""
    access = gateway.outer.access
    fetch(gateway.port, nginx_host, "/before-rotation")
    access.wait("/before-rotation")
    moved = access.path.rename(tmp_path / "moved.log")
    gateway.outer.reload()
    fetch(gateway.port, nginx_host, "/after-rotation")
    wait_until(access.path.exists, "the file is there again")
    access.wait("/after-rotation")
    assert not Log(moved).matching("/after-rotation")


def test_bytes_of_an_upload(gateway: Gateway) -> None:
    def take(connection: Connection, request: Request) -> None:
        connection.answer(b"x" * len(connection.body(request)))

    mark = gateway.outer.access.mark()
    with Origin(answering(take)) as origin, Client(gateway.port) as client:
        client.ask(gateway.route(origin), method="POST", Transfer_Encoding="chunked")
        client.send(b"5\r\nhello\r\n0\r\n\r\n")
        assert client.answer().body == b"xxxxx"
    line = gateway.outer.access.wait("POST", mark)
    assert '" 200 5 ' in line
    assert " bytes_in=5 " in line


def test_request_id_of_a_trusted_proxy(tmp_path: Path, keys: Keys) -> None:
    def tell(connection: Connection, request: Request) -> None:
        names = ("X-Request-ID", "X-Forwarded-For", "X-Forwarded-Proto", "Forwarded", "X-Real-IP")
        connection.answer(json.dumps({name: request.all(name) for name in names}).encode())

    claims = {
        "X_Request_ID": "from-the-proxy",
        "X_Forwarded_For": "192.0.2.1, 10.1.1.1",
        "X_Forwarded_Proto": "https",
    }
    with (
        Origin(answering(tell)) as origin,
        Gateway(tmp_path, keys, outer=("--trust-proxy", "loopback,10.0.0.0/8")) as gateway,
    ):
        answer = fetch(gateway.port, gateway.route(origin), **claims)
        line = gateway.outer.access.wait("GET")
    told = json.loads(answer.body)
    assert answer.header("X-Request-ID") == "from-the-proxy"
    assert told["X-Request-ID"] == ["from-the-proxy"]
    assert told["X-Real-IP"] == ["192.0.2.1"]
    assert told["X-Forwarded-Proto"] == ["https"]
    assert line.startswith("192.0.2.1 - - ")


def test_claims_of_a_stranger(gateway: Gateway) -> None:
    seen: list[Request] = []

    def tell(connection: Connection, request: Request) -> None:
        seen.append(request)
        connection.answer()

    claims = {
        "X_Request_ID": "mine",
        "X_Forwarded_For": "192.0.2.1",
        "X_Real_IP": "192.0.2.1",
        "X_Forwarded_Proto": "https",
        "X_Forwarded_Host": "bank.test",
        "Forwarded": "for=192.0.2.1",
        "Proxy": "http://192.0.2.1",
        "Connection": "X-Secret, close",
        "X_Secret": "hop by hop",
        "Keep_Alive": "timeout=5",
    }
    with Origin(answering(tell)) as origin:
        host = gateway.route(origin)
        answer = fetch(gateway.port, host, **claims)
    (request,) = seen
    assert answer.header("X-Request-ID") != "mine"
    assert request.header("X-Request-ID") == answer.header("X-Request-ID")
    assert request.header("Host") == f"127.0.0.1:{origin.port}"
    assert request.header("X-Forwarded-For") == "127.0.0.1"
    assert request.header("X-Real-IP") == "127.0.0.1"
    assert request.header("X-Forwarded-Proto") == "http"
    assert request.header("X-Forwarded-Host") == host
    assert request.header("Forwarded") == f"for=127.0.0.1;proto=http;host={host}"
    for name in ("Proxy", "X-Secret", "Keep-Alive"):
        assert request.all(name) == []


def test_rewriting(gateway: Gateway) -> None:
    """The target's origin becomes the public one, and what merely looks alike stays."""

    def respond(connection: Connection, request: Request) -> None:
        here = f"http://127.0.0.1:{origin.port}"
        connection.answer(
            b"",
            "201 Created",
            f"Location: {here}/new?u={here}",
            f"Content-Location: {here}x/new",
            f"Link: <{here}/style.css>; rel=preload, <http://other.test/>; rel=next",
            "Set-Cookie: a=b; Domain=127.0.0.1; Path=/",
            "Set-Cookie: c=d; Domain=other.test",
            "Content-Security-Policy: default-src 'self'",
        )

    with Origin(answering(respond)) as origin:
        host = gateway.route(origin)
        answer = fetch(gateway.port, host)
        kept = fetch(gateway.port, gateway.route(origin, **{"preserve-host": True}))
    here = f"http://127.0.0.1:{origin.port}"
    assert answer.header("Location") == f"http://{host}/new?u={here}"
    assert answer.header("Content-Location") == f"{here}x/new"
    assert answer.header("Link") == (
        f"<http://{host}/style.css>; rel=preload, <http://other.test/>; rel=next"
    )
    cookies = [value for name, value in answer.headers if name == "Set-Cookie"]
    assert cookies[0].startswith("a=b; ")
    assert "127.0.0.1" not in cookies[0]
    assert cookies[1] == "c=d; Domain=other.test"
    assert answer.header("Content-Security-Policy") == "default-src 'self'"
    assert kept.status == 201
    assert origin.requests[1].header("Host") != origin.requests[0].header("Host")


# ---------------------------------------------------------------------- metrics and admin page


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Gateway]:
    """A gateway with an admin page, on the socket port."""
    directory = tmp_path_factory.mktemp("watched")
    (directory / "password").write_text("s3cret\n")
    outer = ("--admin-password-file", directory / "password", "--remove-csps")
    with Gateway(directory, keys, outer) as gateway:
        yield gateway


def test_metrics(watched: Gateway, nginx_port: int) -> None:
    outer = watched.outer
    host = watched.route(nginx_port, host="metrics.test")
    for _ in range(3):
        fetch(watched.port, host, "/hello")
    fetch(watched.port, host, "/nothing")
    fetch(watched.port, "unknown.test")
    with Client(watched.port) as client:
        client.ask(host, "/large")
        client.head()
        wait_until(lambda: outer.metric("sockgw_streams") == 1, "a stream is counted")
        assert outer.metric("sockgw_clients") == 1
        wait_until(lambda: outer.metric('sockgw_tunnel_bytes_total{direction="in"}') > 100_000, "")
    wait_until(lambda: outer.metric("sockgw_streams") == 0, "it ends")
    assert outer.metric('sockgw_requests_total{status="200",target="metrics.test"}') == 4
    assert outer.metric('sockgw_requests_total{status="404",target="metrics.test"}') == 1
    assert outer.metric('sockgw_requests_total{status="404",target="-"}') == 1
    assert outer.metric('sockgw_tunnels{identifier="innerLayer"}') == 1
    assert outer.metric('sockgw_bytes_total{direction="out",target="metrics.test"}') > 18
    name = "sockgw_request_duration_seconds"
    assert outer.metric(f'{name}_count{{target="metrics.test"}}') == 5
    assert outer.metric(f'{name}_bucket{{le="+Inf",target="metrics.test"}}') == 5
    assert outer.metric('sockgw_handshake_failures_total{reason="key"}') == 0
    assert outer.metric("process_resident_memory_bytes") > 1_000_000


def test_metrics_of_refused_inner_layers(watched: Gateway, tmp_path: Path) -> None:
    other = Keys(tmp_path, "other")
    with Inner(tmp_path, other.private, watched.outer.socket_port) as inner:
        inner.log.wait("refuses this inner layer")
    assert watched.outer.metric('sockgw_handshake_failures_total{reason="key"}') == 1


def test_admin_page(watched: Gateway) -> None:
    port = watched.outer.socket_port
    evil = "<script>alert(1)</script>"
    with closed_port() as dead:
        host = watched.route(dead, host="admin.test", policy={"^/[^<]*$": ["GET"]})
        assert fetch(watched.port, host, f"/{evil}").status in (400, 403)
        assert fetch(watched.port, host, "/dead").status == 502
    answer = fetch(port, "localhost", "/admin", Authorization=basic("s3cret"))
    assert answer.status == 200
    assert answer.header("Content-Type") == "text/html; charset=utf-8"
    for expected in ("innerLayer", "127.0.0.1", "SHA256:", "admin.test", "connection refused"):
        assert expected in answer.text
    assert "<script" not in answer.text
    assert "^/[^&lt;]*$" in answer.text
    assert "frame-ancestors 'none'" in (answer.header("Content-Security-Policy") or "")
    state = json.loads(
        fetch(port, "localhost", "/admin?format=json", Authorization=basic("s3cret")).body
    )
    (tunnel,) = state["tunnels"]
    assert tunnel["identifier"] == "innerLayer"
    assert tunnel["bytes_in"] > 0
    assert tunnel["round_trip"] is not None
    assert any(failure["status"] == 502 for failure in state["failures"])


@pytest.mark.parametrize(
    "authorization", [None, basic("wrong"), basic(""), "Basic !", "Bearer s3cret", "s3cret"]
)
def test_admin_page_without_the_password(watched: Gateway, authorization: str | None) -> None:
    fields = {} if authorization is None else {"Authorization": authorization}
    answer = fetch(watched.outer.socket_port, "localhost", "/admin", **fields)
    assert answer.status == 401
    assert (
        answer.header(
            "WWW-Authenticate",
        )
        == 'Basic realm="sockgw", charset="UTF-8"'
    )
    assert "innerLayer" not in answer.text


def test_no_admin_page_without_a_password(gateway: Gateway) -> None:
    for fields in ({}, {"Authorization": basic("")}):
        answer = fetch(gateway.outer.socket_port, "localhost", "/admin", **fields)
        assert answer.status == 404
    assert fetch(gateway.port, "localhost", "/admin").status == 404
    assert fetch(gateway.port, "localhost", "/metrics").status == 404


def test_admin_port(tmp_path: Path, keys: Keys) -> None:
    options = ("--admin-port", "tcp:0:interface=127.0.0.1", "--admin-password", "s3cret")
    with Outer(tmp_path, keys.certificate, *options) as outer:
        assert outer.admin_port != outer.socket_port
        authorized = {"Authorization": basic("s3cret")}

        def status(port: int, path: str) -> int:
            return fetch(port, "localhost", path, **authorized).status

        assert status(outer.admin_port, "/admin") == 200
        assert status(outer.admin_port, "/metrics") == 200
        assert status(outer.socket_port, "/admin") == 404
        assert status(outer.socket_port, "/metrics") == 404
        assert status(outer.socket_port, "/healthz") == 200
        assert "s3cret" not in "\n".join(outer.log.lines())


def test_removed_csps(watched: Gateway) -> None:
    def respond(connection: Connection, request: Request) -> None:
        connection.answer(b"", "200 OK", "Content-Security-Policy: default-src 'self'", "X-A: b")

    with Origin(answering(respond)) as origin:
        answer: Answer = fetch(watched.port, watched.route(origin))
    assert answer.header("Content-Security-Policy") is None
    assert answer.header("X-A") == "b"


# ---------------------------------------------------------------------- systemd


def test_notifications(tmp_path: Path, keys: Keys) -> None:
    path = tmp_path / "notify"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(str(path))
        manager.settimeout(10)

        def next_but(unwanted: str) -> str:
            while (state := manager.recv(4096).decode()) == unwanted:
                pass
            return state

        env = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "200000"}
        with Outer(tmp_path, keys.certificate, env=env) as outer:
            assert next_but("") == "READY=1"
            for _ in range(3):
                assert next_but("") == "WATCHDOG=1"
            outer.signal(signal.SIGHUP)
            assert next_but("WATCHDOG=1").startswith("RELOADING=1\nMONOTONIC_USEC=")
            assert next_but("WATCHDOG=1") == "READY=1"
            outer.stop()
            assert next_but("WATCHDOG=1") == "STOPPING=1"
        with Inner(tmp_path, keys.private, 1, env=env):
            assert next_but("") == "READY=1"

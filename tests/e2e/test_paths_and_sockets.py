"""Several origins under one host, some of them on Unix sockets, through a real tunnel."""

import http.cookiejar
import json
import socket
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cable import Cable
from clients import Client, curl, fetch, sha256_of, start_curl
from harness import LOOPBACK, PATIENCE, Inner, Keys, Outer, Process, command, wait_until
from origins import Connection, Nginx, Origin, Request, answering

HOST = "localhost"  # urllib asks for what it connects to


class Gunicorn(Process):
    """gunicorn with :mod:`shop`, on a Unix socket."""

    def __init__(self, directory: Path, path: Path) -> None:
        super().__init__(
            "gunicorn",
            [
                *(
                    command("gunicorn"),
                    "--bind",
                    f"unix:{path}",
                    "--backlog",
                    "2",
                    "--no-control-socket",
                ),
                *("--chdir", Path(__file__).parent, "shop:application"),
            ],
            directory,
            {"TMPDIR": str(directory)},
        )
        self.log.wait("Booting worker")


class Stand:
    """A gateway with a cable in its tunnel; sockets lie in a directory of short names."""

    def __init__(self, stack: ExitStack, directory: Path, keys: Keys, files: Path) -> None:
        # Paths of sockets have 107 bytes, those of tests have more.
        self.sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sockgw")))
        app, web, h2 = (self.sockets / f"{name}.sock" for name in ("app", "web", "h2"))
        raw = self.sockets / "raw" / "echo"
        raw.parent.mkdir()
        stack.enter_context(_echo(raw))
        stack.enter_context(Gunicorn(directory, app))
        self.nginx = stack.enter_context(
            Nginx(
                directory,
                files,
                f"listen unix:{web}; listen unix:{h2} http2;"
                " location = /who { return 200 nginx; } add_header X-Spoken $server_protocol;",
            )
        )
        self.rest = stack.enter_context(Origin(answering(_rest)))
        here = {"protocol": "http", "hostname": "127.0.0.1", "port": self.rest.port}
        entries = {
            HOST: {
                **here,
                "policy": {"^/": ["GET", "HEAD", "OPTIONS"]},
                "paths": {
                    "/shop": {"socket": str(app), "strip-prefix": True},
                    "/shop/old": {"service": "app", "strip-prefix": "/shop"},
                    "/files/": {"socket": str(web), "strip-prefix": True},
                    "/admin": {**here, "policy": {"/admin/status": "GET"}},
                    "/below": {**here, "strip-prefix": True, "add-prefix": "/app"},
                },
            },
            "alone.test": {"paths": {"/shop": {"socket": str(app), "strip-prefix": True}}},
            "web.test": {"socket": str(web)},
            "h2.test": {"socket": str(h2), "http2": True},
            "service.test": {"service": "app"},
            "echo": {"protocol": "tcp", "listen": LOOPBACK, "socket": str(raw)},
            "echo-service": {"protocol": "tcp", "listen": LOOPBACK + "0", "service": "echo"},
            "switch.test": {"paths": {"/ws": {"socket": str(raw), "strip-prefix": True}}},
            "other.test": {"socket": "/var/run/docker.sock"},
        }
        self.outer = stack.enter_context(Outer(directory, keys.certificate, targets=entries))
        self.cable = stack.enter_context(Cable(self.outer.socket_port))
        self.inner = stack.enter_context(
            Inner(
                directory,
                keys.private,
                self.cable.port,
                *("--allow", "127.0.0.1", "--allow", f"unix:{web}", "--allow", f"unix:{h2}"),
                *("--allow", f"unix:{raw.parent}/*"),
                *("--service", f"app=unix:{app}", "--service", f"echo=unix+tcp:{raw}"),
                *("--reconnect-delay", "20", "--origin-keep-alive", "100"),
            )
        )
        self.inner.wait_connected()
        self.outer.wait_for_tunnels(1)

    @property
    def port(self) -> int:
        return self.outer.app_port

    def port_of(self, target: str) -> int:
        """Return where a target of TCP listens."""
        line = self.outer.log.wait(f"listening on .* for {target}$")
        return int(line.rpartition(" for ")[0].rpartition(":")[2])

    def show(self, path: str, host: str = HOST) -> Any:
        """Return what the shop says that it was asked."""
        return json.loads(fetch(self.port, host, path).body)


@contextmanager
def _echo(path: Path) -> Iterator[None]:
    """Send back what comes, to its end; a request for an upgrade is granted first."""

    def serve(wire: socket.socket) -> None:
        with wire:
            while data := wire.recv(65536):
                if data.startswith(b"GET / HTTP/1.1\r\n"):
                    assert b"\r\nX-Forwarded-Prefix: /ws\r\n" in data
                    data = (
                        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n"
                        b"Upgrade: echo\r\n\r\n"
                    )
                wire.sendall(data)

    def accept() -> None:
        with suppress(OSError), ThreadPoolExecutor() as pool:
            while True:
                pool.submit(serve, listener.accept()[0])

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)


def _rest(connection: Connection, request: Request) -> None:
    connection.body(request)
    location = [f"Location: {request.target}/next"] if request.target.startswith("/app/") else []
    status = "302 Found" if location else "200 OK"
    connection.answer(f"rest {request.target}".encode(), status, *location)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory, keys: Keys, files: Path) -> Iterator[Stand]:
    with ExitStack() as stack:
        yield Stand(stack, tmp_path_factory.mktemp("paths"), keys, files)


# ---------------------------------------------------------------------- who gets what


def test_each_path_has_its_origin(stand: Stand) -> None:
    assert fetch(stand.port, HOST, "/x?q").text == "rest /x?q"
    assert fetch(stand.port, HOST, "/shopping").text == "rest /shopping"
    assert fetch(stand.port, HOST, "/files/who").text == "nginx"
    assert fetch(stand.port, HOST, "/admin/status").text == "rest /admin/status"
    shown = stand.show("/shop/a/b%20c?q=/shop")
    assert shown["path"] == "/a/b%20c?q=/shop"
    assert (shown["host"], shown["prefix"]) == ("localhost", "/shop")
    assert stand.show("/shop")["path"] == "/"
    assert stand.show("/shop/old/x")["path"] == "/old/x"  # by way of the service
    assert stand.show("/x", "service.test") == {**shown, "path": "/x", "prefix": None}
    stand.outer.access.wait(rf"/shop/a/b%20c.* 200 .*target={HOST}/shop ")
    stand.outer.access.wait(rf"/shop/old/x.* 200 .*target={HOST}/shop/old ")
    assert stand.outer.metric(f'sockgw_requests_total{{status="200",target="{HOST}/files"}}') == 1


def test_what_nothing_stands_for(stand: Stand) -> None:
    for path in ("/", "/shopping", "/shop/../x"):
        answer = fetch(stand.port, "alone.test", path)
        assert (answer.status, answer.text) == (404, "no target of this host has this path\n")
    assert stand.show("/shop/", "alone.test")["path"] == "/"


TRAVERSALS = [
    ("/shop/../admin", 403),
    ("/shop/%2e%2e/admin", 403),
    ("/shop/%2E./admin/", 403),
    ("/shop/x/../../admin/secret", 403),
    ("//admin", 403),
    ("/./admin", 403),
    ("/%61dmin", 403),
    ("/shop//..//admin", 403),
    ("/admin/status/../secret", 403),
    ("/shop/..%2fadmin", 400),
    ("/shop/%2e%2e%2fadmin", 400),
    ("/shop/..\\admin", 400),
    ("/shop/..%5cadmin", 400),
    ("/shop/..;/admin", 400),
    ("/shop;/../admin", 403),
    ("/shop/.;/../admin", 400),
    ("/admin;x", 400),
    ("/admin;/status", 400),
    ("/;/admin", 400),
    ("/admin%3bx/secret", 400),
    ("/shop/%252e%252e/admin", 400),
    ("/shop/%c0%ae%c0%ae/admin", 400),
    ("/admin%00", 400),
    ("/admin%09", 400),
    ("/shop/%u002e%u002e/admin", 400),
]


@pytest.mark.parametrize(("path", "status"), TRAVERSALS)
def test_no_way_around_a_policy(stand: Stand, path: str, status: int) -> None:
    """What /admin forbids no spelling reaches, through its own origin or another one's."""
    before = len(stand.rest.requests)
    assert fetch(stand.port, HOST, path).status == status
    assert len(stand.rest.requests) == before


def test_policies_hold_for_their_paths(stand: Stand) -> None:
    refused = fetch(stand.port, HOST, "/admin/x")
    where = f"http://127.0.0.1:{stand.rest.port}/admin/x"
    assert refused.text == f"Forbidden: GET {where} is not allowed by policy.\n"
    assert fetch(stand.port, HOST, "/admin/status", "DELETE").status == 403
    assert fetch(stand.port, HOST, "/x", "DELETE").status == 403
    assert fetch(stand.port, HOST, "/shop/x", "DELETE").status == 200
    stand.outer.access.wait(rf"GET /admin/x .* 403 .*target={HOST}/admin ")


def test_options_of_the_whole_server(stand: Stand) -> None:
    assert fetch(stand.port, HOST, "*", "OPTIONS").status == 403  # its policy knows paths only
    assert fetch(stand.port, "alone.test", "*", "OPTIONS").status == 404


# ---------------------------------------------------------------------- clients that follow


def test_curl_follows_and_keeps_its_cookies(stand: Stand, tmp_path: Path) -> None:
    jar = tmp_path / "jar"
    base = f"http://{HOST}:{stand.port}"
    follow = ("-L", "-b", jar, "-c", jar, "-w", "\n%{url_effective}")

    def ask(path: str) -> tuple[dict[str, Any], str]:
        done = curl(stand.port, *follow, base + path)
        assert done.returncode == 0, done.stderr
        body, _, url = done.stdout.decode().rpartition("\n")
        return json.loads(body), url.removeprefix(base)

    shown, where = ask("/shop/account")
    assert where == "/shop/account?from=login"
    assert (shown["path"], shown["cookie"]) == ("/account?from=login", "sid=secret")
    assert "\t/shop\t" in jar.read_text()
    assert ask("/shop/deep/relative")[1] == "/shop/account"
    assert ask("/shop/aware")[1] == "/shop/account"
    done = curl(stand.port, *follow, base + "/x")
    assert done.stdout.decode().startswith("rest /x\n")
    assert stand.rest.requests[-1].header("Cookie") is None  # it is not for this path
    shown, where = ask("/shop/logout")
    assert (where, shown["path"], shown["cookie"]) == ("/shop/", "/", None)


def test_a_client_with_another_cookie_jar(stand: Stand) -> None:
    jar = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(jar)
    )
    base = f"http://{HOST}:{stand.port}"
    with opener.open(f"{base}/shop/login", data=b"name=x") as answer:
        assert answer.url == f"{base}/shop/account?from=login"
        assert json.load(answer)["cookie"] == "sid=secret"
    (cookie,) = jar
    assert cookie.path == "/shop"
    opener.open(f"{base}/x").close()
    assert stand.rest.requests[-1].header("Cookie") is None
    with opener.open(f"{base}/shop/logout") as answer:
        assert answer.url == f"{base}/shop/"
    assert not jar


def test_a_prefix_that_is_put_on_comes_off(stand: Stand) -> None:
    answer = fetch(stand.port, HOST, "/below/x")
    assert stand.rest.requests[-1].target == "/app/x"
    assert answer.header("Location") == "/below/x/next"


# ---------------------------------------------------------------------- Unix sockets


def test_downloads_from_a_socket(stand: Stand, files: Path) -> None:
    done = curl(stand.port, "-o", "-", "http://web.test/hello")
    assert done.stdout == b"hello\n"
    with start_curl(stand.port, f"http://{HOST}:{stand.port}/files/large") as process:
        assert process.stdout is not None
        assert sha256_of(process.stdout) == sha256_of(files / "large")


def test_http2_over_a_socket(stand: Stand) -> None:
    for host, spoken in (("web.test", "HTTP/1.1"), ("h2.test", "HTTP/2.0")):
        answer = fetch(stand.port, host, "/hello")
        assert (answer.text, answer.header("X-Spoken")) == ("hello\n", spoken)


def test_a_download_from_a_socket_survives_a_cut(stand: Stand, files: Path) -> None:
    mark = stand.inner.log.mark()
    with Client(stand.port) as client:
        client.ask("web.test", "/large")
        status, fields = client.head()
        assert status == 200
        length = int(dict(fields)["Content-Length"])
        read = 0

        def take(size: int) -> bytes:
            nonlocal read
            data = client.file.read(min(size, length - read))
            before, read = read, read + len(data)
            for part in (1, 2):
                if before < part * length // 3 <= read:
                    stand.cable.cut()
            return data

        assert sha256_of(take) == sha256_of(files / "large")
    assert len(stand.inner.log.matching("the tunnel goes on: ", mark)) == 2
    assert stand.outer.metric("sockgw_resumes_total") >= 2


@pytest.mark.parametrize("target", ["echo", "echo-service"])
def test_bytes_to_a_socket(stand: Stand, target: str) -> None:
    with Client(stand.port_of(target)) as client:
        data = bytes(range(256)) * 2000
        client.send(data)
        assert client.file.read(len(data)) == data
        stand.cable.cut()
        client.send(b"after")
        client.socket.shutdown(socket.SHUT_WR)
        assert client.file.read() == b"after"


def test_an_upgrade_at_a_socket_below_a_path(stand: Stand) -> None:
    with Client(stand.port) as client:
        client.ask("switch.test", "/ws", Connection="upgrade", Upgrade="echo")
        assert client.head()[0] == 101
        client.send(b"hello")
        assert client.file.read(5) == b"hello"
        stand.cable.cut()
        client.send(b"after")
        assert client.file.read(5) == b"after"
        client.socket.shutdown(socket.SHUT_WR)
        assert client.ends()


def test_many_at_once_at_a_socket_with_a_short_queue(stand: Stand) -> None:
    urls = [f"http://{HOST}:{stand.port}/shop/{number}" for number in range(30)]
    done = curl(stand.port, "-Z", "--parallel-max", "30", "-f", *urls)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b'"shop"') == 30


def test_a_socket_that_is_not_allowed(stand: Stand) -> None:
    answer = fetch(stand.port, "other.test")
    assert (answer.status, answer.text) == (502, "the inner layer does not allow this target\n")
    assert answer.header("Proxy-Status") == "sockgw; error=destination_ip_prohibited"
    stand.outer.access.wait(r" 502 .*target=other.test .*outcome=\S*not allowed")


@pytest.fixture
def daemon() -> Iterator[str]:
    """Something that listens as a container engine's daemon does, and wants to be left alone."""
    with (
        tempfile.TemporaryDirectory(prefix="sockgw") as directory,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        path = f"{directory}/docker.sock"
        listener.bind(path)
        listener.listen()
        listener.settimeout(0)
        yield path
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_without_an_allow_list_no_socket_is_reached(
    gateway: Any, daemon: str, nginx_host: str
) -> None:
    """The shared gateway has none: what has an address may be reached, and no socket."""
    assert fetch(gateway.port, nginx_host, "/hello").status == 200
    mark = gateway.outer.access.mark()
    host = gateway.route(0, host="daemon.test", hostname="localhost", port=80, socket=daemon)
    answer = fetch(gateway.port, host, "/containers/json")
    assert (answer.status, answer.text) == (502, "the inner layer does not allow this target\n")
    gateway.outer.access.wait("not allowed", mark)
    assert daemon not in answer.text


def test_an_origins_socket_that_fails(stand: Stand) -> None:
    """Strangers are told what kind of thing failed, and no path of a file."""
    web = stand.sockets / "web.sock"
    kept = web.rename(stand.sockets / "kept")

    def told(reason: str) -> bool:
        # Connections from before may still be there, for a moment.
        answer = fetch(stand.port, "web.test", "/hello")
        assert answer.status == 200 or answer.text == f"{reason}\n"
        return answer.status == 502

    try:
        wait_until(lambda: told("the target cannot be reached"), "it is missed")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(web))
        assert told("the target refused the connection")
    finally:
        web.unlink(missing_ok=True)
        kept.rename(web)
    assert fetch(stand.port, "web.test", "/hello").status == 200


# ---------------------------------------------------------------------- files


def test_the_check_tells_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "targets.yaml"
    file.write_text("targets:\n  a:\n    hostname: h\n    paths:\n      /x/../y: {hostname: h}\n")
    done = subprocess.run(
        [command("sockgw"), "check", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"{file}:5:7: targets.a.paths./x/../y: '/x/../y' is not in normal form" in (
        done.stdout + done.stderr
    )


def test_paths_come_and_go(stand: Stand) -> None:
    assert fetch(stand.port, HOST, "/new/x").text == "rest /new/x"
    entry = stand.outer.entries[HOST]
    entry["paths"]["/new"] = {"service": "app"}
    stand.outer._write_targets()
    mark = stand.outer.reload()
    assert stand.outer.log.matching(f"added: {HOST}/new;", mark)
    assert stand.show("/new/x")["path"] == "/new/x"
    del entry["paths"]["/new"]
    stand.outer._write_targets()
    mark = stand.outer.reload()
    assert stand.outer.log.matching(f"removed: {HOST}/new;", mark)
    assert fetch(stand.port, HOST, "/new/x").text == "rest /new/x"

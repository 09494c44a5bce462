"""What only speaks TCP: the same happens straight, through the tunnel, and with cuts."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shlex
import socket
import socketserver
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from clients import sha256_of
from harness import (
    PATIENCE,
    Endpoint,
    Keys,
    Outer,
    closed_port,
    environment,
    free_port,
    own_address,
    require,
    wait_until,
)
from rawservers import ProxiedNginx, Redis, RsyncDaemon, Sshd
from ways import WAYS, Line, Way

MIB = 1 << 20
LARGE = (1024 if os.environ.get("SOCKGW_FAULTS") == "full" else 64) * MIB


@pytest.fixture(scope="module")
def _line(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Line]:
    with Line(tmp_path_factory.mktemp("line"), keys) as line:
        yield line


@pytest.fixture
def line(_line: Line) -> Iterator[Line]:
    with _line.idle_after():
        yield _line


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, line: Line) -> Way:
    return Way(request.param, line)


def call(*arguments: str | Path, input: bytes = b"", patience: float = 60) -> bytes:
    """Run a client to its good end; return what it printed."""
    done = subprocess.run(
        [str(argument) for argument in arguments],
        input=input,
        env=environment(),
        capture_output=True,
        timeout=patience,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stdout[-500:], done.stderr[-500:])
    return done.stdout


# ---------------------------------------------------------------------- OpenSSH


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def test_login(way: Way, sshd: Sshd) -> None:
    """A command's output, errors and status come back, and what it reads goes there."""
    where = way.to(sshd)
    command = [require("ssh"), *sshd.client(where), sshd.login(where)]
    done = subprocess.run(
        [*command, "cat; echo problem >&2; exit 7"],
        input=b"typed\n",
        env=environment(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, b"typed\n", b"problem\n")


def test_session_that_stays_open(way: Way, sshd: Sshd) -> None:
    """Somebody types, waits while the link breaks, and types on."""
    where = way.to(sshd)
    with subprocess.Popen(
        [require("ssh"), *sshd.client(where), sshd.login(where), "cat"],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as session:
        assert session.stdin is not None
        assert session.stdout is not None
        for number in range(4):
            session.stdin.write(b"line %d\n" % number)
            session.stdin.flush()
            if number == 2:
                way.cut()  # while the line is on its way, perhaps
            assert session.stdout.readline() == b"line %d\n" % number
            if number < 2:
                way.cut()
        session.stdin.close()
        assert session.wait(PATIENCE) == 0


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("large") / "large"
    block = os.urandom(MIB)
    with open(path, "wb") as file:
        for number in range(LARGE // MIB):
            # No two blocks are equal: one that is lost, or comes twice, must change the sum.
            file.write(number.to_bytes(8, "big") + block[8:])
    yield path
    path.unlink()  # pytest keeps directories for a while


@pytest.mark.parametrize("direction", ["up", "down"])
def test_scp(way: Way, sshd: Sshd, large: Path, tmp_path: Path, direction: str) -> None:
    where = way.to(sshd)
    copy = tmp_path / "copy"
    there = f"{sshd.login(where)}:"
    names = (large, f"{there}{copy}") if direction == "up" else (f"{there}{large}", copy)
    with way.cut_every(LARGE // 4):
        call(require("scp"), "-q", *sshd.client(where, port="-P"), *names, patience=300)
    try:
        assert copy.stat().st_size == LARGE
        assert sha256_of(copy) == sha256_of(large)
    finally:
        copy.unlink()


# ---------------------------------------------------------------------- rsync


def tree(directory: Path, seed: int = 4) -> dict[str, bytes]:
    """Make a tree of files of all sizes; return what is in them."""
    chance = random.Random(seed)
    made: dict[str, bytes] = {}
    for number in range(150):
        size = 0 if number == 0 else int(2 ** chance.uniform(0, 18))
        name = f"{chance.randrange(8)}/{chance.randrange(4)}/file {number}"
        made[name] = chance.randbytes(size)
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made[name])
    return made


def content(directory: Path) -> dict[str, bytes]:
    """Return what is in the files of a tree."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def sync(way: Way, tmp_path: Path, remote: str, *options: str) -> None:
    """Send a tree there, fetch it back, and see that there is nothing left to do.

    ``remote`` is where rsync has ``tmp_path / "there"``.
    """
    wanted = tree(tmp_path / "here")
    (tmp_path / "there").mkdir(exist_ok=True)
    rsync = (require("rsync"), "-a", "--itemize-changes", *options)
    with way.cut_every(MIB):
        call(*rsync, f"{tmp_path / 'here'}/", f"{remote}/")
        call(*rsync, f"{remote}/", f"{tmp_path / 'back'}/")
    assert content(tmp_path / "there") == wanted
    assert content(tmp_path / "back") == wanted
    assert call(*rsync, f"{remote}/", f"{tmp_path / 'back'}/") == b""


def test_rsync_over_ssh(way: Way, sshd: Sshd, tmp_path: Path) -> None:
    where = way.to(sshd)
    shell = shlex.join([require("ssh"), *sshd.client(where)])
    sync(way, tmp_path, f"{sshd.login(where)}:{tmp_path / 'there'}", "-e", shell)


def test_rsync_daemon(way: Way, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with RsyncDaemon(tmp_path, tmp_path / "there") as server:
        where = way.to(server)
        sync(way, tmp_path, f"rsync://{where.host}:{where.port}/files")


# ---------------------------------------------------------------------- Redis


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with Redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


class RedisClient:
    """Redis's own protocol (RESP), written by hand to see each byte."""

    def __init__(self, where: Endpoint) -> None:
        self.socket = socket.create_connection(where, PATIENCE)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> RedisClient:
        return self

    def __exit__(self, *reason: Any) -> None:
        self.file.close()
        self.socket.close()

    def send(self, *commands: tuple[bytes | str, ...]) -> None:
        out = bytearray()
        for command in commands:
            out += b"*%d\r\n" % len(command)
            for word in command:
                word = word.encode() if isinstance(word, str) else word
                out += b"$%d\r\n%b\r\n" % (len(word), word)
        self.socket.sendall(out)

    def answer(self) -> Any:
        line = self.file.readline()
        assert line.endswith(b"\r\n"), "the connection has ended"
        kind, rest = line[:1], line[1:-2]
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        return int(rest) if kind == b":" else rest

    def ask(self, *command: bytes | str) -> Any:
        self.send(command)
        return self.answer()


def test_redis_cli(way: Way, redis: Redis) -> None:
    """Redis's own client, and what it calls mass insertion."""
    host, port = way.to(redis)
    cli = (require("redis-cli"), "-h", host, "-p", str(port))
    assert call(*cli, "set", "greeting", "hello") == b"OK\n"
    inserted = "".join(f"SET key{number} {'v' * 200}{number}\r\n" for number in range(20_000))
    with way.cut_every(2 * MIB):
        printed = call(*cli, "--pipe", input=inserted.encode())
    assert b"errors: 0, replies: 20000" in printed
    assert call(*cli, "get", "key19999") == b"v" * 200 + b"19999\n"
    assert call(*cli, "flushall") == b"OK\n"


def test_redis_pipelining(way: Way, redis: Redis) -> None:
    """Thousands of commands are under way when the link breaks; each is done once, in order."""
    count = 20_000
    with RedisClient(way.to(redis)) as client:
        assert client.ask("DEL", "counter") in (0, 1)
        with way.cut_every(200_000):
            sending = threading.Thread(
                target=client.send, args=[("INCR", "counter")] * count, daemon=True
            )
            sending.start()
            answers = [client.answer() for _ in range(count)]
            sending.join(PATIENCE)
    assert answers == list(range(1, count + 1))


def test_redis_subscription(way: Way, redis: Redis) -> None:
    """Messages published while the link is broken come when it is back, once and in order."""
    direct = Endpoint(redis.host, redis.port)
    with RedisClient(way.to(redis)) as subscriber, RedisClient(direct) as publisher:
        assert subscriber.ask("SUBSCRIBE", "news") == [b"subscribe", b"news", 1]
        for number in range(30):
            if number % 10 == 5:
                way.cut()
            assert publisher.ask("PUBLISH", "news", f"message {number}") == 1
            if number % 10 == 7:
                way.cut()
        for number in range(30):
            message = [b"message", b"news", b"message %d" % number]
            assert subscriber.answer() == message
        assert subscriber.ask("UNSUBSCRIBE", "news") == [b"unsubscribe", b"news", 0]


# ---------------------------------------------------------------------- halves and ends


class Peer:
    """A server whose single connection the test has in its own hands."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE)
        self.host, self.port = self._listener.getsockname()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *reason: Any) -> None:
        self._listener.close()

    def accept(self) -> socket.socket:
        wire, _ = self._listener.accept()
        wire.settimeout(PATIENCE)
        return wire


@contextlib.contextmanager
def pair(where: Endpoint, peer: Peer) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give a client's connection and the server's end of it."""
    with socket.create_connection(where, PATIENCE) as client, peer.accept() as server:
        yield client, server


def read_all(wire: socket.socket) -> bytes:
    """Read to the orderly end."""
    return b"".join(iter(lambda: wire.recv(65_536), b""))


def reset(wire: socket.socket) -> None:
    """Break a connection off."""
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as server:
        yield server


@pytest.mark.parametrize("first", ["client", "server"])
def test_half_close(way: Way, peer: Peer, first: str) -> None:
    """As ``nc -N``: one side has said everything, and hears the other one out."""
    question, answer = os.urandom(300_000), os.urandom(700_000)
    with pair(way.to(peer), peer) as (client, server):
        one, other = (client, server) if first == "client" else (server, client)
        heard: list[bytes] = []
        hearing = threading.Thread(target=lambda: heard.append(read_all(other)), daemon=True)
        hearing.start()
        one.sendall(question)
        one.shutdown(socket.SHUT_WR)
        hearing.join(PATIENCE)
        assert heard == [question]
        way.cut()
        replying = threading.Thread(target=other.sendall, args=[answer], daemon=True)
        replying.start()
        received = b""
        while len(received) < len(answer):
            piece = one.recv(65_536)
            assert piece, "it has ended before the other side had"
            received += piece
        assert received == answer
        replying.join(PATIENCE)
        way.cut()
        other.shutdown(socket.SHUT_WR)
        assert one.recv(1) == b""


def test_bytes_that_come_before_the_connection_is_made(way: Way, peer: Peer) -> None:
    """A client need not wait for anything, and may have ended before the server accepts."""
    with socket.create_connection(way.to(peer), PATIENCE) as client:
        client.sendall(b"everything at once")
        client.shutdown(socket.SHUT_WR)
        with peer.accept() as server:
            assert read_all(server) == b"everything at once"
            server.sendall(b"and the answer")
        assert read_all(client) == b"and the answer"


class Digests(socketserver.ThreadingTCPServer):
    """Says of each connection what has come, twice as long, and then some of it again."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.host, self.port = self.server_address[:2]
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def server_close(self) -> None:
        self.shutdown()
        super().server_close()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            received = read_all(self.request)
            self.request.sendall(hashlib.sha256(received).digest() + received[::-1])


def test_many_at_once(way: Way) -> None:
    """Connections of all sizes in each other's way, in many pieces, both ways."""
    chance = random.Random(7)
    sizes = [0, 1, *(int(2 ** chance.uniform(1, 19)) for _ in range(38))]

    def exchange(where: Endpoint, number: int) -> bool:
        chance = random.Random(number)
        data = chance.randbytes(sizes[number])
        with socket.create_connection(where, PATIENCE) as wire:
            start = 0
            while start < len(data):
                end = start + chance.randrange(1, 100_000)
                wire.sendall(data[start:end])
                start = end
            wire.shutdown(socket.SHUT_WR)
            return read_all(wire) == hashlib.sha256(data).digest() + data[::-1]

    with Digests() as server, ThreadPoolExecutor(16) as pool:
        where = way.to(server)
        with way.cut_every(MIB):
            asked = [pool.submit(exchange, where, number) for number in range(len(sizes))]
            wrong = [number for number, each in enumerate(asked) if not each.result(30)]
    assert wrong == []


@pytest.mark.parametrize(
    "header", [b"PROXY UNKNOWN\r\n", b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n"]
)
def test_half_close_behind_a_balancer(line: Line, peer: Peer, header: bytes) -> None:
    own = own_address()
    listen = f"haproxy:tcp:{own.port}:interface={own.host}"
    where = line.outer.publish(f"behind{own.host}", peer, listen=listen)
    with socket.create_connection(where, PATIENCE) as client:
        client.sendall(header + b"question")
        client.shutdown(socket.SHUT_WR)
        with peer.accept() as server:
            assert read_all(server) == b"question"
            server.sendall(b"answer")
        assert read_all(client) == b"answer"


@pytest.mark.parametrize("first", ["client", "server"])
def test_reset(way: Way, peer: Peer, first: str) -> None:
    """What broke off does not look like an orderly end."""
    with pair(way.to(peer), peer) as (client, server):
        one, other = (client, server) if first == "client" else (server, client)
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        server.sendall(b"y")
        assert client.recv(1) == b"y"
        reset(one)
        with pytest.raises(ConnectionResetError):
            other.recv(1)


@pytest.mark.parametrize("first", ["client", "server"])
def test_reset_of_what_is_half_closed(line: Line, peer: Peer, first: str) -> None:
    with pair(Way("tunnel", line).to(peer), peer) as (client, server):
        one, other = (client, server) if first == "client" else (server, client)
        other.sendall(b"x")
        other.shutdown(socket.SHUT_WR)
        assert read_all(one) == b"x"
        reset(one)
        with pytest.raises(ConnectionResetError):
            other.recv(1)


@pytest.mark.parametrize("first", ["client", "server"])
def test_reset_by_who_was_not_read(line: Line, peer: Peer, first: str) -> None:
    """What is under way may be lost with a reset, but not the reset itself."""
    with pair(Way("tunnel", line).to(peer), peer) as (client, server):
        one, other = (client, server) if first == "client" else (server, client)
        one.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                one.send(b"x" * 65_536)
        reset(one)
        with pytest.raises(ConnectionResetError):
            read_all(other)


def test_tunnel_that_is_lost(tmp_path: Path, keys: Keys, peer: Peer) -> None:
    """Where the link does not come back in time, nothing looks like an orderly end."""
    with Line(tmp_path, keys, outer=("--resume-window", "300")) as line:
        with pair(line.outer.publish("lost", peer), peer) as (client, server):
            client.sendall(b"x")
            assert server.recv(1) == b"x"
            server.sendall(b"y")
            assert client.recv(1) == b"y"  # so the outer layer knows of the connection
            target, line.cable.target = line.cable.target, None
            line.cable.cut()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            line.cable.target = target  # too late, as the inner layer learns
            with pytest.raises(ConnectionResetError):
                server.recv(1)
        entry = line.outer.access.wait('"CONNECT lost TCP" 200 ')
        assert entry.endswith('outcome="tunnel lost"')


@pytest.fixture
def secured(line: Line, peer: Peer, keys: Keys) -> Endpoint:
    """A listener that ends TLS."""
    own = own_address()
    files = f"privateKey={keys.private}:certKey={keys.certificate}"
    listen = f"tls:{own.port}:interface={own.host}:{files}"
    return line.outer.publish(f"secured{own.host}", peer, listen=listen)


def over_tls(wire: socket.socket) -> ssl.SSLSocket:
    # Else Python would take any end for an orderly one.
    return ssl._create_unverified_context().wrap_socket(wire, suppress_ragged_eofs=False)


@pytest.mark.parametrize("first", ["client", "server"])
def test_tls_that_ends_here(secured: Endpoint, peer: Peer, first: str) -> None:
    """Both ends then see an orderly end, wherever that began."""
    with (
        socket.create_connection(secured, PATIENCE) as wire,
        over_tls(wire) as client,
        peer.accept() as server,
    ):
        client.sendall(b"question")
        assert server.recv(100) == b"question"
        server.sendall(b"answer" * 50_000)
        if first == "server":
            server.close()
        received = b""
        while len(received) < 300_000:
            received += client.recv(65_536)
        assert received == b"answer" * 50_000
        if first == "server":
            assert client.recv(1) == b"", "the end was marked (close_notify)"
        else:
            client.unwrap()
            assert server.recv(1) == b""


def test_tls_client_that_was_not_read(secured: Endpoint, peer: Peer) -> None:
    """The server has heard enough: one side's end ends both."""
    with (
        socket.create_connection(secured, PATIENCE) as wire,
        over_tls(wire) as client,
        peer.accept() as server,
    ):
        client.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                client.send(b"x" * 16_384)
        server.sendall(b"enough")
        server.shutdown(socket.SHUT_WR)
        client.settimeout(PATIENCE)
        assert client.recv(100) == b"enough"
        assert client.recv(1) == b""


def test_half_closed_client_that_has_gone(line: Line, peer: Peer) -> None:
    """The server learns of it by its next words, as it would without anything between."""
    with pair(Way("tunnel", line).to(peer), peer) as (client, server):
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        client.close()

        def noticed() -> bool:
            try:
                server.send(b"x")
            except (ConnectionResetError, BrokenPipeError):
                return True
            return False

        wait_until(noticed, "the server learns that nobody listens")


def test_flow_control(line: Line, peer: Peer) -> None:
    """Who does not read stops who sends, and costs no memory to speak of; others go on."""
    before = line.outer.memory()[0], line.inner.memory()[0]
    where = Way("tunnel", line).to(peer)
    with pair(where, peer) as (client, server):
        for slow, fast in ((client, server), (server, client)):
            sent = 0
            fast.settimeout(1)
            with contextlib.suppress(TimeoutError):
                while sent < 512 * MIB:
                    sent += fast.send(b"x" * 65_536)
            assert sent < 256 * MIB, "nothing has stopped it"
            with pair(where, peer) as (other_client, other_server):
                other_client.sendall(b"still there?")
                assert other_server.recv(100) == b"still there?"
            slow.settimeout(PATIENCE)
            received = 0
            while received < sent:
                received += len(slow.recv(MIB))
            assert received == sent
    grown = line.outer.memory()[1] - before[0], line.inner.memory()[1] - before[1]
    assert max(grown) < 64 * MIB


# ---------------------------------------------------------------------- who may, and who it was


def accepted(line: Line, pattern: str, mark: int) -> str:
    return line.outer.access.wait(pattern, mark)


def test_access_log(line: Line, peer: Peer) -> None:
    mark = line.outer.access.mark()
    where = line.outer.publish("logged", peer)
    with pair(where, peer) as (client, server):
        client.sendall(b"12345")
        assert server.recv(5) == b"12345"
        server.sendall(b"123")
        assert client.recv(3) == b"123"
    entry = accepted(line, '"CONNECT logged TCP" 200 3 ', mark)
    assert entry.startswith("127.0.0.1 ")
    assert " target=logged " in entry
    assert " identifier=innerLayer " in entry


def was_reset(where: Endpoint) -> bool:
    """Return whether a connection there is broken off, and not ended."""
    try:
        with socket.create_connection(where, PATIENCE) as client:
            client.recv(1)
    except ConnectionResetError:
        return True
    return False


def test_refused_origin(line: Line) -> None:
    mark = line.outer.access.mark()
    with closed_port() as port:
        assert was_reset(line.outer.publish("nobody", Endpoint("127.0.0.1", port)))
    entry = accepted(line, '"CONNECT nobody TCP" 502 ', mark)
    assert entry.endswith('outcome="connection refused"')


def test_clients_that_may_not(line: Line, peer: Peer) -> None:
    mark = line.outer.access.mark()
    where = line.outer.publish("private", peer, clients=["127.200.0.0/16", "2001:db8::/32"])
    assert was_reset(where)
    assert "address is not allowed" in accepted(line, '"CONNECT private TCP" 403 ', mark)
    assert line.outer.metric('sockgw_requests_total{status="403",target="private"}') == 1
    with (
        socket.create_connection(where, PATIENCE, source_address=("127.200.1.2", 0)) as client,
        peer.accept() as server,
    ):
        client.sendall(b"x")
        assert server.recv(1) == b"x"


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedNginx]:
    with ProxiedNginx(tmp_path_factory.mktemp("proxied")) as server:
        yield server


REQUEST = b"GET / HTTP/1.0\r\n\r\n"


def seen(where: Endpoint, first: bytes = b"", source: str = "127.0.0.1") -> tuple[list[str], int]:
    """Return what nginx was told of a client, and that client's port."""
    with socket.create_connection(where, PATIENCE, source_address=(source, 0)) as client:
        client.sendall(first + REQUEST)
        answer = read_all(client)
        assert b" 200 OK\r\n" in answer
        return answer.split(b"\r\n\r\n")[1].decode().split(), client.getsockname()[1]


@pytest.mark.parametrize("version", [1, 2])
def test_proxy_protocol(line: Line, proxied: ProxiedNginx, version: int) -> None:
    """nginx learns who its client is."""
    where = line.outer.publish(f"proxied{version}", proxied, **{"proxy-protocol": version})
    told, port = seen(where, source="127.99.1.2")
    assert told == ["127.99.1.2", str(port), where.host, str(where.port)]


@pytest.mark.parametrize("version", [1, 2])
def test_proxy_protocol_over_ipv6(line: Line, proxied: ProxiedNginx, version: int) -> None:
    name = f"proxied6-{version}"
    number = free_port()
    where = line.outer.publish(
        name,
        proxied,
        listen=f"tcp:{number}:interface=\\:\\:1",
        **{"proxy-protocol": version},
    )
    told, port = seen(where, source="::1")
    assert told == ["::1", str(port), "::1", str(where.port)]


@pytest.mark.parametrize("version", [1, 2])
def test_proxy_protocol_on_all_addresses(
    line: Line, proxied: ProxiedNginx, version: int, tmp_path: Path
) -> None:
    """One socket takes IPv4 as well, whose addresses are told as such."""
    number = free_port()
    line.outer.publish(f"all{version}", proxied, listen=str(number), **{"proxy-protocol": version})
    for host in ("127.0.0.1", "::1"):
        told, port = seen(Endpoint(host, number), source=host)
        assert told == [host, str(port), host, str(number)]


@pytest.mark.parametrize("version", [1, 2])
def test_proxy_protocol_without_addresses(
    line: Line, proxied: ProxiedNginx, version: int, tmp_path: Path
) -> None:
    """Clients by a Unix socket have none."""
    path = tmp_path / "socket"
    mark = line.outer.log.mark()
    line.outer.route(
        proxied.port,
        f"unix{version}",
        protocol="tcp",
        listen=f"unix:{path}",
        hostname=proxied.host,
        **{"proxy-protocol": version},
    )
    line.outer.log.wait(rf"listening on unix:{path} for unix{version}", mark)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        client.sendall(REQUEST)
        head, _, told = read_all(client).partition(b"\r\n\r\n")
    assert b" 200 OK\r\n" in head
    assert told.split() == []


def test_proxy_protocol_of_a_balancer_in_front(line: Line, proxied: ProxiedNginx) -> None:
    """Who the balancer says it is may connect, and is whom the target hears of."""
    own = own_address()
    where = line.outer.publish(
        "balanced",
        proxied,
        listen=f"haproxy:tcp:{own.port}:interface={own.host}",
        clients="203.0.113.0/24",
        **{"proxy-protocol": 2},
    )
    told, _ = seen(where, b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 22\r\n")
    assert told == ["203.0.113.7", "4711", "198.51.100.1", "22"]
    with socket.create_connection(where, PATIENCE) as client:
        client.sendall(b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 22\r\n" + REQUEST)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def was_ended(client: socket.socket) -> bool:
    """Return whether a connection ends before anything has come."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_balancers_that_are_trusted(tmp_path: Path, keys: Keys, proxied: ProxiedNginx) -> None:
    header = b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 22\r\n"
    with Line(tmp_path, keys, outer=("--trust-proxy-protocol", "127.99.0.0/16")) as line:
        own = own_address()
        where = line.outer.publish(
            "balanced",
            proxied,
            listen=f"haproxy:tcp:{own.port}:interface={own.host}",
            **{"proxy-protocol": 1},
        )
        told, _ = seen(where, header, source="127.99.1.2")
        assert told == ["203.0.113.7", "4711", "198.51.100.1", "22"]
        with socket.create_connection(where, PATIENCE) as client:
            with contextlib.suppress(ConnectionError):
                client.sendall(header + REQUEST)
            assert was_ended(client)


def test_service(tmp_path: Path, keys: Keys, redis: Redis) -> None:
    """Where it is, the inner layer alone knows; what it is, both do."""
    service = f"cache=tcp://{redis.host}:{redis.port}"
    with Line(tmp_path, keys, inner=("--service", service)) as line:
        listen = "tcp:0:interface=127.0.0.1"
        line.outer.entries["cache"] = {"protocol": "tcp", "listen": listen, "service": "cache"}
        line.outer.entries["web.test"] = {"service": "cache"}
        mark = line.outer.log.mark()
        line.outer._write_targets()
        said = line.outer.log.wait("listening on tcp://.* for cache", mark)
        where = Endpoint("127.0.0.1", int(said.split(":")[-1].split(" ")[0]))
        with RedisClient(where) as client:
            assert client.ask("PING") == b"PONG"
        with socket.create_connection(("127.0.0.1", line.outer.app_port), PATIENCE) as wire:
            wire.sendall(b"GET / HTTP/1.0\r\nHost: web.test\r\n\r\n")
            assert b" 502 " in read_all(wire).split(b"\r\n")[0]
        line.outer.access.wait('"GET / HTTP/1.0" 502 .* target=web.test ')


# ---------------------------------------------------------------------- listeners


def test_listener_that_is_taken(tmp_path: Path, keys: Keys) -> None:
    """The process does not start, and says which target of which file it was."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        entry = {"protocol": "tcp", "listen": listen, "hostname": "localhost", "port": 22}
        with pytest.raises(AssertionError, match="did not start") as caught:
            Outer(tmp_path, keys.certificate, targets={"ssh": entry})
        file = tmp_path / "outer-targets.yaml"
        assert f"{file}: target ssh: listen: {listen}: the port is taken" in str(caught.value)


def test_reload(line: Line, redis: Redis, peer: Peer) -> None:
    """Listeners come and go with the file; who is connected stays, and an error changes nothing."""
    outer = line.outer
    where = outer.publish("comes-and-goes", peer)
    entry = outer.entries["comes-and-goes"]
    with pair(where, peer) as (client, server):
        # The same listener leads elsewhere.
        mark = outer.log.mark()
        outer.route(
            redis.port, "comes-and-goes", **{**entry, "hostname": redis.host, "port": redis.port}
        )
        assert not outer.log.matching("listening on", mark)
        with RedisClient(where) as other:
            assert other.ask("PING") == b"PONG"
        # Another one cannot be had.
        before = dict(outer.entries)
        listen = f"tcp:{peer.port}:interface=127.0.0.1"
        outer.entries["taken"] = {**entry, "listen": listen}
        outer.entries["fine"] = {**entry, "listen": "tcp:0:interface=127.0.0.1"}
        outer._write_targets()
        mark = outer.reload()
        assert "target taken: listen: " in outer.log.wait("targets stay as they were", mark)
        with RedisClient(where) as other:
            assert other.ask("PING") == b"PONG"
        outer.entries = before
        # It goes.
        del outer.entries["comes-and-goes"]
        outer._write_targets()
        outer.reload()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(where, PATIENCE)
        client.sendall(b"still here")
        assert server.recv(100) == b"still here"


def test_hold(tmp_path: Path, keys: Keys, peer: Peer) -> None:
    """While no tunnel is there, but one was, clients wait."""
    with Line(tmp_path, keys, outer=("--resume-window", "1")) as line:
        where = line.outer.publish("held", peer)
        target, line.cable.target = line.cable.target, None
        line.cable.cut()
        line.outer.log.wait("inner layer innerLayer disconnected")
        with socket.create_connection(where, PATIENCE) as client:
            client.sendall(b"before there is anybody")
            wait_until(lambda: line.outer.metric("sockgw_held_requests") == 1, "it is held")
            line.cable.target = target
            with peer.accept() as server:
                assert server.recv(100) == b"before there is anybody"
                server.sendall(b"hello")
            assert read_all(client) == b"hello"


def test_idle_limit(tmp_path: Path, keys: Keys, peer: Peer) -> None:
    """Off by default; where it is set, silence breaks a connection off."""
    with Line(tmp_path, keys, outer=("--tcp-idle-timeout", "300")) as line:
        mark = line.outer.access.mark()
        with pair(line.outer.publish("silent", peer), peer) as (client, server):
            for side in (client, server):
                with pytest.raises(ConnectionResetError):
                    side.recv(1)
        assert 'outcome="idle timeout"' in line.outer.access.wait('"CONNECT silent TCP" ', mark)


def test_draining(tmp_path: Path, keys: Keys, peer: Peer) -> None:
    """Who is connected when the outer layer is told to end may finish; nobody else gets in."""
    with Line(tmp_path, keys) as line:
        where = line.outer.publish("draining", peer)
        with pair(where, peer) as (client, server):
            line.outer.signal(15)
            line.outer.log.wait("no longer listening on .*")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(where, PATIENCE)
            line.outer.entries["draining"]["hold"] = 1
            line.outer._write_targets()
            line.outer.reload()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(where, PATIENCE)
            client.sendall(b"last words")
            assert server.recv(100) == b"last words"
        assert line.outer.wait() == 0
        assert line.outer.log.matching("drained")

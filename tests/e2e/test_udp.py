"""UDP: a real DNS server, whole datagrams, and few of them where there is no room."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness import (
    PATIENCE,
    Endpoint,
    Inner,
    Keys,
    Outer,
    environment,
    free_port,
    own_address,
    require,
    wait_until,
)
from rawservers import Dnsmasq
from ways import WAYS, Line, Way


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Line]:
    # Longer than any cut may take on a busy machine.
    silence = ("--udp-idle-timeout", "5000")
    with Line(tmp_path_factory.mktemp("line"), keys, silence) as line, line.idle_after():
        yield line


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Line]:
    """Silence ends a stream soon."""
    silence = ("--udp-idle-timeout", "500")
    with Line(tmp_path_factory.mktemp("hasty"), keys, silence) as line, line.idle_after():
        yield line


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, line: Line) -> Way:
    return Way(request.param, line)


# ---------------------------------------------------------------------- DNS


@pytest.fixture(scope="module")
def dnsmasq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dnsmasq]:
    with Dnsmasq(tmp_path_factory.mktemp("dnsmasq")) as server:
        yield server


def dig(where: Endpoint, *query: str) -> str:
    """Ask once, and return what dig prints."""
    done = subprocess.run(
        [
            *(require("dig"), "-r", f"@{where.host}", "-p", str(where.port)),
            *("+tries=1", "+timeout=5", "+nocookie", *query),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ask(where: Endpoint, *query: str) -> list[str]:
    """Ask once, and return the answers."""
    return dig(where, "+short", *query).split("\n")[:-1]


def both(way: Way, server: Dnsmasq) -> Endpoint:
    """Publish a server by UDP and TCP on one port, as DNS has it."""
    if way.kind == "direct":
        return Endpoint(server.host, server.port)
    own = own_address()
    for protocol in ("udp", "tcp"):
        listen = f"{protocol}:{own.port}:interface={own.host}"
        way.to(server, protocol, listen=listen)
    return own


def test_dig(way: Way, dnsmasq: Dnsmasq) -> None:
    where = both(way, dnsmasq)
    assert ask(where, "www.example.test", "A") == ["192.0.2.80"]
    way.cut()
    assert ask(where, "www.example.test", "AAAA") == ["2001:db8::80"]
    assert ask(where, "alias.example.test") == ["www.example.test.", "192.0.2.80"]
    way.cut()
    assert "status: REFUSED" in dig(where, "www.example.org")  # not what it knows
    assert ask(where, "+tcp", "www.example.test", "A") == ["192.0.2.80"]


def test_dig_for_much(way: Way, dnsmasq: Dnsmasq) -> None:
    """What does not fit into a datagram is asked for again by TCP, or fits into a larger one."""
    where = both(way, dnsmasq)
    texts = [f'"{str(number) * 250}"' for number in range(8)]
    assert "flags: qr aa tc" in dig(where, "+ignore", "large.example.test", "TXT")
    way.cut()
    assert sorted(ask(where, "large.example.test", "TXT")) == texts
    whole = dig(where, "+ignore", "+bufsize=4096", "large.example.test", "TXT")
    assert all(text in whole for text in texts)
    assert re.search(r"MSG SIZE  rcvd: 2\d\d\d$", whole, re.MULTILINE)


def test_many_ask_at_once(way: Way, dnsmasq: Dnsmasq) -> None:
    """Each gets the answer to its own question, also when the link breaks in between."""
    where = both(way, dnsmasq)
    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, where, f"host{number}.example.test") for number in range(48)]
        for number in (10, 30):
            asking[number].result(PATIENCE)
            way.cut()
        answers = [each.result(PATIENCE) for each in asking]
    assert answers == [[f"192.0.2.{number}"] for number in range(48)]


# ---------------------------------------------------------------------- datagrams


class Echo:
    """A server that sends each datagram back, and notes who has sent what."""

    def __init__(self) -> None:
        self._socket = udp_socket()
        self._socket.settimeout(None)
        self.host, self.port = self._socket.getsockname()
        #: Datagrams by who has sent them.
        self.received: dict[Any, list[bytes]] = {}
        self.mute = False
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Echo:
        self._thread.start()
        return self

    def __exit__(self, *reason: Any) -> None:
        with udp_socket() as wire:
            wire.sendto(b"the end", (self.host, self.port))
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self._socket.close()

    def _serve(self) -> None:
        while (got := self._socket.recvfrom(65_536))[0] != b"the end":
            datagram, client = got
            self.received.setdefault(client, []).append(datagram)
            if not self.mute:
                self._socket.sendto(datagram, client)

    def send(self, datagram: bytes, client: Any) -> None:
        self._socket.sendto(datagram, client)


def udp_socket(host: str = "127.0.0.1") -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((host, 0))
    made.settimeout(PATIENCE)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    return made


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        yield server


@contextlib.contextmanager
def client_of(where: Endpoint, host: str = "127.0.0.1") -> Iterator[socket.socket]:
    with udp_socket(host) as client:
        client.connect(where)
        yield client


def test_datagrams_stay_whole(way: Way, echo: Echo) -> None:
    """From none to the most bytes that UDP has; each one comes back as it was."""
    chance = random.Random(1)
    sizes = [0, 1, 2, 511, 512, 1400, 1500, 65_507, *(chance.randrange(65_508) for _ in range(20))]
    with client_of(way.to(echo, "udp")) as client:
        for number, size in enumerate(sizes):
            datagram = os.urandom(size)
            client.send(datagram)
            if number % 10 == 5:
                way.cut()
            assert client.recv(65_536) == datagram
    (received,) = echo.received.values()
    assert [len(datagram) for datagram in received] == sizes


def test_a_burst(way: Way, echo: Echo) -> None:
    """As many as may wait are never lost between the layers, nor change places."""
    with client_of(way.to(echo, "udp")) as client:
        for round in range(10):
            sent = [b"%d %d" % (round, number) for number in range(60)]
            for datagram in sent:
                client.send(datagram)
            if round % 3 == 1:
                way.cut()
            assert [client.recv(65_536) for _ in sent] == sent


def test_each_client_has_a_port_of_its_own(line: Line, echo: Echo) -> None:
    where = line.outer.publish("echo", echo, "udp")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client_of(where)) for _ in range(10)]
        for turn in range(3):
            for number, client in enumerate(clients):
                client.send(b"%d %d" % (turn, number))
        for number, client in enumerate(clients):
            assert [client.recv(100) for _ in range(3)] == [
                b"%d %d" % (t, number) for t in range(3)
            ]
    assert len(echo.received) == 10
    assert all(len(datagrams) == 3 for datagrams in echo.received.values())


def test_over_ipv6(line: Line, echo: Echo) -> None:
    """And all addresses at once, by one socket."""
    number = free_port()
    line.outer.publish("echo6", echo, "udp", listen=f"udp:{number}", clients=["::1", "127.0.0.1"])
    for host in ("127.0.0.1", "::1"):
        with client_of(Endpoint(host, number), host) as client:
            client.send(host.encode())
            assert client.recv(100) == host.encode()


def test_who_has_not_sent_gets_nothing(hasty: Line, echo: Echo) -> None:
    """Neither from who is not the target, nor once the client was forgotten."""
    with client_of(hasty.outer.publish("strict", echo, "udp")) as client:
        client.send(b"hello")
        assert client.recv(100) == b"hello"
        (port,) = echo.received
        with udp_socket() as stranger:
            stranger.sendto(b"from somebody else", port)
        echo.send(b"from the target", port)
        assert client.recv(100) == b"from the target"
        wait_until(lambda: hasty.outer.metric("sockgw_streams") == 0, "the client is forgotten")
        with contextlib.suppress(ConnectionRefusedError):
            echo.send(b"too late", port)
        client.send(b"again")
        assert client.recv(100) == b"again"
    assert len(echo.received) == 2


def test_silence(hasty: Line, echo: Echo) -> None:
    """A client that has been silent, and whose target was, is forgotten, and logged."""
    mark = hasty.outer.access.mark()
    with client_of(hasty.outer.publish("silent", echo, "udp")) as client:
        client.send(b"12345")
        assert client.recv(100) == b"12345"
        entry = hasty.outer.access.wait('"CONNECT silent UDP" 200 5 ', mark)
    assert entry.startswith("127.0.0.1 ")
    assert " identifier=innerLayer " in entry
    assert entry.endswith("outcome=-")
    wait_until(lambda: hasty.outer.metric("sockgw_clients") == 0, "its place is free")


def test_nobody_listens_there(line: Line) -> None:
    """The machine of the target says so (ICMP), and that is logged."""
    mark = line.outer.access.mark()
    nobody = own_address()
    with client_of(line.outer.publish("nobody", nobody, "udp")) as client:
        client.send(b"?")
        entry = line.outer.access.wait('"CONNECT nobody UDP" 200 0 ', mark)
    assert 'outcome="connection refused"' in entry


def test_clients_that_may_not(line: Line, echo: Echo) -> None:
    mark = line.outer.access.mark()
    dropped = line.outer.metric("sockgw_datagrams_dropped_total")
    where = line.outer.publish("private", echo, "udp", clients="127.200.0.0/16")
    with client_of(where) as stranger, client_of(where, "127.200.1.2") as friend:
        for _ in range(5):
            stranger.send(b"let me in")
        assert "address is not allowed" in line.outer.access.wait('"CONNECT private UDP" 403', mark)
        friend.send(b"hello")
        assert friend.recv(100) == b"hello"
    assert list(echo.received.values()) == [[b"hello"]]
    assert len(line.outer.access.matching('"CONNECT private UDP" 403', mark)) == 1
    assert line.outer.metric("sockgw_datagrams_dropped_total") == dropped  # they were refused


def test_few_places(tmp_path: Path, keys: Keys, echo: Echo) -> None:
    with Line(tmp_path, keys, ("--max-udp-clients", "3")) as line:
        where = line.outer.publish("echo", echo, "udp")
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(client_of(where)) for _ in range(5)]
            for client in clients:
                client.send(b"me")
            assert [client.recv(100) for client in clients[:3]] == [b"me"] * 3
            assert line.outer.metric("sockgw_datagrams_dropped_total") == 2
            clients[0].send(b"still me")
            assert clients[0].recv(100) == b"still me"
    assert len(echo.received) == 3


def test_no_room(tmp_path: Path, keys: Keys, echo: Echo) -> None:
    """While the link is away datagrams wait; what there is no room for is dropped, oldest first."""
    echo.mute = True
    with Line(tmp_path, keys) as line:
        where = line.outer.publish("echo", echo, "udp")
        with client_of(where) as client:
            client.send(b"before")
            wait_until(lambda: echo.received, "it has come")
            target, line.cable.target = line.cable.target, None
            line.cable.cut()
            line.outer.log.wait("has lost its connection")
            memory = line.outer.memory()[0]
            for number in range(5_000):
                client.send(b"%05d" % number + b"." * 1000)
                if number % 50 == 0:  # not faster than its socket is read
                    wait_until(lambda: not line.outer.unread(where.port), "they are read")
            client.send(b"the last one")
            line.cable.target = target
            (received,) = echo.received.values()
            wait_until(lambda: received[-1] == b"the last one", "the newest has come")
            dropped = line.outer.metric("sockgw_datagrams_dropped_total")
            assert line.outer.memory()[1] - memory < 16 << 20
    assert dropped == 5_002 - len(received)
    assert len(received) < 1000
    assert received[0] == b"before"
    assert received[1:-1] == sorted(received[1:-1])
    assert [datagram[:5] for datagram in received[-64:-1]] == [
        b"%05d" % number for number in range(5_000 - 63, 5_000)
    ]


# ---------------------------------------------------------------------- listeners


def test_listeners_of_both_kinds_follow_the_file(line: Line, echo: Echo) -> None:
    outer = line.outer
    where = outer.publish("comes-and-goes", echo, "udp")
    with client_of(where) as client:
        client.send(b"hello")
        assert client.recv(100) == b"hello"
        del outer.entries["comes-and-goes"]
        outer._write_targets()
        mark = outer.reload()
        outer.log.wait("no longer listening on udp://", mark)

        def refused() -> bool:
            try:
                client.send(b"anybody there?")
            except ConnectionRefusedError:
                return True
            return False

        wait_until(refused, "nobody listens")


def test_listener_that_is_taken(tmp_path: Path, keys: Keys) -> None:
    with udp_socket() as taken:
        listen = f"udp:{taken.getsockname()[1]}:interface=127.0.0.1"
        entry = {"protocol": "udp", "listen": listen, "hostname": "localhost", "port": 53}
        with pytest.raises(AssertionError, match="did not start") as caught:
            Outer(tmp_path, keys.certificate, targets={"dns": entry})
        assert f"target dns: listen: {listen}: the port is taken" in str(caught.value)


def test_successor(tmp_path: Path, keys: Keys, echo: Echo) -> None:
    """With --reuse-port the next process has the port before this one has left it."""
    own = own_address()
    entry = {"protocol": "udp", "listen": f"udp:{own.port}:interface={own.host}"}
    entry |= {"hostname": echo.host, "port": echo.port}
    targets = {"echo": entry}
    with (
        Outer(tmp_path, keys.certificate, "--reuse-port", targets=targets) as first,
        Outer(tmp_path, keys.certificate, "--reuse-port", targets=targets, name="next") as second,
        Inner(tmp_path, keys.private, second.socket_port) as inner,
        client_of(own) as client,
    ):
        inner.wait_connected()
        first.stop()
        client.send(b"hello")
        assert client.recv(100) == b"hello"

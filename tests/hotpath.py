"""The hot path whole, in one process: what :mod:`hotcalls` counts the work of.

Both layers are there as their services put them together, without sockets: a client's bytes, HTTP,
the gateway, a tunnel on a WebSocket, the forwarder, the pool of connections, an origin, and all of
the way back; with the access log written to a file, metrics counted and policies judged. With TLS
on the carrier, or without it, as the work says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from inner_certificates import Authority
from memorynet import End, Network, Reactor

from sockgw.config import load
from sockgw.inner.config import InnerConfig
from sockgw.inner.service import InnerService
from sockgw.keys import generate
from sockgw.outer.config import OuterConfig
from sockgw.outer.service import OuterService

__all__ = ["WORKS", "Gateway", "Work"]

_APP, _SOCKET, _ORIGIN = 3000, 3001, 8080  # ports
_TURN = 0.000_03  # seconds
_TARGETS = f"""
targets:
  open.example: {{hostname: 127.0.0.1, protocol: http, port: {_ORIGIN}}}
  ruled.example:
    hostname: 127.0.0.1
    protocol: http
    port: {_ORIGIN}
    policy:
      /public: [GET, POST]
      ^/api/[a-z]+/: [GET, POST]
"""
_FIELDS = "User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: */*\r\nAccept-Encoding: gzip"
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Fri, 27 Nov 2026 12:00:00 GMT\r\n"
    b"Content-Type: text/plain\r\nContent-Length: %d\r\n"
    b"Last-Modified: Fri, 27 Nov 2026 11:00:00 GMT\r\nConnection: keep-alive\r\n"
    b'ETag: "65c0b4a0-c"\r\nAccept-Ranges: bytes\r\n\r\n'
)
_SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"

_PIECE = 65_536  # bytes: of a transfer, what counts as one
_PIECES = 128


class Origin:
    """Answers as nginx would, on a connection that it has accepted; echoes once it has switched."""

    def __init__(self, end: End) -> None:
        self.end = end
        self._got = b""
        self._rest = 0  # bytes of a request's body that are to come
        self._due = b""  # of the answer
        self._endless = 0  # bytes of the answer beyond that
        self._switched = False

    def work(self) -> None:
        """Read and write what there is."""
        data = self.end.take()
        if self._switched:
            self.end.send(data)
            if self.end.fin:
                self.end.close()
            return
        skipped = min(self._rest, len(data))
        self._rest -= skipped
        self._got += data[skipped:]
        head, separator, body = self._got.partition(b"\r\n\r\n")
        if b"\r\nUpgrade: " in head:
            self._switched = True
            self.end.send(_SWITCHED)
        elif separator:
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            self._rest = int(length or 0) - len(body)
            assert self._rest >= 0
            self._got = b""
            target = head.split(b" ", 2)[1]
            size = int(target.partition(b"size=")[2] or 12)
            self._due = _ANSWER % size
            if size == 12:
                self._due += b"hello world\n"
            else:
                self._endless = size
        if not self._rest:
            self._go_on()

    def _go_on(self) -> None:
        self._due = self._due[self.end.send(self._due) :]
        if not self._due and self._endless:
            self._endless -= self.end.send(bytes(min(self._endless, 262_144)))


class Gateway:
    """Both layers, a tunnel between them, an origin behind and clients in front.

    The files that they need are written to ``directory``. ``secure``: the carrier has TLS.
    """

    def __init__(self, directory: Path, secure: bool = False) -> None:
        key, certificate, targets = directory / "key", directory / "certificate", directory / "t"
        generate(key, certificate, common_name="office")
        targets.write_text(_TARGETS)
        self.network = network = Network()
        network.names = {_APP: "client", _SOCKET: "carrier", _ORIGIN: "origin"}
        network.listeners[_ORIGIN] = (None, None)
        self.outer = Reactor(network, "outer")
        self.inner = Reactor(network, "inner")
        self.reactors = (self.outer, self.inner)
        listening = f"{_SOCKET}:interface=127.0.0.1"
        trust = []
        if secure:
            authority = Authority(directory, "authority")
            files = authority.issue("server", ["127.0.0.1"])
            listening += ":certKey={}:privateKey={}".format(*files)
            trust = [authority.file]
        settings = {
            "app-port": [f"tcp:{_APP}:interface=127.0.0.1"],
            "socket-port": [f"{'tls' if secure else 'tcp'}:{listening}"],
            "public-key": [str(certificate)],
            "targets": [str(targets)],
            "access-log": [str(directory / "access.log")],
        }
        self._outer_service = OuterService(load(OuterConfig, settings, {}), self.outer)
        self._outer_service.privilegedStartService()
        settings = {
            "private-key": [str(key)],
            "outer-layer": [f"{'wss' if secure else 'ws'}://127.0.0.1:{_SOCKET}"],
            "outer-layer-ca": trust,
            "allow": [f"127.0.0.1:{_ORIGIN}"],
        }
        self._inner_service = InnerService(load(InnerConfig, settings, {}), self.inner)
        self._inner_service.connector.startService()
        #: Turns of the reactors, but for those of rest.
        self.turns = 0
        self._origins: dict[End, Origin] = {}
        self._silent = False
        self.rest()
        tunnel = self._inner_service.connector.tunnel
        assert tunnel is not None
        assert tunnel.available

    def turn(self, seconds: float = _TURN) -> None:
        """Everybody does what there is to do now."""
        self.turns += 1
        for reactor in self.reactors:
            reactor.turn(seconds)
        for end in self.network.accepted:
            if end not in self._origins:
                self._origins[end] = Origin(end)
            if not self._silent:
                self._origins[end].work()

    def rest(self) -> None:
        """Half a second passes: acknowledgements go out, and the access log is written."""
        turns = self.turns
        for _ in range(20):
            self.turn(0.025)
        self.turns = turns

    def client(self) -> End:
        """Return a new client's end."""
        return self.network.connect(_APP)

    def ask(self, clients: list[End], request: bytes, expected: int) -> None:
        """Send a request from each client in one turn, and see each have its answer.

        ``expected`` is the size of the body.
        """
        self.send(clients, request)
        self.receive(clients, expected)

    def send(self, clients: list[End], request: bytes) -> None:
        """Send a request from each client."""
        left = dict.fromkeys(clients, request)
        while left:
            for client, data in left.items():
                left[client] = data[client.send(data) :]
            left = {client: data for client, data in left.items() if data}
            if left:
                self.turn()

    def receive(self, clients: list[End], expected: int) -> None:
        """See each client have its answer."""
        answers = [_Answer(client) for client in clients]
        for _ in range(10_000):
            self.turn()
            for answer in answers:
                answer.take()
            if all(answer.size == expected for answer in answers):
                return
        raise AssertionError("no answer")

    def under_way(
        self, clients: list[End], request: bytes, expected: int, look: Callable[[], object]
    ) -> None:
        """Have a request of each client be with the origin while ``look`` is called."""
        self._silent = True
        self.send(clients, request)
        for _ in range(50):
            self.turn()
        look()
        self._silent = False
        self.receive(clients, expected)


class _Answer:
    def __init__(self, client: End) -> None:
        self._client = client
        self._head = b""
        self.size = 0  # bytes of the body

    def take(self) -> None:
        data = self._client.take()
        if b"\r\n\r\n" not in self._head:
            self._head += data
            head, _, data = self._head.partition(b"\r\n\r\n")
            assert head[:15] in (b"", b"HTTP/1.1 200 OK"), head
        self.size += len(data)


class Work:
    """Something to count: ``times`` requests of each client, each of so many ``units``."""

    def __init__(
        self,
        unit: str,
        request: bytes,
        *,
        clients: int = 1,
        times: int = 1,
        size: int = 12,
        units: int = 1,
        secure: bool = False,
    ) -> None:
        """``size`` is that of the answer's body in bytes; ``secure``: the carrier has TLS."""
        self.unit = unit
        self.request = request
        self.clients = clients
        self.times = times
        self.size = size
        self.secure = secure
        #: How many units there are in all.
        self.count = times * clients * units

    def begin(self, gateway: Gateway) -> list[End]:
        """Return the clients."""
        return [gateway.client() for _ in range(self.clients)]

    def run(self, gateway: Gateway, clients: list[End]) -> None:
        """Do it."""
        for _ in range(self.times):
            self._once(gateway, clients)
        gateway.rest()

    def _once(self, gateway: Gateway, clients: list[End]) -> None:
        gateway.ask(clients, self.request, self.size)


class Connections(Work):
    """A new connection for each request."""

    def _once(self, gateway: Gateway, clients: list[End]) -> None:
        for _ in clients:
            client = gateway.client()
            gateway.ask([client], self.request, self.size)
            while not client.fin:
                gateway.turn()
            client.close()
            gateway.turn()


class Messages(Work):
    """Messages there and back on a connection that has been upgraded by the ``request``."""

    _MESSAGE = bytes(38)  # of 32 bytes, with its header and mask

    def begin(self, gateway: Gateway) -> list[End]:
        clients = super().begin(gateway)
        gateway.send(clients, self.request)
        gateway.rest()
        assert all(b" 101 " in client.take() for client in clients)
        return clients

    def _once(self, gateway: Gateway, clients: list[End]) -> None:
        gateway.send(clients, self._MESSAGE)
        while any(len(client.arrived) < len(self._MESSAGE) for client in clients):
            gateway.turn()
        assert all(client.take() == self._MESSAGE for client in clients)


def _get(host: str, target: str, *fields: str) -> bytes:
    lines = (f"GET {target} HTTP/1.1", f"Host: {host}", _FIELDS, *fields, "", "")
    return "\r\n".join(lines).encode()


_UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)


def _post(size: int) -> bytes:
    head = (
        f"POST /form HTTP/1.1\r\nHost: open.example\r\n{_FIELDS}\r\nContent-Length: {size}\r\n\r\n"
    )
    return head.encode() + bytes(size)


_TIMES = 50  # of what is done one at a time
_TRANSFER = _PIECE * _PIECES

WORKS: dict[str, Work] = {
    "a GET alone": Work("request", _get("open.example", "/"), times=_TIMES),
    "a GET alone, judged by rules": Work(
        "request", _get("ruled.example", "/api/items/7?page=2"), times=_TIMES
    ),
    "50 GETs of one turn": Work("request", _get("open.example", "/"), clients=50, times=2),
    "a POST of 16 KiB": Work("request", _post(16_384), times=_TIMES),
    "a GET on a new connection": Connections(
        "request", _get("open.example", "/", "Connection: close"), times=_TIMES
    ),
    "a GET alone, TLS on the carrier": Work(
        "request", _get("open.example", "/"), times=_TIMES, secure=True
    ),
    "a download, TLS on the carrier": Work(
        "64 KiB",
        _get("open.example", f"/file?size={_TRANSFER}"),
        size=_TRANSFER,
        units=_PIECES,
        secure=True,
    ),
    "a download": Work(
        "64 KiB",
        _get("open.example", f"/file?size={_TRANSFER}"),
        size=_TRANSFER,
        units=_PIECES,
    ),
    "an upload": Work("64 KiB", _post(_TRANSFER), units=_PIECES),
    "a WebSocket message and its echo": Messages(
        "message", _get("open.example", "/chat", *_UPGRADE), times=_TIMES
    ),
}

"""The socket port's web site: what passes, what is refused, what strangers cannot hold on to."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import protocol, reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer, ITransport
from twisted.internet.task import Clock
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Site
from zope.interface import implementer

from sockgw.outer.admin import Failure as FailureView
from sockgw.outer.admin import TargetView, TunnelView
from sockgw.outer.metrics import Metrics
from sockgw.outer.site import admin_root, judge, make_site, socket_root
from sockgw.tunnel.carrier import Carrier, client_factory, server_resource

HEAD_TIMEOUT = 10


class Nobody:
    """The state of an outer layer where nothing has happened."""

    def tunnels(self) -> Sequence[TunnelView]:
        return []

    def targets(self) -> Sequence[TargetView]:
        return []

    def failures(self) -> Sequence[FailureView]:
        return []


@implementer(ITransport, IPushProducer)
class Transport:
    """Stricter than Twisted's: no write after closing, no second producer."""

    disconnecting = False

    def __init__(self, port: "Port") -> None:
        self.port = port
        self.written = b""
        self.closed = self.aborted = self.lost = False
        self.producer: Any = None
        self.protocol: Any = None

    def write(self, data: bytes) -> None:
        assert not self.closed, "written after closing"
        self.written += data

    def writeSequence(self, data: Sequence[bytes]) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        assert self.producer is None, "closed with a producer"
        self.closed = self.disconnecting = True

    def abortConnection(self) -> None:
        self.closed = self.disconnecting = self.aborted = True

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self.producer is not None:
            raise RuntimeError("second producer")
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def pauseProducing(self) -> None:
        pass

    def resumeProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        pass

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", 1234)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.2", 3001)

    # What the peer does.

    def send(self, data: bytes) -> None:
        if not self.closed:
            self.protocol.dataReceived(data)

    def lose(self) -> None:
        self.closed = self.lost = True
        self.protocol.connectionLost(Failure(ConnectionDone()))

    @property
    def statuses(self) -> list[int]:
        """The statuses of the answers, which all have a length."""
        found, rest = [], self.written
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            lines = head.split(b"\r\n")
            found.append(int(lines[0].split()[1]))
            fields = dict(line.lower().split(b": ", 1) for line in lines[1:])
            rest = rest[int(fields.get(b"content-length", 0)) :]
        return found


class Port:
    """A site and a clock."""

    def __init__(self, root: IResource, max_connections: int = 100) -> None:
        self.clock = Clock()
        self.site: Any = make_site(
            root, self.clock, head_timeout=HEAD_TIMEOUT, max_connections=max_connections
        )

    def connect(self) -> Transport:
        transport = Transport(self)
        transport.protocol = self.site.buildProtocol(transport.getPeer())
        transport.protocol.makeConnection(transport)
        return transport


class Upgrade(Resource):
    """Takes the connection over as Autobahn's WebSocketResource does."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[protocol.Protocol] = []

    def render(self, request: Any) -> int:
        transport, request.channel.transport = request.channel.transport, None
        transport.protocol = taken = protocol.Protocol()
        taken.makeConnection(transport)
        self.taken.append(taken)
        return NOT_DONE_YET


class Slow(Resource):
    """Answers when told."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Any] = []

    def render(self, request: Any) -> int:
        self.requests.append(request)
        return NOT_DONE_YET


def root(websocket: IResource | None = None, *, unready: str = "", password: str = "") -> Resource:
    metrics = Metrics()
    return socket_root(
        websocket or Upgrade(), lambda: unready, metrics, password, Nobody(), Clock()
    )


@pytest.fixture
def port() -> Port:
    return Port(root())


GET = b"GET %b HTTP/1.1\r\nHost: gateway.example:3001\r\n\r\n"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: gateway.example\r\nConnection: keep-alive, Upgrade\r\n"
    b"Upgrade: WebSocket\r\n\r\n"
)


def ask(port: Port, request: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """Return the status, headers and body that a request gets."""
    connection = port.connect()
    connection.send(request)
    head, _, body = connection.written.partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    return int(line.split()[1]), dict(f.lower().split(b": ", 1) for f in fields), body


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        (b"/healthz", 200, b"ok\n"),
        (b"/readyz", 200, b"ok\n"),
        (b"/readyz?x=y", 200, b"ok\n"),
        (b"/", 426, b"Upgrade Required\n"),
        (b"/admin", 404, b"Not Found\n"),
        (b"/nothing", 404, b"Not Found\n"),
        (b"/healthz/", 404, b"Not Found\n"),
        (b"//healthz", 404, b"Not Found\n"),
    ],
)
def test_paths(port: Port, path: bytes, status: int, body: bytes) -> None:
    seen, headers, content = ask(port, GET % path)
    assert (seen, content) == (status, body)
    assert headers[b"content-type"] == b"text/plain; charset=utf-8"
    assert b"server" not in headers
    # The same for HEAD, but for the body.
    seen, headers, content = ask(port, GET.replace(b"GET", b"HEAD") % path)
    assert (seen, content) == (status, b"")
    assert int(headers[b"content-length"]) == len(body)


def test_upgrade_required_says_to_what(port: Port) -> None:
    _, headers, _ = ask(port, GET % b"/")
    assert headers[b"upgrade"] == b"websocket"
    assert headers[b"connection"] == b"upgrade"


def test_not_ready_without_an_inner_layer() -> None:
    status, _, body = ask(Port(root(unready="draining")), GET % b"/readyz")
    assert (status, body) == (503, b"draining\n")


def test_admin_is_there_with_a_password() -> None:
    status, headers, _ = ask(Port(root(password="secret")), GET % b"/admin")
    assert status == 401
    assert headers[b"www-authenticate"].startswith(b"basic ")


def test_a_listener_of_their_own() -> None:
    port = Port(socket_root(Upgrade(), lambda: "", None, "secret", Nobody(), Clock()))
    assert ask(port, GET % b"/admin")[0] == 404
    assert ask(port, GET % b"/metrics")[0] == 404
    port = Port(admin_root(Metrics(), "secret", Nobody(), Clock()))
    assert ask(port, GET % b"/admin")[0] == 401
    assert ask(port, GET.replace(b"GET", b"HEAD") % b"/metrics")[0] == 200
    assert ask(port, GET % b"/")[0] == 404
    assert ask(port, UPGRADE)[0] == 404


def test_an_exception_shows_nothing() -> None:
    class Broken(Nobody):
        def tunnels(self) -> Sequence[TunnelView]:
            raise RuntimeError("secret")

    port = Port(admin_root(Metrics(), "x", Broken(), Clock()))
    status, _, body = ask(
        port, b"GET /admin HTTP/1.1\r\nHost: a\r\nAuthorization: Basic Ong=\r\n\r\n"
    )
    assert status == 500
    assert b"secret" not in body
    assert b"Traceback" not in body


H = b"Host: a\r\n"
REFUSED = [
    (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
    (b"GET / HTTP/1.1\r\n" + H + H + b"\r\n", 400),
    (b"GET / HTTP/1.0\r\n" + H + H + b"\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", 400),  # obs-fold
    (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n" + H + b"X: a\0b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n" + H + b"X: a\nY: b\r\n\r\n", 400),
    (b"GET http://a/ HTTP/1.1\r\n" + H + b"\r\n", 400),
    (b"GET a HTTP/1.1\r\n" + H + b"\r\n", 400),
    (b"GET /#a HTTP/1.1\r\n" + H + b"\r\n", 400),
    (b"get / HTTP/1.1\r\n" + H + b"\r\n", 400),
    (b"OPTIONS * HTTP/1.1\r\n" + H + b"\r\n", 405),
    (b"POST /admin HTTP/1.1\r\n" + H + b"Content-Length: 0\r\n\r\n", 405),
    (b"CONNECT a:80 HTTP/1.1\r\n" + H + b"\r\n", 405),
    (b"TRACE / HTTP/1.1\r\n" + H + b"\r\n", 405),
    (b"PUT / HTTP/1.1\r\n" + H + b"Content-Length: 5\r\n\r\n", 413),
    (b"GET / HTTP/1.1\r\n" + H + b"Content-Length: 010\r\n\r\n", 413),
    (b"GET / HTTP/1.1\r\n" + H + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n" + H + b"Content-Length: +0\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n", 413),
    (b"GET / HTTP/1.1\r\n" + H + b"Transfer-Encoding: identity\r\n\r\n", 400),
    (b"GET / HTTP/1.0\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n" + H + b"Expect: 100-continue\r\n\r\n", 417),
    (b"GET / HTTP/1.1\r\n" + H + 100 * b"X: y\r\n" + b"\r\n", 431),
    (b"GET / HTTP/2.0\r\n" + H + b"\r\n", 505),
    (b"PRI * HTTP/2.0\r\n\r\n", 505),
    (b"GET /\r\n\r\n", 505),  # HTTP/0.9
    (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),  # TLS on the wrong port
]


@pytest.mark.parametrize(("head", "status"), REFUSED)
def test_refused(port: Port, head: bytes, status: int) -> None:
    assert judge(head) == status
    connection = port.connect()
    connection.send(head + b"hello")
    assert connection.statuses == [status]
    assert connection.closed
    assert (b"\r\nAllow: GET, HEAD\r\n" in connection.written) is (status == 405)
    # A client that does not take the answer is dropped.
    port.clock.advance(HEAD_TIMEOUT)
    assert connection.aborted
    connection.lose()
    assert not port.clock.getDelayedCalls()


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n" + H + b"Content-Length: 0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:3001\r\n\r\n",
        b"HEAD / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + H + 99 * b"X: y\r\n" + b"\r\n",
        b"\r\n\r\nGET / HTTP/1.1\r\n" + H + b"\r\n",
        UPGRADE,
    ],
)
def test_passes(head: bytes) -> None:
    assert judge(head) == 0


def test_any_chunking_gives_the_same_answers() -> None:
    requests = (
        GET % b"/healthz" + b"\r\n" + GET % b"/nothing" + b"HEAD /readyz HTTP/1.1\r\nHost: a\r\n"
    )
    requests += b"Connection: close\r\n\r\n" + GET % b"/healthz"
    for size in (1, 2, 3, 7, len(requests)):
        connection = Port(root()).connect()
        for start in range(0, len(requests), size):
            connection.send(requests[start : start + size])
        assert re.findall(rb"HTTP/1.1 (\d+)", connection.written) == [b"200", b"404", b"200"]
        assert connection.closed, size


@given(st.lists(st.binary(max_size=200) | st.sampled_from([GET % b"/", H, b"\r\n\r\n", UPGRADE])))
def test_junk_is_answered_or_dropped_within_the_deadline(parts: list[bytes]) -> None:
    upgrade = Upgrade()
    port = Port(root(upgrade))
    connection = port.connect()
    for part in parts:
        connection.send(part)
        if upgrade.taken:
            break
    if not upgrade.taken:
        port.clock.pump([0.25] * (HEAD_TIMEOUT * 8))
        assert connection.closed
    connection.lose()
    assert not port.clock.getDelayedCalls()
    assert port.site.connections == 0


def test_empty_lines_before_a_request(port: Port) -> None:
    assert ask(port, b"\r\n\r\n" + GET % b"/healthz")[0] == 200


def test_a_head_that_drips_in(port: Port) -> None:
    connection = port.connect()
    connection.send(b"GET / HTTP/1.1\r\n")
    for _ in range(HEAD_TIMEOUT - 1):
        port.clock.advance(1)
        connection.send(b"X: y\r\n")
    assert not connection.closed
    port.clock.advance(1)
    assert connection.aborted


def test_a_client_that_says_nothing(port: Port) -> None:
    connection = port.connect()
    port.clock.advance(HEAD_TIMEOUT)
    assert connection.aborted


def test_a_client_that_does_not_take_its_last_answer(port: Port) -> None:
    connection = port.connect()
    connection.send(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert connection.statuses == [200]
    assert connection.closed
    port.clock.advance(HEAD_TIMEOUT)
    assert connection.aborted


def test_a_connection_that_stays_open_between_requests(port: Port) -> None:
    connection = port.connect()
    for _ in range(3):
        port.clock.advance(HEAD_TIMEOUT - 1)
        connection.send(GET % b"/healthz")
    assert connection.statuses == [200, 200, 200]
    assert not connection.closed
    port.clock.advance(HEAD_TIMEOUT)
    assert connection.aborted


@pytest.mark.parametrize(
    "flood", [b"GET /" + 20_000 * b"x", 20_000 * b"x", b"GET / HTTP/1.1\r\n" + 4_000 * b"X: y\r\n"]
)
def test_a_head_without_end(port: Port, flood: bytes) -> None:
    connection = port.connect()
    for byte in range(0, len(flood), 1000):
        connection.send(flood[byte : byte + 1000])
    assert connection.statuses == [431]
    assert connection.closed


def test_requests_wait_for_the_answer_before_them() -> None:
    slow = Slow()
    port = Port(slow)
    connection = port.connect()
    connection.send(GET % b"/1" + GET % b"/2")
    assert [request.path for request in slow.requests] == [b"/1"]
    port.clock.advance(10 * HEAD_TIMEOUT)  # no deadline while the answer is ours to give
    assert not connection.closed
    slow.requests[0].finish()
    assert [request.path for request in slow.requests] == [b"/1", b"/2"]
    slow.requests[1].finish()
    port.clock.advance(HEAD_TIMEOUT)
    assert connection.aborted


def test_a_flood_behind_a_request_is_not_stored() -> None:
    slow = Slow()
    connection = Port(slow).connect()
    connection.send(GET % b"/1")
    for _ in range(20):
        connection.send(1000 * b"x")
    assert connection.aborted


def test_a_client_that_leaves_before_the_answer() -> None:
    slow = Slow()
    port = Port(slow)
    connection = port.connect()
    connection.send(GET % b"/1")
    gone = slow.requests[0].notifyFinish()
    connection.lose()
    assert isinstance(gone.result, Failure)
    gone.addErrback(lambda failure: None)
    assert port.site.connections == 0
    assert not port.clock.getDelayedCalls()


def test_connections_are_bounded() -> None:
    port = Port(root(), max_connections=2)
    first, second, third = port.connect(), port.connect(), port.connect()
    assert (first.closed, second.closed, third.aborted) == (False, False, True)
    third.lose()
    fourth = port.connect()
    assert fourth.aborted
    fourth.lose()
    second.lose()
    fifth = port.connect()
    fifth.send(GET % b"/healthz")
    assert fifth.statuses == [200]


def test_a_websocket_is_left_alone_and_counted_until_its_end() -> None:
    upgrade = Upgrade()
    port = Port(root(upgrade))
    connection = port.connect()
    connection.send(UPGRADE)
    (taken,) = upgrade.taken
    assert connection.protocol is taken
    assert not port.clock.getDelayedCalls()
    assert connection.written == b""
    assert not connection.closed
    assert port.site.connections == 1
    connection.lose()
    assert port.site.connections == 0


def test_bytes_behind_an_upgrade_are_not_lost_silently() -> None:
    connection = Port(root()).connect()
    connection.send(UPGRADE + b"early")
    assert connection.aborted


@pytest.mark.parametrize(
    "request_",
    [
        UPGRADE.replace(b"GET", b"HEAD"),
        UPGRADE.replace(b"WebSocket", b"h2c"),
        UPGRADE.replace(b"Upgrade: WebSocket\r\n", b""),
    ],
)
def test_not_an_upgrade(request_: bytes) -> None:
    upgrade = Upgrade()
    status, _, _ = ask(Port(root(upgrade)), request_)
    assert status == 426
    assert not upgrade.taken


def test_no_http2_and_nothing_started() -> None:
    port = Port(root())
    assert port.site.acceptableProtocols() == [b"http/1.1"]
    port.site.doStart()
    assert not port.clock.getDelayedCalls()
    port.site.doStop()


class Collect(protocol.Protocol):
    """Sends a request and fires with everything until the connection's end."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.received = b""
        self.done: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(self.request)  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        self.done.callback(self.received)


class Listener:
    """Of a carrier: keeps what it hears."""

    def __init__(self, carrier: Carrier) -> None:
        self.message: Deferred[bytes] = Deferred()
        self.end: Deferred[str] = Deferred()
        carrier.listener = self

    def heard(self) -> None:
        pass

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def message_received(self, message: bytes) -> None:
        self.message.callback(message)

    def closed(self, reason: str, refused: bool) -> None:
        self.end.callback(reason)


class RealSockets(TestCase):
    """The site, Autobahn and prometheus_client's resource on real TCP."""

    def listen(self, websocket: IResource, wrapped: bool = False) -> tuple[Any, TCP4ClientEndpoint]:
        metrics = Metrics()
        metrics.request_done("a.example", 200, 0.1, 0, 0)
        site: Site = make_site(
            socket_root(websocket, lambda: "", metrics, "", Nobody(), reactor),  # type: ignore[arg-type]
            reactor,  # type: ignore[arg-type]
            head_timeout=HEAD_TIMEOUT,
            max_connections=10,
        )
        factory = WrappingFactory(site) if wrapped else site
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        return site, TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)

    @inlineCallbacks
    def test_metrics(self) -> Any:
        site, endpoint = self.listen(Upgrade())
        request = b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        client = yield connectProtocol(endpoint, Collect(request))
        head, _, body = (yield client.done).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nserver:" not in head.lower()
        assert b'sockgw_requests_total{status="200",target="a.example"} 1.0' in body
        assert b"process_resident_memory_bytes" in body
        assert site.connections == 0

    def test_websocket(self) -> Any:
        return self.websocket(wrapped=False)

    def test_websocket_through_a_wrapper_as_tls_is_one(self) -> Any:
        return self.websocket(wrapped=True)

    @inlineCallbacks
    def websocket(self, wrapped: bool) -> Any:
        outer: Deferred[Carrier] = Deferred()
        inner: Deferred[Carrier] = Deferred()

        def listening(opened: Deferred[Carrier], listeners: list[Listener]) -> Any:
            def on_open(carrier: Carrier) -> None:
                listeners.append(Listener(carrier))
                opened.callback(carrier)

            return on_open

        listeners: list[Listener] = []
        resource = server_resource(reactor, 5, listening(outer, listeners))  # type: ignore[arg-type]
        site, endpoint = self.listen(resource, wrapped)
        factory = client_factory(
            reactor,  # type: ignore[arg-type]
            "ws://gateway.example/",
            5,
            listening(inner, listeners),
            lambda reason: inner.errback(RuntimeError(reason)),
        )
        yield endpoint.connect(factory)
        here = yield outer
        there = yield inner
        mine, theirs = listeners
        assert site.connections == 1
        assert here.host == "gateway.example"
        there.send(b"there")
        assert (yield mine.message) == b"there"
        here.send(b"here")
        assert (yield theirs.message) == b"here"
        there.abort()
        yield mine.end
        yield theirs.end
        assert site.connections == 0

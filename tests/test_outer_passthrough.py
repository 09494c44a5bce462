"""Sorting of connections by their ClientHello, in memory: TLS ends at the gateway for some only."""

import ssl
from types import SimpleNamespace

import pytest
from hellos import context, extension, hello, real_hello, records
from http_clients import LIMITS, Application, Transport, answer, request
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL
from test_http_server_sockets import self_signed
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import IHalfCloseableProtocol, IOpenSSLServerConnectionCreator
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from sockgw.deadlines import Deadlines
from sockgw.edge import Edge
from sockgw.http.application import NOBODY
from sockgw.http.front import ClientFactory
from sockgw.http.patience import ServerLimits
from sockgw.outer.crowd import Crowd
from sockgw.outer.metrics import Metrics
from sockgw.outer.passthrough import Passthrough
from sockgw.outer.targetsfile import parse_targets
from sockgw.protocol.heads import ResponseHead
from sockgw.proxied import ProxiedEndpoint
from sockgw.seldom import LIMIT

TARGETS = """
targets:
  a.test: {hostname: origin.internal, protocol: http}
  sealed.test: {hostname: origin.internal, protocol: tls}
  "*.sealed.test": {hostname: origin.internal, protocol: tls}
  open.sealed.test: {hostname: origin.internal}
"""
ONLY_HTTP = "targets: {a.test: {hostname: origin.internal, protocol: http}}"
ALL = TARGETS + '  "*": {hostname: others.internal, protocol: tls}\n'
INTERNAL_ERROR = b"\x15\x03\x03\0\2\2\x50"
DECODE_ERROR = b"\x15\x03\x03\0\2\2\x32"
OPTIONS = self_signed()


@implementer(IOpenSSLServerConnectionCreator)
class TLS:
    """With ALPN."""

    def __init__(self):
        self.context = SSL.Context(SSL.TLS_SERVER_METHOD)
        self.context.use_certificate(OPTIONS.certificate)
        self.context.use_privatekey(OPTIONS.privateKey)
        self.context.set_alpn_select_callback(lambda connection, offered: offered[-1])

    def serverConnectionForTLS(self, protocol):
        return SSL.Connection(self.context, None)


class Raw:
    """Handles a connection whose bytes go to an origin."""

    def __init__(self, exchange, target):
        self.exchange = exchange
        self.target = target
        self.data = b""
        self.ended = self.lost = False

    def body_received(self, data):
        self.data += data

    def body_ended(self, trailers):
        self.ended = True

    def client_left(self):
        self.lost = True

    def response_drained(self):
        pass


class Lenient(Transport):
    """As Twisted's own: its TLS writes to what is closed, and closes what has a producer."""

    def write(self, data):
        if not any((self.lost, self.disconnecting, self.aborted)):
            super().write(data)

    def registerProducer(self, producer, streaming):
        if self.disconnecting:
            producer.stopProducing()
        else:
            super().registerProducer(producer, streaming)

    def unregisterProducer(self):
        self.producer = None

    def loseConnection(self):
        if not any((self.lost, self.disconnecting, self.aborted)):
            self.producer = None
            super().loseConnection()

    def abortConnection(self):
        if not any((self.lost, self.aborted)):
            self.producer = None
            super().abortConnection()


class Owner(Application):
    """The gateway, as sorters and HTTP know it."""

    def __init__(self, targets):
        super().__init__()
        self.targets = parse_targets(targets, "targets.yaml")
        self.members = Crowd()
        self.most = 10
        self.draining = False
        self.places = 0
        self.raw = []
        self.on_request = answer

    def connected(self, connection):
        if len(self.members) - self.places >= self.most:
            return False
        self.members.add(connection)
        if self.draining:
            connection.drain(1.0)
        return True

    def disconnected(self, connection):
        assert connection in self.members
        self.members.discard(connection)

    def succeeded(self, connection, begin):
        assert connection in self.members
        self.places += 1
        begin()
        self.places -= 1
        self.members.discard(connection)

    def connect(self, exchange, target):
        self.raw.append(Raw(exchange, target))
        return self.raw[-1]


class Listener:
    def __init__(self, targets=TARGETS, behind_proxy=False, limit=65_536):
        self.clock = Clock()
        self.owner = Owner(targets)
        self.deadlines = Deadlines(self.clock)
        self.metrics = Metrics()
        self.passthrough = Passthrough(
            self.owner,
            self.deadlines,
            self.metrics,
            self.clock.seconds,
            patience=10.0,
            limit=limit,
            flush_timeout=300.0,
        )
        http = ClientFactory(self.owner, self.deadlines, ServerLimits(**LIMITS), self.clock.seconds)
        self.factory = self.passthrough.before(TLSMemoryBIOFactory(TLS(), False, http, self.clock))
        if behind_proxy:
            within = MemoryReactorClock()
            endpoint = TCP4ServerEndpoint(within, 443)
            edge = Edge(self.clock.seconds, trusts=lambda address: True)
            ProxiedEndpoint(self.clock, endpoint, edge).listen(self.factory)
            self.factory = within.tcpServers[0][1]

    def client(self, name=None, made=None):
        return Client(self, name, made)

    def advance(self, seconds):
        self.clock.pump([0.0] + [0.25] * int(seconds / 0.25) + [0.0, 0.0])

    @property
    def failures(self):
        return {fault.value: count for fault, count in self.metrics._hello_faults.items() if count}


class Client:
    """A client's connection, with TLS of the standard library if it comes to that."""

    def __init__(self, listener, name, made):
        self.listener = listener
        self.transport = Lenient(listener.clock)
        self.transport.protocol = listener.factory.buildProtocol(None)
        self.transport.protocol.makeConnection(self.transport)
        self.into, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = (made or context()).wrap_bio(self.into, self.out, server_hostname=name)

    def send(self, data, step=0):
        step = step or len(data)
        for start in range(0, len(data), step):
            if self.transport.aborted or self.transport.disconnecting:
                return
            self.transport.protocol.dataReceived(data[start : start + step])
        self.listener.advance(0)

    def take(self):
        data = bytes(self.transport.written)
        self.transport.written.clear()
        return data

    def do(self, call, *arguments, step=0):
        for _ in range(10):
            try:
                result = call(*arguments)
            except ssl.SSLWantReadError:
                result = None
            self.send(self.out.read(), step) if self.out.pending else None
            self.listener.advance(0)
            self.into.write(self.take())
            if result is not None:
                return result
        raise AssertionError("no end of it")

    def handshake(self, step=0):
        self.do(lambda: self.tls.do_handshake() or True, step=step)
        return self

    def get(self, host):
        self.do(self.tls.write, request(host=f"Host: {host}".encode()))
        return self.do(self.tls.read, 10_000)


def test_nothing_stands_between_while_no_target_is_sealed() -> None:
    listener = Listener(ONLY_HTTP)
    client = listener.client("a.test")
    assert type(client.transport.protocol).__name__ == "BufferingTLSTransport"
    listener.owner.targets = parse_targets(TARGETS, "targets.yaml")
    assert b" 200 " in client.handshake().get("a.test")
    sealed = listener.client()
    sealed.send(hello(b"sealed.test"))
    assert len(listener.owner.raw) == 1
    listener.owner.targets = parse_targets(ONLY_HTTP, "targets.yaml")
    assert type(listener.client().transport.protocol).__name__ == "BufferingTLSTransport"


@pytest.mark.parametrize("step", [0, 1, 100])
@pytest.mark.parametrize("behind_proxy", [False, True])
def test_other_names_end_here(step, behind_proxy) -> None:
    """Nothing tells the connection from one of a listener without a sorter."""
    listener = Listener(behind_proxy=behind_proxy)
    for name in ("a.test", "nowhere.test", "open.sealed.test", None):
        client = listener.client(name, context("h2", "http/1.1"))
        if behind_proxy:
            client.send(b"PROXY TCP4 198.51.100.9 192.0.2.1 4444 443\r\n", step)
        client.handshake(step)
        assert client.tls.selected_alpn_protocol() == "http/1.1"
        assert not IHalfCloseableProtocol.providedBy(client.transport.protocol)
        (member,) = listener.owner.members
        assert b" 200 " in client.get("a.test")
        assert b" 200 " in client.get("a.test")
        assert member.secure
        assert member.peer_address == ("198.51.100.9" if behind_proxy else "192.0.2.7")
        assert member.local_port == (443 if behind_proxy else 3000)
        client.transport.close_by_peer()
        listener.advance(0)
        assert not listener.owner.members
        assert not listener.deadlines.watched
    assert listener.owner.raw == []
    assert listener.failures == {}


def test_early_data_and_what_else_comes_with_it() -> None:
    """The ClientHello and a whole request behind it, as far as TLS 1.2 and 1.3 allow, in one."""
    listener = Listener()
    client = listener.client("sealed.test")
    data = hello(b"sealed.test") + b"\x14\x03\x03\0\1\1\x17\x03\x03\0\3abc"
    client.send(data)
    assert listener.owner.raw[0].data == data
    client.send(b"more")
    assert listener.owner.raw[0].data == data + b"more"
    client.transport.half_close_by_peer()
    assert listener.owner.raw[0].ended
    assert not listener.owner.raw[0].lost


def test_a_refusal_is_an_alert() -> None:
    listener = Listener()
    client = listener.client()

    def refuse(exchange, target):
        exchange.respond(ResponseHead(502, b"", []))
        exchange.write(b"why")
        exchange.finish()
        return NOBODY

    listener.owner.connect = refuse
    client.send(hello(b"sealed.test"))
    assert client.take() == INTERNAL_ERROR
    assert client.transport.lost
    assert not client.transport.aborted
    assert not listener.owner.members
    assert not listener.deadlines.watched


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("behind_proxy", [False, True])
def test_sealed(step, behind_proxy) -> None:
    listener = Listener(behind_proxy=behind_proxy)
    for name, target in (
        ("sealed.test", "sealed.test"),
        ("SEALED.test", "sealed.test"),
        ("x.sealed.test", "*.sealed.test"),
        ("x.y.sealed.test", "*.sealed.test"),
    ):
        client = listener.client()
        if behind_proxy:
            client.send(b"PROXY TCP4 198.51.100.9 192.0.2.1 4444 443\r\n", step)
        data = real_hello(name)
        client.send(data, step)
        raw = listener.owner.raw[-1]
        assert raw.target.name == target
        assert raw.data == data
        assert client.take() == b""
        exchange = raw.exchange
        assert exchange.peer_address == ("198.51.100.9" if behind_proxy else "192.0.2.7")
        assert exchange.local_port == (443 if behind_proxy else 3000)
        assert exchange.protocol == "TLS"
        assert exchange.head.target == name.lower().encode()
        assert list(listener.owner.members) == [exchange]
        exchange.write(b"answer")
        assert client.take() == b"answer"
        assert IHalfCloseableProtocol.providedBy(client.transport.protocol)
        client.transport.half_close_by_peer()
        assert raw.ended
        client.transport.close_by_peer()
        assert raw.lost
        assert not listener.owner.members
        assert not listener.deadlines.watched


def test_large_and_encrypted() -> None:
    listener = Listener()
    for data in (
        hello(b"sealed.test", extension(51, 1_216), extension(0xFE0D, 300)),
        hello(b"sealed.test", extension(51, 40_000)),
        hello(b"sealed.test", extension(51, 300), sizes=[1] * 300),
    ):
        listener.client().send(data, 1)
        assert listener.owner.raw[-1].data == data
    assert listener.failures == {}


def test_no_name_is_for_the_target_of_all_others() -> None:
    listener = Listener(ALL)
    listener.client().send(real_hello(None))
    listener.client().send(real_hello("nowhere.test"))
    assert [raw.target.name for raw in listener.owner.raw] == ["*", "*"]
    assert b" 200 " in listener.client("a.test").handshake().get("a.test")


# ---------------------------------------------------------------------- what is no ClientHello


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (hello(b"sealed.test\0.a.test"), "malformed"),
        (hello(b"sealed.test", (0, b"")), "malformed"),
        (records(b"\2\0\0\0"), "malformed"),
        (b"\x16\x03\x01\0\0", "malformed"),
        (b"\x16\x03\x01\x40\0\1\x40\0\0" + bytes(100), "too-large"),
    ],
)
def test_refused(data, fault, caplog) -> None:
    listener = Listener(limit=16_384)
    client = listener.client()
    client.send(data)
    assert client.take() == DECODE_ERROR
    assert client.transport.lost
    assert listener.failures == {fault: 1}
    assert not listener.owner.members
    assert not listener.deadlines.watched
    assert listener.owner.raw == []


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", b"\x80\x2e\1\0\2" + bytes(43), b"\0" * 50]
)
def test_other_protocols_get_what_they_get_without_a_sorter(data) -> None:
    said = []
    for listener in (Listener(ONLY_HTTP), Listener()):
        client = listener.client()
        client.send(data)
        assert client.transport.lost
        said.append(client.take())
        assert not listener.owner.members
    assert said[0] == said[1]
    assert listener.failures == {}


def test_a_hello_that_never_ends() -> None:
    listener = Listener()
    client = listener.client()
    data = hello(b"sealed.test")
    for number in range(39):
        client.send(data[number : number + 1])
        listener.advance(0.25)
    assert not client.transport.lost
    client.send(data[39:40])
    listener.advance(0.75)
    assert client.transport.lost
    assert listener.failures == {"timeout": 1}
    assert not listener.owner.members
    assert not listener.deadlines.watched


def test_a_client_that_says_nothing() -> None:
    listener = Listener()
    client = listener.client()
    listener.advance(11)
    assert client.transport.lost
    assert listener.failures == {}
    assert not listener.owner.members


def test_a_client_that_leaves() -> None:
    listener = Listener()
    client = listener.client()
    client.send(hello(b"sealed.test")[:50])
    client.transport.close_by_peer()
    assert not listener.owner.members
    assert not listener.deadlines.watched
    assert listener.failures == {}


def test_the_log_is_bounded() -> None:
    listener = Listener()
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        log = SimpleNamespace(info=lambda text, **fields: lines.append(text.format(**fields)))
        patch.setattr("sockgw.outer.passthrough._log", log)
        for _ in range(50):
            listener.client().send(records(b"\2"))
        line = "bad ClientHello address=192.0.2.7: a message that is no ClientHello"
        assert lines == [line] * LIMIT
        listener.advance(60)
        listener.client().send(records(b"\2"))
    assert lines[LIMIT:] == [f"{line} ({50 - LIMIT} more like this before)"]
    assert listener.failures == {"malformed": 51}


# ---------------------------------------------------------------------- bounds


def test_a_sorter_has_the_place_of_what_comes_after_it() -> None:
    listener = Listener()
    listener.owner.most = 1
    client = listener.client("a.test")
    one_too_many = listener.client()
    assert one_too_many.transport.aborted
    one_too_many.transport.protocol.dataReceived(hello(b"sealed.test"))
    listener.advance(0)
    assert listener.owner.raw == []
    assert len(listener.owner.members) == 1
    assert b" 200 " in client.handshake().get("a.test")
    client.transport.close_by_peer()
    assert not listener.owner.members


def test_draining() -> None:
    listener = Listener()
    client = listener.client("a.test")
    emptied = listener.owner.members.emptied()
    for member in listener.owner.members:
        assert not member.busy
        member.drain(1.0)
    listener.advance(0.5)
    # Who comes to it still has its answer, and nobody believes meanwhile that all have gone.
    client.handshake()
    assert not emptied.called
    assert b" 200 " in client.get("a.test")
    listener.owner.draining = True
    idle = listener.client()
    listener.advance(1.5)
    assert idle.transport.lost
    assert listener.failures == {}


@given(st.binary(max_size=100), st.integers(1, 100), st.booleans())
@settings(deadline=None, max_examples=200)
def test_junk(junk, step, begun) -> None:
    listener = Listener(limit=200)
    client = listener.client()
    client.send((b"\x16\x03\x01\0\x40" if begun else b"") + junk, step)
    if not client.transport.lost:
        listener.advance(25)
    assert client.transport.lost
    assert not listener.owner.members
    assert listener.owner.raw == []

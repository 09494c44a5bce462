"""Attacks that were tried, one test each: what a stranger or the other layer must not achieve."""

from types import SimpleNamespace

import pytest
from gatewaybench import Bench
from inner_reactor import Reactor
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import DNSLookupError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory
from twisted.trial.unittest import SynchronousTestCase, TestCase

from sockgw.config import load
from sockgw.deadlines import Deadlines
from sockgw.http.client import Origin, OriginPool
from sockgw.http.forwarded import is_protected
from sockgw.http.headers import serialize
from sockgw.inner import tcp
from sockgw.outer.admission import Admission
from sockgw.outer.config import OuterConfig
from sockgw.outer.metrics import Metrics
from sockgw.outer.registry import Registry
from sockgw.outer.site import make_site, socket_root
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.heads import RequestHead
from sockgw.tunnel.carrier import server_resource


@pytest.fixture
def events():
    """What is logged."""
    seen = []
    globalLogPublisher.addObserver(seen.append)
    yield seen
    globalLogPublisher.removeObserver(seen.append)


# ---------------------------------------------------------------------- clients


class _BehindBalancer:
    """A client's connection whose first bytes are a PROXY header of HAProxy's."""

    def __init__(self, bench):
        self.client = bench.client()  # for its transport
        transport = self.client.transport
        transport.producer = None
        transport.reading = True
        transport.getPeer = lambda: IPv4Address("TCP", "10.0.0.9", 50_000)
        self.connection = HAProxyWrappingFactory(bench.factory).buildProtocol(None)
        transport.protocol = self.client.connection = self.connection
        self.connection.makeConnection(transport)

    def send(self, data):
        self.client.send(data)


PROXY = b"PROXY TCP4 192.0.2.66 192.0.2.1 1111 80\r\n"


def test_behind_haproxy_the_client_is_who_the_proxy_header_names():
    bench = Bench()
    inner = bench.inner()
    _BehindBalancer(bench).send(PROXY + b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
    assert inner.last.values(b"X-Real-IP") == [b"192.0.2.66"]
    inner.last.answer()
    bench.run()
    assert bench.entry.client == "192.0.2.66"


def test_behind_haproxy_trust_in_the_balancer_is_no_trust_in_its_clients():
    bench = Bench(trust_proxy="10.0.0.0/8")
    inner = bench.inner()
    _BehindBalancer(bench).send(
        PROXY
        + b"GET / HTTP/1.1\r\nHost: a.example\r\n"
        + b"X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-Host: office.example\r\n\r\n"
    )
    assert inner.last.values(b"X-Forwarded-For") == [b"192.0.2.66"]
    assert inner.last.values(b"X-Forwarded-Host") == [b"a.example"]


@pytest.mark.parametrize("name", [b"x-original-url", b"x-rewrite-url", b"x_original_url"])
def test_no_stranger_names_another_path_than_the_policy_has_seen(name):
    assert is_protected(name)
    assert is_protected(name, trusted=True) is (b"_" in name)


def test_a_deadlines_owner_that_fails_holds_up_nobody(events):
    clock = Clock()
    deadlines = Deadlines(clock)

    class Owner:
        deadline = 1.0
        calls = 0

        def __init__(self, error=None):
            self.error = error

        def expired(self):
            self.calls += 1
            deadlines.discard(self)
            if self.error:
                raise self.error

    owners = [Owner(ValueError("fault")) for _ in range(5)] + [Owner() for _ in range(5)]
    for owner in owners:
        deadlines.watch(owner)
    clock.pump([0.25] * 8)
    assert [owner.calls for owner in owners] == [1] * 10
    assert sum("log_failure" in event for event in events) == 5
    late = Owner()
    late.deadline = 3.0
    deadlines.watch(late)
    clock.pump([0.25] * 8)
    assert late.calls == 1
    assert clock.getDelayedCalls() == []


# ---------------------------------------------------------------------- either layer

CONTROLS = [bytes((code,)) for code in (*range(9), *range(10, 32), 127)]


@pytest.mark.parametrize("control", CONTROLS)
def test_heads_from_the_other_layer_command_nobodys_terminal(control):
    """As llhttp does for those from a socket (RFC 9110, section 5.5)."""
    with pytest.raises(ValueError, match="control character"):
        serialize(b"HTTP/1.1 200 OK", [(b"X-A", b"a" + control + b"[31m")])
    with pytest.raises(ValueError, match="control character"):
        serialize(b"HTTP/1.1 200 O" + control + b"K", [(b"X-A", b"a")])


def test_what_may_stand_in_a_head_passes():
    value = bytes((9, *range(32, 127), *range(128, 256)))
    assert serialize(b"HTTP/1.1 200 " + value, [(b"X-A", value)]) == (
        b"HTTP/1.1 200 " + value + b"\r\nX-A: " + value + b"\r\n\r\n"
    )


# ---------------------------------------------------------------------- a hostile outer layer


class _Passage:
    """Handles an exchange of the inner layer's."""

    def __init__(self):
        self.failures = []

    def failed(self, code, detail):
        self.failures.append((code, detail))


class _Endpoint:
    def connect(self, factory):
        return Deferred()


@pytest.mark.parametrize(
    "target",
    [
        b"http://10.0.0.1/",  # to an origin that is a proxy, this is another origin
        b"//x:80"[2:],
        b"?",
        b"x",
        b"*x",
        b"/#x",
        b"/x y",
        b"/x HTTP/1.1\r\nX: y\r\n\r\nGET /z",
        b"/\xff",
        b"/\t",
        b"",
    ],
)
def test_a_target_is_a_path_on_the_origin_that_was_allowed(target):
    clock = Clock()
    dialled = []

    def dial(origin):
        dialled.append(origin)
        return _Endpoint()

    pool = OriginPool(clock, dial, Deadlines(clock))
    passage = _Passage()
    head = RequestHead(b"GET", target, [(b"Host", b"a.example")])
    origin = Origin("http", "a.example", 80)
    pool.request(origin, head, complete=True, handler=passage, host=b"a.example")
    clock.advance(0)
    assert passage.failures == [(StreamCode.PROTOCOL_ERROR, "bad target")]
    assert dialled == []


class NameTests(SynchronousTestCase):
    """Look-ups cannot be taken back: OPEN and RESET at once would pile them up."""

    def test_look_ups_under_way_are_bounded(self):
        self.patch(tcp, "_MAX_RESOLUTIONS", tcp._Resolution.under_way + 3)
        reactor = Reactor(None)
        receivers = []
        for _ in range(10):
            connecting = tcp.TCPEndpoint(reactor, "name", 80).connect(Factory())
            receivers.append(reactor.nameResolver.receiver)
            connecting.cancel()
            self.failureResultOf(connecting, DNSLookupError)
        assert reactor.nameResolver.asked == ["name"] * 3
        # What has been answered leaves room for another one.
        for receiver in receivers[:3]:
            receiver.resolutionComplete()
        tcp.TCPEndpoint(reactor, "other", 80).connect(Factory()).addErrback(lambda _: None).cancel()
        assert reactor.nameResolver.asked == ["name"] * 3 + ["other"]
        reactor.nameResolver.receiver.resolutionComplete()


# ---------------------------------------------------------------------- the socket port


class _Stranger(Protocol):
    """Asks for the WebSocket, then sends what it is told, and reads."""

    def __init__(self):
        self.received = b""
        self.opened = Deferred()
        self.lost = Deferred()

    def connectionMade(self):
        self.transport.write(UPGRADE)

    def dataReceived(self, data):
        self.received += data
        head, end, rest = self.received.partition(b"\r\n\r\n")
        if end and not self.opened.called:
            self.received = rest
            self.opened.callback(head[:12])

    def connectionLost(self, reason=connectionDone):
        self.lost.callback(None)


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: gateway.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: sockgw.1\r\n\r\n"
)
CLOSE_1008 = b"\x88\x02\x03\xf0"


def frame(opcode, payload=b"", fin=True):
    """Return a WebSocket frame of a client, under a mask of zeros."""
    assert len(payload) < 126
    return bytes((opcode | fin << 7, 0x80 | len(payload))) + bytes(4) + payload


class SocketPortTests(TestCase):
    timeout = 20

    def setUp(self):
        self.refusals = []
        globalLogPublisher.addObserver(self._observe)
        self.addCleanup(globalLogPublisher.removeObserver, self._observe)

    def _observe(self, event):
        if event.get("log_namespace", "").startswith("sockgw.") or "log_failure" in event:
            self.refusals.append(formatEvent(event))

    async def stranger(self, **milliseconds):
        """Return a stranger's connection, with the WebSocket open."""
        texts = {"public-key": ["unused"], "targets": ["unused"]}
        texts |= {name.replace("_", "-"): [str(ms)] for name, ms in milliseconds.items()}
        config = load(OuterConfig, texts, {})
        keyring = SimpleNamespace(find=lambda fingerprint: None)
        metrics = Metrics()
        decoy_key = SimpleNamespace(identifiers=(), verify=lambda message, signature: False)
        admission = Admission(config, reactor, keyring, Registry(10), metrics, decoy_key)
        carriers = server_resource(reactor, 5, admission.opened)
        root = socket_root(
            carriers, lambda: "no inner layer is connected", metrics, "", None, reactor
        )
        site = make_site(root, reactor, head_timeout=5, max_connections=10)
        port = reactor.listenTCP(0, site, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        stranger = _Stranger()
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        await connectProtocol(endpoint, stranger)
        self.addCleanup(lambda: stranger.lost)
        self.addCleanup(stranger.transport.abortConnection)
        assert await stranger.opened == b"HTTP/1.1 101"
        self.refusals.clear()
        return stranger

    async def test_a_thousand_wrong_messages_are_one_line(self):
        stranger = await self.stranger()
        stranger.transport.write(frame(2, b"junk") * 1_000)
        await stranger.lost
        assert stranger.received == CLOSE_1008
        assert len(self.refusals) == 1
        assert self.refusals[0].startswith("inner layer refused: a frame header is cut short")

    async def test_silence_ends(self):
        stranger = await self.stranger(handshake_timeout=50)
        await stranger.lost
        assert stranger.received == CLOSE_1008
        assert len(self.refusals) == 1
        assert "no HELLO in time" in self.refusals[0]

    async def test_frames_without_content_end_long_before_the_deadline(self):
        for flood in (frame(0, fin=False), frame(9), frame(10, b"x" * 125)):
            stranger = await self.stranger()
            stranger.transport.write(frame(2, b"x", fin=False) + flood * 20_000)
            await stranger.lost.addTimeout(5, reactor)
            assert len(self.refusals) == 1


@pytest.mark.parametrize(("host", "passes"), [("a.example", True), ("strict.example", False)])
def test_no_header_names_another_method_than_the_policy_has_seen(host, passes):
    bench = Bench()
    inner, client = bench.inner(), bench.client()
    client.get("/public", host, "X-HTTP-Method-Override: DELETE", "x_http_method: DELETE")
    names = {name.lower() for name, _ in inner.last.headers}
    assert (b"x-http-method-override" in names) is passes
    assert (b"x_http_method" in names) is passes

"""Attacks that were tried, one test each: what a stranger or the other layer must not achieve."""

import pytest
from gatewaybench import Bench
from inner_reactor import Reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import DNSLookupError
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory
from twisted.trial.unittest import SynchronousTestCase

from sockgw.deadlines import Deadlines
from sockgw.http.client import Origin, OriginPool
from sockgw.http.forwarded import is_protected
from sockgw.inner import tcp
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.heads import RequestHead


@pytest.fixture
def events():
    """What is logged, as the names of levels and texts."""
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
    late = Owner()
    late.deadline = 3.0
    deadlines.watch(late)
    clock.pump([0.25] * 8)
    assert late.calls == 1
    assert clock.getDelayedCalls() == []


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
    pool.request(Origin("http", "a.example", 80), head, complete=True, handler=passage)
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

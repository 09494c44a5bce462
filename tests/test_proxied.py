"""Listeners behind a load balancer: whose header is believed, and what a protocol hears of it."""

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, ITCPTransport
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer

from sockgw.edge import Edge
from sockgw.endpoints import server_endpoint
from sockgw.http.networks import Networks

BALANCER = IPv4Address("TCP", "192.0.2.9", 5000)
HEADER = b"PROXY TCP4 203.0.113.7 198.51.100.1 56324 443\r\n"
GONE = Failure(ConnectionDone())


class Seen(Protocol):
    """Keeps what it hears."""

    def __init__(self):
        self.events = []

    def connectionMade(self):
        peer, host = self.transport.getPeer(), self.transport.getHost()
        self.events.append((peer.host, peer.port, host.host, host.port))

    def dataReceived(self, data):
        self.events.append(data)

    def connectionLost(self, reason):
        self.events.append(reason.type)


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Seen):
    def readConnectionLost(self):
        self.events.append("FIN")

    def writeConnectionLost(self):
        self.events.append("our FIN")


class Listener:
    """A ``haproxy:`` endpoint, and connections to it."""

    def __init__(self, protocol=Seen, *, trusted="192.0.2.0/24", max_waiting=3):
        self.reactor = MemoryReactorClock()
        self.edge = Edge(
            self.reactor.seconds,
            trusts=Networks.parse([trusted]).contains,
            patience=2.0,
            max_waiting=max_waiting,
        )
        self.made = []
        listener = self

        class Making(Factory):
            def buildProtocol(self, addr):
                made = protocol()
                listener.made.append((made, addr))
                return made

        endpoint = server_endpoint(self.reactor, "haproxy:tcp:80", edge=self.edge)
        endpoint.listen(Making())
        self.factory = self.reactor.tcpServers[0][1]

    def connect(self, peer=BALANCER):
        transport = StringTransport(peerAddress=peer, hostAddress=IPv4Address("TCP", "10.0.0.1", 9))
        directlyProvides(transport, ITCPTransport)
        connection = self.factory.buildProtocol(peer)
        connection.makeConnection(transport)
        return connection, transport

    @property
    def events(self):
        return self.made[-1][0].events if self.made else []


@pytest.fixture
def logged():
    events = []
    observer = events.append
    globalLogPublisher.addObserver(observer)
    yield events
    globalLogPublisher.removeObserver(observer)


def test_the_protocol_is_made_once_the_header_is_there():
    listener = Listener()
    connection, transport = listener.connect()
    for byte in HEADER[:-1]:
        connection.dataReceived(bytes([byte]))
    assert listener.made == []
    assert len(listener.edge.waiting) == 1
    connection.dataReceived(HEADER[-1:] + b"first")
    connection.dataReceived(b"second")
    assert listener.events == [
        ("203.0.113.7", 56324, "198.51.100.1", 443),
        b"first",
        b"second",
    ]
    assert listener.made[0][1] == IPv4Address("TCP", "203.0.113.7", 56324)
    assert ITCPTransport.providedBy(connection)
    assert len(listener.edge.waiting) == 0
    assert listener.reactor.getDelayedCalls() == []
    connection.write(b"an ")
    connection.writeSequence([b"ans", b"wer"])
    assert transport.value() == b"an answer"
    connection.connectionLost(GONE)
    assert listener.events[-1] is ConnectionDone
    assert listener.factory.protocols == {}


def test_ipv6():
    listener = Listener()
    connection, _ = listener.connect()
    connection.dataReceived(b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n")
    assert listener.events == [("2001:db8::7", 56324, "2001:db8::1", 443)]
    assert isinstance(listener.made[0][1], IPv6Address)


def test_a_header_without_addresses_leaves_those_of_the_connection():
    listener = Listener()
    for header in (
        b"PROXY UNKNOWN\r\n",
        bytes.fromhex("0d0a0d0a000d0a515549540a 20 00 0000"),  # LOCAL: a health check
        bytes.fromhex("0d0a0d0a000d0a515549540a 21 31 00d8") + b"/run/app".ljust(216, b"\0"),
    ):
        connection, _ = listener.connect()
        connection.dataReceived(header + b"x")
        assert listener.events == [("192.0.2.9", 5000, "10.0.0.1", 9), b"x"]


def assert_refused(listener, connection, transport, count=1):
    assert transport.disconnected or transport.aborting
    assert listener.made == []
    assert listener.edge.headers_refused == count
    connection.dataReceived(HEADER)  # what was under way
    assert listener.made == []
    connection.connectionLost(GONE)
    assert len(listener.edge.waiting) == 0
    assert listener.reactor.getDelayedCalls() == []
    assert listener.factory.protocols == {}


def test_somebody_else(logged):
    listener = Listener()
    connection, transport = listener.connect(IPv4Address("TCP", "198.51.100.66", 1))
    assert_refused(listener, connection, transport)
    assert "198.51.100.66" in str(logged[-1])


def test_no_header():
    listener = Listener()
    connection, transport = listener.connect()
    connection.dataReceived(b"GET / HTTP/1.1\r\n")
    assert_refused(listener, connection, transport)


def test_no_header_in_time():
    listener = Listener()
    connection, transport = listener.connect()
    connection.dataReceived(HEADER[:-2])
    listener.reactor.advance(1.9)
    assert not transport.disconnected
    listener.reactor.advance(0.2)
    assert_refused(listener, connection, transport)


def test_so_many_wait_and_no_more():
    listener = Listener(max_waiting=2)
    first, _ = listener.connect()
    second, _ = listener.connect()
    third, transport = listener.connect()
    assert transport.disconnected
    first.dataReceived(HEADER)
    assert len(listener.edge.waiting) == 1
    second.connectionLost(GONE)
    assert len(listener.edge.waiting) == 0
    _, transport = listener.connect()
    assert not transport.disconnected
    third.connectionLost(GONE)


def test_a_unix_socket_is_trusted():
    listener = Listener(trusted="198.51.100.1")
    connection, _transport = listener.connect(UNIXAddress(None))
    connection.dataReceived(HEADER)
    assert listener.events == [("203.0.113.7", 56324, "198.51.100.1", 443)]


def test_without_an_edge_this_machine_is_trusted():
    for address, trusted in (
        (IPv4Address("TCP", "127.0.0.2", 1), True),
        (IPv6Address("TCP", "::ffff:127.0.0.1", 1), True),
        (IPv6Address("TCP", "::1", 1), True),
        (IPv4Address("TCP", "10.0.0.1", 1), False),
        (IPv6Address("TCP", "fe80::1%eth0", 1), False),
    ):
        reactor = MemoryReactorClock()
        server_endpoint(reactor, "haproxy:80").listen(Factory.forProtocol(Seen))
        port = (reactor.tcpServers or reactor.adoptedPorts)[0]
        factory = port[1] if reactor.tcpServers else port[2]
        connection = factory.buildProtocol(address)
        transport = StringTransport(peerAddress=address)
        connection.makeConnection(transport)
        assert transport.disconnected is not trusted


def test_half_closes_reach_who_can_do_with_them():
    listener = Listener(HalfCloseable)
    connection, _ = listener.connect()
    assert not IHalfCloseableProtocol.providedBy(connection)  # no header: it has gone
    connection.dataReceived(HEADER)
    assert IHalfCloseableProtocol.providedBy(connection)
    connection.readConnectionLost()
    connection.writeConnectionLost()
    assert listener.events[1:] == ["FIN", "our FIN"]
    connection, _ = (listener := Listener()).connect()
    connection.dataReceived(HEADER)
    assert not IHalfCloseableProtocol.providedBy(connection)


def test_the_log_is_not_flooded(logged):
    listener = Listener()
    stranger = IPv4Address("TCP", "198.51.100.66", 1)
    for _ in range(100):
        connection, _ = listener.connect(stranger)
        connection.connectionLost(GONE)
    lines = [event for event in logged if "closed a connection" in event.get("log_format", "")]
    assert len(lines) == 10
    listener.reactor.advance(60)
    listener.connect(stranger)
    assert logged[-1]["rest"] == " (90 more like this before)"
    assert listener.edge.headers_refused == 101

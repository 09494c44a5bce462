"""TLS listeners: the certificate that a client asks for, ALPN, and what fails."""

import ssl

import pytest
from certmaker import Maker, pem
from tlsclient import ADDRESS, Client, trusting
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from sockgw.edge import Edge
from sockgw.endpoints import server_endpoint


class Echo(Protocol):
    def dataReceived(self, data):
        self.transport.write(data)


@implementer(IProtocolNegotiationFactory)
class Speaking(Factory):
    protocol = Echo

    def acceptableProtocols(self):
        return [b"h2", b"http/1.1"]


@pytest.fixture(scope="module")
def maker():
    return Maker()


@pytest.fixture
def directory(maker, tmp_path):
    for name in ("a.test", "b.test", "*.wild.test", "192.0.2.7"):
        maker.lego(tmp_path, name)
    return tmp_path


class Listener:
    def __init__(self, directory, more="", factory=None, kind="tls"):
        self.reactor = MemoryReactorClock()
        self.edge = Edge(self.reactor.seconds)
        description = f"{kind}:443:interface=127.0.0.1:certificates={directory}{more}"
        endpoint = server_endpoint(self.reactor, description, edge=self.edge)
        self.factory = factory or Factory.forProtocol(Echo)
        endpoint.listen(self.factory)
        self.reactor.tcpServers[0][1].doStart()

    def client(self, maker, name=None, host="127.0.0.1", *, first=b"", **options):
        context = trusting()
        context.load_verify_locations(cadata=pem(maker.root).decode())
        context.verify_mode = ssl.CERT_REQUIRED
        for option, value in options.items():
            setattr(context, option, value)
        return Client(context, self.reactor, first, name=name, host=host)

    def names(self, client):
        client.ask(b"hello")
        return [value for _, value in client.tls.getpeercert().get("subjectAltName", ())]


@pytest.fixture
def logged():
    lines = []

    def observer(event):
        if event.get("log_namespace", "").startswith("sockgw"):
            lines.append(event["log_format"].format(**event))

    globalLogPublisher.addObserver(observer)
    yield lines
    globalLogPublisher.removeObserver(observer)


@pytest.mark.parametrize("latest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_certificate_that_was_asked_for(maker, directory, latest):
    listener = Listener(directory, ":default=b.test")
    for asked, host, shown in (
        ("a.test", "127.0.0.1", "a.test"),
        ("b.test", "127.0.0.1", "b.test"),
        ("x.wild.test", "127.0.0.1", "*.wild.test"),
        ("other.test", "127.0.0.1", "b.test"),
        (None, "127.0.0.1", "b.test"),
        (None, "192.0.2.7", "192.0.2.7"),
    ):
        client = listener.client(maker, asked, host, maximum_version=latest)
        assert listener.names(client) == [shown]


def test_a_hello_in_pieces(maker, directory):
    listener = Listener(directory)
    client = listener.client(maker, "b.test")
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    for byte in client._out.read():
        client.server.dataReceived(bytes([byte]))
    assert listener.names(client) == ["b.test"]


@pytest.mark.parametrize("name", ["other.test", None])
@pytest.mark.parametrize("latest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_unknown_name_is_refused_where_it_should_be(maker, directory, name, latest, logged):
    listener = Listener(directory, ":unknown=refuse")
    assert listener.names(listener.client(maker, "a.test")) == ["a.test"]
    client = listener.client(maker, name, maximum_version=latest)
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        client.ask(b"hello")
    client.server.connectionLost(Failure(ConnectionDone()))
    assert listener.edge.handshakes_failed == 1
    assert "no certificate for the name that was asked for" in logged[-1]


def test_new_handshakes_get_the_new_certificate_and_old_connections_stay(maker, directory):
    listener = Listener(directory)
    old = listener.client(maker, "a.test")
    first = old.ask(b"hello") and old.tls.getpeercert(True)
    maker.lego(directory, "a.test")
    listener.reactor.advance(2)
    new = listener.client(maker, "a.test")
    assert new.ask(b"hello") == b"hello"
    assert new.tls.getpeercert(True) != first
    old.do(old.tls.write, b"still here")
    assert old.do(old.tls.read, 100) == b"still here"


def test_a_pair_is_read_again_too(maker, directory):
    reactor = MemoryReactorClock()
    description = (
        f"tls:443:interface=127.0.0.1:privateKey={directory / 'a.test.key'}"
        f":certKey={directory / 'a.test.crt'}"
    )
    server_endpoint(reactor, description).listen(Factory.forProtocol(Echo))
    reactor.tcpServers[0][1].doStart()
    seen = set()
    for _ in range(2):
        client = Client(trusting(), reactor, name="whatever.test")
        client.ask(b"hello")
        seen.add(client.tls.getpeercert(True))
        maker.lego(directory, "a.test")
        reactor.advance(2)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["http/1.1", "h2"], "h2"), (["http/1.1"], "http/1.1"), (["spdy/3"], None), ([], None)],
)
@pytest.mark.parametrize("name", ["a.test", "x.wild.test", "other.test", None])
def test_alpn_on_each_context(maker, directory, offered, chosen, name):
    listener = Listener(directory, factory=Speaking())
    context = trusting()
    if offered:
        context.set_alpn_protocols(offered)
    client = Client(context, listener.reactor, name=name)
    assert client.ask(b"hello") == b"hello"
    assert client.tls.selected_alpn_protocol() == chosen
    assert client.server.negotiatedProtocol == (chosen and chosen.encode())


def test_no_alpn_where_the_factory_knows_none(maker, directory):
    context = trusting()
    context.set_alpn_protocols(["h2", "http/1.1"])
    client = Client(context, Listener(directory).reactor, name="a.test")
    assert client.ask(b"hello") == b"hello"
    assert client.tls.selected_alpn_protocol() is None


def test_client_certificates_whichever_name_was_asked_for(maker, directory, tmp_path):
    (directory / "authority").mkdir()
    authorities = directory / "authority" / "ca.txt"
    authorities.write_bytes(pem(maker.root))
    key, chain = maker.issue("client")
    own = directory / "authority" / "own.txt"
    own.write_bytes(key + chain)
    listener = Listener(directory, f":clientCA={authorities}")
    for name in ("a.test", "b.test", None):
        client = listener.client(maker, name)
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
            client.ask(b"hello")
    context = trusting()
    context.load_cert_chain(own)
    assert Client(context, listener.reactor, name="b.test").ask(b"hello") == b"hello"


def test_failed_handshakes_are_told_and_counted(maker, directory, logged):
    listener = Listener(directory)
    factory = listener.reactor.tcpServers[0][1]

    def lose(data, reason):
        connection = factory.buildProtocol(ADDRESS)
        connection.makeConnection(StringTransport(peerAddress=ADDRESS))
        connection.dataReceived(data)
        connection.connectionLost(Failure(reason))

    lose(b"GET / HTTP/1.1\r\n\r\n", ConnectionDone())
    assert logged[-1] == "TLS handshake failed address=127.0.0.1: http request"
    lose(b"\x16\x03\x01\x02\x00", ConnectionAborted())
    assert logged[-1] == "TLS handshake failed address=127.0.0.1: not finished in time"
    for reason in (ConnectionDone(), ConnectionLost()):
        lose(b"\x16\x03\x01\x02\x00", reason)  # a load balancer's probe, a client that left
    assert listener.edge.handshakes_failed == 2
    for _ in range(20):
        lose(b"junk!", ConnectionDone())
    assert listener.edge.handshakes_failed == 22
    assert len(logged) == 10
    client = listener.client(maker, "a.test")
    client.ask(b"hello")
    client.server.connectionLost(Failure(ConnectionAborted()))
    assert listener.edge.handshakes_failed == 22


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (":privateKey=x", "'privateKey' does not go with"),
        (":certKey=x", "'certKey' does not go with"),
        (":unknown=drop", "unknown is default or refuse, not 'drop'"),
        (":unknown=refuse:default=a.test", "does not go with unknown=refuse"),
        (":default=none.test", "is for 'none.test'"),
    ],
)
def test_what_cannot_be_meant(directory, more, words):
    with pytest.raises(ValueError, match=words):
        Listener(directory, more)


def test_the_proxy_header_comes_before_it(maker, directory):
    listener = Listener(directory, kind="haproxy:tls")
    header = b"PROXY TCP4 203.0.113.7 192.0.2.7 5555 443\r\n"
    client = listener.client(maker, first=header)
    assert listener.names(client) == ["192.0.2.7"]  # the address that the header tells


def test_listeners_share_what_they_read_and_say(maker, directory):
    listener = Listener(directory)
    server_endpoint(
        listener.reactor, f"tls:444:certificates={directory}", edge=listener.edge
    ).listen(Factory.forProtocol(Echo))
    assert len(listener.edge.stores) == 1
    assert len(listener.edge.expiries()) == 4
    listener.reactor.tcpServers[0][1].doStop()
    assert listener.reactor.getDelayedCalls() == []


def test_without_callbacks(maker, directory, monkeypatch, logged):
    """As under systemd's MemoryDenyWriteExecute=yes."""

    def forbidden(*_):
        raise MemoryError

    monkeypatch.setattr("OpenSSL.SSL.Context.set_alpn_select_callback", forbidden)
    monkeypatch.setattr("OpenSSL.SSL.Context.set_tlsext_servername_callback", forbidden)
    with pytest.raises(ValueError, match="MemoryDenyWriteExecute"):
        Listener(directory)
    reactor = MemoryReactorClock()
    pair = f"privateKey={directory / 'a.test.key'}:certKey={directory / 'a.test.crt'}"
    server_endpoint(reactor, f"tls:443:interface=127.0.0.1:{pair}").listen(Speaking())
    assert Client(trusting(), reactor).ask(b"hello") == b"hello"
    assert len([line for line in logged if "no ALPN" in line]) <= 1

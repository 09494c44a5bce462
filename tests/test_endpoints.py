"""Endpoints: descriptions, sockets on real ports, TLS in memory."""

import errno
import os
import re
import socket
import ssl
from datetime import UTC, datetime, timedelta
from tempfile import TemporaryDirectory

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from tlsclient import ADDRESS, Client, trusting
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.trial.unittest import TestCase

from sockgw import endpoints


class Echo(Protocol):
    def dataReceived(self, data):
        self.transport.write(data)


class Names(Protocol):
    """Answers with the peer's address."""

    def dataReceived(self, data):
        peer = self.transport.getPeer()
        self.transport.write(f"{peer.host} {data.decode()}".encode())


def write_pair(directory, name, key, *, authority=None, ca=False):
    """Write NAME.key and NAME.crt, signed by ``authority`` (key, certificate) or by itself."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, issuer = (key, subject) if authority is None else (authority[0], authority[1].subject)
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), True)
        .sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / f"{name}.key").write_bytes(pem)
    (directory / f"{name}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    return key, certificate


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("keys")

    def new():
        return ec.generate_private_key(ec.SECP256R1())

    authority = write_pair(directory, "authority", new(), ca=True)
    middle = write_pair(directory, "middle", new(), authority=authority, ca=True)
    server = write_pair(directory, "server", new())
    write_pair(directory, "edwards", ed25519.Ed25519PrivateKey.generate())
    write_pair(directory, "client", new(), authority=authority)
    write_pair(directory, "leaf", new(), authority=middle)
    write_pair(directory, "stranger", new())
    sealed = server[0].private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"sesame")
    )
    (directory / "sealed.key").write_bytes(sealed)
    chain = (directory / "leaf.crt").read_bytes() + (directory / "middle.crt").read_bytes()
    (directory / "chain.crt").write_bytes(chain)
    return directory


# --- descriptions


@pytest.mark.parametrize(
    "description",
    [
        "0",
        "3000",
        "65535",
        "tcp:3000",
        "tcp:port=3000:interface=127.0.0.1",
        "tcp6:3000:interface=\\:\\:1",
        "unix:/run/app.sock:mode=660",
        "unix:address=/run/app.sock",
        "systemd:domain=INET6:name=app",
        "systemd:domain=UNIX:index=0",
        "haproxy:3000",
        "haproxy:tcp:3000",
        "haproxy:unix:/run/app.sock",
        "haproxy:systemd:domain=INET:name=app",
    ],
)
def test_valid(description):
    endpoints.validate(description)


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("", "no kind of endpoint called ''"),
        ("http", "no kind of endpoint called 'http'"),
        ("127.0.0.1:3000", "no kind of endpoint called '127.0.0.1'"),
        ("65536", "'65536' is not a port number"),
        ("٣٠٠٠", "not a port number"),
        ("-1", "no kind of endpoint"),
        ("tcp", "not a port number"),
        ("tcp:http", "'http' is not a port number"),
        ("tcp:99999", "'99999' is not a port number"),
        ("tcp:80:colour=red", "Twisted does not take it"),
        ("tcp:80\\", "Twisted does not take it"),
        ("unix:", "needs a path"),
        ("systemd:name=app", "needs domain="),
        ("systemd:domain=INET:name=app:index=0", "needs domain="),
        ("haproxy:haproxy:tcp:3000", "twice"),
        ("haproxy:", "no kind of endpoint"),
        ("haproxy:tls:443", "needs privateKey=FILE"),
        ("tls:443", "needs privateKey=FILE"),
        ("tls:443:80:privateKey=x", "takes one port"),
        ("tls:https:privateKey=x", "'https' is not a port number"),
        ("ssl:443:privateKey=x:sslmethod=TLSv1_METHOD", "has no 'sslmethod'"),
        ("tls:443:privateKey=x:backlog=many", "'many' is not a whole number"),
        ("tls:443:privateKey=/nonexistent/x", "cannot read /nonexistent/x: No such file"),
    ],
)
def test_invalid(description, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        endpoints.validate(description)
    with pytest.raises(ValueError, match=re.escape(words)):
        endpoints.server_endpoint(MemoryReactorClock(), description)


@pytest.mark.parametrize(
    ("key", "certificate", "words"),
    [
        ("server.crt", "server.crt", "server.crt holds no private key in PEM form"),
        ("server.key", "server.key", "server.key holds no certificate in PEM form"),
        ("server.key", "stranger.crt", "does not belong to the key in"),
        ("sealed.key", "server.crt", "is encrypted"),
        ("server.key", "none.crt", "none.crt: No such file"),
    ],
)
def test_tls_files_that_cannot_be_used(files, key, certificate, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        endpoints.validate(f"tls:0:privateKey={files / key}:certKey={files / certificate}")


def test_systemd_without_a_socket():
    with pytest.raises(ValueError, match="no socket 'app' was handed over"):
        endpoints.server_endpoint(MemoryReactorClock(), "systemd:domain=INET:name=app")


def test_named_arguments_reach_the_reactor(files):
    reactor = MemoryReactorClock()
    tls = f"privateKey={files / 'server.key'}:certKey={files / 'server.crt'}"
    for description in (
        f"tls:8443:{tls}:interface=\\:\\:1:backlog=7",
        f"ssl:port=8443:{tls}:interface=\\:\\:1:backlog=7",
        f"haproxy:tls:8443:{tls}:interface=\\:\\:1:backlog=7",
    ):
        endpoints.server_endpoint(reactor, description).listen(Factory.forProtocol(Echo))
        number, _factory, backlog, interface = reactor.tcpServers.pop()
        assert (number, backlog, interface) == (8443, 7, "::1")


def test_without_ipv6_a_number_listens_on_ipv4(monkeypatch):
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    reactor = MemoryReactorClock()
    endpoints.server_endpoint(reactor, "3000").listen(Factory.forProtocol(Echo))
    assert [(number, interface) for number, _, _, interface in reactor.tcpServers] == [(3000, "")]


def test_a_shared_tls_port_is_a_socket_of_ours(files):
    reactor = MemoryReactorClock()
    tls = f"privateKey={files / 'server.key'}:certKey={files / 'server.crt'}"
    for description in (f"tls:0:{tls}:interface=127.0.0.1", f"haproxy:tls:0:{tls}"):
        endpoint = endpoints.server_endpoint(reactor, description, reuse_port=True)
        endpoint.listen(Factory.forProtocol(Echo))
        assert len(reactor.adoptedPorts) == 1
        reactor.adoptedPorts.clear()
    assert reactor.tcpServers == []


@pytest.mark.parametrize(
    "description", ["tcp:70000", "tcp:0:nonsense=1", "tcp:", "tcp:0:backlog=many"]
)
def test_what_is_wrong_with_a_shared_port_is_said_as_ever(description):
    with pytest.raises(ValueError, match=r".") as alone:
        endpoints.server_endpoint(MemoryReactorClock(), description)
    with pytest.raises(ValueError, match=r".") as shared:
        endpoints.server_endpoint(MemoryReactorClock(), description, reuse_port=True)
    assert str(alone.value) == str(shared.value)


# --- TLS, without sockets


def tls_listener(files, more="", *, kind="tls", key="server", certificate=None, protocol=Echo):
    reactor = MemoryReactorClock()
    certificate = certificate or f"{key}.crt"
    description = (
        f"{kind}:443:interface=127.0.0.1:privateKey={files / f'{key}.key'}"
        f":certKey={files / certificate}{more}"
    )
    endpoints.server_endpoint(reactor, description).listen(Factory.forProtocol(protocol))
    return reactor


@pytest.mark.parametrize("kind", ["tls", "ssl"])
@pytest.mark.parametrize("key", ["server", "edwards"])
def test_tls_speaks(files, kind, key):
    client = Client(trusting(), tls_listener(files, kind=kind, key=key))
    assert client.ask(b"hello") == b"hello"
    assert client.tls.version() == "TLSv1.3"


@pytest.mark.parametrize("suite", ["AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305"])
def test_tls_1_2_with_aead(files, suite):
    context = trusting()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"ECDHE-ECDSA-{suite}")
    client = Client(context, tls_listener(files))
    assert client.ask(b"hello") == b"hello"
    assert client.tls.cipher()[0] == f"ECDHE-ECDSA-{suite}"


@pytest.mark.parametrize("suite", ["ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES256-SHA"])
def test_tls_refuses_cbc(files, suite):
    context = trusting()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(suite)
    with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
        Client(context, tls_listener(files)).ask(b"hello")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_refuses_1_1(files):
    context = trusting()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        Client(context, tls_listener(files)).ask(b"hello")


@pytest.mark.parametrize("latest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_client_ca_requires_a_certificate_from_it(files, latest):
    def ask(certificate):
        context = trusting(certificate)
        context.maximum_version = latest
        reactor = tls_listener(files, f":clientCA={files / 'authority.crt'}")
        return Client(context, reactor).ask(b"hello")

    assert ask(files / "client") == b"hello"
    for certificate in (None, files / "stranger"):
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate|unknown.ca|handshake.failure"):
            ask(certificate)


@pytest.mark.parametrize(
    ("certificate", "more"), [("chain.crt", ""), ("leaf.crt", ":extraCertChain={}")]
)
def test_the_chain_is_sent(files, certificate, more):
    context = trusting()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(files / "authority.crt")
    more = more.format(files / "middle.crt")
    reactor = tls_listener(files, more, key="leaf", certificate=certificate)
    assert Client(context, reactor).ask(b"hello") == b"hello"


def test_the_proxy_header_comes_before_tls(files):
    reactor = tls_listener(files, kind="haproxy:tls", protocol=Names)
    header = b"PROXY TCP4 203.0.113.7 203.0.113.1 5555 443\r\n"
    assert Client(trusting(), reactor, first=header).ask(b"hello") == b"203.0.113.7 hello"


# --- what the log says


class Port:
    def __init__(self, address, factory=None):
        self._address = address
        self.factory = factory

    def getHost(self):
        return self._address


def test_describe(files):
    assert endpoints.describe(Port(ADDRESS)) == "http://127.0.0.1:4321"
    assert endpoints.describe(Port(UNIXAddress("/run/app"))) == "unix:/run/app"
    everywhere = IPv4Address("TCP", "0.0.0.0", 80)
    assert endpoints.describe(Port(everywhere)) == "http://localhost:80 (all addresses)"
    for kind in ("tls", "haproxy:tls"):
        port = Port(ADDRESS, tls_listener(files, kind=kind).tcpServers[0][1])
        assert endpoints.describe(port) == "https://127.0.0.1:4321"


def test_something_may_stand_before_tls(files):
    """It gets the connections of TLS, after the PROXY header, and no others."""

    class Before(Factory):
        def __init__(self, tls):
            self.wrappedFactory = tls

        def buildProtocol(self, addr):
            return Names()

    tls = f"443:privateKey={files / 'server.key'}:certKey={files / 'server.crt'}"
    for description, first, said in (
        (f"tls:{tls}:interface=127.0.0.1", b"hello", b"127.0.0.1 hello"),
        (
            f"haproxy:tls:{tls}:interface=127.0.0.1",
            b"PROXY TCP4 203.0.113.7 203.0.113.1 5 8\r\nx",
            b"203.0.113.7 x",
        ),
        ("tcp:80", b"hello", b"hello"),
        ("haproxy:tcp:80", b"PROXY TCP4 203.0.113.7 203.0.113.1 5 8\r\nx", b"x"),
    ):
        reactor = MemoryReactorClock()
        endpoint = endpoints.server_endpoint(reactor, description, before_tls=Before)
        endpoint.listen(Factory.forProtocol(Echo))
        factory = reactor.tcpServers[0][1]
        server = factory.buildProtocol(ADDRESS)
        transport = StringTransport(peerAddress=ADDRESS)
        server.makeConnection(transport)
        server.dataReceived(first)
        assert transport.value() == said
        scheme = "https" if "tls" in description else "http"
        assert endpoints.describe(Port(ADDRESS, factory)) == f"{scheme}://127.0.0.1:4321"


@pytest.mark.parametrize(
    ("description", "error", "text"),
    [
        (
            "80",
            PermissionError(errno.EACCES, "x"),
            "not permitted for this user (Permission denied)",
        ),
        (
            "tcp:80:interface=192.0.2.1",
            OSError(errno.EADDRNOTAVAIL, "x"),
            "this machine has no such address (Cannot assign requested address)",
        ),
        ("unix:/x", "Cannot acquire lock", "the socket is taken (Cannot acquire lock)"),
        (
            "unix:/x",
            FileNotFoundError(errno.ENOENT, "x"),
            "cannot listen (No such file or directory)",
        ),
    ],
)
def test_listen_error(description, error, text):
    cannot = CannotListenError("", 80, error)
    assert endpoints.listen_error(description, cannot, "app-port") == (
        f"--app-port {description}: {text}"
    )
    assert endpoints.listen_error(description, cannot) == f"{description}: {text}"


def test_another_error():
    assert endpoints.listen_error("x", RuntimeError("odd")) == "x: cannot listen (odd)"


# --- real sockets


class Once(Protocol):
    """Sends something, and fires with the answer once the connection is closed."""

    def __init__(self, data):
        self._data = data
        self._received = b""
        self.done = Deferred()

    def connectionMade(self):
        self.transport.write(self._data)

    def dataReceived(self, data):
        self._received += data
        self.transport.loseConnection()

    def connectionLost(self, reason):
        self.done.callback(self._received)


def ask(endpoint, data):
    protocol = Once(data)
    connected = endpoint.connect(Factory.forProtocol(lambda: protocol))
    return connected.addCallback(lambda _: protocol.done)


class Listening(TestCase):
    def setUp(self):
        from twisted.internet import reactor

        self.reactor = reactor

    def listen(self, description, protocol=Echo, **options):
        listening = endpoints.server_endpoint(self.reactor, description, **options).listen(
            Factory.forProtocol(protocol)
        )

        def listens(port):
            self.addCleanup(port.stopListening)
            return port

        return listening.addCallback(listens)

    @inlineCallbacks
    def test_a_number_listens_on_all_addresses(self):
        port = yield self.listen("0")
        number = port.getHost().port
        clients = [TCP4ClientEndpoint(self.reactor, "127.0.0.1", number)]
        if socket.has_dualstack_ipv6():
            clients.append(TCP6ClientEndpoint(self.reactor, "::1", number))
        answers = yield gatherResults([ask(client, b"hello") for client in clients])
        assert answers == [b"hello"] * len(clients)
        assert endpoints.describe(port) == f"http://localhost:{number} (all addresses)"

    @inlineCallbacks
    def test_a_taken_port_is_a_clear_sentence(self):
        port = yield self.listen("0")
        number = port.getHost().port
        for description in (str(number), f"tcp:{number}:interface=127.0.0.1"):
            error = yield self.assertFailure(self.listen(description), CannotListenError)
            assert (
                endpoints.listen_error(description, error, "app-port")
                == f"--app-port {description}: the port is taken (Address already in use)"
            )

    @inlineCallbacks
    def test_a_port_is_free_again_once_it_is_stopped(self):
        port = yield endpoints.server_endpoint(self.reactor, "0").listen(Factory.forProtocol(Echo))
        number = port.getHost().port
        yield port.stopListening()
        assert (yield self.listen(str(number)))

    @inlineCallbacks
    def test_one_address_and_unix(self):
        port = yield self.listen("tcp:0:interface=127.0.0.1")
        assert endpoints.describe(port) == f"http://127.0.0.1:{port.getHost().port}"
        directory = TemporaryDirectory()  # its name is short, as that of a socket must be
        self.addCleanup(directory.cleanup)
        path = os.path.join(directory.name, "s")
        port = yield self.listen(f"unix:{path}")
        assert endpoints.describe(port) == f"unix:{path}"
        error = yield self.assertFailure(self.listen(f"unix:{path}"), CannotListenError)
        assert "the socket is taken" in endpoints.listen_error(f"unix:{path}", error)

    @inlineCallbacks
    def test_the_proxy_header_names_the_client(self):
        port = yield self.listen("haproxy:0", Names)
        client = TCP4ClientEndpoint(self.reactor, "127.0.0.1", port.getHost().port)
        header = b"PROXY TCP4 203.0.113.7 203.0.113.1 5555 80\r\n"
        answer = yield ask(client, header + b"hello")
        assert answer == b"203.0.113.7 hello"

    @inlineCallbacks
    def test_a_port_can_be_shared_with_a_successor(self):
        for description in ("{}", "tcp:{}", "tcp:{}:interface=127.0.0.1", "haproxy:{}"):
            first = yield self.listen(description.format(0), reuse_port=True)
            number = first.getHost().port
            second = yield self.listen(description.format(number), reuse_port=True)
            assert second.getHost() == first.getHost()
            error = yield self.assertFailure(self.listen(str(number)), CannotListenError)
            assert "the port is taken" in endpoints.listen_error(str(number), error)

    @inlineCallbacks
    def test_a_shared_port_listens_where_it_would_alone(self):
        for description in ("0", "tcp:0", "tcp:0:interface=127.0.0.1", "tcp:0:interface=\\:\\:1"):
            if "\\" in description and not socket.has_dualstack_ipv6():
                continue
            alone = yield self.listen(description)
            shared = yield self.listen(description, reuse_port=True)
            assert shared.getHost().host == alone.getHost().host, description
            assert type(shared.getHost()) is type(alone.getHost())

    @inlineCallbacks
    def test_what_cannot_be_shared_is_as_ever(self):
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = os.path.join(directory.name, "s")
        yield self.listen(f"unix:{path}", reuse_port=True)
        yield self.assertFailure(self.listen(f"unix:{path}", reuse_port=True), CannotListenError)

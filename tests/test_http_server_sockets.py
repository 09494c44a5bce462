"""The server side of HTTP over real TCP and real TLS."""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from http_clients import GET, LIMITS, Application, answer, request
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import ClientFactory as TwistedClientFactory
from twisted.internet.protocol import Protocol
from twisted.internet.ssl import CertificateOptions, PrivateCertificate
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from sockgw.deadlines import Deadlines
from sockgw.http.front import ClientFactory
from sockgw.http.patience import ServerLimits
from sockgw.protocol.heads import ResponseHead

POST = b"POST / HTTP/1.1"


def self_signed():
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return PrivateCertificate.loadPEM(pem).options()


@implementer(IHalfCloseableProtocol)
class Client(Protocol):
    """Keeps what it gets, and calls back at each change."""

    def __init__(self):
        self.data = b""
        self.ended = False
        self.reason = None
        self.waiting = []

    def when(self, condition):
        done = Deferred()
        self.waiting.append((condition, done))
        self.changed()
        return done

    def changed(self):
        for entry in [e for e in self.waiting if e[0]()]:
            self.waiting.remove(entry)
            entry[1].callback(None)

    def dataReceived(self, data):
        self.data += data
        self.changed()

    def readConnectionLost(self):
        self.ended = True
        self.changed()
        self.transport.loseConnection()

    def writeConnectionLost(self):
        pass

    def connectionLost(self, reason):
        self.ended = True
        self.reason = reason.value
        self.changed()


class SocketTests:
    """The same over TCP and TLS."""

    secure = False

    def setUp(self):
        self.application = Application()
        self.deadlines = Deadlines(reactor, 0.02)
        self.addCleanup(self.deadlines.stop)
        limits = {
            **LIMITS,
            "half_close_timeout": 0.1,
            "linger_timeout": 0.2,
            "max_header_size": 8192,
        }
        factory = ClientFactory(self.application, self.deadlines, ServerLimits(**limits))
        if self.secure:
            self.port = reactor.listenSSL(0, factory, self_signed(), interface="127.0.0.1")
        else:
            self.port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(self.port.stopListening)
        self.gone = Deferred()
        disconnected = self.application.disconnected

        def gone(connection):
            disconnected(connection)
            done, self.gone = self.gone, Deferred()
            done.callback(None)

        self.application.disconnected = gone

    def connect(self):
        connected = Deferred()
        factory = TwistedClientFactory()
        factory.noisy = False
        factory.protocol = Client
        made = Client.connectionMade

        class Connecting(Client):
            def connectionMade(self):
                made(self)
                connected.callback(self)

        factory.protocol = Connecting
        port = self.port.getHost().port
        if self.secure:
            reactor.connectSSL("127.0.0.1", port, factory, CertificateOptions())
        else:
            reactor.connectTCP("127.0.0.1", port, factory)
        return connected

    @inlineCallbacks
    def finish(self, client):
        gone = self.gone
        if not client.ended or client.reason is None:
            client.transport.abortConnection()
            yield client.when(lambda: client.reason is not None)
        if self.application.connections:
            yield gone

    @inlineCallbacks
    def test_requests(self):
        self.application.on_end = lambda exchange: answer(exchange, exchange.head.target)
        client = yield self.connect()
        for i in range(3):
            client.transport.write(request(b"GET /%d. HTTP/1.1" % i))
            yield client.when(lambda i=i: client.data.endswith(b"/%d." % i))
        client.transport.write(request(b"GET /last HTTP/1.1", b"Connection: close"))
        yield client.when(lambda: client.reason is not None)
        assert client.data.endswith(b"/last")
        assert isinstance(client.reason, ConnectionDone)
        assert self.application.handlers[0].exchange.connection.secure == self.secure
        if self.application.connections:
            yield self.gone

    @inlineCallbacks
    def test_early_answer_arrives_whole_although_the_client_sends_on(self):
        body = b"e" * 200_000
        self.application.on_request = lambda exchange: answer(exchange, body, 413)
        client = yield self.connect()
        gone = self.gone
        client.transport.write(request(POST, b"Content-Length: 100000000"))
        client.transport.write(b"x" * 3_000_000)
        yield client.when(lambda: client.data.endswith(body))
        # The server reads on, although nobody wants it: closing would have been an RST.
        yield gone
        yield self.finish(client)

    @inlineCallbacks
    def test_refusal_arrives_although_the_client_sends_on(self):
        client = yield self.connect()
        gone = self.gone
        client.transport.write(b"GET / HTTP/1.1\r\nA: " + b"x" * 3_000_000)
        yield client.when(lambda: b"too large" in client.data)
        assert client.data.startswith(b"HTTP/1.1 431 ")
        yield gone
        yield self.finish(client)

    @inlineCallbacks
    def test_large_bodies_both_ways_in_step(self):
        """An echo whose client reads late: each side pauses the other, and nothing is lost."""

        def echo(exchange):
            exchange.respond(ResponseHead(200, b"OK", [(b"Content-Length", b"4000000")]))

        def body(exchange):
            handler = self.application.handlers[-1]
            exchange.write(handler.events[-1][1])
            if exchange.congested:
                exchange.pause_request()

        def request_(exchange, request=self.application.request):
            handler = request(exchange)
            handler.response_drained = exchange.resume_request
            return handler

        self.application.request = request_
        self.application.on_request = echo
        self.application.on_body = body
        self.application.on_end = lambda exchange: exchange.finish()
        client = yield self.connect()
        client.transport.pauseProducing()
        data = bytes(range(250)) * 16_000
        client.transport.write(request(POST, b"Content-Length: 4000000"))
        client.transport.write(data)
        reactor.callLater(0.1, client.transport.resumeProducing)
        yield client.when(lambda: len(client.data) > 4_000_000)
        yield client.when(lambda: client.data.partition(b"\r\n\r\n")[2] == data)
        yield self.finish(client)

    @inlineCallbacks
    def test_client_that_resets(self):
        client = yield self.connect()
        client.transport.write(GET)
        while not self.application.handlers:
            yield self.later()
        gone = self.gone
        client.transport.abortConnection()
        yield gone
        assert self.application.handlers[0].lost

    @inlineCallbacks
    def test_client_that_closes(self):
        client = yield self.connect()
        client.transport.write(GET)
        while not self.application.handlers:
            yield self.later()
        gone = self.gone
        client.transport.loseConnection()
        yield gone
        assert self.application.handlers[0].lost

    @inlineCallbacks
    def test_close_delimited_answer_that_breaks(self):
        client = yield self.connect()
        client.transport.write(request(b"GET / HTTP/1.0"))
        while not self.application.handlers:
            yield self.later()
        exchange = self.application.handlers[0].exchange
        exchange.respond(ResponseHead(200, b"OK", []))
        exchange.write(b"half")
        yield client.when(lambda: client.data.endswith(b"half"))
        gone = self.gone
        exchange.abort()
        yield gone
        yield client.when(lambda: client.reason is not None)
        assert not isinstance(client.reason, ConnectionDone)

    def later(self):
        turn = Deferred()
        reactor.callLater(0, turn.callback, None)
        return turn


class TCPTests(SocketTests, TestCase):
    """Over TCP, whose halves close one by one."""

    @inlineCallbacks
    def test_half_closed_client_gets_all(self):
        client = yield self.connect()
        client.transport.write(GET)
        while not self.application.handlers:
            yield self.later()
        client.transport.loseWriteConnection()
        handler = self.application.handlers[0]
        while not handler.exchange.connection._half_closed:
            yield self.later()
        handler.exchange.respond(ResponseHead(200, b"OK", []))
        pause = Deferred()
        reactor.callLater(0.3, pause.callback, None)  # three times the half-close timeout
        yield pause
        assert not handler.lost
        handler.exchange.write(b"hello")
        handler.exchange.finish()
        yield client.when(lambda: client.ended)
        assert client.data.endswith(b"5\r\nhello\r\n0\r\n\r\n")
        if self.application.connections:
            yield self.gone

    @inlineCallbacks
    def test_client_that_left_resets_what_is_sent(self):
        """The head goes out after the FIN; the RST that comes back is noticed without a write."""
        client = yield self.connect()
        client.transport.write(GET)
        while not self.application.handlers:
            yield self.later()
        handler = self.application.handlers[0]
        gone = self.gone
        connection = handler.exchange.connection
        client.transport.loseConnection()
        while not connection._half_closed:
            yield self.later()
        handler.exchange.respond(ResponseHead(200, b"OK", []))
        yield gone
        assert handler.lost


class TLSTests(SocketTests, TestCase):
    """Over TLS."""

    secure = True


del SocketTests

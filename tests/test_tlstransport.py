"""TLS transports: what is written arrives, in few writes; all else is as with Twisted's own."""

import os

import pytest
from inner_certificates import Authority
from OpenSSL import SSL
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    ITransport,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from sockgw import tlstransport
from sockgw.inner.tls import client_context
from sockgw.tlsserver import server_context
from sockgw.tlstransport import TLSFactory


@implementer(ITransport)
class Below:
    """The transport below; keeps what is written."""

    def __init__(self):
        self.writes = []
        self.ends = []
        self.producer = None

    def write(self, data):
        self.writes.append(data)

    def loseConnection(self):
        self.ends.append("lose")

    def abortConnection(self):
        self.ends.append("abort")

    def registerProducer(self, producer, streaming):
        self.producer = producer

    def unregisterProducer(self):
        self.producer = None

    def take(self):
        writes, self.writes = self.writes, []
        return b"".join(writes)


class Above(Protocol):
    """The protocol above; keeps what arrives."""

    def __init__(self):
        self.received = b""
        self.lost = None

    def dataReceived(self, data):
        self.received += data

    def connectionLost(self, reason):
        self.lost = reason


@implementer(IOpenSSLServerConnectionCreator, IOpenSSLClientConnectionCreator)
class Creator:
    def __init__(self, context):
        self.context = context

    def serverConnectionForTLS(self, protocol):
        connection = SSL.Connection(self.context, None)
        connection.set_app_data(protocol)
        return connection

    clientConnectionForTLS = serverConnectionForTLS


class Pair:
    """Both ends of a connection. In a clock's turn is what ``at_turn_end`` is in a reactor's."""

    def __init__(self, context, *, shaken=True):
        self.clock = Clock()
        self.client = self._end(Creator(client_context(verify=False)), True)
        self.server = self._end(Creator(context), False)
        self.client.makeConnection(Below())
        self.server.makeConnection(Below())
        if shaken:
            self.run()
            assert self.client._handshakeDone
            assert self.server._handshakeDone
            assert self.client.transport.writes == []

    def _end(self, creator, is_client):
        above = Above()
        factory = TLSFactory(creator, is_client, Factory.forProtocol(lambda: above), self.clock)
        end = factory.buildProtocol(None)
        end.above = above
        return end

    def run(self):
        busy = True
        while busy:
            self.clock.advance(0)
            busy = False
            for end, other in ((self.client, self.server), (self.server, self.client)):
                data = end.transport.take()
                if data:
                    busy = True
                    other.dataReceived(data)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"), "a").issue("s", ["localhost"])


def make_context(files):
    certificate, key = files
    context = server_context(None)
    context.use_certificate_file(certificate)
    context.use_privatekey_file(key)
    return context


@pytest.fixture
def context(files):
    return make_context(files)


@pytest.fixture
def pair(context):
    return Pair(context)


SIZES = (1, 16_383, 16_384, 16_385, 32_768, 64_000, 64_001, 65_559, 262_158, 1_000_000)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_write_of_any_size_arrives_and_leaves_in_one(pair, at_once):
    for end, other in ((pair.client, pair.server), (pair.server, pair.client)):
        if at_once:
            end.write_at_once()
        for size in SIZES:
            data = os.urandom(size)
            end.write(data)
            assert bool(end.transport.writes) == (at_once or size > 64_000)
            pair.clock.advance(0)
            assert len(end.transport.writes) == 1
            pair.run()
            assert other.above.received == data
            other.above.received = b""


def test_with_an_older_version_too(files):
    context = make_context(files)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    pair = Pair(context)
    for size in SIZES:
        data = os.urandom(size)
        pair.client.write(data)
        pair.clock.advance(0)
        assert len(pair.client.transport.writes) == 1
        pair.run()
        assert pair.server.above.received == data
        pair.server.above.received = b""


def test_small_writes_of_a_turn_share_a_record(pair):
    end = pair.client
    end.write(b"head")
    end.writeSequence([b"bo", b"dy"])
    assert end.transport.writes == []
    pair.clock.advance(0)
    (record,) = end.transport.writes
    assert len(record) < 40
    end.write(b"!")
    pair.run()
    assert pair.server.above.received == b"headbody!"
    assert pair.clock.getDelayedCalls() == []


def test_much_is_not_put_off_and_so_pauses_who_writes_it(pair):
    end = pair.client
    for _ in range(4):
        end.write(bytes(16_000))
    assert end.transport.writes == []
    end.write(b"x")
    assert len(end.transport.writes) == 1
    end.write(b"y")
    pair.run()
    assert pair.server.above.received == bytes(64_000) + b"xy"


def test_what_waits_goes_before_what_is_written_at_once(pair):
    end = pair.client
    end.write(b"first ")
    end.write_at_once()
    end.write(b"second ")
    end.writeSequence((b"thi", b"rd"))
    assert len(end.transport.writes) == 3
    pair.clock.advance(0)
    assert len(end.transport.writes) == 3
    pair.run()
    assert pair.server.above.received == b"first second third"


def test_what_waits_goes_before_an_end_in_good_order(pair):
    pair.client.write(b"last words")
    pair.client.loseConnection()
    pair.client.write(b"too late")
    pair.run()
    assert pair.server.above.received == b"last words"
    assert set(pair.client.transport.ends) == set(pair.server.transport.ends) == {"lose"}


@pytest.mark.parametrize("end", ["abort", "lost"])
def test_what_waits_goes_nowhere_after_an_end(pair, end):
    pair.client.write(b"x")
    if end == "abort":
        pair.client.abortConnection()
    else:
        pair.client.connectionLost(Failure(ConnectionDone()))
    pair.client.transport.writes.clear()  # OpenSSL's own last word
    pair.client.write(b"y")
    pair.client.write(bytes(100_000))
    pair.clock.advance(0)
    assert pair.client.transport.writes == []


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("size", [10, 100_000])
def test_what_is_written_before_the_handshake_is_over_waits_for_it(context, size, at_once):
    pair = Pair(context, shaken=False)
    data = os.urandom(size)
    for end in (pair.client, pair.server):
        if at_once:
            end.write_at_once()
        end.write(data)
        end.write(b"more")
    pair.run()
    assert pair.server.above.received == data + b"more"
    assert pair.client.above.received == data + b"more"


def test_an_objection_of_openssl_ends_it_as_twisted_does(pair, monkeypatch):
    end = pair.client
    end.write_at_once()
    send = SSL.Connection.send
    sent = []

    def fail(connection, data, flags=0):
        if len(sent) == 2:
            raise SSL.Error([("SSL routines", "", "broken")])
        sent.append(len(data))
        return send(connection, data)

    monkeypatch.setattr(SSL.Connection, "send", fail)
    end.write(bytes(100_000))
    assert end.transport.ends == ["lose"]
    assert len(sent) == 2
    pair.server.dataReceived(end.transport.take())
    assert pair.server.above.received == bytes(2 * 16_384)
    end.connectionLost(Failure(ConnectionDone()))
    assert end.above.lost.check(SSL.Error)
    end.write(bytes(100_000))


def test_what_openssl_does_not_take_now_goes_when_it_does(pair, monkeypatch):
    end = pair.client
    end.write_at_once()
    send = SSL.Connection.send
    calls = []

    def balk(connection, data, flags=0):
        calls.append(len(data))
        if len(calls) in (3, 4):  # once for us, and once for Twisted
            raise SSL.WantReadError
        return send(connection, data)

    monkeypatch.setattr(SSL.Connection, "send", balk)
    data = os.urandom(100_000)
    end.write(data)
    assert end._appSendBuffer == [data[2 * 16_384 :]]
    pair.server.write(b"anything")
    pair.run()
    assert pair.server.above.received == data


def test_nothing_is_left_in_openssl(pair, monkeypatch):
    monkeypatch.setattr(tlstransport, "_OVERHEAD", 0)
    data = os.urandom(100_000)
    pair.client.write(data)
    assert len(pair.client.transport.writes) == 2
    pair.run()
    assert pair.server.above.received == data


def test_a_producer_is_paused_and_goes_on_as_with_twisted(pair):
    calls = []

    class Producer:
        def pauseProducing(self):
            calls.append("pause")

        def resumeProducing(self):
            calls.append("resume")

        def stopProducing(self):
            calls.append("stop")

    end = pair.client
    end.write_at_once()
    end.registerProducer(Producer(), True)
    end.transport.producer.pauseProducing()
    end.transport.producer.resumeProducing()
    assert calls == ["pause", "resume"]
    end.unregisterProducer()
    assert end.transport.producer is None

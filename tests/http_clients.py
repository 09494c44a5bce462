"""A client's side for the tests of the HTTP server: strict fakes, and an application that writes
down what it is told.
"""

import re

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IHalfCloseableDescriptor, ITCPTransport
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from sockgw.deadlines import Deadlines
from sockgw.http.front import ClientFactory
from sockgw.http.patience import ServerLimits
from sockgw.protocol.heads import ResponseHead

LIMITS = {
    "max_header_size": 2048,
    "max_header_count": 20,
    "max_body_size": 0,
    "head_timeout": 10.0,
    "keep_alive_timeout": 75.0,
    "idle_timeout": 300.0,
    "half_close_timeout": 0.75,
    "linger_timeout": 2.0,
}
PAUSE_AT = 65536


class Handle:
    """A socket, as far as its error goes."""

    error = 0

    def getsockopt(self, level, name):
        return self.error


@implementer(ITCPTransport, IHalfCloseableDescriptor)
class Transport:
    """Stricter than Twisted's: misuse that Twisted forgives or ignores raises here."""

    def __init__(self, clock, flushing=True):
        self.clock = clock
        self.flushing = flushing  # whether the peer reads
        self.written = bytearray()
        self.buffered = 0
        self.producer = None
        self.producer_paused = False
        self.reading = True
        self.disconnecting = False
        self.write_closing = False
        self.write_closed = False
        self.aborted = False
        self.lost = False
        self.fin = False
        self.handle = Handle()
        self.resumed = 0
        self.flush_due = False
        self.kept_alive = False

    def getPeer(self):
        return IPv4Address("TCP", "192.0.2.7", 40000)

    def getHost(self):
        return IPv4Address("TCP", "192.0.2.1", 3000)

    def getHandle(self):
        return self.handle

    def setTcpNoDelay(self, on):
        assert on

    def setTcpKeepAlive(self, on):
        assert on
        self.kept_alive = True

    def write(self, data):
        assert type(data) is bytes
        assert data
        assert not any((self.lost, self.disconnecting, self.write_closing, self.aborted))
        self.written += data
        self.buffered += len(data)
        if self.buffered > PAUSE_AT and self.producer is not None:
            self.producer_paused = True
            self.producer.pauseProducing()
        else:
            self._flush_later()

    def writeSequence(self, parts):
        self.write(b"".join(parts))

    def _flush_later(self):
        if self.flushing and not self.flush_due:
            self.flush_due = True
            self.clock.callLater(0, self.flush)

    def flush(self):
        """The peer has read everything."""
        self.flush_due = False
        if self.lost or self.aborted:
            return
        self.buffered = 0
        if self.producer is not None and self.producer_paused:
            self.producer_paused = False
            self.producer.resumeProducing()
        if self.disconnecting:
            assert self.producer is None
            self._lose(ConnectionDone())
        elif self.write_closing and not self.write_closed:
            self.write_closed = True
            self.protocol.writeConnectionLost()

    def registerProducer(self, producer, streaming):
        assert self.producer is None
        assert streaming
        self.producer = producer

    def unregisterProducer(self):
        assert self.producer is not None
        self.producer = None

    def pauseProducing(self):
        assert self.reading
        self.reading = False

    def resumeProducing(self):
        assert not self.reading
        assert not self.fin, "the socket would be readable for ever"
        self.reading = True
        self.resumed += 1

    def loseConnection(self):
        assert self.producer is None, "TLS would not send its close-notify"
        assert not self.disconnecting
        self.disconnecting = True
        self._flush_later()

    def loseWriteConnection(self):
        assert self.producer is None
        assert not self.write_closing
        self.write_closing = True
        self._flush_later()

    def abortConnection(self):
        assert not self.aborted
        assert self.producer is None
        self.aborted = True
        self.clock.callLater(0, self._lose, ConnectionAborted())

    def _lose(self, reason):
        if self.lost:
            return
        self.lost = True
        if self.producer is not None:
            self.producer.stopProducing()
            self.producer = None
        self.protocol.connectionLost(Failure(reason))

    # What the peer does.

    def close_by_peer(self):
        self._lose(ConnectionDone())

    def half_close_by_peer(self):
        assert self.reading
        self.fin = True
        self.protocol.readConnectionLost()


class Handler:
    """Writes down what it is told; a script can make it answer."""

    def __init__(self, application, exchange):
        self.application = application
        self.exchange = exchange
        self.events = []
        self.on_body = self.on_end = None

    def body_received(self, data):
        assert data
        assert not self.events or self.events[-1][0] in ("body", "drained")
        self.events.append(("body", data))
        if self.on_body:
            self.on_body(self.exchange)

    def body_ended(self, trailers):
        assert "end" not in [event[0] for event in self.events]
        self.events.append(("end", list(trailers)))
        if self.on_end:
            self.on_end(self.exchange)

    def client_left(self):
        self.events.append(("left",))

    def client_lost(self):
        assert "lost" not in [event[0] for event in self.events]
        self.events.append(("lost",))

    def response_drained(self):
        self.events.append(("drained",))

    @property
    def body(self):
        return b"".join(event[1] for event in self.events if event[0] == "body")

    @property
    def ended(self):
        return ("end", []) in self.events

    @property
    def lost(self):
        return ("lost",) in self.events


class Application:
    def __init__(self):
        self.handlers = []
        self.refusals = []
        self.connections = 0
        self.admit = True
        self.on_connected = None  # called with each connection
        self.on_request = None  # called with each exchange, within request()
        self.on_end = None  # called with each exchange whose request is complete
        self.on_body = None

    def connected(self, connection):
        if self.admit:
            self.connections += 1
        if self.on_connected:
            self.on_connected(connection)
        return self.admit

    def disconnected(self, connection):
        self.connections -= 1

    def succeeded(self, connection, begin):
        begin()
        self.connections -= 1

    def request(self, exchange):
        handler = Handler(self, exchange)
        handler.on_end = self.on_end
        handler.on_body = self.on_body
        self.handlers.append(handler)
        if self.on_request:
            self.on_request(exchange)
        return handler

    def refused(self, connection, error, head):
        self.refusals.append((error.status, error.reason, head))
        return ResponseHead(error.status, b"Refused", [(b"Date", b"now")]), error.reason.encode()


def answer(exchange, body=b"ok", status=200, reason=b"OK"):
    headers = [(b"Date", b"now"), (b"Content-Length", b"%d" % len(body))]
    exchange.respond(ResponseHead(status, reason, headers))
    exchange.write(body)
    return exchange.finish()


class Server:
    """A connection over a fake transport, with its application and clock."""

    def __init__(self, flushing=True, start=True, **limits):
        self.clock = Clock()
        self.wall_clock = 0.0
        self.application = Application()
        self.deadlines = Deadlines(self.clock)
        factory = ClientFactory(
            self.application,
            self.deadlines,
            ServerLimits(**{**LIMITS, **limits}),
            self.clock.seconds,
            lambda: self.wall_clock,
        )
        self.connection = factory.buildProtocol(None)
        self.transport = Transport(self.clock, flushing)
        self.transport.protocol = self.connection
        if start:
            self.start()

    def start(self):
        """The client is there."""
        self.connection.makeConnection(self.transport)

    def feed(self, data, step=0):
        """Bytes arrive, as TCP gives them: none while reading is paused."""
        pieces = [data[i : i + step] for i in range(0, len(data), step)] if step else [data]
        for piece in pieces:
            if not self.transport.reading or self.transport.lost:
                break
            self.connection.dataReceived(piece)
        self.advance(0)

    def advance(self, seconds):
        """Time passes, with room for the sweeps of deadlines and what they start."""
        self.clock.pump([0.0, 0.0] + [0.25] * int(seconds / 0.25) + [0.0, 0.0])

    @property
    def written(self):
        return bytes(self.transport.written)

    @property
    def statuses(self):
        return [int(s) for s in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.written)]

    @property
    def handlers(self):
        return self.application.handlers

    @property
    def exchange(self):
        return self.application.handlers[-1].exchange

    @property
    def closing(self):
        """Whether we have said that we shall answer nothing more."""
        t = self.transport
        return t.disconnecting or t.write_closing or t.aborted or t.lost


def request(line=b"GET / HTTP/1.1", *fields, host=b"Host: a.example", body=b""):
    lines = [line, *([host] if host else []), *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


GET = request()

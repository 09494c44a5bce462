"""UDP to real sockets, for streams of datagrams."""

import socket

from originfakes import Handler
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.trial.unittest import TestCase

from sockgw.deadlines import Deadlines
from sockgw.http.client import Origin
from sockgw.inner.allow import AllowList
from sockgw.inner.rawudp import RawUDP
from sockgw.protocol.datagrams import DatagramReader, frame
from sockgw.protocol.errors import StreamCode


class UDP(TestCase):
    def setUp(self):
        self.origin = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(self.origin.close)
        self.origin.bind(("127.0.0.1", 0))
        self.origin.setblocking(False)
        self.deadlines = Deadlines(reactor, 0.02)
        self.addCleanup(self.deadlines.stop)

    def connect(self, hostname="127.0.0.1", port=None, allow=(), **options):
        options = {"connect_timeout": 5.0, "idle_timeout": 60.0, "queue": 4, **options}
        self.raw = RawUDP(reactor, AllowList.parse(allow), self.deadlines, **options)
        self.addCleanup(self.raw.close)
        origin = Origin("udp", hostname, port or self.origin.getsockname()[1])
        handler = Handler()
        handler.exchange = self.raw.connect(origin, handler)
        return handler

    @inlineCallbacks
    def until(self, condition):
        for _ in range(2000):
            if condition():
                return
            turn = Deferred()
            reactor.callLater(0.001, turn.callback, None)
            yield turn
        raise AssertionError("it does not happen")

    @inlineCallbacks
    def received(self):
        found = []

        def one():
            try:
                found.append(self.origin.recvfrom(70_000))
            except BlockingIOError:
                return False
            return True

        yield self.until(one)
        return found[0]

    @inlineCallbacks
    def test_datagrams_both_ways(self):
        handler = self.connect()
        both = frame(b"one?") + frame(b"x" * 60_000)
        handler.exchange.write(both[:9])
        datagram, client = yield self.received()
        assert datagram == b"one?"
        assert handler.head.status == 200
        handler.exchange.write(both[9:])
        assert (yield self.received())[0] == b"x" * 60_000
        self.origin.sendto(b"one!", client)
        self.origin.sendto(b"", client)
        yield self.until(lambda: handler.body == frame(b"one!") + frame(b""))
        handler.exchange.finish()
        assert handler.trailers == []

    @inlineCallbacks
    def test_others_are_not_heard(self):
        handler = self.connect()
        handler.exchange.write(frame(b"?"))
        _, client = yield self.received()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"forged", client)
        self.origin.sendto(b"true", client)
        yield self.until(lambda: handler.body)
        assert handler.body == frame(b"true")

    @inlineCallbacks
    def test_a_stream_that_takes_no_more(self):
        handler = self.connect()
        handler.exchange.write(frame(b"?"))
        _, client = yield self.received()
        handler.exchange.pause_response()
        for number in range(10):
            self.origin.sendto(b"%d" % number, client)
        probe = Deferred()
        reactor.callLater(0.1, probe.callback, None)
        yield probe
        assert handler.body == b""
        handler.exchange.resume_response()
        assert DatagramReader().feed(handler.body) == [b"6", b"7", b"8", b"9"]

    @inlineCallbacks
    def test_nobody_listens(self):
        number = self.origin.getsockname()[1]
        self.origin.close()
        handler = self.connect(port=number)
        handler.exchange.write(frame(b"?"))
        yield self.until(lambda: handler.failure)
        assert handler.code is StreamCode.CONNECTION_REFUSED

    @inlineCallbacks
    def test_silence(self):
        handler = self.connect(idle_timeout=0.1)
        yield self.until(lambda: handler.trailers is not None)
        assert handler.head.status == 200

    @inlineCallbacks
    def test_what_is_not_allowed(self):
        handler = self.connect(allow=["10.0.0.0/8"])
        yield self.until(lambda: handler.failure)
        assert handler.code is StreamCode.NOT_ALLOWED

    @inlineCallbacks
    def test_a_name_that_is_none(self):
        handler = self.connect("no such name")
        yield self.until(lambda: handler.failure)
        assert handler.code is StreamCode.DNS_ERROR

    @inlineCallbacks
    def test_breaking_off(self):
        handler = self.connect()
        handler.abort()
        handler.exchange.write(frame(b"?"))
        late = Deferred()
        reactor.callLater(0.05, late.callback, None)
        yield late
        assert handler.head is None

    @inlineCallbacks
    def test_the_end_of_all(self):
        handler = self.connect()
        yield self.until(lambda: handler.head)
        self.raw.close()
        assert handler.code is StreamCode.CANCELLED

"""UDP clients at the gateway: a stream for each address, whole datagrams, and few places."""

import pytest
from gatewaybench import TARGETS, Bench
from twisted.internet.address import IPv4Address

from sockgw.outer.udp import UDPListener
from sockgw.protocol.datagrams import DatagramReader, frame
from sockgw.protocol.errors import StreamCode

UDP = (
    TARGETS
    + """
  dns: {protocol: udp, listen: "udp:53", hostname: dns.internal, port: 53, clients: 192.0.2.0/24}
"""
)

ONE = ("192.0.2.7", 40000)
OTHER = ("::ffff:192.0.2.8", 40000)


class Socket:
    def __init__(self):
        self.sent = []
        self.full = False

    def write(self, datagram, address):
        if self.full:
            raise BlockingIOError
        self.sent.append((datagram, address))

    def getHost(self):
        return IPv4Address("UDP", "192.0.2.1", 53)


class Listening(Bench):
    def __init__(self, **options):
        super().__init__(targets=UDP, **options)
        (target,) = self.gateway.targets.ports
        self.listener = UDPListener(
            self.gateway, target, self.config, self.deadlines, self.clock.seconds
        )
        self.listener.transport = self.socket = Socket()

    def ask(self, datagram, address=ONE):
        self.listener.datagramReceived(datagram, address)
        self.run()

    @property
    def dropped(self):
        (family,) = [
            each for each in self.metrics.collect() if each.name == "sockgw_datagrams_dropped"
        ]
        return family.samples[0].value


def datagrams(stream):
    return DatagramReader().feed(stream.body)


@pytest.fixture
def bench():
    return Listening()


@pytest.fixture
def inner(bench):
    return bench.inner()


def test_a_question_and_its_answer(bench, inner):
    bench.ask(b"one?")
    bench.ask(b"two?")
    (stream,) = inner.streams
    assert (stream.to.protocol, stream.to.hostname, stream.to.port) == ("udp", "dns.internal", 53)
    assert datagrams(stream) == [b"one?", b"two?"]
    stream.respond(200)
    answer = frame(b"one!") + frame(b"") + frame(b"two!")
    stream.stream.write(answer[:3])
    bench.run()
    assert bench.socket.sent == []
    stream.stream.write(answer[3:])
    bench.run()
    assert bench.socket.sent == [(b"one!", ONE), (b"", ONE), (b"two!", ONE)]
    bench.wait(61)
    assert stream.trailers == []  # the inner layer may close its socket
    stream.stream.end()
    bench.run()
    entry = bench.entry
    assert (entry.method, entry.target, entry.protocol) == (b"CONNECT", b"dns", "UDP")
    assert (entry.status, entry.outcome, entry.client) == (200, "", "192.0.2.7")
    assert (entry.bytes_in, entry.bytes_out) == (8, 8)
    assert bench.gateway.connections == 0


def test_each_client_has_a_stream_of_its_own(bench, inner):
    bench.ask(b"one?", ONE)
    bench.ask(b"other?", OTHER)
    one, other = inner.streams
    for stream, answer in ((other, b"other!"), (one, b"one!")):
        stream.respond(200)
        stream.stream.write(frame(answer))
        bench.run()
    assert bench.socket.sent == [(b"other!", OTHER), (b"one!", ONE)]
    assert bench.gateway.connections == 2


def test_who_is_not_silent_stays(bench, inner):
    bench.ask(b"?")
    inner.last.respond(200)
    for _ in range(3):
        bench.wait(50)
        bench.ask(b"?")
        bench.wait(50)
        inner.last.stream.write(frame(b"!"))
        bench.run()
    assert len(inner.streams) == 1
    bench.wait(61)
    bench.ask(b"?")
    assert len(inner.streams) == 2


def test_the_inner_layer_ends_first(bench, inner):
    bench.ask(b"?")
    inner.last.respond(200)
    inner.last.stream.end()
    bench.run()
    assert inner.last.trailers == []
    assert bench.entry.outcome == ""
    bench.ask(b"?")
    assert len(inner.streams) == 2


def test_what_a_stream_does_not_take_waits_and_the_oldest_is_dropped(bench, inner):
    inner.consume = False
    sizes = [60_000] * 8
    for number, size in enumerate(sizes):
        bench.ask(bytes([number]) * size)
    got = len(datagrams(inner.last))
    assert got < 8
    for number in range(100):
        bench.ask(b"late %d" % number)
    assert bench.dropped > 30
    inner.last.consume = True
    inner.last.take()
    bench.run()
    received = datagrams(inner.last)
    assert received[-1] == b"late 99"
    assert received[:got] == [bytes([number]) * 60_000 for number in range(got)]
    assert len(received) == 108 - bench.dropped
    bench.ask(b"now")
    assert datagrams(inner.last)[-1] == b"now"


def test_what_the_system_does_not_take_is_dropped(bench, inner):
    bench.ask(b"?")
    inner.last.respond(200)
    bench.socket.full = True
    inner.last.stream.write(frame(b"!"))
    bench.run()
    assert bench.dropped == 1


def test_after_a_refusal_a_client_is_not_listened_to_for_a_moment(bench):
    for _ in range(10):
        bench.ask(b"?")
    assert bench.entry.status == 502  # one line, not ten
    assert bench.gateway.connections == 1
    bench.wait(2)
    assert bench.gateway.connections == 0
    bench.ask(b"?")
    assert len(bench.log.entries) == 2


def test_a_target_where_nobody_listens(bench, inner):
    bench.ask(b"?")
    inner.last.respond(200)
    inner.last.stream.reset(StreamCode.CONNECTION_REFUSED)
    bench.run()
    assert bench.entry.outcome == "connection refused"
    bench.wait(2)
    bench.ask(b"?")
    assert len(inner.streams) == 2


def test_who_may_not(bench, inner):
    bench.ask(b"?", ("203.0.113.1", 1))
    assert inner.streams == []
    assert bench.entry.status == 403


def test_who_may_not_takes_no_places():
    bench = Listening(max_udp_clients="2")
    inner = bench.inner()
    for port in range(20):
        bench.ask(b"?", ("203.0.113.1", port))
    bench.ask(b"?", ONE)
    assert len(inner.streams) == 1
    assert bench.dropped == 19
    assert len(bench.log.entries) == 1
    bench.wait(2)
    bench.ask(b"?", ("203.0.113.1", 99))
    assert len(bench.log.entries) == 2


def test_no_more_clients_than_places():
    bench = Listening(max_udp_clients="2")
    inner = bench.inner()
    for port in range(5):
        bench.ask(b"?", ("192.0.2.7", port))
    assert len(inner.streams) == 2
    assert bench.dropped == 3
    assert bench.gateway.connections == 2


def test_no_more_clients_than_connections():
    bench = Listening(max_connections="1")
    inner = bench.inner()
    bench.ask(b"?", ONE)
    bench.ask(b"?", OTHER)
    assert len(inner.streams) == 1
    assert bench.dropped == 1


def test_clients_are_held_with_what_they_say():
    bench = Listening(hold="5000", uptime=1)
    bench.ask(b"one?")
    bench.ask(b"two?")
    inner = bench.inner()
    assert datagrams(inner.last) == [b"one?", b"two?"]


def test_who_comes_while_the_gateway_drains(bench, inner):
    bench.gateway.drain(1.0)
    for _ in range(3):
        bench.ask(b"?")
    assert inner.streams == []
    assert bench.gateway.connections == 0
    assert bench.dropped == 3


def test_the_limit_of_tcp_is_not_that_of_udp():
    bench = Listening(tcp_idle_timeout="1000")
    inner = bench.inner()
    bench.ask(b"?")
    inner.last.respond(200)
    bench.wait(30)
    bench.ask(b"?")
    assert datagrams(inner.last) == [b"?", b"?"]


@pytest.mark.parametrize("drain", [True, False])
def test_the_end_of_all(bench, inner, drain):
    bench.ask(b"?")
    inner.last.respond(200)
    if drain:
        bench.gateway.drain(1.0)
    else:
        bench.listener.end()
    bench.run()
    assert inner.last.trailers == []
    assert bench.gateway.connections == 0
    inner.last.stream.write(frame(b"too late"))
    bench.run()
    assert bench.socket.sent == []
    assert inner.last.code is StreamCode.CANCELLED

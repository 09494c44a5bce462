"""TCP clients at the gateway: connected, held, half-closed, refused, broken off."""

import pytest
from gatewaybench import TARGETS, Bench, Reading
from twisted.internet.error import ConnectionLost

from sockgw.outer.rawclient import RawClient
from sockgw.protocol.errors import StreamCode

RAW = (
    TARGETS
    + """
  ssh: {protocol: tcp, listen: "tcp:2222", hostname: shell.internal, port: 22}
  near: {protocol: tcp, listen: "tcp:2223", hostname: h, port: 22, clients: 192.0.2.0/24}
  far: {protocol: tcp, listen: "tcp:2224", hostname: h, port: 22, clients: [10.0.0.0/8]}
  told: {protocol: tcp, listen: "tcp:2225", hostname: h, port: 22, proxy-protocol: 1}
  served: {protocol: tcp, listen: "tcp:2226", service: shell}
"""
)


class Client:
    """A client of a TCP target."""

    def __init__(self, bench, name="ssh", flushing=True, asked=b"", refusal=b""):
        (target,) = [each for each in bench.gateway.targets.ports if each.name == name]
        self.bench = bench
        self.connection = RawClient(
            bench.gateway,
            target,
            bench.deadlines,
            bench.clock.seconds,
            300.0,
            name=asked,
            refusal=refusal,
        )
        self.transport = Reading(bench.clock, flushing)
        self.transport.protocol = self.connection
        self.connection.makeConnection(self.transport)
        bench.run()

    def send(self, data):
        assert self.transport.reading
        self.connection.dataReceived(data)
        self.bench.run()

    def end(self):
        self.transport.half_close_by_peer()
        self.bench.run()

    @property
    def written(self):
        return bytes(self.transport.written)


@pytest.fixture
def bench():
    return Bench(targets=RAW)


@pytest.fixture
def inner(bench):
    return bench.inner()


@pytest.fixture
def client(bench, inner):
    return Client(bench)


def connected(bench, inner):
    inner.last.respond(200)
    bench.run()


def test_bytes_both_ways_and_the_client_ends_first(bench, inner, client):
    stream = inner.last
    assert (stream.to.protocol, stream.to.hostname, stream.to.port) == ("tcp", "shell.internal", 22)
    assert not stream.complete
    client.send(b"early")
    assert stream.body == b"early"  # the origin may be waiting for it
    connected(bench, inner)
    assert client.written == b""
    stream.stream.write(b"down")
    client.send(b"up")
    assert client.written == b"down"
    bench.wait(100_000)
    client.end()
    assert stream.trailers == []
    stream.stream.write(b"last")
    stream.stream.end()
    bench.run()
    assert client.written == b"downlast"
    assert client.transport.lost
    assert not client.transport.aborted
    entry = bench.entry
    assert (entry.method, entry.target, entry.protocol) == (b"CONNECT", b"ssh", "TCP")
    assert (entry.status, entry.outcome, entry.client) == (200, "", "192.0.2.7")
    assert (entry.bytes_in, entry.bytes_out) == (7, 8)
    assert bench.gateway.connections == 0


def test_the_origin_ends_first(bench, inner, client):
    connected(bench, inner)
    inner.last.stream.write(b"all")
    inner.last.stream.end()
    bench.run()
    assert client.transport.write_closed
    assert not client.transport.lost
    client.send(b"last")
    assert inner.last.body == b"last"
    client.end()
    assert inner.last.trailers == []
    assert client.transport.lost
    assert not client.transport.aborted
    assert bench.entry.outcome == ""


def test_a_service(bench, inner):
    Client(bench, "served")
    assert (inner.last.to.service, inner.last.to.protocol) == ("shell", "tcp")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (StreamCode.CONNECTION_REFUSED, 502),
        (StreamCode.CONNECTION_TIMEOUT, 504),
        (StreamCode.NOT_ALLOWED, 502),
        (StreamCode.UNKNOWN_SERVICE, 502),
    ],
)
def test_an_origin_that_cannot_be_reached(bench, inner, client, code, status):
    inner.last.stream.reset(code, "why")
    bench.run()
    assert client.written == b""
    assert client.transport.aborted
    assert bench.entry.status == status
    assert bench.gateway.failures[0].reason.endswith("why")


def test_an_origin_that_breaks_off(bench, inner, client):
    connected(bench, inner)
    inner.last.stream.write(b"half")
    bench.run()
    inner.last.stream.reset(StreamCode.ORIGIN_CLOSED)
    bench.run()
    assert client.transport.aborted
    assert bench.entry.outcome == "origin closed"


def test_a_client_that_breaks_off(bench, inner, client):
    connected(bench, inner)
    client.transport._lose(ConnectionLost())
    bench.run()
    assert inner.last.code is StreamCode.CANCELLED
    assert bench.entry.outcome == "client left"
    assert bench.gateway.connections == 0


def test_a_client_that_breaks_off_before_it_is_connected(bench, inner, client):
    client.transport._lose(ConnectionLost())
    bench.run()
    assert inner.last.code is StreamCode.CANCELLED
    assert (bench.entry.status, bench.entry.outcome) == (499, "client left")


def test_without_an_inner_layer(bench):
    client = Client(bench)
    assert client.transport.aborted
    assert bench.entry.status == 502


def test_a_client_is_held_with_what_it_says():
    bench = Bench(targets=RAW, hold="5000", uptime=1)
    client = Client(bench)
    client.send(b"early")
    assert not client.transport.aborted
    inner = bench.inner()
    assert inner.last.body == b"early"
    connected(bench, inner)
    client.end()
    inner.last.stream.end()
    bench.run()
    assert (bench.entry.status, bench.entry.outcome) == (200, "")


def test_another_inner_layer_is_asked(bench):
    first, second = bench.inner(), bench.inner()
    client = Client(bench)
    client.send(b"early")
    one, other = (first, second) if first.streams else (second, first)
    one.last.stream.reset(StreamCode.CONNECTION_REFUSED)
    bench.run()
    assert other.last.body == b"early"


def test_what_may_have_been_done_is_not_done_again(bench):
    first, second = bench.inner(), bench.inner()
    client = Client(bench)
    client.send(b"early")
    (one, other) = (first, second) if first.streams else (second, first)
    one.lose()
    bench.run()
    assert other.streams == []
    assert client.transport.aborted


def test_clients_that_may_and_may_not(bench, inner):
    assert not Client(bench, "near").transport.aborted
    assert len(inner.streams) == 1
    client = Client(bench, "far")
    assert client.transport.aborted
    assert len(inner.streams) == 1
    assert (bench.entry.status, bench.entry.client) == (403, "192.0.2.7")
    assert bench.gateway.connections == 1


def test_a_client_too_many():
    bench = Bench(targets=RAW, max_connections="1")
    bench.inner()
    Client(bench)
    client = Client(bench)
    assert client.transport.aborted
    bench.run()
    assert bench.gateway.connections == 1
    assert bench.log.entries == []


def test_the_origin_is_told_who_its_client_is(bench, inner):
    client = Client(bench, "told")
    header = b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 3000\r\n"
    assert inner.last.body == header
    client.send(b"hello")
    assert inner.last.body == header + b"hello"
    connected(bench, inner)
    client.end()
    inner.last.stream.end()
    bench.run()
    assert bench.entry.bytes_in == 5


def test_a_client_whose_protocol_has_a_word_for_a_refusal(bench):
    for name in ("ssh", "far"):  # nobody is there; not for this client
        client = Client(bench, name, asked=b"x.example", refusal=b"no")
        assert client.written == b"no"
        assert client.transport.lost
        assert not client.transport.aborted
    assert [entry.target for entry in bench.log.entries] == [b"x.example"] * 2
    inner = bench.inner()
    client = Client(bench, refusal=b"no")
    connected(bench, inner)
    inner.last.stream.reset(StreamCode.ORIGIN_CLOSED, "")
    bench.run()
    assert client.written == b""  # too late for that
    assert client.transport.aborted
    assert not bench.deadlines.watched


def test_a_client_that_does_not_read_pauses_the_origin(bench, inner):
    client = Client(bench, flushing=False)
    connected(bench, inner)
    inner.last.stream.write(b"x" * 10_000_000)
    bench.run()
    before = len(client.transport.written)
    assert before < 2_000_000
    bench.wait(1_000)
    assert not client.transport.aborted  # no limit on silence
    client.transport.flushing = True
    client.transport.flush()
    bench.run()
    assert len(client.transport.written) == 10_000_000


def test_an_origin_that_does_not_read_pauses_the_client(bench, inner, client):
    connected(bench, inner)
    inner.last.consume = False
    while client.transport.reading:
        client.send(b"y" * 65_536)
    inner.last.consume = True
    inner.last.take()
    bench.run()
    assert client.transport.reading


def test_what_is_left_at_the_end_goes_to_a_client_that_takes_it(bench, inner):
    client = Client(bench, flushing=False)
    connected(bench, inner)
    client.end()
    inner.last.stream.write(b"x" * 100_000)
    inner.last.stream.end()
    bench.run()
    assert not client.transport.lost
    client.transport.flush()
    client.transport.flush()
    bench.run()
    assert client.transport.lost
    assert not client.transport.aborted


def test_and_not_for_ever(bench, inner):
    client = Client(bench, flushing=False)
    connected(bench, inner)
    client.end()
    inner.last.stream.write(b"x" * 100_000)
    inner.last.stream.end()
    bench.run()
    bench.wait(301)
    assert client.transport.aborted
    assert bench.gateway.connections == 0


def test_our_end_waits_for_a_client_that_does_not_read(bench, inner):
    client = Client(bench, flushing=False)
    connected(bench, inner)
    inner.last.stream.write(b"x" * 100_000)
    inner.last.stream.end()
    bench.run()
    assert not client.transport.write_closing
    client.transport.flush()
    client.transport.flush()
    assert client.transport.write_closed


def test_a_limit_on_silence():
    bench = Bench(targets=RAW, tcp_idle_timeout="10000")
    inner = bench.inner()
    client = Client(bench)
    connected(bench, inner)
    for _ in range(3):
        bench.wait(8)
        client.send(b"x")
        bench.wait(8)
        inner.last.stream.write(b"y")
        bench.run()
    assert not client.transport.aborted
    bench.wait(11)
    assert client.transport.aborted
    assert inner.last.code is StreamCode.IDLE_TIMEOUT


def test_a_connection_that_is_not_made_in_time(bench, inner, client):
    bench.wait(61)
    assert client.transport.aborted
    assert bench.entry.status == 504


def test_a_broken_link_is_a_pause():
    bench = Bench(targets=RAW)
    inner = bench.inner(resume_window=30.0)
    client = Client(bench)
    connected(bench, inner)
    inner.cut()
    bench.run()
    client.send(b"up")
    inner.come_back()
    bench.run()
    inner.last.stream.write(b"down")
    bench.run()
    assert inner.last.body == b"up"
    assert client.written == b"down"

"""The demonstration's line: what a cut does, and that nobody can hold it down."""

import pytest
from demo_server import Server
from http_clients import request
from twisted.internet.error import ConnectionAborted
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor, StringTransport
from twisted.python.failure import Failure

from sockgw.demo.line import Line


class Wire(StringTransport):
    aborted = False

    def abortConnection(self):
        self.aborted = True


class Wires:
    """Connections to a line."""

    def __init__(self, line):
        self.line = line
        self.reactor = MemoryReactor()

    def dial(self):
        """Return the transport of a new connection, and that of ours to the other side, if any."""
        near, far = Wire(), Wire()
        end = self.line.buildProtocol(None)
        end.reactor = self.reactor
        dialled = len(self.reactor.tcpClients)
        end.makeConnection(near)
        if len(self.reactor.tcpClients) == dialled:
            return near, None
        host, port, factory = self.reactor.tcpClients[-1][:3]
        assert (host, port) == ("127.0.0.1", 3001)
        factory.buildProtocol(None).makeConnection(far)
        far.protocol, near.protocol = end.peer, end
        return near, far


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def line(clock):
    return Line(clock, 3001)


@pytest.fixture
def wires(line):
    return Wires(line)


def test_bytes_pass_both_ways_and_a_full_side_stops_the_other(wires):
    near, far = wires.dial()
    near.protocol.dataReceived(b"there")
    far.protocol.dataReceived(b"and back")
    assert (far.value(), near.value()) == (b"there", b"and back")
    assert near.producer is far
    assert far.producer is near


def test_a_cut_ends_what_is_there_and_lets_nothing_through_for_its_time(clock, line, wires):
    near, far = wires.dial()
    assert line.cut(4)
    assert not near.aborted  # a moment for the notice
    clock.advance(0.1)
    assert near.aborted
    assert far.aborted
    clock.advance(3.9)
    refused, other = wires.dial()
    assert refused.aborted
    assert other is None
    clock.advance(0.1)
    assert wires.dial()[1] is not None


def test_who_has_gone_is_not_kept(line, wires):
    near, _ = wires.dial()
    assert len(line.ends) == 1
    near.protocol.connectionLost(Failure(ConnectionAborted()))
    assert line.ends == set()


def test_one_cut_at_a_time_and_a_rest_after_it(clock, line):
    told = []
    line.told = told.append
    cuts = []
    for _ in range(80):
        cuts.append(line.cut(4))
        clock.advance(0.1)
    assert told == [4, 0, 4]
    first, second = [tenth for tenth, cut in enumerate(cuts) if cut]
    assert first == 0
    assert 61 <= second <= 62


def test_the_origin_cuts_within_bounds(clock):
    cut = []

    class Scissors(Line):
        def cut(self, seconds):
            cut.append(seconds)
            return super().cut(seconds)

    server = Server(line=Scissors(clock, 3001))
    for query in ("", "?seconds=1", "?seconds=9999", "?seconds=x"):
        server.send(request(f"POST /cut{query} HTTP/1.1".encode()))
    assert cut == [4, 1, 10, 4]
    assert server.written.count(b"HTTP/1.1 200 ") == 1
    assert server.written.count(b"HTTP/1.1 429 ") == 3

"""The services' reactor: what it saves, and that all else is as in Twisted's own."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import globalLogPublisher
from zope.interface.verify import verifyObject

from sockgw.reactor import Reactor

pytestmark = pytest.mark.filterwarnings("ignore:unclosed.*epoll:ResourceWarning")


class Counting:
    """An epoll object that counts what is asked of it."""

    def __init__(self, poller):
        self._poller = poller
        self.changes = []

    def register(self, fd, events):
        self.changes.append((fd, events))
        self._poller.register(fd, events)

    def modify(self, fd, events):
        self.changes.append((fd, events))
        self._poller.modify(fd, events)

    def unregister(self, fd):
        self._poller.unregister(fd)

    def poll(self, timeout, most):
        return self._poller.poll(timeout, most)


class Peer(Protocol):
    """Keeps what it is told."""

    def __init__(self):
        self.received = b""
        self.lost = None
        self.pauses = []
        self.on_data = lambda data: None

    def dataReceived(self, data):
        self.received += data
        self.on_data(data)

    def connectionLost(self, reason):
        self.lost = reason

    def pauseProducing(self):
        self.pauses.append(True)

    def resumeProducing(self):
        self.pauses.append(False)

    def stopProducing(self):
        pass


class Bench:
    """A reactor whose turns a test makes, with one end of a connection in it."""

    def __init__(self):
        self.reactor = Reactor()
        self.poller = self.reactor._poller = Counting(self.reactor._poller)
        self.peer, self.theirs = self.connect()
        self.got = b""
        self.transport = self.peer.transport
        self.turn()
        self.poller.changes.clear()

    def connect(self):
        """Return the reactor's end of a new connection, and the other."""
        mine, theirs = socket.socketpair()
        peer = Peer()
        for end in (mine, theirs):
            end.setblocking(False)
        self.reactor.adoptStreamConnection(
            mine.fileno(), socket.AF_UNIX, Factory.forProtocol(lambda: peer)
        )
        mine.close()
        return peer, theirs

    def turn(self, timeout=0):
        self.reactor.runUntilCurrent()
        self.reactor.doPoll(timeout)

    def until(self, condition):
        for _ in range(500):
            if condition():
                return
            self.turn(0.01)
        raise AssertionError("it does not come")

    def arrives(self, expected):
        """Turn until the other end has got exactly that."""

        def look():
            with suppress(BlockingIOError):
                self.got += self.theirs.recv(1_000_000)
            return len(self.got) >= len(expected)

        self.until(look)
        assert self.got == expected
        self.got = b""

    def close(self):
        self.theirs.close()
        self.transport.abortConnection()
        self.until(lambda: self.peer.lost)
        self.reactor.removeAll()
        self.poller._poller.close()


@pytest.fixture
def bench():
    made = Bench()
    yield made
    made.close()


def test_what_a_turn_writes_leaves_in_one_piece_and_without_a_question(bench):
    bench.transport.write(b"head")
    bench.transport.write(b"body")
    with pytest.raises(BlockingIOError):
        bench.theirs.recv(100)
    bench.turn()
    assert bench.theirs.recv(100) == b"headbody"
    assert bench.poller.changes == []
    assert bench.transport not in bench.reactor.getWriters()


def test_what_the_socket_does_not_take_is_left_to_epoll(bench):
    data = os.urandom(2_000_000)
    bench.transport.registerProducer(bench.peer, True)
    bench.transport.write(data)
    assert bench.peer.pauses == [True]
    bench.turn()
    assert len(bench.poller.changes) == 1
    assert bench.reactor.getWriters() == [bench.transport]
    bench.transport.write(b"more")  # which changes nothing
    bench.arrives(data + b"more")
    assert bench.peer.pauses[-2:] == [True, False]
    assert bench.peer.pauses.count(False) == 1
    assert bench.reactor.getWriters() == []
    assert len(bench.poller.changes) == 2  # asked once, and taken back once
    bench.transport.unregisterProducer()


FULL = b"x" * 100_000  # more than a transport holds before it pauses its producer, and no problem
# for the socket


def test_a_write_from_within_a_write_is_not_forgotten(bench):
    bench.peer.resumeProducing = lambda: bench.transport.write(b"second")
    bench.transport.registerProducer(bench.peer, True)
    bench.transport.write(FULL)
    bench.arrives(FULL + b"second")
    bench.transport.unregisterProducer()


def test_a_call_put_off_by_a_write_does_not_wait_for_the_poll(bench):
    called = []
    bench.peer.resumeProducing = lambda: bench.reactor.callLater(0, called.append, True)
    bench.transport.registerProducer(bench.peer, True)
    bench.transport.write(FULL)
    started = time.monotonic()
    bench.reactor.doPoll(5)
    bench.reactor.runUntilCurrent()
    assert called
    assert time.monotonic() - started < 4
    bench.transport.unregisterProducer()


def test_a_write_to_another_from_within_a_write_does_not_wait_for_the_poll(bench):
    other, theirs = bench.connect()
    bench.peer.resumeProducing = lambda: other.transport.write(b"for the other")
    bench.transport.registerProducer(bench.peer, True)
    bench.transport.write(FULL)
    started = time.monotonic()
    bench.reactor.doPoll(5)
    bench.reactor.doPoll(0)
    assert time.monotonic() - started < 4
    assert theirs.recv(100) == b"for the other"
    bench.transport.unregisterProducer()
    theirs.close()
    bench.until(lambda: other.lost)


def test_calls_at_the_end_of_a_turn_share_its_write(bench):
    called = []

    def write(data):
        called.append(data)
        bench.transport.write(data)

    bench.transport.write(b"1")
    for data in (b"2", b"3"):
        bench.reactor.at_turn_end(lambda data=data: write(data))
    assert called == []
    bench.turn()
    assert bench.theirs.recv(100) == b"123"
    bench.turn()
    assert called == [b"2", b"3"]


def test_calls_at_the_end_of_a_turn_do_not_wait_for_the_poll(bench):
    called = []
    started = time.monotonic()
    bench.peer.resumeProducing = lambda: bench.reactor.at_turn_end(lambda: called.append("write"))
    bench.transport.registerProducer(bench.peer, True)
    bench.transport.write(FULL)
    bench.reactor.at_turn_end(lambda: bench.reactor.at_turn_end(lambda: called.append("call")))
    bench.reactor.doPoll(5)
    bench.reactor.doPoll(0)
    assert sorted(called) == ["call", "write"]
    bench.reactor.at_turn_end(lambda: bench.reactor.callLater(0, called.append, "later"))
    bench.reactor.doPoll(5)
    bench.reactor.runUntilCurrent()
    assert called[2:] == ["later"]
    assert time.monotonic() - started < 4
    bench.transport.unregisterProducer()


def test_a_call_that_fails_at_the_end_of_a_turn_stops_no_other(bench):
    called = []
    seen = []
    globalLogPublisher.addObserver(seen.append)
    bench.reactor.at_turn_end(lambda: 1 // 0)
    bench.reactor.at_turn_end(lambda: called.append(True))
    bench.transport.write(b"x")
    bench.turn()
    globalLogPublisher.removeObserver(seen.append)
    assert called
    assert bench.theirs.recv(100) == b"x"
    (failure,) = [event["log_failure"] for event in seen if "log_failure" in event]
    assert failure.check(ZeroDivisionError)


def test_a_connection_that_is_to_end_ends_behind_what_is_written(bench):
    bench.transport.write(b"last")
    bench.transport.loseConnection()
    bench.until(lambda: bench.peer.lost)
    assert bench.peer.lost.check(ConnectionDone)
    assert bench.theirs.recv(100) == b"last"
    assert bench.theirs.recv(100) == b""


def test_a_write_on_a_broken_connection_ends_it(bench):
    bench.transport.stopReading()
    bench.theirs.close()
    bench.transport.write(b"to nobody")
    bench.until(lambda: bench.peer.lost)
    assert bench.peer.lost.check(ConnectionLost)


def test_one_that_another_closes_in_the_same_turn_is_not_written_to(bench):
    other, theirs = bench.connect()
    bench.peer.resumeProducing = other.transport.abortConnection
    bench.transport.registerProducer(bench.peer, True)
    bench.transport.write(FULL)
    other.transport.write(b"never")
    bench.until(lambda: other.lost)
    with suppress(ConnectionResetError):
        assert theirs.recv(100) == b""
    theirs.close()
    bench.transport.unregisterProducer()


def test_a_turn_takes_few_events_and_sends_what_they_wrote_before_the_others(bench):
    pairs = [bench.connect() for _ in range(100)]
    order = []
    for peer, theirs in pairs:
        peer.on_data = lambda data, peer=peer: (order.append(peer), peer.transport.write(data))
        theirs.send(b"x")
    answered = set()
    while len(answered) < len(pairs):
        before = len(order)
        bench.turn(1)
        assert len(order) - before <= 16
        bench.reactor._end_turn()
        for _, theirs in pairs:
            with suppress(BlockingIOError):
                assert theirs.recv(10) == b"x"
                answered.add(theirs)
        assert len(answered) == len(order)
    assert len(set(order)) == len(pairs)  # nobody had two turns before all had one
    for _, theirs in pairs:
        theirs.close()
    bench.until(lambda: all(peer.lost for peer in order))


def test_a_handler_that_fails_ends_its_connection_only(bench):
    def fail(data):
        raise RuntimeError("as planned")

    bench.peer.on_data = fail
    bench.theirs.send(b"x")
    bench.until(lambda: bench.peer.lost)
    assert bench.peer.lost.check(RuntimeError)


def test_everything_is_handed_out_at_the_end(bench):
    bench.transport.stopReading()
    bench.transport.write(b"x")
    assert bench.transport in bench.reactor.removeAll()
    assert bench.reactor.getWriters() == []


def test_it_is_what_twisted_takes_for_a_reactor():
    from twisted.internet.interfaces import IReactorCore, IReactorFDSet, IReactorTCP

    reactor = Reactor()
    for interface in (IReactorCore, IReactorFDSet, IReactorTCP):
        verifyObject(interface, reactor)
    reactor.removeAll()
    reactor._poller.close()


@pytest.mark.parametrize("role", ["outer", "inner"])
def test_twistd_runs_the_services_on_it(role):
    code = (
        f"import sockgw.{role}.tap, gc; from twisted.internet import reactor;"
        "print(type(reactor).__module__);"
        "reactor.callWhenRunning(reactor.stop); reactor.run();"
        "print(gc.get_threshold()[0], gc.get_freeze_count() > 1000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["sockgw.reactor", "20000", "True"]


def test_another_reactor_that_was_asked_for_stays():
    code = (
        "from twisted.internet import pollreactor; pollreactor.install();"
        "import sockgw.outer.tap; from twisted.internet import reactor;"
        "print(type(reactor).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "PollReactor"

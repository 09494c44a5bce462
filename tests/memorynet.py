"""Reactors in memory: the turns of Twisted's and its transports, without sockets and repeatable.

A turn is what Twisted's reactors, and ours, make of one: first the calls that were due when it
began; then each connection writes what it has (128 KiB at most); then each reads once (64 KiB at
most). What is called later within a turn runs in the next one. Time passes between turns, and only
as told.

Each reactor stands for a process, so that what happens in its turns can be counted by itself.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

from inner_reactor import Resolver
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    IReactorPluggableNameResolver,
    ITCPTransport,
)
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["End", "Network", "Reactor"]

_READ = 65_536  # bytes of one read: Twisted's tcp.Connection.bufferSize
_SEND = 131_072  # bytes of one write: Twisted's FileDescriptor.SEND_LIMIT
_HIGH_WATER = 65_536  # bytes buffered, beyond which a producer is paused: FileDescriptor.bufferSize
_SYSTEM = 262_144  # bytes that the system holds between both ends


@implementer(ITCPTransport, IHalfCloseableDescriptor)
class End:
    """One end of a connection. Without a reactor it is a test's: see :meth:`send`, :meth:`take`."""

    def __init__(self, name: str, number: int, reactor: Reactor | None = None) -> None:
        self.name = name
        self.reactor = reactor
        self.address = IPv4Address("TCP", "127.0.0.1", number)
        self.protocol: Any = None
        self.peer: End = self
        self.arrived = bytearray()  # from the peer, not read yet
        self.fin = False  # the peer's end has arrived
        self.open = True
        self._buffer = bytearray()
        self._reading = True
        self.disconnecting = False
        self._ending = False  # our half, once all is written
        self._producer: Any = None
        self._paused = False

    def flush(self) -> None:
        """Send what was written, and end what was to be ended after it."""
        if self._buffer:
            count = min(_SEND, _SYSTEM - len(self.peer.arrived))
            self.peer.arrived += self._buffer[:count]
            del self._buffer[:count]
            if not self._buffer and self._paused:
                self._paused = False
                if self._producer is not None:
                    self._producer.resumeProducing()
        if self._ending and not self._buffer:
            self._ending = False
            self.peer.fin = True
            half = IHalfCloseableProtocol(self.protocol, None)
            if half is not None:
                half.writeConnectionLost()
        if self.disconnecting and not self._buffer:
            self._over()

    def read(self) -> None:
        """Hand on what has arrived, once."""
        if not self._reading or not self.open:
            return
        if self.arrived:
            data = bytes(self.arrived[:_READ])
            del self.arrived[:_READ]
            self.protocol.dataReceived(data)
        elif self.fin:
            self.fin = False
            half = None if self.disconnecting else IHalfCloseableProtocol(self.protocol, None)
            if half is None:
                self._over()
            else:
                self._reading = False
                half.readConnectionLost()

    def _over(self) -> None:
        if self.open:
            self.open = False
            self.peer.fin = True
            protocol, self.protocol = self.protocol, None  # as Twisted's
            protocol.connectionLost(Failure(ConnectionDone()))

    # The transport.

    def write(self, data: bytes) -> None:
        assert type(data) is bytes
        self._write((data,))

    def writeSequence(self, parts: Iterable[bytes]) -> None:
        self._write(parts)

    def _write(self, parts: Iterable[bytes]) -> None:
        assert self.reactor is not None
        self.reactor.counts[f"writes to the {self.name}"] += 1
        for part in parts:
            self._buffer += part
        if len(self._buffer) > _HIGH_WATER and self._producer is not None:
            self._paused = True
            self._producer.pauseProducing()

    def registerProducer(self, producer: object, streaming: bool) -> None:
        if self._producer is not None:
            raise RuntimeError("second producer")
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None

    def pauseProducing(self) -> None:
        self._reading = False

    def resumeProducing(self) -> None:
        self._reading = True

    def loseConnection(self) -> None:
        self.disconnecting = True

    def loseWriteConnection(self) -> None:
        self._ending = True

    def writeConnectionLost(self, reason: Failure) -> None:
        """Of no use here."""

    def readConnectionLost(self, reason: Failure) -> None:
        """Of no use here."""

    def abortConnection(self) -> None:
        self._buffer.clear()
        self.disconnecting = True

    def getPeer(self) -> IPv4Address:
        return self.peer.address

    def getHost(self) -> IPv4Address:
        return self.address

    def getHandle(self) -> None:
        return None

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def setTcpKeepAlive(self, enabled: bool) -> None:
        pass

    # A test's end.

    def send(self, data: bytes) -> int:
        """Send as much of it as the system takes; return how many bytes."""
        count = max(min(len(data), _SYSTEM - len(self.peer.arrived)), 0)
        self.peer.arrived += data[:count]
        return count

    def take(self) -> bytes:
        """Return what has arrived."""
        data = bytes(self.arrived)
        self.arrived.clear()
        return data

    def close(self) -> None:
        """Nothing is read or sent here any more."""
        self.peer.fin = True


@implementer(IDelayedCall)
class Later:
    """A call to come."""

    def __init__(
        self, reactor: Reactor, time: float, function: Any, args: Any, keywords: Any
    ) -> None:
        self._reactor = reactor
        self.time = time
        self._call = function, args, keywords
        self._waits = True

    def run(self) -> None:
        if self._waits:
            self._waits = False
            function, args, keywords = self._call
            function(*args, **keywords)

    def active(self) -> bool:
        return self._waits

    def cancel(self) -> None:
        assert self._waits
        self._waits = False
        if self in self._reactor.later:
            self._reactor.later.remove(self)

    def getTime(self) -> float:
        return self.time

    def delay(self, secondsLater: float) -> None:
        self.time += secondsLater

    def reset(self, secondsFromNow: float) -> None:
        self.time = self._reactor.seconds() + secondsFromNow


@implementer(IReactorPluggableNameResolver)
class Reactor(MemoryReactorClock):
    """A process's. ``counts`` has its writes and calls of ``callLater``."""

    def __init__(self, network: Network, name: str) -> None:
        super().__init__()
        self.name = name
        self._clock = ContextVar("clock", default=0.0)
        self.seconds = self._clock.get  # as time.monotonic: no function of Python's
        self.network = network
        self.nameResolver = Resolver(["127.0.0.1"])
        self.ends: list[End] = []
        self.made: list[tuple[End, Any]] = []  # connections that wait for their protocols
        self.later: list[Later] = []
        self.ending: list[Callable[[], None]] = []  # what is called at the end of a turn
        self.counts: dict[str, int] = defaultdict(int)
        self.profile: Callable[..., object] | None = None  # see sys.setprofile
        self.trace: Callable[..., Any] | None = None  # see sys.settrace

    def installNameResolver(self, resolver: object) -> Any:
        raise NotImplementedError

    def turn(self, seconds: float) -> None:
        """Do what is due after so many more seconds."""
        now = self.seconds() + seconds
        self._clock.set(now)
        due = [call for call in self.later if call.time <= now]
        self.later = [call for call in self.later if call.time > now]
        if self.trace is not None:
            sys.settrace(self.trace)
        if self.profile is not None:
            sys.setprofile(self.profile)
        for call in due:
            call.run()
        made, self.made = self.made, []
        for end, factory in made:
            end.protocol = factory.buildProtocol(end.getPeer())
            end.protocol.makeConnection(end)
            self.ends.append(end)
        ending, self.ending = self.ending, []
        for function in ending:
            function()
        for end in self.ends:
            end.flush()
        for end in self.ends:
            end.read()
        if self.profile is not None:
            sys.setprofile(None)
        if self.trace is not None:
            sys.settrace(None)
        self.ends = [end for end in self.ends if end.open]

    def at_turn_end(self, call: Callable[[], None]) -> None:
        self.ending.append(call)

    def callLater(self, delay: float, callable: Any, *args: Any, **kw: Any) -> Later:
        self.counts["callLater"] += 1
        later = Later(self, self.seconds() + delay, callable, args, kw)
        self.later.append(later)
        return later

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        self.network.listeners[port] = (self, factory)
        return super().listenTCP(port, factory, backlog, interface)

    def connectTCP(self, host: str, port: int, factory: Any, *args: Any, **kw: Any) -> Any:
        connector = super().connectTCP(host, port, factory, *args, **kw)
        self.made.append((self.network.connect(port, self), factory))
        return connector


class Network:
    """What joins the reactors and the tests' own ends."""

    def __init__(self) -> None:
        self.listeners: dict[int, tuple[Reactor | None, Any]] = {}
        self.names: dict[int, str] = {}  # of connections, by the port that is dialled
        self.accepted: list[End] = []  # the ends of those that are a test's
        self._number = 40_000

    def connect(self, port: int, reactor: Reactor | None = None) -> End:
        """Return the dialling end of a new connection."""
        self._number += 1
        owner, factory = self.listeners[port]
        end = End(self.names[port], self._number, reactor)
        end.peer = End(self.names[port], port, owner)
        end.peer.peer = end
        if owner is None:
            self.accepted.append(end.peer)
        else:
            owner.made.append((end.peer, factory))
        return end

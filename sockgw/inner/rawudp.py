"""UDP to origins, for streams of datagrams: a connected socket of its own for each stream."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.error import DNSLookupError, MessageLengthError
from twisted.internet.protocol import ConnectedDatagramProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from sockgw.deadlines import Deadlines
from sockgw.http.client import Origin, OriginHandler
from sockgw.inner.allow import AllowList
from sockgw.inner.tcp import NotPermitted, host_and_port, resolve
from sockgw.protocol.datagrams import DatagramReader, Waiting, frame
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.heads import Headers, ResponseHead
from sockgw.udpport import UDPPort

__all__ = ["RawUDP"]

_log = Logger()

_GRACE = 1.0  # seconds for answers that are under way, while draining

_MAX_WAITING_BYTES = 262_144  # of one stream; four datagrams of the largest size at least


class RawUDP:
    """Connects streams to UDP origins; see :class:`sockgw.inner.forwarder.RawOrigins`.

    :param connect_timeout: seconds for resolving a name
    :param idle_timeout: seconds of silence either way after which a stream ends
    :param queue: datagrams of one stream that wait while it takes no more
    """

    def __init__(
        self,
        reactor: Any,
        allow: AllowList,
        deadlines: Deadlines,
        *,
        connect_timeout: float,
        idle_timeout: float,
        queue: int,
    ) -> None:
        self._reactor = reactor
        self._allow = allow
        self._connect_timeout = connect_timeout
        self._idle_timeout = idle_timeout
        self._queue = queue
        self._deadlines = deadlines
        self._open: set[_Socket] = set()
        self._closed = False
        self._last_call: float | None = None  # when all end, by the deadlines' clock

    def connect(self, origin: Origin, handler: OriginHandler) -> _Socket:
        """Resolve an origin's name for a stream, and open a socket."""
        opened = _Socket(self, handler)
        self._open.add(opened)
        if self._closed:
            self._reactor.callLater(0, opened.fail, StreamCode.REFUSED, "shutting down")
            return opened
        resolving: Deferred[Any] = Deferred.fromCoroutine(
            resolve(
                self._reactor,
                origin.hostname,
                origin.port,
                lambda address: self._allow.permits(origin.hostname, address, origin.port),
            )
        )
        resolving.addTimeout(self._connect_timeout, self._reactor)
        resolving.addCallback(lambda addresses: opened.resolved(addresses[0]))
        resolving.addErrback(self._not_resolved, opened, origin)
        return opened

    def drain(self) -> None:
        """Let all end soon: datagrams know no end, and their clients go on by another stream."""
        self._last_call = self._deadlines.after(_GRACE)
        for each in self._open:
            if each.deadline is not None:
                self.touch(each)

    def close(self) -> None:
        """Refuse new streams, and end everything."""
        self._closed = True
        for each in list(self._open):
            each.fail(StreamCode.CANCELLED, "shutting down")

    def _not_resolved(self, failure: Failure, opened: _Socket, origin: Origin) -> None:
        where = host_and_port(origin.hostname, origin.port)
        match failure.value:
            case NotPermitted():
                opened.fail(StreamCode.NOT_ALLOWED, f"{where} is not allowed")
            case DNSLookupError() | TimedOut():
                opened.fail(StreamCode.DNS_ERROR, f"cannot resolve {origin.hostname}")
            case OSError():
                opened.fail(StreamCode.UNREACHABLE, f"{where} is unreachable")
            case _:
                _log.failure("Opening a socket to {where} failed", failure, where=where)
                opened.fail(StreamCode.INTERNAL_ERROR, "opening a socket failed")

    # ------------------------------------------------------------------ for sockets

    def listen(self, protocol: _Socket, host: str, port: int) -> None:
        """Open a socket that is connected to an address. Raises OSError."""
        interface = "::" if ":" in host else "0.0.0.0"
        UDPPort(self._reactor, 0, protocol, interface).startListening()
        protocol.transport.connect(host, port)
        self._deadlines.watch(protocol)

    def touch(self, opened: _Socket) -> None:
        """It is not silent."""
        deadline = self._deadlines.after(self._idle_timeout)
        last_call = self._last_call
        opened.deadline = deadline if last_call is None else min(deadline, last_call)

    def queue(self) -> Waiting:
        """Return where datagrams of one stream wait."""
        return Waiting(self._queue, _MAX_WAITING_BYTES)

    def gone(self, opened: _Socket) -> None:
        """It is over."""
        self._open.discard(opened)
        self._deadlines.discard(opened)


class _Socket(ConnectedDatagramProtocol):
    """One stream's socket, from before it is there."""

    transport: Any = None
    noisy = False
    congested = False  # what the socket does not take is lost

    def __init__(self, owner: RawUDP, handler: OriginHandler) -> None:
        self._owner = owner
        self._handler = handler
        self._reader = DatagramReader()
        self._early: Waiting | None = owner.queue()  # before there is a socket
        self._waiting: Waiting | None = None  # while the stream takes no more
        self._over = False
        self.deadline: float | None = None

    # ------------------------------------------------------------------ from the stream

    def write(self, data: bytes) -> None:
        for datagram in self._reader.feed(data):
            if self._over:
                return
            if self._early is not None:
                self._early.add(datagram)
            else:
                self._send(datagram)

    def finish(self, trailers: Headers | None = None) -> None:
        """The client has been silent for long, which is the end of both directions."""
        if not self._over:
            self._leave()
            self._handler.body_ended([])

    def abort(self) -> None:
        """Break off. Nothing is called back."""
        if not self._over:
            self._leave()

    def pause_response(self) -> None:
        if self._waiting is None and not self._over:
            self._waiting = self._owner.queue()

    def resume_response(self) -> None:
        waiting, self._waiting = self._waiting, None
        while waiting and not self._over:
            self._handler.body_received(frame(waiting.take()))
            if self._waiting is not None:  # enough again
                self._waiting = waiting
                return

    def fail(self, code: StreamCode, detail: str) -> None:
        """End it, and tell the stream, unless it is over already."""
        if not self._over:
            self._leave()
            self._handler.failed(code, detail)

    # ------------------------------------------------------------------ from the network

    def resolved(self, address: Any) -> None:
        """The origin's address is known. Raises OSError."""
        if self._over:
            return
        self._owner.listen(self, address.host, address.port)
        self._owner.touch(self)
        self._handler.responded(ResponseHead(200, b"", []))
        early, self._early = self._early, None
        while early and not self._over:
            self._send(early.take())

    def datagramReceived(self, datagram: bytes, addr: Any = None) -> None:
        if self._over:
            return
        self._owner.touch(self)
        if self._waiting is None:
            self._handler.body_received(frame(datagram))
        else:
            self._waiting.add(datagram)

    def connectionRefused(self) -> None:
        """The system has been told that nobody listens there (ICMP)."""
        self.fail(StreamCode.CONNECTION_REFUSED, "nobody listens there")

    def stopProtocol(self) -> None:
        """The reactor has closed the socket: of such an error epoll tells alone, not with data."""
        self.connectionRefused()

    def expired(self) -> None:
        """Both sides have been silent."""
        self.finish()

    # ------------------------------------------------------------------ inside

    def _send(self, datagram: bytes) -> None:
        self._owner.touch(self)
        with suppress(OSError, MessageLengthError):  # it is lost, as any may be
            self.transport.write(datagram)

    def _leave(self) -> None:
        self._over = True
        self._owner.gone(self)
        if self.transport is not None:
            self.transport.stopListening()

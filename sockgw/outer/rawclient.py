"""A client of which the gateway sees bytes alone: TCP, or TLS that is passed through.

It is connection and exchange in one (:mod:`sockgw.http.application`), so that it is carried, held
and asked for again like a request. The answer's head says whether it is connected: any status but
2xx is a refusal, and to a client of which nothing is known a refusal is a reset, unless its
protocol has a word for it. Each direction ends for itself, and what breaks off looks broken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, cast
from typing import Protocol as Seam

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
    ITransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from sockgw.deadlines import Deadlines
from sockgw.http.application import NOBODY, Connection, RequestHandler
from sockgw.http.networks import host_and_port
from sockgw.outer.targets import Target
from sockgw.protocol.heads import Headers, RequestHead, ResponseHead

__all__ = ["RawClient", "RawFactory", "RawGateway"]

_log = Logger()


class RawGateway(Seam):
    """Whom a raw client asks (:class:`sockgw.outer.gateway.Gateway`)."""

    def connected(self, connection: Connection) -> bool:
        """A client came. False: one too many, it is cut off and ``disconnected`` not called."""

    def disconnected(self, connection: Connection) -> None:
        """A client has gone."""

    def connect(self, exchange: RawClient, target: Target) -> RequestHandler:
        """Have a client connected to a target. It may be refused within this call."""


@implementer(IHalfCloseableProtocol, IPushProducer)
class RawClient(Protocol):
    """One connection to a target."""

    transport: Any  # of a socket: TCP or UNIX

    host = b""
    expects_continue = False
    body_expected = True
    refused = False
    secure = False
    busy = True

    def __init__(
        self,
        gateway: RawGateway,
        target: Target,
        deadlines: Deadlines,
        seconds: Callable[[], float],
        flush_timeout: float,
        *,
        name: bytes = b"",
        refusal: bytes = b"",
    ) -> None:
        """``flush_timeout``: seconds for a client to take what is left once both directions are
        over. ``name`` is what the client has asked for, where it can; ``refusal`` what it is sent
        in place of a reset where it cannot be connected.
        """
        self._gateway = gateway
        self._deadlines = deadlines
        self._flush_timeout = flush_timeout
        self._refusal = refusal
        self._handler: RequestHandler = NOBODY
        self._admitted = False
        self._over = False  # as an exchange
        self._closing = False  # as a connection: it has no producer any more
        self._half_closed = False  # our half
        self._finished = False  # nothing more will be written
        self._paused = False
        self.target = target
        name = name or target.name.encode("latin-1", "replace")
        self.head = RequestHead(b"CONNECT", name, [])
        self.protocol = target.protocol.upper()
        self.notes: object | None = None
        self.congested = False
        self.complete = False  # the client's FIN has come
        self.started = seconds()
        self.bytes_received = 0
        self.bytes_sent = 0
        self.deadline: float | None = None

    @property
    def connection(self) -> RawClient:
        """The client's connection."""
        return self

    @cached_property
    def peer_address(self) -> str:
        """The client's address as text; "" for none."""
        return host_and_port(self.transport.getPeer())[0]

    @cached_property
    def local_port(self) -> int:
        """The port that the client has connected to."""
        return host_and_port(self.transport.getHost())[1]

    # ------------------------------------------------------------------ Twisted calls

    def makeConnection(self, transport: ITransport) -> None:
        """Called with a socket's transport; also with one that another protocol had before."""
        self.connected = 1
        self.transport = cast(Any, transport)
        self.connectionMade()

    def connectionMade(self) -> None:
        transport = self.transport
        if not self._gateway.connected(self):
            self._over = self._closing = True
            transport.abortConnection()
            return
        self._admitted = True
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
            # No deadline of ours ends it, so the system has to notice a client that is gone.
            transport.setTcpKeepAlive(True)
        transport.registerProducer(self, True)
        self._deadlines.watch(self)
        handler = self._gateway.connect(self, self.target)
        if not self._over:
            self._handler = handler

    def dataReceived(self, data: bytes) -> None:
        if not self._over:
            self.bytes_received += len(data)
            self._handler.body_received(data)

    def readConnectionLost(self) -> None:
        """The client's FIN."""
        if self._over:
            return
        self.complete = True
        self._handler.body_ended([])
        if self._finished:
            self._close()

    def writeConnectionLost(self) -> None:
        """Our FIN is out."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._closing = True
        self._deadlines.discard(self)
        over, self._over = self._over, True
        handler, self._handler = self._handler, NOBODY
        try:
            if not over and reason.check(ConnectionDone):
                handler.client_left()
            elif not over:
                handler.client_lost()
            elif self.congested:
                handler.response_drained()
        except Exception:  # noqa: BLE001 - the reactor has others to serve
            _log.failure("a client's leaving was not taken")
        if self._admitted:
            self._admitted = False
            self._gateway.disconnected(self)

    def pauseProducing(self) -> None:
        """The transport has enough. Called from within our own writes: nothing is called here."""
        self.congested = True

    def resumeProducing(self) -> None:
        """The transport has written everything."""
        self.congested = False
        self._handler.response_drained()
        if self._finished and not self._over:
            self._close_half()

    def stopProducing(self) -> None:
        """The connection is being lost; connectionLost follows."""

    # ------------------------------------------------------------------ as a connection

    def drain(self, grace: float) -> None:
        """Nothing: it goes on until it ends, or the process does."""

    def drop(self) -> None:
        """Cut the client off."""
        handler, self._handler = self._handler, NOBODY
        over, self._over = self._over, True
        self._reset()
        if not over:
            handler.client_lost()

    def expired(self) -> None:
        """It has not taken what was left for it."""
        self._reset()

    # ------------------------------------------------------------------ as an exchange

    def pause_request(self) -> None:
        """Read no more for now."""
        if not (self._paused or self._over or self.complete):
            self._paused = True
            self.transport.pauseProducing()

    def resume_request(self) -> None:
        """Read again."""
        if self._paused and not self._over:
            self._paused = False
            self.transport.resumeProducing()

    def inform(self, status: int, headers: Headers) -> None:
        """Nothing: there is nobody who could be told."""

    def respond(self, head: ResponseHead) -> None:
        """It is connected; or, where the status is not 2xx, refused."""
        if 200 <= head.status <= 299 or self._over:
            return
        if self._refusal:
            self.write(self._refusal)
            self._close()
        else:
            self.abort()

    def write(self, data: bytes) -> None:
        """Send bytes to the client."""
        if not (self._over or self._finished):
            self.bytes_sent += len(data)
            self.transport.write(data)

    def finish(self, trailers: Sequence[tuple[bytes, bytes]] = ()) -> bool:
        """Nothing more will be written; return whether that is an orderly end."""
        if self._over:
            return False
        self._finished = True
        if self.complete:
            self._close()
        elif not self.congested:
            self._close_half()
        return True

    def abort(self) -> None:
        """Break off."""
        self._over = True
        self._handler = NOBODY
        self._reset()

    # ------------------------------------------------------------------ inside

    def _close_half(self) -> None:
        transport = self.transport
        halves = IHalfCloseableDescriptor.providedBy(transport)
        if not halves or ISSLTransport.providedBy(transport):
            # Twisted's TLS knows no half-close: it would close the TCP below it.
            handler = self._handler
            self._close()
            handler.body_ended([])
        elif not self._half_closed:
            self._half_closed = True
            # Behind a producer that has nothing to say Twisted would not get to it.
            transport.unregisterProducer()
            transport.loseWriteConnection()

    def _close(self) -> None:
        """Both directions are over: send what is left, then close."""
        if self._over:
            return
        self._over = True
        if not self.congested:
            self._handler = NOBODY
        self._leave()
        self.deadline = self._deadlines.after(self._flush_timeout)
        if self._paused:  # TLS ends with the client's word for it
            self.transport.resumeProducing()
        self.transport.loseConnection()

    def _reset(self) -> None:
        self._leave()
        self.deadline = None
        self.transport.abortConnection()

    def _leave(self) -> None:
        if not self._closing:
            self._closing = True
            if not self._half_closed:
                self.transport.unregisterProducer()


class RawFactory(Factory):
    """Listens for the clients of one target."""

    noisy = False

    def __init__(
        self,
        gateway: RawGateway,
        target: Target,
        deadlines: Deadlines,
        seconds: Callable[[], float],
        flush_timeout: float,
    ) -> None:
        self._gateway = gateway
        self._deadlines = deadlines
        self._seconds = seconds
        self._flush_timeout = flush_timeout
        #: Whose clients come; may be set to another one with the same listener.
        self.target = target

    def buildProtocol(self, addr: IAddress | None) -> RawClient:
        return RawClient(
            self._gateway, self.target, self._deadlines, self._seconds, self._flush_timeout
        )

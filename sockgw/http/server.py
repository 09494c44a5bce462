"""The server side of HTTP/1: a client's connection, from its bytes to an application and back.

Bytes go into llhttp, whose callbacks only record what they see: requests in ``_waiting``, pieces of
a body in its exchange. Nothing of the application runs inside the parser. :meth:`pump` then hands
on what the order of responses allows: one exchange is active at a time, the next one is told to the
application when the response before it is out and the client's socket has taken it.

So a client cannot make us hold much. As soon as a request waits its turn, no more is read, and what
has been read already is not parsed: 64 KiB of small requests are worth megabytes once they are
objects.

A request for an upgrade holds what follows it back until its answer says whether that is another
request or another protocol. From a 101 on the connection is *switched*: bytes go to the exchange as
they come, and no time is too long.

After each step :meth:`settle` derives from the state what is awaited now, which decides whether to
read and when to lose patience; see :class:`Awaited`.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from sockgw.deadlines import Deadlines
from sockgw.http.application import NOBODY, Application, RequestHandler
from sockgw.http.exchange import Exchange, Framing
from sockgw.http.farewell import Farewell
from sockgw.http.framing import HttpError
from sockgw.http.headers import lower
from sockgw.http.networks import host_and_port
from sockgw.http.patience import Awaited, ServerLimits
from sockgw.http.reader import RequestReader
from sockgw.http.switched import Switched
from sockgw.protocol.heads import RequestHead, ResponseHead

__all__ = ["ClientConnection"]

_log = Logger()


@implementer(IHalfCloseableProtocol, IPushProducer)
class ClientConnection(Protocol):
    """A client's connection. Made by :class:`sockgw.http.front.ClientFactory`."""

    #: Whether the client speaks TLS with us.
    secure = False
    protocol = "HTTP/1.1"

    transport: Any  # a transport, consumer and producer, more or less of a socket
    write: Callable[[bytes], None]
    write_all: Callable[[Iterable[bytes]], None]

    factory: Any

    def __init__(
        self,
        application: Application,
        deadlines: Deadlines,
        limits: ServerLimits,
        seconds: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        #: Free for the application.
        self.notes: object | None = None
        #: The client's socket is full.
        self.congested = False
        #: The clock for durations, in seconds.
        self.seconds = seconds
        #: The clock for the Date header, in seconds since 1970.
        self.wall_clock = wall_clock
        self.deadline: float | None = None
        self._application = application
        self._deadlines = deadlines
        self._limits = limits
        self._admitted = False

        self._reader = RequestReader(
            self._begin, limits.max_header_size, limits.max_header_count, limits.max_body_size
        )
        self._active: Exchange | None = None  # whose response is due
        self._waiting: deque[Exchange] = deque()
        self._held = b""  # not parsed yet from _held_start on
        self._held_start = 0
        self._refusal: tuple[HttpError, RequestHead | None] | None = None  # after all of them

        self._awaited = Awaited.REQUEST
        self._deaf = False  # no more requests: whatever comes is thrown away
        self._surplus = False  # something has been
        self._half_closed = False  # the client's FIN has come
        self._farewell: Farewell | None = None  # we are closing
        self._grace: float | None = None  # seconds for one more request: we are draining
        self._undrained: RequestHandler = NOBODY  # of the last response, not taken whole yet
        self._reading = True
        self._pumping = False
        self._undecided: Exchange | None = None  # asks for an upgrade, and has no answer yet
        self._unanswered: tuple[Exchange, bool, int] | None = None  # what was out at the FIN
        #: An upgrade was granted: no HTTP any more.
        self.switched: Switched | None = None

    # Not known when the connection is made: behind HAProxy the first bytes tell (``haproxy:``).

    @cached_property
    def peer_address(self) -> str:
        """The client's address as text, "" for none (UNIX sockets); mapped IPv4 as IPv4.

        As the other two to be read once a request has come.
        """
        return host_and_port(self.transport.getPeer())[0]

    @cached_property
    def peer_port(self) -> int:
        """The client's port."""
        return host_and_port(self.transport.getPeer())[1]

    @cached_property
    def local_port(self) -> int:
        """The port that the client has connected to."""
        return host_and_port(self.transport.getHost())[1]

    # ------------------------------------------------------------------ Twisted calls

    def connectionMade(self) -> None:
        transport = self.transport
        self.write = transport.write
        self.write_all = transport.writeSequence
        self.secure = ISSLTransport.providedBy(transport)
        if not self._application.connected(self):
            self._deaf = True
            transport.abortConnection()
            return
        self._admitted = True
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        transport.registerProducer(self, True)
        patience = self._limits.head_timeout
        if self._grace is not None:
            patience = min(patience, self._grace)
        self.deadline = self._deadlines.after(patience, self)
        self._deadlines.watch(self)

    def dataReceived(self, data: bytes) -> None:
        if self._deaf:
            self._surplus = True
        elif self._held:  # TLS: more can come after a pause, up to what had been read already
            self._held += data
        elif self.switched is not None:
            self.switched.received(data)
            self.pump()
        else:
            self._read(data)
            self.pump()

    def readConnectionLost(self) -> None:
        """The client's FIN: it will send nothing more. It may still want its answers.

        In the middle of a request it means that the client left. After one, a client that left
        looks the same as one that only closed its half: both send a FIN. The difference shows when
        we write: a socket that is closed answers with RST, within a round trip, a half-closed one
        does not. So a client to which nothing could be written in ``half_close_timeout`` counts
        as gone, and one that has been sent something, and has not reset the connection by
        then, gets all it asked for. Called by TCP and UNIX sockets only: in TLS either end closes
        both halves.
        """
        self._half_closed = self._deaf = True
        if self._farewell is not None:
            self._farewell.close()
            return
        unfinished = self._reader.receiving
        if unfinished is not None:
            if unfinished is self._active:
                self.drop()
                return
            self._waiting.pop()  # it is the last one
        active = self._active
        if self.switched is not None:
            self.switched.half_closed()
        elif active is not None:
            self._unanswered = active, active.response_started, active.bytes_sent
        self.pump()

    def writeConnectionLost(self) -> None:
        """Our FIN is out."""
        if self._farewell is not None:
            self._farewell.write_half_closed()

    def connectionLost(self, reason: Failure | None = None) -> None:
        farewell = self._farewell
        if farewell is None:
            farewell = self._leave()
        farewell.over()
        if self.switched is not None and reason is not None and reason.check(ConnectionDone):
            try:
                self.switched.left()
            except Exception:  # noqa: BLE001 - the reactor has others to serve
                _log.failure("the application failed on a client's leaving")
        self._lose_active()
        self._release()
        self._reader.close()
        del self._reader  # a cycle: it knows the last exchange, which knows us
        if self._admitted:
            self._admitted = False
            try:
                self._application.disconnected(self)
            except Exception:  # noqa: BLE001 - the reactor has others to serve
                _log.failure("the application failed on a client's end")

    def pauseProducing(self) -> None:
        """The transport has enough. Called from within our own writes: nothing is called here."""
        if not self.congested:
            self.congested = True
            self.settle()

    def resumeProducing(self) -> None:
        """The transport has written everything."""
        if not self.congested:
            return
        self.congested = False
        self._release()
        if self._farewell is not None:
            self._farewell.drained()
            return
        self._awaited = Awaited.NOTHING  # if it is congested again at once, its time begins anew
        self._unanswered = None  # the client reads
        exchange = self._active
        if exchange is not None and not exchange._over:
            try:
                exchange._handler.response_drained()
            except Exception:  # noqa: BLE001 - ends this connection only
                self._application_failed()
            if self.switched is not None:
                self.switched.drained()
        self.pump()

    def stopProducing(self) -> None:
        """The transport is dead; ``connectionLost`` says so too."""

    # ------------------------------------------------------------------ draining

    def drain(self, grace: float) -> None:
        """Close after the requests that have come, and as soon as none is under way.

        The client may have sent a request that we have not seen, on a connection of which it had to
        believe that it stays open. So where no answer has announced the end, one more request is
        awaited, for ``grace`` seconds.
        """
        self._grace = grace
        if self._admitted and self._farewell is None and self._awaited is Awaited.REQUEST:
            patience = self._deadlines.after(grace, self)
            self.deadline = patience if self.deadline is None else min(self.deadline, patience)

    def hand_over(self, begin: Callable[[], None]) -> float | None:
        """Before the first request: let go of the transport, which somebody else takes over.

        ``begin`` makes that connection. Return the grace (seconds) with which this one is draining,
        if it is.
        """
        self._deadlines.discard(self)
        self.transport.unregisterProducer()
        self._deaf = True
        self._reader.close()
        self._admitted = False
        self._application.succeeded(self, begin)
        return self._grace

    @property
    def deaf(self) -> bool:
        """Whatever comes is thrown away."""
        return self._deaf

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self._active is not None or bool(self._waiting or self._held)

    # ------------------------------------------------------------------ the deadline

    def settle(self) -> None:
        """Derive from the state whether to read, and what is awaited until when."""
        if self._farewell is not None:
            return
        active = self._active
        receiving = self._reader.receiving
        reading = not (
            self._waiting
            or self._held
            or (active is not None and active._paused and (active is receiving or self.switched))
        )
        if reading is not self._reading and not self._half_closed:
            # After a FIN the socket would be reported as readable for ever.
            self._reading = reading
            if reading:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()
        limits = self._limits
        if self.switched is not None:
            self._awaited = Awaited.NOTHING
            self.deadline = None
            return
        if self.congested:
            awaited, patience = Awaited.READER, limits.idle_timeout
        elif self._half_closed:
            awaited, patience = Awaited.SIGN_OF_LIFE, limits.half_close_timeout
        elif active is not None:
            if active is not receiving or active._paused:
                self._awaited = Awaited.NOTHING
                self.deadline = None
                return
            awaited, patience = Awaited.BODY, limits.idle_timeout
        elif self._reader.head_size:
            awaited, patience = Awaited.HEAD, limits.head_timeout
        else:
            awaited, patience = Awaited.REQUEST, limits.keep_alive_timeout
            if self._grace is not None:
                patience = min(patience, self._grace)
        if awaited is not self._awaited or awaited is Awaited.BODY:
            self._awaited = awaited
            self.deadline = self._deadlines.after(patience, self)

    def expired(self) -> None:
        awaited = self._awaited
        if awaited is Awaited.REQUEST:
            self._close(linger=False)
        elif awaited is Awaited.HEAD:
            self._refuse(HttpError(408, "the request's head did not come in time"))
            self.pump()
        elif awaited is Awaited.BODY:
            self._refuse(HttpError(408, "the request's body did not come in time"))
            self.pump()
        elif awaited is Awaited.READER:
            self.drop()
        elif awaited is Awaited.SIGN_OF_LIFE:
            if not self._shows_life():
                self.drop()
            else:
                self.deadline = self._deadlines.after(self._limits.half_close_timeout, self)

    def _shows_life(self) -> bool:
        """Return whether a client that sent a FIN has been sent something and did not reset it."""
        active = self._active
        if active is not None and self._unanswered == (
            active,
            active.response_started,
            active.bytes_sent,
        ):
            return False
        # Nobody reads this socket any more; reading it would give the FIN again, and not the RST.
        handle = self.transport.getHandle()
        return not handle.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    # ------------------------------------------------------------------ reading

    def _begin(
        self,
        head: RequestHead,
        host: bytes,
        http_version: tuple[int, int],
        length: int,
        expects_continue: bool,
        keep_alive: bool,
    ) -> Exchange:
        """The reader has a whole head."""
        exchange = Exchange(
            self, head, host, http_version, length, expects_continue, keep_alive, self.seconds()
        )
        self._waiting.append(exchange)
        if head.upgrade:
            self._undecided = exchange
        return exchange

    def _read(self, data: bytes, start: int = 0) -> None:
        """Parse all of it, or until more than one request is due."""
        reader = self._reader
        try:
            while start < len(data):
                waits = self._waiting and (self._active is not None or len(self._waiting) > 1)
                if waits or self._undecided is not None:
                    self._held = data
                    self._held_start = start
                    return
                if reader.ended:
                    self._surplus = True
                    break
                start = reader.feed(data, start)
        except HttpError as error:
            self._refuse(error)
        if reader.ended and self._undecided is None:
            self._deaf = True

    # ------------------------------------------------------------------ one after the other

    def pump(self) -> None:
        """Hand on what the order of responses allows."""
        if self._pumping:
            return  # from within one of the calls below: the loop goes on there
        self._pumping = True
        try:
            self._advance()
        except Exception:  # noqa: BLE001 - whatever it was, it ends this connection only
            self._application_failed()
        finally:
            self._pumping = False
        self.settle()

    def _advance(self) -> None:
        """Do one thing after the other; each may have changed everything."""
        while True:
            exchange = self._active
            if exchange is None:
                if self._farewell is not None or self.congested:
                    # Who does not read his answers gets no further ones, or they would pile up.
                    return
                if self._waiting:
                    self._active = exchange = self._waiting.popleft()
                    self._awaited = Awaited.NOTHING
                    handler = self._application.request(exchange)
                    if not exchange._over:
                        exchange._handler = handler
                    continue
                if not self._held:
                    self._end_of_requests()
                    return
            if self._held and not self._waiting and self._undecided is None:
                held, self._held = self._held, b""
                if self.switched is not None:
                    self.switched.received(held[self._held_start :])
                else:
                    self._read(held, self._held_start)
                continue
            if exchange is None or exchange._over:
                return
            pieces = exchange.pieces
            if pieces:
                if exchange._paused:
                    return
                exchange.pieces = []
                # As one piece: a body of single bytes should not cost a frame each.
                exchange._handler.body_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            elif exchange.complete and not exchange._end_told:
                exchange._end_told = True
                exchange._handler.body_ended(exchange.trailers)
                if self.switched is not None:
                    self.switched.ended()
            else:
                return

    def _end_of_requests(self) -> None:
        """All requests that came have their responses: refuse what came then, or leave."""
        if self._refusal is not None:
            error, head = self._refusal
            self._refusal = None
            self._answer_refusal(error, head)
        elif self._half_closed:
            self._close(linger=True)

    def response_finished(self, exchange: Exchange) -> None:
        """The exchange's response is out."""
        self._active = None
        if self.congested:
            self._undrained = exchange._handler
        exchange._handler = NOBODY  # a cycle otherwise: it knows the exchange
        if exchange._persistent and exchange.complete:
            self.pump()
        else:
            # Bytes that we have not read when we close become an RST, which can overtake the
            # answer. Only who asked for the close and sent nothing more is sure to be silent.
            self._close(linger=exchange.keep_alive or not exchange.complete or self._surplus)

    def decided(self) -> None:
        """The exchange that asked for an upgrade has an answer."""
        self._undecided = None

    def switch(self, exchange: Exchange) -> None:
        """From now on bytes go as they are."""
        self._unanswered = None
        self.switched = Switched(self, exchange, self._half_closed)
        self.pump()

    def switched_over(self, exchange: Exchange) -> None:
        """A connection that was switched ends, with both directions."""
        exchange._over = True
        handler = exchange._handler
        self.forget(exchange)
        if self.congested:
            self._undrained = handler
        self._close(linger=False)
        if not exchange._end_told:
            exchange._end_told = True
            handler.body_ended([])

    @property
    def refusing(self) -> bool:
        """A refusal is due, after the responses before it."""
        return self._refusal is not None

    @property
    def leaving(self) -> bool:
        """The connection closes after the present response."""
        return (self._half_closed or self._grace is not None) and not (
            self._waiting or self._held or self._refusal
        )

    def _refuse(self, error: HttpError) -> None:
        """Take no more requests; answer this one with an error when its turn comes."""
        self._deaf = True
        self._held = b""
        active = self._active
        receiving = self._reader.receiving
        self._reader.receiving = None
        if receiving is not None and receiving is active:
            if active.response_started:
                self.cut(active)
            else:
                self._refusal = error, self._reader.head
            self._lose_active()
            return
        if receiving is not None:
            self._waiting.pop()  # it is the last one, and nobody knows of it
        self._refusal = error, self._reader.head

    def _answer_refusal(self, error: HttpError, head: RequestHead | None) -> None:
        answer, body = self._application.refused(self, error, head)
        fields = [field for field in answer.headers if lower(field[0]) != b"content-length"]
        fields.append((b"Content-Length", b"%d" % len(body)))
        if head is None:
            head = RequestHead(b"GET", b"/", [])
        self._active = exchange = Exchange(
            self,
            head,
            b"",
            (1, 1),
            0,
            expects_continue=False,
            keep_alive=False,
            started=self.seconds(),
        )
        exchange.respond(ResponseHead(answer.status, answer.reason, fields))
        exchange.write(body)
        exchange.finish()

    # ------------------------------------------------------------------ the end

    def cut(self, exchange: Exchange) -> None:
        """End a broken response so that it looks broken; ``client_lost`` follows at the end."""
        exchange._over = True
        if exchange.framing in (Framing.CLOSE, Framing.RAW):
            self._reset()  # an orderly end would make it look complete
        else:
            self._close(linger=False)

    def forget(self, exchange: Exchange) -> None:
        """Who works on the exchange knows that it is over."""
        exchange._handler = NOBODY
        if self._active is exchange:
            self._active = None

    def _application_failed(self) -> None:
        _log.failure("the application failed on a request")
        exchange = self._active
        if exchange is None:
            self._reset()
            return
        if not exchange._over:
            self.cut(exchange)
        self._lose_active()

    def _lose_active(self) -> None:
        exchange = self._active
        self._active = None
        if exchange is None:
            return
        exchange._over = True
        handler, exchange._handler = exchange._handler, NOBODY
        try:
            handler.client_lost()
        except Exception:  # noqa: BLE001 - the reactor has others to serve
            _log.failure("the application failed on a client's leaving")

    def drop(self) -> None:
        """Cut the client off: it has gone, or is as good as gone, or reads too slowly."""
        self._lose_active()
        self._reset()

    def _close(self, linger: bool) -> None:
        """Send what has been written, then close; with ``linger``, wait for the client to."""
        if self._farewell is None:
            farewell = self._leave()
            if linger and not self._half_closed:
                if not self._reading:
                    # Some clients read nothing before they have sent everything.
                    self._reading = True
                    self.transport.resumeProducing()
                farewell.linger(self.congested)
            else:
                farewell.close()

    def _release(self) -> None:
        """What was written for a response that is finished has gone, one way or the other."""
        handler, self._undrained = self._undrained, NOBODY
        try:
            handler.response_drained()
        except Exception:  # noqa: BLE001 - the reactor has others to serve
            _log.failure("the application failed after a response")

    def _reset(self) -> None:
        """Cut the connection off."""
        farewell = self._farewell
        if farewell is None:
            farewell = self._leave()
        farewell.reset()

    def _leave(self) -> Farewell:
        self._deaf = True
        self._waiting.clear()
        self._held = b""
        self._refusal = None
        self._deadlines.discard(self)
        limits = self._limits
        self._farewell = farewell = Farewell(
            self.transport,
            self.secure,
            self._deadlines,
            limits.idle_timeout,
            limits.linger_timeout,
            registered=self.switched is None or not self.switched.half_open,
        )
        return farewell

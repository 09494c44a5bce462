"""Origins in memory, stricter than real ones, and a handler that insists on its contract."""

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, ITCPTransport
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from sockgw.deadlines import Deadlines
from sockgw.http.client import Origin, OriginExchange, OriginPool
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.heads import Headers, RequestHead, ResponseHead

ORIGIN = Origin("http", "origin.example", 80)
HIGH_WATER = 65_536  # bytes


@implementer(ITCPTransport)
class Transport:
    """Raises on a second producer, on closing with one, and on writing or reading after closing."""

    def __init__(self) -> None:
        self.sent = b""
        self.buffered = b""
        self.producer: Any = None
        self.producer_paused = False
        self.reading = True
        self.closing = ""
        self.lost = False
        self.no_delay = False
        self.kept_alive = False
        self.half_closed = False
        self.protocol: Any = None

    def write(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        self.writeSequence([data])

    def writeSequence(self, parts: Iterable[bytes]) -> None:
        assert not self.closing, f"write after {self.closing}"
        assert not self.half_closed, "write after our own end"
        assert not self.lost, "write on a lost connection"
        self.buffered += b"".join(parts)
        if self.producer is not None and len(self.buffered) > HIGH_WATER:
            self.producer_paused = True
            self.producer.pauseProducing()

    def drain(self) -> bytes:
        """The peer reads everything. Returns what it has read since the last time."""
        data, self.buffered = self.buffered, b""
        self.sent += data
        if self.producer_paused and self.producer is not None:
            self.producer_paused = False
            self.producer.resumeProducing()
        return data

    def registerProducer(self, producer: object, streaming: bool) -> None:
        if self.producer is not None:
            raise RuntimeError("second producer")
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.kept_alive = enabled

    def loseWriteConnection(self) -> None:
        assert self.producer is None, "Twisted would not get to it"
        assert not self.half_closed
        self.half_closed = True

    def pauseProducing(self) -> None:
        assert self.reading, "paused twice"
        self.reading = False

    def resumeProducing(self) -> None:
        assert not self.reading, "resumed twice"
        self.reading = True

    def loseConnection(self) -> None:
        assert not self.closing
        assert self.producer is None, "TLS would not send its close_notify"
        self.closing = "loseConnection"

    def abortConnection(self) -> None:
        assert not self.lost, "TLS raises here"
        self.closing = "abortConnection"

    # the peer's side

    def receive(self, data: bytes) -> None:
        assert self.reading, "nothing is read while paused"
        self.decrypted(data)

    def half_close(self) -> None:
        """A FIN comes; Twisted asks whether the protocol can go on."""
        half: Any = IHalfCloseableProtocol(self.protocol, None)
        if half is None:
            self.end()
        else:
            half.readConnectionLost()

    def decrypted(self, data: bytes) -> None:
        """As TLS does: data may come after pauseProducing."""
        if not self.closing:
            self.protocol.dataReceived(data)

    def end(self, reason: Exception | None = None) -> None:
        """The connection is over; nothing tells a paused transport."""
        assert not self.lost
        self.lost = True
        if self.producer is not None:
            self.producer.stopProducing()
        if reason is None:
            aborted = self.closing == "abortConnection"
            reason = ConnectionAborted() if aborted else ConnectionDone()
        self.protocol.connectionLost(Failure(reason))

    def reset(self) -> None:
        self.end(ConnectionLost())


class Handler:
    """Records what comes; fails where something comes that must not."""

    def __init__(self) -> None:
        self.exchange: OriginExchange | None = None
        self.interim: list[int] = []
        self.head: ResponseHead | None = None
        self.chunks: list[bytes] = []
        self.trailers: Headers | None = None
        self.failure: tuple[StreamCode, str] | None = None
        self.drains = 0
        self.aborted = False
        self.hooks: dict[str, Callable[[], object]] = {}

    @property
    def over(self) -> bool:
        return self.trailers is not None or self.failure is not None or self.aborted

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def code(self) -> StreamCode | None:
        return self.failure and self.failure[0]

    def informed(self, head: ResponseHead) -> None:
        self._check()
        assert self.head is None
        assert 100 <= head.status < 200
        assert head.status != 101
        self.interim.append(head.status)
        self._hook("informed")

    def responded(self, head: ResponseHead) -> None:
        self._check()
        assert self.head is None, "responded twice"
        assert head.status >= 200
        self.head = head
        self._hook("responded")

    def body_received(self, data: bytes) -> None:
        self._check()
        assert self.head is not None
        assert data
        self.chunks.append(data)
        self._hook("body_received")

    def body_ended(self, trailers: Headers) -> None:
        self._check()
        assert self.head is not None
        self.trailers = trailers
        self._hook("body_ended")

    def failed(self, code: StreamCode, detail: str) -> None:
        self._check()
        assert isinstance(code, StreamCode)
        assert detail
        self.failure = (code, detail)
        self._hook("failed")

    suspended = False

    def request_drained(self) -> None:
        self._check()
        assert self.exchange is not None
        assert not self.exchange.congested
        self.drains += 1
        self._hook("request_drained")

    def abort(self) -> None:
        assert self.exchange is not None
        self.aborted = True
        self.exchange.abort()

    def _check(self) -> None:
        assert self.exchange is not None, "called before request() returned"
        assert not self.over, "called after the end"

    def _hook(self, name: str) -> None:
        hook = self.hooks.get(name)
        if hook is not None:
            hook()


class Bench:
    """A pool over strict transports, on a clock that stands still."""

    def __init__(self, *, dial_at_once: bool = True, **limits: Any) -> None:
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock)
        self.pool = OriginPool(self.clock, self._endpoint, self.deadlines, **limits)
        self.dial_at_once = dial_at_once
        self.dialled: list[Origin] = []
        self.waiting: list[tuple[Any, Deferred[Any]]] = []
        self.transports: list[Transport] = []
        self.dial_error: Exception | None = None
        self.cancelled = 0
        self.cancellable = True
        self.closed_at_once = False

    @property
    def transport(self) -> Transport:
        return self.transports[-1]

    def _endpoint(self, origin: Origin) -> Any:
        self.dialled.append(origin)
        if self.dial_error is not None:
            raise self.dial_error
        return self

    def connect(self, factory: Any) -> Deferred[Any]:
        connecting: Deferred[Any] = Deferred(self._cancel)
        self.waiting.append((factory, connecting))
        if self.dial_at_once:
            self.answer_dial()
        return connecting

    def _cancel(self, _connecting: object) -> None:
        self.cancelled += 1
        if not self.cancellable:
            self.answer_dial()

    def answer_dial(self, error: Exception | None = None) -> None:
        factory, connecting = self.waiting.pop(0)
        if error is not None:
            connecting.errback(error)
            return
        transport = Transport()
        self.transports.append(transport)
        protocol = transport.protocol = factory.buildProtocol(None)
        protocol.makeConnection(transport)
        if self.closed_at_once:
            transport.end()
        connecting.callback(protocol)

    def request(
        self,
        method: str = "GET",
        target: str = "/",
        headers: Headers | None = None,
        *,
        complete: bool = True,
        origin: Origin = ORIGIN,
        handler: Handler | None = None,
    ) -> Handler:
        handler = handler or Handler()
        if headers is None:
            headers = [(b"Host", b"a.example")]
        head = RequestHead(method.encode(), target.encode("latin-1"), headers)
        handler.exchange = self.pool.request(
            origin, head, complete=complete, handler=handler, host=b"b.example"
        )
        return handler

    def turn(self, seconds: float = 0.0) -> None:
        """Let time pass in steps as fine as the deadlines' tick."""
        while seconds > 0.25:
            self.clock.advance(0.25)
            seconds -= 0.25
        self.clock.advance(seconds)

"""TLS listeners that look at a client's first message, and leave some connections sealed.

::

    TCP, or a PROXY header before it ──▶ Sorter ──the name is a tls target's──▶ bytes to its origin
                                           │
                                           └──────────any other──────▶ TLS ──▶ HTTP

A sorter has a connection until it knows; then the connection's protocol is another one, which gets
all bytes from the first on as if it had been there all the time. Nothing of the sorter remains. It
is put there only while some target has ``protocol: tls``: others do not pay for it.

What is no ClientHello ends here with an alert, as sent by servers. What is not even TLS goes to the
TLS layer, which refuses it in the same way as on listeners without a sorter, and so does a client
that says nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from typing import Protocol as Seam

from twisted.internet.interfaces import IAddress, IProtocolFactory
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from sockgw.deadlines import Deadlines
from sockgw.http.application import Connection
from sockgw.http.networks import host_and_port
from sockgw.outer.clienthello import Fault, HelloError, HelloReader, NotTLS
from sockgw.outer.metrics import Metrics
from sockgw.outer.rawclient import RawClient, RawGateway
from sockgw.outer.targets import Target, Targets
from sockgw.proxied import Proxied
from sockgw.seldom import Seldom

__all__ = ["Passthrough"]

_log = Logger()

# Fatal alerts, in clear as all are before a handshake has begun (RFC 8446, section 6).
_DECODE_ERROR = b"\x15\x03\x03\0\2\2\x32"
_INTERNAL_ERROR = b"\x15\x03\x03\0\2\2\x50"


class Owner(RawGateway, Seam):
    """What sorters need of the gateway, besides what raw clients do."""

    @property
    def targets(self) -> Targets:
        """The targets in force."""

    def succeeded(self, connection: Connection, begin: Callable[[], None]) -> None:
        """``begin`` makes another connection that takes the place of this one."""


class Passthrough:
    """What all sorters of a gateway share."""

    def __init__(
        self,
        owner: Owner,
        deadlines: Deadlines,
        metrics: Metrics,
        seconds: Callable[[], float],
        *,
        patience: float,
        limit: int,
        flush_timeout: float,
    ) -> None:
        """``patience`` is in seconds for the whole ClientHello, ``limit`` in bytes; for
        ``flush_timeout`` see :class:`RawClient`.
        """
        self.owner = owner
        self.deadlines = deadlines
        self.patience = patience
        self.limit = limit
        self._metrics = metrics
        self._seconds = seconds
        self._flush_timeout = flush_timeout
        self._say = Seldom(seconds)

    def before(self, tls: IProtocolFactory) -> IProtocolFactory:
        """Return a factory that sorts connections before this one of TLS gets them."""
        return _SortingFactory(self, tls)

    @property
    def needed(self) -> bool:
        """Whether there is anything to sort out."""
        return self.owner.targets.sealed

    def find(self, name: str | None) -> Target | None:
        """Return the target that gets a connection as it is."""
        # As a request without Host: who names nothing can only mean the target for all others.
        found = self.owner.targets.match(name or "")
        return found if isinstance(found, Target) and found.protocol == "tls" else None

    def raw_client(self, target: Target, name: str | None) -> RawClient:
        """Return what carries all bytes of a connection to the origin of a target."""
        return RawClient(
            self.owner,
            target,
            self.deadlines,
            self._seconds,
            self._flush_timeout,
            name=(name or "-").encode("ascii"),
            refusal=_INTERNAL_ERROR,
        )

    def failed(self, address: str, error: HelloError) -> None:
        """A client's first bytes are no good ClientHello."""
        self._metrics.hello_refused(error.fault)
        if self._say.may():
            _log.info(
                "bad ClientHello address={address}: {reason}{rest}",
                address=address or "-",
                reason=str(error),
                rest=self._say.rest(),
            )


class _SortingFactory(Factory):
    """Stands before a factory of TLS connections."""

    noisy = False

    def __init__(self, passthrough: Passthrough, tls: IProtocolFactory) -> None:
        self._passthrough = passthrough
        self.wrappedFactory = tls

    def doStart(self) -> None:
        self.wrappedFactory.doStart()
        super().doStart()

    def doStop(self) -> None:
        self.wrappedFactory.doStop()
        super().doStop()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if self._passthrough.needed:
            return _Sorter(self._passthrough, self.wrappedFactory, addr)
        return self.wrappedFactory.buildProtocol(cast(IAddress, addr))


class _Sorter(Protocol):
    """A connection of which nobody knows yet whose it is."""

    # As a connection of the gateway's, which has no request.
    notes: object | None = None
    secure = True
    busy = False
    protocol = "TLS"

    transport: Any

    def __init__(
        self, passthrough: Passthrough, tls: IProtocolFactory, addr: IAddress | None
    ) -> None:
        self._passthrough = passthrough
        self._tls = tls
        self._addr = addr
        self._reader = HelloReader(passthrough.limit)
        self._undecided = False
        self._admitted = False
        self.deadline: float | None = None

    def connectionMade(self) -> None:
        passthrough = self._passthrough
        if not passthrough.owner.connected(self):
            self.transport.abortConnection()
            return
        self._undecided = self._admitted = True
        patience = passthrough.deadlines.after(passthrough.patience)
        self.deadline = patience if self.deadline is None else min(self.deadline, patience)
        passthrough.deadlines.watch(self)

    def dataReceived(self, data: bytes) -> None:
        if not self._undecided:
            return
        try:
            hello = self._reader.feed(data)
        except NotTLS:
            self._replace(self._tls.buildProtocol(cast(IAddress, self._addr)))
            return
        except HelloError as error:
            self._fail(error)
            self._undecided = False
            self.transport.write(_DECODE_ERROR)
            self.transport.loseConnection()
            return
        if hello is None:
            return
        target = self._passthrough.find(hello.server_name)
        if target is None:
            self._replace(self._tls.buildProtocol(cast(IAddress, self._addr)))
        else:
            self._replace(self._passthrough.raw_client(target, hello.server_name))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._undecided = False
        self._passthrough.deadlines.discard(self)
        if self._admitted:
            self._passthrough.owner.disconnected(self)

    @property
    def peer_address(self) -> str:
        """The client's address as text; "" for none."""
        return host_and_port(self.transport.getPeer())[0]

    @property
    def local_port(self) -> int:
        """The port that the client has connected to."""
        return host_and_port(self.transport.getHost())[1]

    def drop(self) -> None:
        """Cut the client off."""
        self._undecided = False
        self.transport.abortConnection()

    def drain(self, grace: float) -> None:
        """The gateway closes; who has begun to speak may go on for so many seconds."""
        patience = self._passthrough.deadlines.after(grace)
        self.deadline = patience if self.deadline is None else min(self.deadline, patience)

    def expired(self) -> None:
        self._passthrough.deadlines.discard(self)
        if self._undecided and self._reader.received:
            self._fail(HelloError(Fault.TIMEOUT, "it did not come in time"))
        self._undecided = False
        self.transport.abortConnection()

    def _fail(self, error: HelloError) -> None:
        self._passthrough.failed(self.peer_address, error)

    def _replace(self, successor: Any) -> None:
        """Make another protocol the connection's, and give it all that has come."""
        transport = self.transport
        self._undecided = False
        self._passthrough.deadlines.discard(self)

        def begin() -> None:
            if isinstance(transport, Proxied):
                transport.pass_to(successor)
            else:
                transport.protocol = successor
            successor.makeConnection(transport)

        self._passthrough.owner.succeeded(self, begin)
        successor.dataReceived(bytes(self._reader.received))

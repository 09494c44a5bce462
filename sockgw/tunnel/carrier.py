"""The carrier: one WebSocket connection, and the only file that knows Autobahn.

Both ends are the same thing to their listener: whole binary messages in and out, a sign of life for
every byte that comes, pause and resume from the transport below, and one ``closed`` at the end.

What Autobahn does by itself and is undone here: it formats debug lines and fires Deferreds for
every message, logs each failure although its owner does, accepts any Origin, and knows no limits
until told.
"""

from __future__ import annotations

from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from autobahn.websocket import USES_NVX
from autobahn.websocket.types import ConnectionDeny
from OpenSSL import SSL
from twisted.internet.interfaces import IAddress, IProtocolFactory, IPushProducer, IReactorTime
from twisted.web.resource import IResource
from zope.interface import implementer

from sockgw.protocol.frames import MAX_MESSAGE

__all__ = [
    "FAST_MASKING",
    "SUBPROTOCOL",
    "Carrier",
    "CarrierListener",
    "client_factory",
    "server_resource",
]

SUBPROTOCOL = "sockgw.1"

FAST_MASKING: bool = bool(USES_NVX)
"""Whether masking is native; without it each byte costs a step of the interpreter."""

MAX_GREETING = 8_192  # bytes of a message before the peer has said who it is

_REFUSED = 1008  # "policy violation", RFC 6455 section 7.4.1: all that a stranger is told


class CarrierListener(Protocol):
    """Who uses a carrier. It may hand over to another by setting ``carrier.listener``."""

    def heard(self) -> None:
        """Some bytes came, whatever they are: the peer lives."""

    def message_received(self, message: bytes) -> None:
        """A whole binary message came."""

    def pause(self) -> None:
        """The transport is full: send nothing until ``resume``. May come from within ``send``."""

    def resume(self) -> None:
        """The transport is empty again."""

    def closed(self, reason: str, refused: bool) -> None:
        """The connection is over; called once. ``refused``: the peer wants no more of us."""


class Carrier(Protocol):
    """One end of an open WebSocket."""

    listener: CarrierListener
    peer_address: str
    """The peer's IP address as text, or how the socket is called."""
    host: str
    """The host name that the dialling side asked for, in lower case and without a port."""

    def send(self, message: bytes) -> None:
        """Send a binary message; does nothing on a closed connection."""

    def allow_large(self) -> None:
        """The peer is known: messages may be as long as the protocol says."""

    def refuse(self) -> None:
        """Close without a reason."""

    def close(self) -> None:
        """Close in good order, and by force if the peer does not answer."""

    def abort(self) -> None:
        """Drop the connection at once."""

    def channel_binding(self) -> bytes | None:
        """The TLS exporter value (RFC 9266) of this very connection; None without TLS."""


class _Silence:
    """A logger that says nothing: whoever listens to the carrier logs what matters, once."""

    def debug(self, *args: object, **fields: object) -> None:
        pass

    trace = info = warn = error = failure = critical = debug


@implementer(IPushProducer)
class _CarrierMixin:
    """What server and client side have in common; see :class:`Carrier`."""

    log = _Silence()
    listener: CarrierListener
    transport: Any
    peer_address = ""
    host = ""

    def _start(self) -> None:
        transport = self.transport
        # After an upgrade the HTTP channel is still the transport's producer.
        transport.unregisterProducer()
        transport.registerProducer(self, True)

    # Autobahn's hooks, in camel case.

    def dataReceived(self, data: bytes) -> None:
        listener = getattr(self, "listener", None)
        if listener is not None:
            listener.heard()
        self._dataReceived(data)  # type: ignore[attr-defined]

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        # Without the debug line that is coloured for each message, and the tests' chopping.
        self.transport.write(data)

    def onMessageEnd(self) -> None:
        # What the base class does, without a Deferred for each message.
        if not self.failedByMe:  # type: ignore[attr-defined]
            message = b"".join(self.message_data)  # type: ignore[has-type]
            if self.message_is_binary:  # type: ignore[attr-defined]
                self.listener.message_received(message)
            else:
                self._protocol_violation("text message")  # type: ignore[attr-defined]
        self.message_data = None

    def onPing(self, payload: bytes) -> None:
        # Ours are frames. Answered by the standard, but not beyond what the transport takes.
        if not self._full:
            super().onPing(payload)  # type: ignore[misc]

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        listener = getattr(self, "listener", None)
        if listener is not None:
            listener.closed(reason or f"closed with code {code}", code == _REFUSED)

    # The transport's producer.

    _full = False

    def pauseProducing(self) -> None:
        if not self._full:
            self._full = True
            self.listener.pause()

    def resumeProducing(self) -> None:
        if self._full:
            self._full = False
            self.listener.resume()

    def stopProducing(self) -> None:
        # The transport is gone; onClose tells.
        self._full = True

    # Ours.

    def send(self, message: bytes) -> None:
        if self.state == self.STATE_OPEN:  # type: ignore[attr-defined]
            self.sendMessage(message, True)  # type: ignore[attr-defined]

    def allow_large(self) -> None:
        self.maxFramePayloadSize = MAX_MESSAGE
        self.maxMessagePayloadSize = MAX_MESSAGE

    def refuse(self) -> None:
        self.sendClose(_REFUSED)  # type: ignore[attr-defined]

    def close(self) -> None:
        self.sendClose(1000)  # type: ignore[attr-defined]

    def abort(self) -> None:
        self.dropConnection(abort=True)  # type: ignore[attr-defined]

    def channel_binding(self) -> bytes | None:
        handle = getattr(self.transport, "getHandle", lambda: None)()
        if not isinstance(handle, SSL.Connection):
            return None
        return handle.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")


class _OuterCarrier(_CarrierMixin, WebSocketServerProtocol):  # type: ignore[misc]
    """The end that was dialled."""

    factory: _OuterFactory

    def onConnect(self, request: Any) -> str:
        if SUBPROTOCOL not in request.protocols:
            raise ConnectionDeny(ConnectionDeny.BAD_REQUEST, "unknown subprotocol")
        self.host = request.host.lower().strip("[]")
        address = self.transport.getPeer()
        self.peer_address = getattr(address, "host", None) or "unix"
        return SUBPROTOCOL

    def onOpen(self) -> None:
        self.factory.opened(cast(Carrier, self))
        self._start()


class _InnerCarrier(_CarrierMixin, WebSocketClientProtocol):  # type: ignore[misc]
    """The end that dials."""

    factory: _InnerFactory

    def onConnect(self, response: Any) -> None:
        if response.protocol != SUBPROTOCOL:
            self._fail_connection(1002, "the server does not speak this protocol")

    def onOpen(self) -> None:
        address = self.transport.getPeer()
        self.peer_address = getattr(address, "host", None) or "unix"
        self.host = self.factory.dialled
        self.factory.opened(cast(Carrier, self))
        self._start()

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        if hasattr(self, "listener"):
            super().onClose(wasClean, code, reason)
        else:
            self.factory.failed(reason or "the connection was closed")


class Opened(Protocol):
    """Called with each carrier that opens; must set ``carrier.listener``."""

    def __call__(self, carrier: Carrier, /) -> None: ...


class Failed(Protocol):
    """Called with the reason why a dialled connection did not become a carrier."""

    def __call__(self, reason: str, /) -> None: ...


class _OuterFactory(WebSocketServerFactory):  # type: ignore[misc]
    protocol = _OuterCarrier
    noisy = False
    log = _Silence()
    opened: Opened

    def buildProtocol(self, addr: IAddress) -> Any:
        carrier = super().buildProtocol(addr)
        carrier.peer_address = getattr(addr, "host", None) or "unix"
        return carrier


class _InnerFactory(WebSocketClientFactory):  # type: ignore[misc]
    protocol = _InnerCarrier
    noisy = False
    log = _Silence()
    opened: Opened
    failed: Failed
    dialled: str


_LIMITS = {
    "maxFramePayloadSize": MAX_GREETING,
    "maxMessagePayloadSize": MAX_GREETING,
    "autoPingInterval": 0,  # the protocol's own pings measure and never starve
    "failByDrop": True,
    "closeHandshakeTimeout": 1,
    "tcpNoDelay": True,
    "utf8validateIncoming": False,  # text is refused whole
}


def server_resource(reactor: IReactorTime, handshake_timeout: float, opened: Opened) -> IResource:
    """Return the resource that turns upgrade requests into carriers.

    ``handshake_timeout`` (seconds) bounds the WebSocket's own opening.
    """
    factory = _OuterFactory(server="sockgw", reactor=reactor)
    factory.opened = opened
    factory.setProtocolOptions(
        versions=[13],
        webStatus=False,
        openHandshakeTimeout=handshake_timeout,
        allowedOrigins=[],  # an inner layer is no browser and sends none
        allowNullOrigin=False,
        **_LIMITS,
    )
    return cast(IResource, WebSocketResource(factory))


def client_factory(
    reactor: IReactorTime, url: str, handshake_timeout: float, opened: Opened, failed: Failed
) -> IProtocolFactory:
    """Return a factory for one dialled carrier to that ws:// or wss:// URL."""
    factory = _InnerFactory(url, protocols=[SUBPROTOCOL], useragent="sockgw", reactor=reactor)
    factory.opened = opened
    factory.failed = failed
    factory.dialled = (urlsplit(url).hostname or "").lower()
    factory.setProtocolOptions(
        openHandshakeTimeout=handshake_timeout, serverConnectionDropTimeout=1, **_LIMITS
    )
    return cast(IProtocolFactory, factory)

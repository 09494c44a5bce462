"""The carrier: one WebSocket connection, and the only file that knows Autobahn.

Both ends are the same thing to their listener: whole binary messages in and out, a sign of life for
every byte that comes, pause and resume from the transport below, and one ``closed`` at the end.

A peer that is known sends whole binary messages and hardly anything else. Those are taken here,
before Autobahn, which makes two dozen calls for each of them and as many for each read that brings
a part of one. It gets all the rest: control frames, fragments, text, and whatever is wrong; it has
the last word on what breaks the standard, and what a stranger sends is all its own. Between two
frames it hands back, so that one ping does not leave it with all that follows.

What Autobahn does by itself and is undone here: it formats debug lines and fires Deferreds for
every message, logs each failure although its owner does, accepts any Origin, and knows no limits
until told. Its timers run on the global reactor, floored to whole seconds, and do not cover a peer
that begins to close and then keeps the connection: the two that are needed are our own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from struct import Struct
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from autobahn.websocket.types import ConnectionDeny
from OpenSSL import SSL
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocolFactory,
    IPushProducer,
    IReactorTime,
)
from twisted.web.resource import IResource
from zope.interface import implementer

from sockgw.protocol.frames import MAX_MESSAGE
from sockgw.tunnel.masking import mask

__all__ = [
    "NOBODY",
    "SUBPROTOCOL",
    "Carrier",
    "CarrierListener",
    "client_factory",
    "server_resource",
]

SUBPROTOCOL = "sockgw.1"

MAX_GREETING = 8_192  # bytes of a message before the peer has said who it is
# Bytes of everything before that: one read of a socket, several times what a handshake can have.
# Pings and frames without content have no other bound, and cost us more than a stranger.
_MAX_FROM_STRANGER = 65_536
_MAX_ANSWER = 16_384  # bytes of the answer to an upgrade request
_END_TIMEOUT = 1.0  # seconds from the first word of an end, by either side, until it is made

# Bytes that the kernel takes beyond what it has sent. What it was handed cannot be overtaken
# by a frame that matters more; with less it might run dry before we are told to go on.
NOT_SENT = 65_536
_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)  # linux/tcp.h

_CONNECTING = WebSocketServerProtocol.STATE_CONNECTING
_OPEN = WebSocketServerProtocol.STATE_OPEN
_CLOSED = WebSocketServerProtocol.STATE_CLOSED

# RFC 6455, section 5.2: the first byte, one that says whether there is a key, and the length.
_BINARY = 0x82  # the only frame of a binary message, without extensions
_KEYED = 0x80
_SMALL = 125  # bytes; longer than that have their length in the bytes that follow
_head = Struct(">BB").pack
_head_16 = Struct(">BBH").pack
_head_64 = Struct(">BBQ").pack
_KEYS = 1_024  # bytes of randomness that are drawn at once

_DONE = 1000  # "normal closure", RFC 6455 section 7.4.1
_REFUSED = 1008  # "policy violation", RFC 6455 section 7.4.1: all that a stranger is told


class CarrierListener(Protocol):
    """Who uses a carrier. It may hand over to another by setting ``carrier.listener``."""

    def heard(self) -> None:
        """Some bytes came, whatever they are: the peer lives."""

    def message_received(self, message: bytes) -> None:
        """A whole binary message came; ``heard`` is not said beside it."""

    def pause(self) -> None:
        """The transport is full: send nothing until ``resume``. May come from within ``send``."""

    def resume(self) -> None:
        """The transport is empty again."""

    def closed(self, reason: str, refused: bool) -> None:
        """The connection is over; called once. ``refused``: the peer wants no more of us."""


class _Nobody:
    """Listens to a carrier that has no use any more."""

    def heard(self) -> None:
        pass

    def message_received(self, message: bytes) -> None:
        pass

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def closed(self, reason: str, refused: bool) -> None:
        pass


NOBODY: CarrierListener = _Nobody()


class Carrier(Protocol):
    """One end of an open WebSocket.

    After ``refuse``, ``close`` and ``abort`` no more messages come, only ``closed``.
    """

    listener: CarrierListener
    peer_address: str
    """The peer's IP address as text, or how the socket is called."""
    dismissed: bool
    """Once it is closed: the peer has closed it in good order (code 1000)."""
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


def _nothing() -> None:
    pass


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
    factory: Any
    state: int
    peer_address = ""
    host = ""
    dismissed = False
    _timer: IDelayedCall | None = None
    _gone = False  # there is no connection any more, or soon

    # Autobahn's, of what it has begun to read.
    data: bytes
    current_frame: object
    inside_message: bool

    _known = False
    _allowance: int | None = None  # bytes that a peer may send before it is known
    _their_key = 0  # _KEYED where the peer must mask what it sends
    _our_key = 0  # the same for us
    _half = bytearray()  # of a message that has begun to come
    _half_key = b""
    _missing = 0  # bytes of that message that are to come
    _keys = b""  # randomness for masks, and where the next one begins
    _next_key = 0

    def _start(self) -> None:
        self._keep_the_kernels_queue_short()
        # Messages are whole, and those of a turn are one; TLS need not wait for more.
        getattr(self.transport, "write_at_once", _nothing)()
        # After an upgrade the HTTP channel is still the transport's producer.
        self.transport.unregisterProducer()
        if self.state == _OPEN:
            self.transport.registerProducer(self, True)

    def _keep_the_kernels_queue_short(self) -> None:
        # TLS wraps the transport that has the socket; a UNIX socket does not know the option.
        owner = getattr(self.transport, "transport", self.transport)
        with suppress(AttributeError, OSError):
            owner.socket.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, NOT_SENT)

    # Autobahn's hooks, in camel case.

    def dataReceived(self, data: bytes) -> None:
        if not self._known:
            if self._allowance is not None and self.state != _CONNECTING:
                self._allowance -= len(data)
                if self._allowance < 0:
                    self.abort()
                    return
        elif self._missing or (
            self.current_frame is None and not self.inside_message and not self.data
        ):
            data = self._take(data)
            if not data:
                return
        state = self.state
        if state == _OPEN:
            self.listener.heard()
        elif state == _CLOSED:
            return  # Autobahn would pile it up
        self._dataReceived(data)  # type: ignore[attr-defined]

    def processData(self) -> bool:
        # Called in a loop, until it is false; whatever is left in ``data`` is awaited.
        if self._known and self.current_frame is None and not self.inside_message:
            data, self.data = self.data, b""
            self.data = self._take(data)
            if not self.data or self.state == _CLOSED:
                return False
        return bool(super().processData())  # type: ignore[misc]

    def _take(self, data: bytes) -> bytes:
        """Deliver the messages at the front of ``data``, which begins with a frame or goes on with
        one. Return the rest, which is Autobahn's: it begins with another frame.
        """
        size = len(data)
        position = missing = self._missing
        if missing:
            if size < missing:
                self._half += data
                self._missing = missing - size
                if self.state == _OPEN:
                    self.listener.heard()
                return b""
            self._half += memoryview(data)[:missing]
            half, self._half = self._half, bytearray()
            self._missing = 0
            if self.state == _OPEN:  # or nobody waits for it any more
                self.listener.message_received(
                    mask(self._half_key, half) if self._their_key else bytes(half)
                )
        keyed = self._their_key
        while size - position >= 2 and data[position] == _BINARY and self.state == _OPEN:
            length = data[position + 1] ^ keyed  # with the wrong bit it is beyond 127
            start = position + 2
            if length > _SMALL:
                if length == 126:
                    start += 2
                    length = int.from_bytes(data[position + 2 : start], "big")
                    if length < 126:
                        break
                elif length == 127:
                    start += 8
                    length = int.from_bytes(data[position + 2 : start], "big")
                    if length < 65_536:
                        break
                else:
                    break
            if keyed:
                start += 4
            if start > size or length > MAX_MESSAGE:
                break
            end = start + length
            if end > size:
                self._half_key = data[start - 4 : start]
                self._half = bytearray(memoryview(data)[start:])
                self._missing = end - size
                if not position:
                    self.listener.heard()
                return b""
            position = end
            message = data[start:end]
            self.listener.message_received(
                mask(data[start - 4 : start], message) if keyed else message
            )
        return data[position:]

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        # Without the debug line that is coloured for each message, and the tests' chopping.
        self.transport.write(data)

    def onMessageFrameData(self, payload: bytes) -> None:
        # A message may have any number of empty frames: remembering each would know no bound.
        if payload:
            super().onMessageFrameData(payload)  # type: ignore[misc]

    def onMessageEnd(self) -> None:
        # What the base class does, without a Deferred for each message.
        if self.state == _OPEN:
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

    def sendCloseFrame(self, *args: Any, **kwargs: Any) -> None:
        # Also the answer to the peer's.
        super().sendCloseFrame(*args, **kwargs)  # type: ignore[misc]
        self._limit(_END_TIMEOUT, self._cut)

    def _closeConnection(self, abort: bool = False) -> None:
        if abort:
            self._cut()
        else:
            # What waits to be sent goes first, if the peer takes it.
            self._limit(_END_TIMEOUT, self._cut)
            self.transport.loseConnection()

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self._gone = True
        self._limit(None)
        self.dismissed = code == _DONE
        self._closed(reason or f"closed with code {code}", code == _REFUSED)

    def _closed(self, reason: str, refused: bool) -> None:
        if hasattr(self, "listener"):
            self.listener.closed(reason, refused)

    # Time.

    def _limit(self, seconds: float | None, late: Callable[[], None] | None = None) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if seconds is not None and late is not None and not self._gone:
            self._timer = self.factory.reactor.callLater(seconds, late)

    def _cut(self) -> None:
        if not self._gone:
            self._gone = True
            self.transport.abortConnection()

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
        if self.state != _OPEN:
            return
        size = len(message)
        if not self._known or size > MAX_MESSAGE:
            self.sendMessage(message, True)  # type: ignore[attr-defined]
            return
        keyed = self._our_key
        if size <= _SMALL:
            head = _head(_BINARY, keyed | size)
        elif size < 65_536:
            head = _head_16(_BINARY, keyed | 126, size)
        else:
            head = _head_64(_BINARY, keyed | 127, size)
        if keyed:
            key = self._key()
            head += key
            message = mask(key, message)
        self.transport.writeSequence((head, message))

    def _key(self) -> bytes:
        # RFC 6455, section 10.3: no one may foresee it, or choose what is seen on the wire.
        begin = self._next_key
        self._next_key = begin + 4
        key = self._keys[begin : begin + 4]
        if not key:
            self._keys = os.urandom(_KEYS)
            self._next_key = 4
            key = self._keys[:4]
        return key

    def allow_large(self) -> None:
        self._known = True
        self.maxFramePayloadSize = MAX_MESSAGE
        self.maxMessagePayloadSize = MAX_MESSAGE

    def refuse(self) -> None:
        # sendClose() takes no code below 3000 but 1000.
        self.sendCloseFrame(_REFUSED)

    def close(self) -> None:
        self.sendCloseFrame(_DONE)

    def abort(self) -> None:
        if not self._gone:  # Twisted's TLS raises on a lost connection
            self.dropConnection(abort=True)  # type: ignore[attr-defined]
            self._cut()  # an end in good order may have begun, which the line above leaves alone

    def channel_binding(self) -> bytes | None:
        handle = getattr(self.transport, "getHandle", lambda: None)()
        if not isinstance(handle, SSL.Connection):
            return None
        return handle.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")


class _OuterCarrier(_CarrierMixin, WebSocketServerProtocol):  # type: ignore[misc]
    """The end that was dialled."""

    factory: _OuterFactory
    _their_key = _KEYED
    _allowance = _MAX_FROM_STRANGER

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
    _our_key = _KEYED

    def connectionMade(self) -> None:
        self._limit(self.factory.handshake_timeout, self._late)
        super().connectionMade()

    def _late(self) -> None:
        self._fail_connection(1002, "the WebSocket did not open in time")

    def processHandshake(self) -> None:
        if len(self.data) > _MAX_ANSWER:
            self._fail_connection(1002, "too long an answer to the upgrade request")
            return
        try:
            super().processHandshake()
        except Exception as error:  # noqa: BLE001 - Autobahn takes the answer for well-formed
            self._fail_connection(1002, f"the answer is no HTTP ({type(error).__name__})")

    def onConnect(self, response: Any) -> None:
        if response.protocol != SUBPROTOCOL:
            self._fail_connection(1002, "the server does not speak this protocol")

    def onOpen(self) -> None:
        if self.state != _OPEN:
            return  # onConnect has refused
        self._limit(None)
        address = self.transport.getPeer()
        self.peer_address = getattr(address, "host", None) or "unix"
        self.host = self.factory.dialled
        self.factory.opened(cast(Carrier, self))
        self._start()

    def _closed(self, reason: str, refused: bool) -> None:
        if hasattr(self, "listener"):
            self.listener.closed(reason, refused)
        else:
            self.factory.failed(reason)


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
    handshake_timeout: float


_LIMITS = {
    "maxFramePayloadSize": MAX_GREETING,
    "maxMessagePayloadSize": MAX_GREETING,
    "autoPingInterval": 0,  # the protocol's own pings measure and never starve
    "failByDrop": True,
    "closeHandshakeTimeout": 0,
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
    if ":" in factory.dialled:
        factory.host = f"[{factory.dialled}]"  # for the Host header: RFC 3986, section 3.2.2
    factory.handshake_timeout = handshake_timeout
    factory.setProtocolOptions(openHandshakeTimeout=0, serverConnectionDropTimeout=0, **_LIMITS)
    return cast(IProtocolFactory, factory)

"""The demonstration's chat: a room of WebSockets, in which each hears what the others say.

The WebSocket is Autobahn's, upon an exchange that was switched: it is handed the request as bytes
again, and what it writes before the end of a head is the answer.

Whoever comes may be anybody. There is a bound to how many are in the room, how long a message is,
how fast one speaks, and how much waits for one who does not listen.
"""

# Autobahn has no types that would help:
# mypy: disable-error-code="misc"

from __future__ import annotations

import json
import time
from collections import deque
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure

from sockgw.http.application import ClientExchange
from sockgw.protocol.heads import Headers, ResponseHead

__all__ = ["Room", "Visit"]

_MAX_VISITS = 50
_MAX_MESSAGE = 4096  # bytes on the wire
_MAX_NAME = 24  # characters
_MAX_TEXT = 500  # characters
_MAX_KEPT = 20  # messages that who comes later is told
_RATE = 5.0  # messages a second
_BURST = 20  # messages at once
_END_TIMEOUT = 2.0  # seconds from the first word of an end until it is made

_POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1
_DROPPED = (b"connection", b"server", b"upgrade", b"x-powered-by")


class _Member(WebSocketServerProtocol):
    """One who is in the room."""

    factory: Room
    transport: Visit

    def onOpen(self) -> None:
        self._allowance = float(_BURST)
        self._counted = self.factory.clock.seconds()
        self.factory.entered(self)

    def onMessageFrameData(self, payload: bytes) -> None:
        if payload:  # of empty ones there might be any number
            super().onMessageFrameData(payload)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        now = self.factory.clock.seconds()
        self._allowance = min(_BURST, self._allowance + (now - self._counted) * _RATE) - 1
        self._counted = now
        said = None if isBinary or self._allowance < 0 else _said(payload)
        if said is None:
            self.sendCloseFrame(_POLICY_VIOLATION, reasonUtf8=b"not like this")
        else:
            self.factory.say(*said)

    def onPing(self, payload: bytes) -> None:
        if not self.transport.exchange.congested:
            super().onPing(payload)

    def sendCloseFrame(self, *args: Any, **kwargs: Any) -> None:
        super().sendCloseFrame(*args, **kwargs)
        self.transport.end_soon()

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self.factory.left(self)


class Room(WebSocketServerFactory):
    """Who is there, and what was said lately."""

    protocol = _Member

    def __init__(self, clock: Any) -> None:
        super().__init__(server="", reactor=clock)
        # Its timers would run on the global reactor: ours end what has to end.
        self.setProtocolOptions(
            maxFramePayloadSize=_MAX_MESSAGE,
            maxMessagePayloadSize=_MAX_MESSAGE,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            failByDrop=False,
        )
        self.clock = clock
        self.visits = 0  # open or about to be
        self._members: dict[_Member, None] = {}
        self._kept: deque[bytes] = deque(maxlen=_MAX_KEPT)

    @property
    def full(self) -> bool:
        """There is no room for another."""
        return self.visits >= _MAX_VISITS

    def entered(self, member: _Member) -> None:
        """Tell the new one what was said, and all how many there are."""
        self._members[member] = None
        for message in self._kept:
            member.sendMessage(message)
        self.tell(kind="here", count=len(self._members))

    def left(self, member: _Member) -> None:
        """Tell the others."""
        if member in self._members:
            del self._members[member]
            self.tell(kind="here", count=len(self._members))

    def say(self, name: str, text: str) -> None:
        """Tell all, and those who will come."""
        message = _message(kind="said", name=name, text=text, time=time.strftime("%H:%M:%S"))
        self._kept.append(message)
        self._send(message)

    def tell(self, **fields: str | int) -> None:
        """Tell all who are here."""
        self._send(_message(**fields))

    def _send(self, message: bytes) -> None:
        for member in list(self._members):
            if member.transport.exchange.congested:
                member.transport.abortConnection()  # it may come again, and is told what it missed
            else:
                member.sendMessage(message)


class Visit:
    """The handler of a request for a WebSocket, and the transport of that."""

    def __init__(self, exchange: ClientExchange, room: Room) -> None:
        self.exchange = exchange
        self._room = room
        self._answer: bytearray | None = bytearray()  # until its head is whole
        self._timer: Any = None
        self._over = False
        room.visits += 1
        self._protocol = room.buildProtocol(None)
        self._protocol.makeConnection(self)
        head = exchange.head
        lines = [b"%b %b HTTP/1.1" % (head.method, head.target)]
        lines += [b"%b: %b" % field for field in head.headers]
        lines += (b"Connection: upgrade", b"Upgrade: " + head.upgrade, b"", b"")
        self._protocol.dataReceived(b"\r\n".join(lines))

    # The exchange's handler.

    def body_received(self, data: bytes) -> None:
        if not self._over:
            self._protocol.dataReceived(data)

    def body_ended(self, trailers: Headers) -> None:
        self.loseConnection()

    def client_lost(self) -> None:
        self._lost(ConnectionLost())

    def client_left(self) -> None:
        self._lost(ConnectionDone())

    def response_drained(self) -> None:
        pass

    # The protocol's transport.

    def write(self, data: bytes) -> None:
        if self._over:
            return
        if self._answer is None:
            self.exchange.write(data)
            return
        self._answer += data
        head, end, rest = bytes(self._answer).partition(b"\r\n\r\n")
        if end:
            self._answer = None
            self._respond(head)
            self.exchange.write(rest)

    def loseConnection(self) -> None:
        if not self._over:
            self.end_soon()
            if self._answer is None:
                self.exchange.finish()
            else:
                self.exchange.abort()
            self._lost(ConnectionDone())

    def abortConnection(self) -> None:
        self.exchange.drop()
        self._lost(ConnectionLost())

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", self.exchange.connection.peer_address, 0)

    getHost = getPeer

    def unregisterProducer(self) -> None:
        pass  # the connection's is the gateway's server

    def end_soon(self) -> None:
        """Cut the client off unless it has gone by itself until then."""
        if self._timer is None:
            self._timer = self._room.clock.callLater(_END_TIMEOUT, self.exchange.drop)

    def _respond(self, head: bytes) -> None:
        line, *fields = head.split(b"\r\n")
        _, status, reason = line.split(b" ", 2)
        pairs = [(name, value.strip()) for name, _, value in (f.partition(b":") for f in fields)]
        headers = [pair for pair in pairs if pair[0].lower() not in _DROPPED]
        upgrade = b"websocket" if status == b"101" else b""
        self.exchange.respond(ResponseHead(int(status), reason, headers, upgrade=upgrade))

    def _lost(self, reason: Exception) -> None:
        if not self._over:
            self._over = True
            self._room.visits -= 1
            self._protocol.connectionLost(Failure(reason))


def _message(**fields: str | int) -> bytes:
    return json.dumps(fields).encode()


def _said(payload: bytes) -> tuple[str, str] | None:
    """Return name and text of a client's message, cut to size; None where it is none."""
    try:
        fields = json.loads(payload)
        name, text = fields["name"], fields["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(name, str) or not isinstance(text, str) or not text.strip():
        return None
    return _printable(name)[:_MAX_NAME] or "somebody", _printable(text)[:_MAX_TEXT]


def _printable(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable()).strip()

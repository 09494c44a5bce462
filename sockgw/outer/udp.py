"""UDP targets: one stream for each client's address, until both have been silent for a while.

A client is an exchange like that of TCP (:mod:`sockgw.outer.rawclient`), whose bytes are datagrams
with their lengths. What the stream does not take waits, and the oldest of it is dropped when there
is no room. Source addresses of UDP can be forged: a client costs one of ``max-udp-clients`` places
and nothing else, and is sent only what its target answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from typing import Protocol as Seam

from twisted.internet.error import MessageLengthError
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger

from sockgw.deadlines import Deadlines
from sockgw.http.application import NOBODY, Connection, RequestHandler
from sockgw.http.networks import canonical
from sockgw.outer.config import OuterConfig
from sockgw.outer.targets import Target
from sockgw.protocol.datagrams import DatagramReader, Waiting, frame
from sockgw.protocol.heads import Headers, RequestHead, ResponseHead

__all__ = ["UDPClient", "UDPGateway", "UDPListener"]

_log = Logger()

# Seconds for which an address whose client was refused is not listened to. Each datagram would
# otherwise be another refusal, with a line in the log.
_PAUSE = 1.0

_MAX_WAITING_BYTES = 262_144  # of one client; four datagrams of the largest size at least


class UDPGateway(Seam):
    """Whom a client asks (:class:`sockgw.outer.gateway.Gateway`)."""

    def connected(self, connection: Connection) -> bool:
        """A client came. False: one too many, and ``disconnected`` is not called."""

    def disconnected(self, connection: Connection) -> None:
        """A client has gone."""

    def connect_udp(self, exchange: UDPClient, target: Target) -> RequestHandler:
        """Have a client connected to a target. It may be refused within this call."""

    def datagrams_dropped(self, count: int) -> None:
        """So many datagrams found no room."""


class UDPClient:
    """One client's address: connection and exchange in one."""

    host = b""
    expects_continue = False
    body_expected = True
    refused = False
    secure = False
    busy = True
    congested = False
    protocol = "UDP"

    def __init__(self, listener: UDPListener, address: tuple[str, int], started: float) -> None:
        self._listener = listener
        self._address = address
        self._handler: RequestHandler = NOBODY
        self._reader = DatagramReader()
        self._waiting: Waiting | None = None  # while the stream takes no more
        self._over = False
        self.head = RequestHead(b"CONNECT", listener.target.name.encode("latin-1", "replace"), [])
        self.notes: object | None = None
        self.complete = False
        self.started = started
        self.bytes_received = 0
        self.bytes_sent = 0
        self.deadline: float | None = None

    @property
    def connection(self) -> UDPClient:
        """The client."""
        return self

    @property
    def over(self) -> bool:
        """Whether it is served no longer."""
        return self._over

    @property
    def peer_address(self) -> str:
        """The client's address as text."""
        return canonical(self._address[0])

    @property
    def local_port(self) -> int:
        """The port that the client sends to."""
        return self._listener.local_port

    # ------------------------------------------------------------------ from the listener

    def begin(self, handler: RequestHandler) -> None:
        """From now on this one gets what comes; unless it was refused already."""
        if not self._over:
            self._handler = handler

    def received(self, datagram: bytes) -> None:
        """The client has sent one."""
        if self._over:
            return
        self._listener.touch(self)
        self.bytes_received += len(datagram)
        if self._waiting is None:
            self._handler.body_received(frame(datagram))
        else:
            self._listener.dropped(self._waiting.add(datagram))

    def expired(self) -> None:
        """Both sides have been silent, or a refusal is long enough ago."""
        self.leave()

    def leave(self) -> None:
        """It is not listened to any more. What its target answers from now on is too late."""
        over, self._over = self._over, True
        self._listener.forget(self)
        handler, self._handler = self._handler, NOBODY
        if not over:
            handler.client_left()

    # ------------------------------------------------------------------ as a connection

    def drain(self, grace: float) -> None:
        """UDP knows no end: it is now."""
        self.leave()

    def drop(self) -> None:
        """Cut it off."""
        handler = self._handler
        over = self._over
        self.abort()
        if not over:
            handler.client_lost()

    # ------------------------------------------------------------------ as an exchange

    def pause_request(self) -> None:
        """Let datagrams wait."""
        if self._waiting is None and not self._over:
            self._waiting = self._listener.queue()

    def resume_request(self) -> None:
        """The stream takes some again."""
        waiting, self._waiting = self._waiting, None
        while waiting and not self._over:
            self._handler.body_received(frame(waiting.take()))
            if self._waiting is not None:  # enough again
                self._waiting = waiting
                return

    def inform(self, status: int, headers: Headers) -> None:
        """Nothing: there is nobody who could be told."""

    def respond(self, head: ResponseHead) -> None:
        """It is connected; or, where the status is not 2xx, refused."""
        if not 200 <= head.status <= 299:
            self.abort()

    def write(self, data: bytes) -> None:
        """Send the datagrams that are complete with these bytes."""
        if self._over:
            return
        for datagram in self._reader.feed(data):
            self.bytes_sent += len(datagram)
            self._listener.send(datagram, self._address)
        self._listener.touch(self)

    def finish(self, trailers: Sequence[tuple[bytes, bytes]] = ()) -> bool:
        """The target has had enough; so it is over."""
        if self._over:
            return False
        self._over = True
        self._listener.forget(self)
        handler, self._handler = self._handler, NOBODY
        handler.body_ended([])
        return True

    def abort(self) -> None:
        """It is over, and the address is not listened to for a moment."""
        self._over = True
        self._handler = NOBODY
        self._listener.pause(self)


class UDPListener(DatagramProtocol):
    """The port of one target."""

    transport: Any
    noisy = False

    def __init__(
        self,
        gateway: UDPGateway,
        target: Target,
        config: OuterConfig,
        deadlines: Deadlines,
        seconds: Callable[[], float],
    ) -> None:
        self._gateway = gateway
        self._config = config
        self._deadlines = deadlines
        self._seconds = seconds
        self._clients: dict[tuple[str, int], UDPClient] = {}
        self._next_refusal = 0.0  # by the clock
        #: Whose clients come; may be set to another one with the same listener.
        self.target = target

    @property
    def local_port(self) -> int:
        """The port that is listened on."""
        return int(self.transport.getHost().port)

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        client = self._clients.get(addr)
        if client is None:
            client = self._new_client(addr)
            if client is None:
                self.dropped(1)
                return
        client.received(datagram)

    def end(self) -> None:
        """Nobody is served any more."""
        for client in list(self._clients.values()):
            client.leave()

    def _new_client(self, address: tuple[str, int]) -> UDPClient | None:
        if len(self._clients) >= self._config.max_udp_clients:
            return None
        permitted = self.target.clients
        if permitted is not None and not permitted.contains(address[0]):
            # Who may not be here takes no place from others, but for one in a while, to be logged.
            now = self._seconds()
            if now < self._next_refusal:
                return None
            self._next_refusal = now + _PAUSE
        client = UDPClient(self, address, self._seconds())
        self._clients[address] = client
        if not self._gateway.connected(client):
            del self._clients[address]
            return None
        if client.over:  # the gateway is draining
            return None
        self._deadlines.watch(client)
        client.begin(self._gateway.connect_udp(client, self.target))
        return client

    # ------------------------------------------------------------------ for clients

    def send(self, datagram: bytes, address: tuple[str, int]) -> None:
        """Send one; where the system has no room for it, it is lost, as any may be."""
        try:
            self.transport.write(datagram, address)
        except (OSError, MessageLengthError):
            self.dropped(1)

    def queue(self) -> Waiting:
        """Return where datagrams of one client wait."""
        return Waiting(self._config.udp_queue, _MAX_WAITING_BYTES)

    def dropped(self, count: int) -> None:
        """So many found no room."""
        if count:
            self._gateway.datagrams_dropped(count)

    def touch(self, client: UDPClient) -> None:
        """A client is not silent."""
        client.deadline = self._deadlines.after(self._config.udp_idle_timeout)

    def pause(self, client: UDPClient) -> None:
        """A client is over, and its address is to be ignored for a moment."""
        client.deadline = self._deadlines.after(_PAUSE)

    def forget(self, client: UDPClient) -> None:
        """A client is over."""
        self._deadlines.discard(client)
        if self._clients.get(client._address) is client:
            del self._clients[client._address]
            self._gateway.disconnected(client)

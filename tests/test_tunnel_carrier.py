"""Carriers on real sockets, TCP and TLS: both ends, good peers and bad ones, tunnels on them."""

import base64
import hashlib
import os
import random
import socket
import struct
import tempfile
from pathlib import Path

import pytest
from inner_certificates import Authority
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from sockgw.endpoints import server_endpoint
from sockgw.inner.outerlayer import OuterLayer
from sockgw.inner.tls import TLSEndpoint, client_context
from sockgw.outer.site import make_site, socket_root
from sockgw.protocol.errors import StreamCode, TunnelCode
from sockgw.protocol.frames import MAX_MESSAGE
from sockgw.protocol.heads import RequestHead, ResponseHead
from sockgw.protocol.memory import Limits
from sockgw.protocol.payloads import Destination
from sockgw.protocol.windows import WINDOW
from sockgw.tunnel import carrier as carrier_module
from sockgw.tunnel.carrier import (
    MAX_GREETING,
    SUBPROTOCOL,
    client_factory,
    server_resource,
)
from sockgw.tunnel.tunnel import Tunnel

PATIENCE = 10.0  # seconds for whatever is awaited; all of it takes milliseconds
END_TIMEOUT = 0.1  # seconds that a closing peer has, in place of the usual one
SIZES = (1, 2, 125, 126, 127, 4_096, 8_191, 8_192, 65_535, 65_536, 65_545, 262_143, 262_144)


class Waiting:
    """Lets a test wait until something is true of a thing to which something happens."""

    def __init__(self):
        self._waiting = []

    def happened(self):
        for condition, waiter in list(self._waiting):
            if condition() and not waiter.called:
                self._waiting.remove((condition, waiter))
                waiter.callback(None)

    def until(self, condition):
        waiter = Deferred()
        if condition():
            waiter.callback(None)
        else:
            self._waiting.append((condition, waiter))
            waiter.addTimeout(PATIENCE, reactor)
        return waiter


class Listener(Waiting):
    """Uses a carrier; insists on the promises that one makes."""

    def __init__(self, carrier):
        super().__init__()
        self.carrier = carrier
        self.messages = []
        self.signs_of_life = 0
        self.full = False
        self.ends = []
        carrier.listener = self

    def heard(self):
        assert not self.ends
        self.signs_of_life += 1
        self.happened()

    def message_received(self, message):
        assert not self.ends
        assert type(message) is bytes
        self.messages.append(message)
        self.happened()

    def pause(self):
        assert not self.full, "paused twice"
        self.full = True
        self.happened()

    def resume(self):
        assert self.full, "resumed twice"
        self.full = False
        self.happened()

    def closed(self, reason, refused):
        assert not self.ends, "closed twice"
        assert reason
        self.ends.append((reason, refused))
        self.happened()

    def ended(self):
        return self.until(lambda: self.ends)


class Site:
    """The socket port, with whatever carriers open there."""

    def __init__(self, handshake_timeout=5.0):
        self.opened = Waiting()
        self.listeners = []
        resource = server_resource(reactor, handshake_timeout, self._opened)
        root = socket_root(resource, lambda: "", None, "", None, reactor)
        self.site = make_site(root, reactor, head_timeout=5.0, max_connections=100)
        self.port = None
        self.number = 0

    def _opened(self, carrier):
        self.listeners.append(Listener(carrier))
        self.opened.happened()

    async def listen(self, description):
        self.port = await server_endpoint(reactor, description).listen(self.site)
        self.number = self.port.getHost().port

    async def next(self, count=1):
        await self.opened.until(lambda: len(self.listeners) >= count)
        return self.listeners[count - 1]

    async def close(self):
        await self.port.stopListening()
        for listener in self.listeners:
            listener.carrier.abort()
        deadline = reactor.seconds() + PATIENCE
        while self.site.connections:
            assert reactor.seconds() < deadline
            await deferLater(reactor, 0, lambda: None)
        assert all(len(listener.ends) == 1 for listener in self.listeners)


class Raw(Protocol, Waiting):
    """A client that sends what it likes."""

    def __init__(self):
        Waiting.__init__(self)
        self.received = b""
        self.reason = None

    def dataReceived(self, data):
        self.received += data
        self.happened()

    def connectionLost(self, reason=connectionDone):
        self.reason = reason
        self.happened()

    def upgrade(self, *fields, subprotocol=SUBPROTOCOL, host="localhost"):
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            "GET / HTTP/1.1",
            f"Host: {host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
            *fields,
        ]
        if subprotocol:
            lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
        self.transport.write("\r\n".join([*lines, "", ""]).encode())

    def head(self):
        return self.until(lambda: b"\r\n\r\n" in self.received or self.reason)

    def lost(self):
        return self.until(lambda: self.reason)


def frame(opcode, payload=b"", fin=True, rsv=0):
    """Return a masked frame, as a client sends it (the mask is zero)."""
    size = len(payload)
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 65_536:
        head = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, size)
    return head + bytes(4) + payload


CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


class Bench(TestCase):
    """What the tests below share."""

    secure = False

    @classmethod
    def setUpClass(cls):
        if cls.secure:
            cls.directory = tempfile.TemporaryDirectory()
            cls.authority = Authority(Path(cls.directory.name), "authority")
            cls.files = cls.authority.issue("server", ["localhost", "127.0.0.1"])

    @classmethod
    def tearDownClass(cls):
        if cls.secure:
            cls.directory.cleanup()

    def setUp(self):
        # Autobahn and Twisted log what goes wrong; what a listener is told must be all there is.
        self.events = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.patch(carrier_module, "_END_TIMEOUT", END_TIMEOUT)

    def tearDown(self):
        assert [event for event in self.events if event.get("isError")] == []

    async def serve(self, interface="127.0.0.1", **options):
        site = Site(**options)
        self.addCleanup(Deferred.fromCoroutine, site.close())
        if self.secure:
            certificate, key = self.files
            description = f"tls:0:interface={interface}:privateKey={key}:certKey={certificate}"
        else:
            description = f"tcp:0:interface={interface}"
        await site.listen(description)
        return site

    async def dial(self, site, host="localhost", timeout=5.0):
        """Return the listener of the dialled end."""
        scheme = "wss" if self.secure else "ws"
        way = OuterLayer.parse(
            f"{scheme}://{host}:{site.number}",
            ca_file=self.authority.file if self.secure else None,
        )
        result = Deferred()
        factory = client_factory(
            reactor, way.url, timeout, lambda carrier: result.callback(Listener(carrier)), self.fail
        )
        await way.endpoint(reactor).connect(factory)
        listener = await result.addTimeout(PATIENCE, reactor)
        self.addCleanup(listener.ended)
        self.addCleanup(listener.carrier.abort)
        return listener

    async def pair(self, **options):
        site = await self.serve(**options)
        inner = await self.dial(site)
        return await site.next(), inner

    async def raw(self, site):
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", site.number)
        raw = await endpoint.connect(Factory.forProtocol(Raw))
        self.addCleanup(raw.lost)
        self.addCleanup(raw.transport.abortConnection)
        return raw

    async def upgraded(self, site):
        raw = await self.raw(site)
        raw.upgrade()
        await raw.head()
        assert raw.received.startswith(b"HTTP/1.1 101 ")
        raw.received = b""
        return raw, await site.next()


class CarrierTests(Bench):
    """Over TCP; the same over TLS below."""

    async def test_messages_of_all_sizes_go_both_ways(self):
        outer, inner = await self.pair()
        for listener in (outer, inner):
            listener.carrier.allow_large()
        sent = [os.urandom(size) for size in SIZES]
        for message in sent:
            outer.carrier.send(message)
            inner.carrier.send(message)
        await outer.until(lambda: len(outer.messages) == len(sent))
        await inner.until(lambda: len(inner.messages) == len(sent))
        assert outer.messages == sent
        assert inner.messages == sent

    async def test_a_message_over_the_limit_ends_the_connection(self):
        for size, large in ((MAX_GREETING + 1, False), (MAX_MESSAGE + 1, True)):
            for swap in (False, True):
                receiver, sender = await self.pair()
                if swap:
                    receiver, sender = sender, receiver
                receiver.carrier.send(b"before")
                await sender.until(lambda sender=sender: sender.messages)
                if large:
                    receiver.carrier.allow_large()
                sender.carrier.maxMessagePayloadSize = 0  # it applies to its own, too
                sender.carrier.send(bytes(size))
                await receiver.ended()
                assert receiver.messages == []
                assert "exceeds payload limit" in receiver.ends[0][0]
                assert not receiver.ends[0][1]
                await sender.ended()

    async def test_the_largest_greeting_passes(self):
        outer, inner = await self.pair()
        inner.carrier.send(bytes(MAX_GREETING))
        await outer.until(lambda: outer.messages)
        outer.carrier.send(bytes(MAX_GREETING))
        await inner.until(lambda: inner.messages)

    async def test_names_and_addresses(self):
        site = await self.serve()
        for host in ("localhost", "LOCALHOST", "127.0.0.1"):
            inner = await self.dial(site, host)
            outer = await site.next(len(site.listeners) or 1)
            assert inner.carrier.host == outer.carrier.host == host.lower()
            assert inner.carrier.peer_address == outer.carrier.peer_address == "127.0.0.1"

    async def test_channel_binding(self):
        outer, inner = await self.pair()
        binding = outer.carrier.channel_binding()
        assert binding == inner.carrier.channel_binding()
        if self.secure:
            assert len(binding) == 32
            other, _ = await self.pair()
            assert other.carrier.channel_binding() != binding
        else:
            assert binding is None

    async def test_close_ends_both_ends_once(self):
        for swap in (False, True):
            one, other = await self.pair()
            if swap:
                one, other = other, one
            one.carrier.send(b"last words")
            one.carrier.close()
            one.carrier.close()
            one.carrier.send(b"too late")
            await DeferredList([one.ended(), other.ended()])
            assert other.messages == [b"last words"]
            assert other.ends == [("closed with code 1000", False)]
            assert other.carrier.dismissed
            assert not one.ends[0][1]
            one.carrier.abort()
            other.carrier.abort()
            other.carrier.close()

    async def test_a_refusal_arrives_as_one_and_says_nothing_else(self):
        outer, inner = await self.pair()
        outer.carrier.refuse()
        outer.carrier.refuse()
        await DeferredList([outer.ended(), inner.ended()])
        assert inner.ends == [("closed with code 1008", True)]
        assert not inner.carrier.dismissed
        assert len(outer.ends) == 1

    async def test_abort_ends_both_ends_once(self):
        for swap in (False, True):
            one, other = await self.pair()
            if swap:
                one, other = other, one
            one.carrier.abort()
            one.carrier.abort()
            one.carrier.send(b"too late")
            await DeferredList([one.ended(), other.ended()])
            assert other.messages == []
            assert not other.ends[0][1]
            assert not one.ends[0][1]

    async def test_a_peer_that_does_not_read_pauses_us_and_holds_up_nothing_else(self):
        site = await self.serve()
        inner, quick = await self.dial(site), await self.dial(site)
        outer, quick_outer = await site.next(1), await site.next(2)
        for listener in (outer, inner, quick, quick_outer):
            listener.carrier.allow_large()
        for sender, reader in ((outer, inner), (inner, outer)):
            reader.carrier.transport.pauseProducing()
            sent = await fill(sender)
            await quick_turn(quick, quick_outer)
            reader.carrier.transport.resumeProducing()
            await sender.until(lambda sender=sender: not sender.full)
            await reader.until(
                lambda reader=reader, sent=sent: sum(map(len, reader.messages)) == sent
            )

    async def test_what_is_closed_is_cut_off_when_the_peer_does_not_read(self):
        for end in ("close", "refuse", "abort"):
            outer, inner = await self.pair()
            inner.carrier.transport.pauseProducing()
            await fill(outer)
            begun = reactor.seconds()
            getattr(outer.carrier, end)()
            await outer.ended()
            assert reactor.seconds() - begun < END_TIMEOUT + 0.5, end
            inner.carrier.transport.resumeProducing()
            await inner.ended()
            assert not inner.ends[0][1] or end == "refuse"


async def quick_turn(one, other):
    count = len(one.messages)
    other.carrier.send(b"turn")
    await one.until(lambda: len(one.messages) > count)


async def turns(count=20):
    for _ in range(count):
        await deferLater(reactor, 0, lambda: None)


async def fill(listener):
    """Send until neither the peer nor the kernel takes more. Return how many bytes that was."""
    listener.carrier.allow_large()
    sent = 0
    while not listener.full:
        assert sent < 64_000_000, "the kernel does not hold so much"
        listener.carrier.send(bytes(MAX_MESSAGE))
        sent += MAX_MESSAGE
        await turns()
    return sent


class SecureCarrierTests(CarrierTests):
    secure = True


class ServerTests(Bench):
    """What a hostile or odd client may send."""

    async def refused(self, *fields, status=b"400", **options):
        site = await self.serve()
        raw = await self.raw(site)
        raw.upgrade(*fields, **options)
        await raw.lost()
        assert raw.received.startswith(b"HTTP/1.1 " + status + b" "), raw.received
        assert site.listeners == []

    async def test_any_origin_is_refused(self):
        for origin in (
            "http://localhost",
            "https://localhost",
            "http://localhost:3001",
            "null",
            "file:///",
            "",
            "*",
            "http://[::1",
            "chrome-extension://abc",
        ):
            await self.refused(f"Origin: {origin}")

    async def test_other_subprotocols_are_refused(self):
        await self.refused(subprotocol="")
        for name in ("sockgw.2", "SOCKGW.1", "sockgw.1.", "chat, superchat", "sockgw.1,sockgw.1"):
            await self.refused(subprotocol=name)

    async def test_other_versions_are_refused(self):
        await self.refused("Sec-WebSocket-Version: 8")

    async def test_odd_extensions_do_no_harm(self):
        site = await self.serve()
        for value in (
            ";",
            "=",
            ",,,",
            'permessage-deflate; ="',
            "a" * 2000,
            "permessage-deflate;=x",
        ):
            raw = await self.raw(site)
            raw.upgrade(f"Sec-WebSocket-Extensions: {value}")
            await raw.head()
            assert raw.received[:12] in (b"HTTP/1.1 101", b"HTTP/1.1 400")

    async def test_ours_is_chosen_among_several(self):
        site = await self.serve()
        raw = await self.raw(site)
        raw.upgrade(subprotocol="sockgw.9, sockgw.1", host="Gateway.Example.:8443")
        await raw.head()
        assert b"\r\nSec-WebSocket-Protocol: sockgw.1\r\n" in raw.received
        assert (await site.next()).carrier.host == "gateway.example."

    async def test_a_literal_ipv6_host_has_no_brackets(self):
        site = await self.serve()
        for number, host in enumerate(("[::1]:3001", "[::1]"), start=1):
            raw = await self.raw(site)
            raw.upgrade(host=host)
            assert (await site.next(number)).carrier.host == "::1"

    async def test_compression_is_not_accepted(self):
        site = await self.serve()
        raw = await self.raw(site)
        raw.upgrade("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
        await raw.head()
        assert raw.received.startswith(b"HTTP/1.1 101 ")
        assert b"extensions" not in raw.received.lower()
        listener = await site.next()
        raw.transport.write(frame(BINARY, b"compressed?", rsv=4))
        await listener.ended()
        assert listener.messages == []

    async def test_nothing_is_heard_before_the_upgrade(self):
        raw, listener = await self.upgraded(await self.serve())
        assert listener.signs_of_life == 0
        raw.transport.write(frame(BINARY, b"x"))
        await listener.until(lambda: listener.messages)
        assert listener.signs_of_life == 1

    async def test_a_ping_is_answered_and_a_sign_of_life(self):
        raw, listener = await self.upgraded(await self.serve())
        raw.transport.write(frame(PING, b"are you there?"))
        await raw.until(lambda: raw.received == b"\x8a\x0eare you there?")
        assert listener.signs_of_life
        raw.transport.write(frame(PONG, b"unasked") + frame(PING))
        await raw.until(lambda: raw.received.endswith(b"\x8a\x00"))
        assert listener.messages == []

    async def test_pings_of_a_client_that_reads_nothing_are_not_answered_for_ever(self):
        raw, listener = await self.upgraded(await self.serve())
        raw.transport.pauseProducing()
        await fill(listener)
        written = []
        self.patch(listener.carrier.transport, "write", written.append)
        raw.transport.write(frame(PING, b"x" * 125) * 1000 + frame(BINARY, b"end"))
        await listener.until(lambda: listener.messages)
        assert written == []

    async def test_a_message_in_pieces_is_one_message(self):
        raw, listener = await self.upgraded(await self.serve())
        pieces = (
            frame(BINARY, b"ab", fin=False)
            + frame(CONTINUATION, b"", fin=False)
            + frame(PING, b"between")
            + frame(CONTINUATION, b"cd", fin=False)
            + frame(CONTINUATION, b"")
        )
        for byte in pieces:
            raw.transport.write(bytes((byte,)))
            await deferLater(reactor, 0, lambda: None)
        await listener.until(lambda: listener.messages)
        assert listener.messages == [b"abcd"]
        raw.transport.write(pieces + frame(BINARY, b"") + pieces)
        await listener.until(lambda: len(listener.messages) == 4)
        assert listener.messages == [b"abcd", b"abcd", b"", b"abcd"]

    async def test_pieces_together_are_bounded_too(self):
        raw, listener = await self.upgraded(await self.serve())
        piece = frame(CONTINUATION, bytes(1_000), fin=False)
        raw.transport.write(frame(BINARY, b"", fin=False) + piece * 8)
        raw.transport.write(piece)
        await listener.ended()
        assert "exceeds payload limit" in listener.ends[0][0]

    async def test_large_pieces_together_are_bounded_too(self):
        raw, listener = await self.upgraded(await self.serve())
        listener.carrier.allow_large()
        piece = frame(CONTINUATION, bytes(100_000), fin=False)
        raw.transport.write(frame(BINARY, b"", fin=False) + piece * 3)
        await listener.ended()
        assert "exceeds payload limit" in listener.ends[0][0]

    async def test_what_comes_after_the_end_is_not_kept(self):
        """TLS goes on reading while it waits for the peer to agree."""
        raw, listener = await self.upgraded(await self.serve())
        raw.transport.write(frame(CLOSE))
        await listener.ended()
        listener.carrier.dataReceived(b"more")
        assert listener.carrier.data == b""

    async def test_empty_pieces_are_not_remembered(self):
        raw, listener = await self.upgraded(await self.serve())
        raw.transport.write(frame(BINARY, b"", fin=False))
        raw.transport.write(frame(CONTINUATION, b"", fin=False) * 10_000 + frame(PING))
        await raw.until(lambda: raw.received)
        assert len(listener.carrier.message_data) == 0

    async def test_what_no_client_may_send_ends_the_connection_at_once(self):
        site = await self.serve()
        size = struct.pack("!BBQ4x", 0x82, 0xFF, 2**63 - 1)
        for number, junk in enumerate(
            (
                frame(TEXT, b"text"),
                frame(TEXT, b"\xff"),
                b"\x82\x01x",  # not masked
                b"junk" * 1000,
                b"\xff" * 9_000,
                frame(3, b"reserved"),
                frame(11, b"reserved control"),
                frame(CONTINUATION, b"of nothing"),
                frame(BINARY, b"a", fin=False) + frame(BINARY, b"b"),
                frame(PING, b"x", fin=False),
                frame(BINARY, b"x", rsv=1),
                frame(CLOSE, b"\x01"),
                frame(CLOSE, struct.pack("!H", 1005)),
                frame(CLOSE, struct.pack("!H", 1000) + b"\xff"),
                size,
            ),
            start=1,
        ):
            raw = await self.raw(site)
            raw.upgrade()
            listener = await site.next(number)
            raw.transport.write(junk)
            await listener.ended()
            assert listener.messages == [], junk
            assert not listener.ends[0][1]
            await raw.lost()

    async def test_a_reset_is_an_end(self):
        raw, listener = await self.upgraded(await self.serve())
        linger = struct.pack("ii", 1, 0)
        raw.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        raw.transport.abortConnection()
        await listener.ended()
        assert not listener.ends[0][1]

    async def test_a_fin_is_an_end(self):
        raw, listener = await self.upgraded(await self.serve())
        raw.transport.loseWriteConnection()
        await listener.ended()
        await raw.lost()

    async def test_a_client_may_refuse_too(self):
        raw, listener = await self.upgraded(await self.serve())
        raw.transport.write(frame(CLOSE, struct.pack("!H", 1008) + b"reason"))
        await listener.ended()
        assert listener.ends == [("reason", True)]

    async def test_nothing_counts_after_a_close(self):
        """Neither after the client's own nor after ours."""
        site = await self.serve()
        more = frame(BINARY, b"more") + frame(TEXT, b"junk") + b"junk"
        raw = await self.raw(site)
        raw.upgrade()
        listener = await site.next(1)
        raw.transport.write(frame(BINARY, b"x") + frame(CLOSE) + more)
        await listener.ended()
        assert listener.messages == [b"x"]

        raw = await self.raw(site)
        raw.upgrade()
        listener = await site.next(2)
        listener.carrier.refuse()
        heard = listener.signs_of_life
        raw.transport.write(frame(BINARY, b"more") + frame(PING))
        await listener.ended()
        assert listener.messages == []
        assert listener.signs_of_life == heard

    async def test_a_client_that_closes_and_stays_is_cut_off(self):
        """Whether it reads or not, and whether we have something to send or not."""
        site = await self.serve()
        for number, full in enumerate((False, True), start=1):
            raw = await self.raw(site)
            raw.upgrade()
            listener = await site.next(number)
            await raw.head()
            raw.transport.pauseProducing()
            if full:
                await fill(listener)
            raw.transport.write(frame(CLOSE))
            await listener.ended()

    async def test_what_is_refused_and_stays_is_cut_off(self):
        raw, listener = await self.upgraded(await self.serve())
        listener.carrier.refuse()
        await raw.until(lambda: raw.received)
        assert raw.received == b"\x88\x02" + struct.pack("!H", 1008)
        await listener.ended()
        await raw.lost()

    async def test_abort_comes_through_whatever_has_begun(self):
        """A close that waits for a client which does not read must not stop it."""
        self.patch(carrier_module, "_END_TIMEOUT", 1_000.0)
        site = await self.serve()
        for number, begin in enumerate(("client", "close", "refuse"), start=1):
            raw = await self.raw(site)
            raw.upgrade()
            listener = await site.next(number)
            await raw.head()
            raw.transport.pauseProducing()
            await fill(listener)
            if begin == "client":
                raw.transport.write(frame(CLOSE))
                while listener.carrier.state != listener.carrier.STATE_CLOSED:
                    await turns(1)
                assert not listener.ends
            else:
                getattr(listener.carrier, begin)()
            listener.carrier.abort()
            await listener.ended()


class SecureServerTests(Bench):
    secure = True

    async def test_a_refused_client_that_does_not_take_leave_is_cut_off(self):
        """TLS waits for its close_notify, which nobody has to send."""
        site = await self.serve()
        tcp = TCP4ClientEndpoint(reactor, "127.0.0.1", site.number)
        context = client_context([self.authority.file])
        endpoint = TLSEndpoint(reactor, tcp, "localhost", context)
        raw = await endpoint.connect(Factory.forProtocol(Raw))
        self.addCleanup(raw.lost)
        self.addCleanup(raw.transport.abortConnection)
        raw.upgrade(subprotocol="other")
        raw.transport.pauseProducing()
        deadline = reactor.seconds() + PATIENCE
        while site.site.connections:
            assert reactor.seconds() < deadline
            await turns(1)


class Script(Protocol):
    """A server that answers as it is told, once it has the request."""

    def connectionMade(self):
        self.factory.connections.append(self)
        self.request = b""
        self.lost = False

    def dataReceived(self, data):
        if b"\r\n\r\n" not in self.request:
            self.request += data
            if b"\r\n\r\n" in self.request:
                self.transport.write(self.factory.answer(self.request))

    def connectionLost(self, reason=connectionDone):
        self.lost = True
        self.factory.ended.happened()


def accept(request, *fields, subprotocol=SUBPROTOCOL):
    """Return a proper answer to an upgrade request."""
    key = next(
        line.split(b": ")[1]
        for line in request.split(b"\r\n")
        if line.startswith(b"Sec-WebSocket-Key")
    )
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    lines = [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest),
        *fields,
    ]
    if subprotocol:
        lines.append(b"Sec-WebSocket-Protocol: " + subprotocol.encode())
    return b"\r\n".join([*lines, b"", b""])


def plain(opcode, payload=b""):
    """Return a frame as a server sends it."""
    assert len(payload) < 126
    return bytes((0x80 | opcode, len(payload))) + payload


class ClientTests(Bench):
    """What a hostile or odd server may answer."""

    async def dial_script(self, answer, timeout=5.0):
        """Return the server's factory, the opened listeners and the reasons of failure."""
        server = Factory.forProtocol(Script)
        server.noisy = False
        server.answer = answer
        server.connections = []
        server.ended = Waiting()
        port = reactor.listenTCP(0, server, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        outcome = Waiting()
        outcome.opened, outcome.failures = [], []

        def opened(carrier):
            outcome.opened.append(Listener(carrier))
            outcome.happened()

        def failed(reason):
            outcome.failures.append(reason)
            outcome.happened()

        url = f"ws://127.0.0.1:{port.getHost().port}/"
        factory = client_factory(reactor, url, timeout, opened, failed)
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        protocol = await endpoint.connect(factory)
        self.addCleanup(
            server.ended.until, lambda: all(connection.lost for connection in server.connections)
        )
        self.addCleanup(protocol.transport.abortConnection)
        return server, outcome

    async def test_whatever_is_no_upgrade_fails_with_a_reason(self):
        for answer in (
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
            b"HTTP/1.0 101 Switching Protocols\r\n\r\n",
            b"\r\n\r\n",
            b"\xff\xfe junk\r\n\r\n",
            b"HTTP/1.1 \xff\r\nUpgrade: \xe4\r\n\r\n",
            bytes(range(256)) + b"\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
            b"x" * 17_000,
        ):
            _, outcome = await self.dial_script(lambda request, answer=answer: answer)
            await outcome.until(lambda outcome=outcome: outcome.failures)
            assert outcome.opened == []
            assert len(outcome.failures) == 1
            assert outcome.failures[0], answer

    async def test_an_answer_without_an_end_is_not_collected(self):
        for part in (b"x", b"X: y\r\n"):
            server, outcome = await self.dial_script(
                lambda request, part=part: b"HTTP/1.1 101 OK\r\n" + part
            )
            while not outcome.failures:
                for connection in server.connections:
                    if connection.request:
                        connection.transport.write(part * 1_000)
                await deferLater(reactor, 0, lambda: None)
            assert "too long" in outcome.failures[0]

    async def test_another_subprotocol_opens_nothing(self):
        for subprotocol in ("", "sockgw.2"):
            _, outcome = await self.dial_script(
                lambda request, name=subprotocol: accept(request, subprotocol=name)
            )
            await outcome.until(lambda outcome=outcome: outcome.failures)
            assert outcome.opened == []
            assert len(outcome.failures) == 1

    async def test_compression_is_not_accepted(self):
        extension = b"Sec-WebSocket-Extensions: permessage-deflate"
        server, outcome = await self.dial_script(lambda request: accept(request, extension))
        await outcome.until(lambda: outcome.failures)
        assert outcome.opened == []
        assert b"extensions" not in server.connections[0].request.lower()
        assert b"origin" not in server.connections[0].request.lower()

    async def test_no_answer_in_time_is_a_failure(self):
        begun = reactor.seconds()
        _, outcome = await self.dial_script(lambda request: b"", timeout=0.05)
        await outcome.until(lambda: outcome.failures)
        assert reactor.seconds() - begun >= 0.05
        assert "did not open in time" in outcome.failures[0]

    async def test_time_is_up_for_the_opening_only(self):
        server, outcome = await self.dial_script(accept, timeout=0.05)
        await outcome.until(lambda: outcome.opened)
        await deferLater(reactor, 0.06, lambda: None)
        server.connections[0].transport.write(plain(BINARY, b"x"))
        (listener,) = outcome.opened
        await listener.until(lambda: listener.messages)

    async def test_frames_may_come_with_the_answer(self):
        _, outcome = await self.dial_script(
            lambda request: accept(request) + plain(BINARY, b"early") + plain(PING, b"?")
        )
        await outcome.until(lambda: outcome.opened)
        (listener,) = outcome.opened
        await listener.until(lambda: listener.messages)
        assert listener.messages == [b"early"]

    async def test_a_server_that_closes_and_stays_is_left(self):
        server, outcome = await self.dial_script(accept)
        await outcome.until(lambda: outcome.opened)
        (listener,) = outcome.opened
        close = plain(CLOSE, struct.pack("!H", 1008))
        server.connections[0].transport.write(close + plain(BINARY, b"more") + close * 100)
        await listener.ended()
        assert listener.ends == [("closed with code 1008", True)]
        assert listener.messages == []

    async def test_a_server_that_does_not_answer_a_close_is_left(self):
        _, outcome = await self.dial_script(accept)
        await outcome.until(lambda: outcome.opened)
        (listener,) = outcome.opened
        listener.carrier.close()
        await listener.ended()

    async def test_what_no_server_may_send_ends_the_connection(self):
        for junk in (frame(BINARY, b"masked"), plain(TEXT, b"text"), b"junk", b"\xff" * 100):
            server, outcome = await self.dial_script(accept)
            await outcome.until(lambda outcome=outcome: outcome.opened)
            (listener,) = outcome.opened
            server.connections[0].transport.write(junk)
            await listener.ended()
            assert listener.messages == []
            assert not listener.ends[0][1]
            assert outcome.failures == []

    async def test_an_end_before_the_answer_is_a_failure_once(self):
        server, outcome = await self.dial_script(lambda request: b"HTTP/1.1 101 ")
        while not (server.connections and server.connections[0].request):
            await deferLater(reactor, 0, lambda: None)
        server.connections[0].transport.abortConnection()
        await outcome.until(lambda: outcome.failures)
        assert len(outcome.failures) == 1

    async def test_what_is_closed_as_soon_as_it_opens(self):
        site = await self.serve()
        for end in ("close", "refuse", "abort"):
            ended = Waiting()
            ended.listener = None

            def opened(carrier, end=end, ended=ended):
                ended.listener = Listener(carrier)
                getattr(carrier, end)()

            url = f"ws://127.0.0.1:{site.number}"
            factory = client_factory(reactor, url, 5.0, opened, self.fail)
            await TCP4ClientEndpoint(reactor, "127.0.0.1", site.number).connect(factory)
            while ended.listener is None:
                await deferLater(reactor, 0, lambda: None)
            await ended.listener.ended()


class IPv6Tests(Bench):
    async def test_a_literal_address_is_dialled_and_named_alike(self):
        if not _has_ipv6():
            pytest.skip("this machine has no IPv6")
        site = await self.serve(interface="\\:\\:1")
        inner = await self.dial(site, "[::1]")
        outer = await site.next()
        assert inner.carrier.host == outer.carrier.host == "::1"
        assert outer.carrier.peer_address == "::1"


def _has_ipv6():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


class End:
    """One end of a stream: sends its bytes as far as it may, and keeps what it gets."""

    def __init__(self, test, payload, slow=False):
        self.test = test
        self.payload = payload
        self.position = 0
        self.slow = slow
        self.received = []
        self.unconsumed = 0
        self.over = False
        self.code = None
        self.pauses = 0

    def send(self):
        """Write in pieces of all sizes, until told to stop or done."""
        stream = self.stream
        while not stream.congested:
            if self.position == len(self.payload):
                stream.end()
                return
            size = self.test.random.choice((1, 100, 5_000, 65_536, 100_000))
            stream.write(self.payload[self.position : self.position + size])
            self.position = min(self.position + size, len(self.payload))
        self.pauses += 1

    def head_received(self, head):
        assert head.status == 200

    def data_received(self, data):
        assert self.code is None
        assert not self.over
        self.received.append(data)
        self.unconsumed += len(data)
        assert self.unconsumed <= WINDOW
        if not self.slow:
            self.consume()

    def consume(self):
        count, self.unconsumed = self.unconsumed, 0
        self.stream.consumed(count)

    def hurry(self):
        """Stop being slow."""
        self.slow = False
        self.consume()

    def ended(self, trailers):
        assert not self.over
        self.over = True
        self.test.progress.happened()

    def reset(self, code, detail):
        self.code = code
        self.test.progress.happened()

    def drained(self):
        self.send()


class Both:
    """Tells a tunnel what its carrier tells, and another listener of the end."""

    def __init__(self, tunnel, listener):
        self.heard = tunnel.heard
        self.message_received = tunnel.message_received
        self.pause = tunnel.pause
        self.resume = tunnel.resume
        self._closed = (tunnel.closed, listener.closed)

    def closed(self, reason, refused):
        for closed in self._closed:
            closed(reason, refused)


class TunnelTests(Bench):
    """The same streams as in the tests of sessions, through real TCP; through TLS below."""

    SIZE = 2_500_000

    async def tunnels(self):
        """Return a pair; the inner ends of its streams come into ``self.inner_ends``."""
        outer_listener, inner_listener = await self.pair()
        self.random = random.Random(7)
        self.progress = Waiting()
        self.inner_ends = {}
        self.ends = []

        def opened(tunnel, stream, head, to, complete):
            number = int(head.target)
            end = End(self, self.payloads[number][1], slow=number in self.slow)
            end.stream = stream
            self.inner_ends[number] = end
            stream.respond(ResponseHead(200, b"OK", []))
            reactor.callLater(0, end.send)
            self.progress.happened()
            return end

        options = {
            "identifier": "office",
            "limits": Limits(max_streams=100),
            "ping_interval": 15.0,
            "ping_timeout": 10.0,
        }
        outer = Tunnel(reactor, outer_listener.carrier, self, **options)
        inner = Tunnel(reactor, inner_listener.carrier, self, opened=opened, **options)
        # The listeners only wait for the end, which the tunnels are told now.
        self.listeners = {outer: outer_listener, inner: inner_listener}
        for tunnel, listener in self.listeners.items():
            listener.carrier.listener = Both(tunnel, listener)
        return outer, inner

    def ended(self, tunnel, reason):
        # A tunnel that ends its carrier does not wait for the end of that.
        listener = self.listeners[tunnel]
        listener.carrier.listener = listener
        self.ends.append(tunnel)
        self.progress.happened()

    def suspended(self, tunnel, reason):
        raise AssertionError("there is no resume window")

    def told_to_leave(self, tunnel):
        raise AssertionError("nobody leaves")

    def open(self, outer, number):
        end = End(self, self.payloads[number][0], slow=number in self.slow)
        head = RequestHead(b"POST", b"%d" % number, [])
        end.stream = outer.open(head, Destination("http", "a", 80), end, complete=False)
        end.send()
        return end

    async def test_streams_both_ways_with_slow_readers_among_them(self):
        self.slow = {1, 4}
        count = 6
        self.payloads = [
            (os.urandom(self.SIZE + i), os.urandom(self.SIZE - i)) for i in range(count)
        ]
        outer, inner = await self.tunnels()
        ends = [self.open(outer, number) for number in range(count)]
        quick = [number for number in range(count) if number not in self.slow]
        await self.progress.until(
            lambda: all(ends[n].over and self.inner_ends[n].over for n in quick)
        )
        for number in self.slow:
            # As much as a window came, no more, while the others were served.
            assert ends[number].unconsumed == self.inner_ends[number].unconsumed == WINDOW
            assert not ends[number].over
        self.check(ends, quick)
        for number in self.slow:
            ends[number].hurry()
            self.inner_ends[number].hurry()
        await self.progress.until(
            lambda: all(ends[n].over and self.inner_ends[n].over for n in self.slow)
        )
        self.check(ends, self.slow)
        assert outer.session.streams == inner.session.streams == {}
        assert outer.bytes_out >= inner.bytes_in > count * self.SIZE
        assert inner.bytes_out >= outer.bytes_in > count * self.SIZE
        assert all(end.pauses for end in ends)
        assert self.ends == []
        outer.close(TunnelCode.CLOSED, "done")
        await self.progress.until(lambda: set(self.ends) == {outer, inner})

    def check(self, ends, numbers):
        for number in numbers:
            to_inner, to_outer = self.payloads[number]
            assert b"".join(self.inner_ends[number].received) == to_inner
            assert b"".join(ends[number].received) == to_outer

    async def test_a_small_stream_overtakes_a_large_one(self):
        self.slow = set()
        self.payloads = [(b"", os.urandom(8_000_000)), (b"?", b"small")]
        outer, _ = await self.tunnels()
        large = self.open(outer, 0)
        await self.progress.until(lambda: self.inner_ends)
        while not large.received:
            await deferLater(reactor, 0, lambda: None)
        small = self.open(outer, 1)
        await self.progress.until(lambda: small.over)
        assert not large.over
        await self.progress.until(lambda: large.over)
        self.check([large, small], [0, 1])

    async def test_a_cut_resets_the_streams_of_both_ends(self):
        self.slow = set()
        self.payloads = [(os.urandom(self.SIZE), os.urandom(self.SIZE))] * 3
        outer, inner = await self.tunnels()
        ends = [self.open(outer, number) for number in range(3)]
        await self.progress.until(lambda: len(self.inner_ends) == 3)
        while not all(end.received for end in ends):
            await deferLater(reactor, 0, lambda: None)
        outer._carrier.abort()
        both = [*ends, *self.inner_ends.values()]
        await self.progress.until(lambda: all(end.code is not None for end in both))
        assert {end.code for end in both} == {StreamCode.TUNNEL_LOST}
        assert set(self.ends) == {outer, inner}


class SecureTunnelTests(TunnelTests):
    secure = True

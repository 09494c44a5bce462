"""Connections to names: what is resolved, permitted, tried, and in which order."""

from socket import SOCK_STREAM, getaddrinfo

from inner_certificates import Client, Echo, Listener
from inner_reactor import Reactor
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError, DNSLookupError, NoRouteError
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase, TestCase

from sockgw.inner.tcp import NotPermitted, TCPEndpoint, host_and_port, is_loopback

FACTORY = Factory.forProtocol(Protocol)
NAME = ["2001:db8::1", "192.0.2.1", "192.0.2.2"]


class TCPEndpointTests(SynchronousTestCase):
    def test_connects_to_the_first_address_without_delay(self) -> None:
        memory = Reactor(NAME)
        connecting = TCPEndpoint(memory, "my_db.internal", 80, timeout=7).connect(FACTORY)
        assert memory.nameResolver.asked == ["my_db.internal"]
        assert memory.dialled == [("2001:db8::1", 80)]
        assert memory.tcpClients[0][3] == 7
        self.assertNoResult(connecting)
        transport = memory.succeed(0)
        assert isinstance(self.successResultOf(connecting), Protocol)
        assert transport.nodelay
        assert memory.getDelayedCalls() == []

    def test_next_address_at_once_after_a_failure(self) -> None:
        memory = Reactor(NAME)
        connecting = TCPEndpoint(memory, "name", 80).connect(FACTORY)
        memory.fail(0, ConnectionRefusedError())
        assert [host for host, _ in memory.dialled] == NAME[:2]
        memory.succeed(1)
        self.successResultOf(connecting)
        assert memory.getDelayedCalls() == []

    def test_next_address_at_once_while_another_is_still_tried(self) -> None:
        memory = Reactor(NAME)
        connecting = TCPEndpoint(memory, "name", 80).connect(FACTORY)
        memory.advance(0.25)
        memory.fail(1, ConnectionRefusedError())
        assert [host for host, _ in memory.dialled] == NAME
        memory.succeed(0)
        self.successResultOf(connecting)
        assert memory.connectors[2].stoppedConnecting

    def test_next_address_after_a_moment_and_the_first_to_connect_wins(self) -> None:
        memory = Reactor(NAME)
        connecting = TCPEndpoint(memory, "name", 80).connect(FACTORY)
        memory.advance(0.24)
        assert len(memory.dialled) == 1
        memory.advance(0.02)
        assert len(memory.dialled) == 2
        memory.succeed(1)
        self.successResultOf(connecting)
        assert memory.connectors[0].stoppedConnecting
        assert len(memory.dialled) == 2
        assert memory.getDelayedCalls() == []

    def test_fails_as_the_last_address_did(self) -> None:
        memory = Reactor(NAME)
        connecting = TCPEndpoint(memory, "name", 80).connect(FACTORY)
        memory.advance(0.25)
        memory.advance(0.25)
        memory.advance(0.25)
        assert len(memory.dialled) == 3
        memory.fail(1, NoRouteError())
        memory.fail(0, NoRouteError())
        self.assertNoResult(connecting)
        memory.fail(2, ConnectionRefusedError())
        self.failureResultOf(connecting, ConnectionRefusedError)
        assert memory.getDelayedCalls() == []

    def test_dials_permitted_addresses_only(self) -> None:
        memory = Reactor(NAME)
        permits = "192.0.2.2".__eq__
        connecting = TCPEndpoint(memory, "name", 80, permits=permits).connect(FACTORY)
        memory.fail(0, ConnectionRefusedError())
        self.failureResultOf(connecting, ConnectionRefusedError)
        assert memory.dialled == [("192.0.2.2", 80)]

    def test_says_when_none_is_permitted(self) -> None:
        memory = Reactor(NAME)
        connecting = TCPEndpoint(memory, "name", 80, permits=lambda _: False).connect(FACTORY)
        self.failureResultOf(connecting, NotPermitted)
        assert memory.dialled == []

    def test_name_without_addresses(self) -> None:
        connecting = TCPEndpoint(Reactor([]), "name", 80).connect(FACTORY)
        self.failureResultOf(connecting, DNSLookupError)

    def test_what_getaddrinfo_would_choke_on_is_not_resolved(self) -> None:
        for name in ("a..b", "a" * 64, "a\0b", "a\nb", "\ud800", ".a"):
            memory = Reactor(NAME)
            self.failureResultOf(TCPEndpoint(memory, name, 80).connect(FACTORY), DNSLookupError)
            assert memory.nameResolver.asked == []

    def test_addresses_are_not_resolved(self) -> None:
        for host, dialled in (
            ("192.0.2.1", "192.0.2.1"),
            ("2001:DB8:0::1", "2001:db8::1"),
            ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
        ):
            memory = Reactor(None)
            asked: list[str] = []
            permits = lambda address, asked=asked: not asked.append(address)  # noqa: E731
            connecting = TCPEndpoint(memory, host, 80, permits=permits).connect(FACTORY)
            assert memory.nameResolver.asked == []
            assert asked == [dialled]
            assert memory.dialled == [(dialled, 80)]
            memory.succeed(0)
            self.successResultOf(connecting)
            connecting = TCPEndpoint(memory, host, 80, permits=lambda _: False).connect(FACTORY)
            self.failureResultOf(connecting, NotPermitted)
            assert len(memory.dialled) == 1

    def test_what_is_an_address_to_the_system_alone_is_resolved(self) -> None:
        for host in ("127.1", "0x7f.1", "2130706433", "010.0.0.1", "fe80::1%eth0", "::1%", "1.2"):
            memory = Reactor(["192.0.2.1"])
            connecting = TCPEndpoint(memory, host, 80, permits=lambda _: False).connect(FACTORY)
            self.failureResultOf(connecting, NotPermitted)
            assert memory.nameResolver.asked == [host]

    def test_no_layer_is_left_between_the_connection_and_its_protocol(self) -> None:
        memory = Reactor(NAME)
        connecting = TCPEndpoint(memory, "name", 80).connect(FACTORY)
        transport = memory.succeed(0)
        assert transport.protocol is self.successResultOf(connecting)

    def test_cancelled_while_resolving(self) -> None:
        memory = Reactor(None)
        connecting = TCPEndpoint(memory, "name", 80).connect(FACTORY)
        connecting.cancel()
        self.failureResultOf(connecting, DNSLookupError)
        memory.nameResolver.answer(NAME, 80)  # too late
        assert memory.dialled == []

    def test_cancelled_while_connecting(self) -> None:
        memory = Reactor(NAME)
        connecting = TCPEndpoint(memory, "name", 80).connect(FACTORY)
        memory.advance(0.25)
        connecting.cancel()
        self.failureResultOf(connecting, CancelledError)
        assert all(connector.stoppedConnecting for connector in memory.connectors)
        assert len(memory.dialled) == 2
        assert memory.getDelayedCalls() == []

    def test_authorities_as_they_are_written(self) -> None:
        assert host_and_port("name", 80) == "name:80"
        assert host_and_port("::1", 80) == "[::1]:80"

    def test_loopback(self) -> None:
        for host in ("localhost", "LOCALHOST.", "127.0.0.1", "127.255.0.1", "::1"):
            assert is_loopback(host), host
        for host in ("localhost.example", "128.0.0.1", "::2", "", "10.0.0.1"):
            assert not is_loopback(host), host


class RealTCPTests(TestCase):
    async def test_localhost_with_a_server_on_ipv4_only(self) -> None:
        server = Listener(reactor, Echo)
        self.addCleanup(Deferred.fromCoroutine, server.close())
        for name in ("localhost", "127.0.0.1", "0x7f.1", "::ffff:127.0.0.1"):
            endpoint = TCPEndpoint(reactor, name, server.port)
            client = await endpoint.connect(Factory.forProtocol(Client))
            assert client.transport.getTcpNoDelay()
            await client.until(b"hello")
            await client.close()

    def test_addresses_are_what_the_system_takes_them_for(self) -> None:
        for host in (
            "127.0.0.1",
            "0.0.0.0",
            "::",
            "::1",
            "::7F00:1",
            "::ffff:127.0.0.1",
            "FE80::1",
        ):
            (_, _, _, _, (dialled, *_)), *_ = getaddrinfo(host, 80, type=SOCK_STREAM)
            memory = Reactor(None)
            TCPEndpoint(memory, host, 80).connect(FACTORY)
            assert memory.dialled == [(dialled, 80)]

    async def test_unknown_name(self) -> None:
        endpoint = TCPEndpoint(reactor, "nowhere.invalid", 80)
        await self.assertFailure(endpoint.connect(FACTORY), DNSLookupError)

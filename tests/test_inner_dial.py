"""Dialling origins: what is refused before it is tried, and how each failure is told."""

import tempfile
from pathlib import Path

import pytest
from inner_certificates import Authority, Client, Echo, Listener, ServerContext
from inner_reactor import Reactor
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import (
    ConnectError,
    ConnectionRefusedError,
    NoRouteError,
    TCPTimedOutError,
)
from twisted.internet.error import TimeoutError as AttemptTimeoutError
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase, TestCase

from sockgw.http.client import Origin, OriginError
from sockgw.inner.allow import AllowList
from sockgw.inner.dial import Dialler
from sockgw.protocol.errors import StreamCode

CLIENTS = Factory.forProtocol(Client)
HTTP = Origin("http", "db.internal", 80)
HTTPS = Origin("https", "db.internal", 443)


class DiallerTests(SynchronousTestCase):
    def dial(self, memory: Reactor, origin: Origin, *allow: str) -> "Deferred[object]":
        return Dialler(memory, AllowList.parse(allow), [], 10.0).endpoint(origin).connect(CLIENTS)

    def fails(self, connecting: "Deferred[object]", code: StreamCode, detail: str) -> None:
        error = self.failureResultOf(connecting, OriginError).value
        assert (error.code, error.detail) == (code, detail)

    def test_connects(self) -> None:
        memory = Reactor(["10.0.0.7"])
        connecting = self.dial(memory, HTTP, "db.internal:80")
        assert memory.dialled == [("10.0.0.7", 80)]
        transport = memory.succeed(0)
        assert isinstance(self.successResultOf(connecting), Client)
        assert transport.nodelay
        assert memory.getDelayedCalls() == []

    def test_https_is_not_there_before_the_handshake(self) -> None:
        memory = Reactor(["10.0.0.7"])
        connecting = self.dial(memory, HTTPS)
        transport = memory.succeed(0)
        self.assertNoResult(connecting)
        memory.advance(9.9)
        self.assertNoResult(connecting)
        memory.advance(0.2)
        self.fails(
            connecting,
            StreamCode.CONNECTION_TIMEOUT,
            "db.internal:443 could not be connected in time",
        )
        assert transport.aborted

    def test_names_off_the_list_are_not_even_resolved(self) -> None:
        memory = Reactor(["10.0.0.7"])
        connecting = self.dial(memory, HTTP, "other.internal", "*.example.org")
        detail = "db.internal:80 is not on the inner layer's allow list"
        self.fails(connecting, StreamCode.NOT_ALLOWED, detail)
        assert memory.nameResolver.asked == []

    def test_addresses_off_the_list_are_not_dialled(self) -> None:
        memory = Reactor(["11.0.0.1", "10.0.0.7", "fd00::1"])
        connecting = self.dial(memory, HTTP, "10.0.0.0/8")
        memory.fail(0, ConnectionRefusedError())
        assert memory.dialled == [("10.0.0.7", 80)]
        self.failureResultOf(connecting, OriginError)
        memory = Reactor(["11.0.0.1", "fd00::1"])
        connecting = self.dial(memory, HTTP, "10.0.0.0/8")
        detail = "db.internal:80 is not on the inner layer's allow list"
        self.fails(connecting, StreamCode.NOT_ALLOWED, detail)
        assert memory.dialled == []

    def test_a_listed_name_that_leads_to_metadata(self) -> None:
        for allow in ((), ("db.internal",), ("*",)):
            for address in ("169.254.169.254", "::ffff:169.254.169.254", "0.0.0.0"):
                memory = Reactor([address])
                error = self.failureResultOf(self.dial(memory, HTTP, *allow), OriginError).value
                assert error.code is StreamCode.NOT_ALLOWED
                assert ("metadata" in error.detail) is (not allow)
                assert memory.dialled == []

    def test_addresses_instead_of_names(self) -> None:
        memory = Reactor(["::1"])
        self.dial(memory, Origin("http", "::1", 8080), "[::1]:8080")
        assert memory.dialled == [("::1", 8080)]
        connecting = self.dial(Reactor(["::1"]), Origin("http", "::1", 8081), "[::1]:8080")
        detail = "[::1]:8081 is not on the inner layer's allow list"
        self.fails(connecting, StreamCode.NOT_ALLOWED, detail)

    def test_unknown_names(self) -> None:
        detail = "cannot resolve db.internal"
        self.fails(self.dial(Reactor([]), HTTP), StreamCode.DNS_ERROR, detail)

    def test_names_that_nobody_resolves_in_time(self) -> None:
        memory = Reactor(None)
        connecting = self.dial(memory, HTTP)
        memory.advance(9.9)
        self.assertNoResult(connecting)
        memory.advance(0.2)
        self.fails(connecting, StreamCode.DNS_ERROR, "cannot resolve db.internal")
        memory.nameResolver.answer(["10.0.0.7"], 80)
        assert memory.dialled == []

    def test_failures_to_connect(self) -> None:
        for error, code, detail in (
            (ConnectionRefusedError(), StreamCode.CONNECTION_REFUSED, "refused the connection"),
            (NoRouteError(), StreamCode.UNREACHABLE, "is unreachable"),
            (ConnectError(113, "No route to host"), StreamCode.UNREACHABLE, "is unreachable"),
            (
                AttemptTimeoutError(),
                StreamCode.CONNECTION_TIMEOUT,
                "could not be connected in time",
            ),
            (TCPTimedOutError(), StreamCode.CONNECTION_TIMEOUT, "could not be connected in time"),
        ):
            for origin in (HTTP, HTTPS):
                memory = Reactor(["10.0.0.7"])
                connecting = self.dial(memory, origin)
                memory.fail(0, error)
                self.fails(connecting, code, f"db.internal:{origin.port} {detail}")
                assert memory.getDelayedCalls() == []

    def test_silence(self) -> None:
        memory = Reactor(["10.0.0.7", "10.0.0.8"])
        connecting = self.dial(memory, HTTP)
        memory.pump([1.0] * 10)
        detail = "db.internal:80 could not be connected in time"
        self.fails(connecting, StreamCode.CONNECTION_TIMEOUT, detail)
        assert all(connector.stoppedConnecting for connector in memory.connectors)
        assert memory.getDelayedCalls() == []

    def test_cancelled_by_who_called(self) -> None:
        memory = Reactor(["10.0.0.7"])
        connecting = self.dial(memory, HTTP)
        connecting.cancel()
        self.failureResultOf(connecting, CancelledError)
        assert memory.getDelayedCalls() == []


class RealDiallerTests(TestCase):
    async def test_origins(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            authority = Authority(Path(name), "authority")
            good = authority.issue("good", ["localhost"])
            expired = authority.issue("expired", ["localhost"], days=-1)
            dialler = Dialler(reactor, AllowList.parse(["127.0.0.1"]), [authority.file], 10.0)
            stranger = Dialler(reactor, AllowList.parse([]), [], 10.0)
            servers = {
                "http": Listener(reactor, Echo),
                "https": Listener(reactor, Echo, ServerContext(*good)),
                "expired": Listener(reactor, Echo, ServerContext(*expired)),
            }
        for server in servers.values():
            self.addCleanup(Deferred.fromCoroutine, server.close())
        for protocol in ("http", "https"):
            origin = Origin(protocol, "localhost", servers[protocol].port)
            client = await dialler.endpoint(origin).connect(CLIENTS)
            await client.until(b"hello")
            await client.close()
        for caller, hostname, server, detail in (
            (dialler, "localhost", "expired", "TLS: certificate has expired"),
            (stranger, "localhost", "https", "TLS: certificate's authority is not trusted"),
            (dialler, "127.0.0.1", "https", "TLS: certificate is not for 127.0.0.1"),
            (dialler, "localhost", "http", "TLS: handshake failed: "),
        ):
            origin = Origin("https", hostname, servers[server].port)
            connecting = caller.endpoint(origin).connect(CLIENTS)
            error = await self.assertFailure(connecting, OriginError)
            assert error.code is StreamCode.TLS_ERROR
            assert error.detail.startswith(detail)

    async def test_nobody_listens(self) -> None:
        server = Listener(reactor, Echo)
        await server.close()
        dialler = Dialler(reactor, AllowList.parse(["localhost"]), [], 10.0)
        endpoint = dialler.endpoint(Origin("http", "localhost", server.port))
        error = await self.assertFailure(endpoint.connect(CLIENTS), OriginError)
        assert error.code is StreamCode.CONNECTION_REFUSED
        assert error.detail == f"localhost:{server.port} refused the connection"


def test_unusable_authorities_are_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent"):
        Dialler(Reactor([]), AllowList.parse([]), [str(tmp_path / "absent")], 10.0)

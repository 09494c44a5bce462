"""TLS towards servers: who is trusted, when a connection is there, and what failures say."""

import tempfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)
from inner_certificates import Authority, Client, Echo, Listener, ServerContext
from inner_reactor import Reactor
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost, NoProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase, TestCase

from sockgw.http.negotiated import NegotiatedFactory
from sockgw.inner.tcp import TCPEndpoint
from sockgw.inner.tls import TLSEndpoint, TLSError, client_context

CLIENTS = Factory.forProtocol(Client)


class Closing(Protocol):
    def connectionMade(self) -> None:
        self.transport.abortConnection()


class NoFactory(Factory):
    def buildProtocol(self, addr: object) -> None:
        return None


class Second(Client):
    pass


class Choice(NegotiatedFactory):
    protocol = Second

    def negotiated(self, protocol: bytes | None) -> Factory:
        return self if protocol == b"h2" else CLIENTS


class TLSEndpointTests(TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.directory = tempfile.TemporaryDirectory()
        cls.authority = Authority(Path(cls.directory.name), "authority")
        cls.other = Authority(Path(cls.directory.name), "other")
        cls.context = client_context([cls.authority.file])

    @classmethod
    def tearDownClass(cls) -> None:
        cls.directory.cleanup()

    def serve(
        self, names: list[str], *, days: float = 1, ca: str | None = None, protocol: type = Echo
    ) -> Listener:
        files = self.authority.issue("server", names, days=days)
        server = Listener(reactor, protocol, ServerContext(*files, ca=ca))
        self.addCleanup(Deferred.fromCoroutine, server.close())
        return server

    def endpoint(
        self, server: Listener, context: SSL.Context | None = None, hostname: str = "localhost"
    ) -> TLSEndpoint:
        tcp = TCPEndpoint(reactor, "127.0.0.1", server.port)
        return TLSEndpoint(reactor, tcp, hostname, context or self.context)

    async def refused(self, endpoint: TLSEndpoint) -> str:
        return str(await self.assertFailure(endpoint.connect(CLIENTS), TLSError))

    async def test_trusted_and_named(self) -> None:
        server = self.serve(["localhost", "my_db", "127.0.0.1", "::1", "*.example.org"])
        for name in ("localhost", "LocalHost.", "my_db", "127.0.0.1", "::1", "a.example.org"):
            client = await self.endpoint(server, hostname=name).connect(CLIENTS)
            # Usable at once, and nothing of ours between the protocol and Twisted's transport.
            assert client.transport.getHandle().get_protocol_version_name() == "TLSv1.3"
            assert client.transport.wrappedProtocol is client
            client.transport.write(b"echo")
            await client.until(b"hello echo")
            await client.close()

    async def test_the_server_chooses_what_is_spoken(self) -> None:
        files = self.authority.issue("server", ["localhost"])
        for speaks, chosen in (
            ((b"h2", b"http/1.1"), Second),
            ((b"http/1.1", b"h2"), Client),
            ((b"http/1.1",), Client),
            ((b"spdy/1",), Client),  # the handshake goes on without (RFC 7301 would end it)
            ((), Client),
        ):
            context = ServerContext(*files, speaks=speaks)
            server = Listener(reactor, Echo, context)
            self.addCleanup(Deferred.fromCoroutine, server.close())
            client = await self.endpoint(server).connect(Choice())
            assert type(client) is chosen
            assert client.transport.wrappedProtocol is client
            assert context.offered == ([b"h2", b"http/1.1"] if speaks else [])
            client.transport.write(b"echo")
            await client.until(b"hello echo")

    async def test_nothing_is_offered_where_there_is_no_choice(self) -> None:
        files = self.authority.issue("server", ["localhost"])
        context = ServerContext(*files, speaks=(b"h2",))
        server = Listener(reactor, Echo, context)
        self.addCleanup(Deferred.fromCoroutine, server.close())
        await self.endpoint(server).connect(CLIENTS)
        assert context.offered == []

    async def test_the_certificate_is_verified_whatever_is_spoken(self) -> None:
        files = self.other.issue("server", ["localhost"])
        server = Listener(reactor, Echo, ServerContext(*files, speaks=(b"h2",)))
        self.addCleanup(Deferred.fromCoroutine, server.close())
        connecting = self.endpoint(server).connect(Choice())
        problem = str(await self.assertFailure(connecting, TLSError))
        assert problem == "certificate's authority is not trusted"

    async def test_another_host(self) -> None:
        server = self.serve(["localhost", "*.example.org"])
        for name in ("127.0.0.1", "remote", "a.b.example.org", "example.org"):
            problem = await self.refused(self.endpoint(server, hostname=name))
            assert problem == f"certificate is not for {name}"

    async def test_certificate_without_names(self) -> None:
        # Its common name is localhost, which counts for nothing (RFC 9525, section 2).
        problem = await self.refused(self.endpoint(self.serve([])))
        assert problem == "certificate does not say which host it is for"

    async def test_expired(self) -> None:
        problem = await self.refused(self.endpoint(self.serve(["localhost"], days=-1)))
        assert problem == "certificate has expired"

    async def test_unknown_authority(self) -> None:
        context = client_context([self.other.file])
        problem = await self.refused(self.endpoint(self.serve(["localhost"]), context))
        assert problem == "certificate's authority is not trusted"
        problem = await self.refused(self.endpoint(self.serve(["localhost"]), client_context()))
        assert problem == "certificate's authority is not trusted"

    async def test_system_roots_beside_given_ones(self) -> None:
        server = self.serve(["localhost"])
        self.patch_environment("SSL_CERT_FILE", self.authority.file)
        both = client_context([self.other.file])
        client = await self.endpoint(server, both).connect(CLIENTS)
        await client.close()
        instead = client_context([self.other.file], system_roots=False)
        assert "not trusted" in await self.refused(self.endpoint(server, instead))

    def patch_environment(self, name: str, value: str) -> None:
        patch = pytest.MonkeyPatch()
        patch.setenv(name, value)
        self.addCleanup(patch.undo)

    async def test_without_verification(self) -> None:
        context = client_context(verify=False)
        server = self.serve([], days=-1)
        client = await self.endpoint(server, context).connect(CLIENTS)
        await client.until(b"hello")
        await client.close()

    async def test_server_that_does_not_speak_tls(self) -> None:
        server = Listener(reactor, Echo)
        self.addCleanup(Deferred.fromCoroutine, server.close())
        assert (await self.refused(self.endpoint(server))).startswith("handshake failed: ")

    async def test_server_that_closes(self) -> None:
        server = Listener(reactor, Closing)
        self.addCleanup(Deferred.fromCoroutine, server.close())
        problem = await self.refused(self.endpoint(server))
        assert problem == "the server closed the connection during the handshake"

    async def test_client_certificate(self) -> None:
        server = self.serve(["localhost"], ca=self.other.file)
        certificate, key = self.other.issue("client", ["office"])
        context = client_context([self.authority.file], certificate=certificate, private_key=key)
        client = await self.endpoint(server, context).connect(CLIENTS)
        await client.until(b"hello")
        await client.close()

    async def test_client_certificate_missing(self) -> None:
        server = self.serve(["localhost"], ca=self.other.file)
        # In TLS 1.3 the client is done before the server has looked: it is told afterwards.
        client = await self.endpoint(server).connect(CLIENTS)
        assert "certificate required" in str(await client.lost)
        assert client.received == b""

    async def test_lost_later(self) -> None:
        server = self.serve(["localhost"])
        client = await self.endpoint(server).connect(CLIENTS)
        await client.until(b"hello")
        next(iter(server.protocols)).transport.transport.abortConnection()
        assert isinstance(await client.lost, ConnectionLost)

    async def test_factory_without_a_protocol(self) -> None:
        server = self.serve(["localhost"])
        await self.assertFailure(self.endpoint(server).connect(NoFactory()), NoProtocol)


class HandshakeTests(SynchronousTestCase):
    def test_cancelled_during_the_handshake(self) -> None:
        memory = Reactor(["192.0.2.1"])
        tcp = TCPEndpoint(memory, "name", 443)
        connecting = TLSEndpoint(memory, tcp, "name", client_context()).connect(CLIENTS)
        transport = memory.succeed(0)
        assert b"name" in transport.value()  # the greeting with the server's name
        self.assertNoResult(connecting)
        connecting.cancel()
        self.failureResultOf(connecting, CancelledError)
        assert transport.aborted
        transport.lose()

    def test_no_server_name_for_addresses(self) -> None:
        memory = Reactor(["192.0.2.1"])
        tcp = TCPEndpoint(memory, "192.0.2.1", 443)
        connecting = TLSEndpoint(memory, tcp, "192.0.2.1", client_context()).connect(CLIENTS)
        transport = memory.succeed(0)
        assert b"192.0.2.1" not in transport.value()
        transport.lose()
        self.failureResultOf(connecting, TLSError)


def test_unusable_files_are_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    certificate, key = authority.issue("one", ["localhost"])
    _, other_key = authority.issue("two", ["localhost"])
    junk = tmp_path / "junk"
    junk.write_text("junk")
    locked = tmp_path / "locked"
    locked.write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        )
    )
    with pytest.raises(ValueError, match=r"absent: No such file"):
        client_context([str(tmp_path / "absent")])
    with pytest.raises(ValueError, match=r"junk: does not hold certificates"):
        client_context([str(junk)])
    with pytest.raises(ValueError, match=r"junk: does not hold a certificate"):
        client_context(certificate=str(junk), private_key=key)
    with pytest.raises(ValueError, match=r"two.key: does not hold the key of .*one.crt"):
        client_context(certificate=certificate, private_key=other_key)
    with pytest.raises(ValueError, match=r"locked: does not hold an unencrypted private key"):
        client_context(certificate=certificate, private_key=str(locked))

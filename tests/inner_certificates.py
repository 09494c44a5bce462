"""Certificates for tests, and servers on the loopback that show them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.policies import WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer


class Authority:
    """Issues certificates into a directory."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(self.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=900))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.file = str(directory / f"{name}.crt")
        Path(self.file).write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def issue(self, stem: str, names: list[str], *, days: float = 1) -> tuple[str, str]:
        """Return the files of a certificate, which ends in ``days``, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=800))
            .not_valid_after(now + timedelta(days=days))
        )
        if names:
            alternatives = [_general_name(name) for name in names]
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), False)
        certificate = builder.sign(self.key, hashes.SHA256())
        certificate_file = self.directory / f"{stem}.crt"
        key_file = self.directory / f"{stem}.key"
        certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )
        return str(certificate_file), str(key_file)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@implementer(IOpenSSLServerConnectionCreator)
class ServerContext:
    """What a TLS server shows; it asks for a certificate where ``ca`` is given.

    ``speaks`` are the protocols that it knows (ALPN), the one that it likes best first; ``offered``
    what it was offered last.
    """

    def __init__(
        self, certificate: str, key: str, ca: str | None = None, speaks: Sequence[bytes] = ()
    ) -> None:
        self.offered: list[bytes] = []
        self._speaks = speaks
        self._context = SSL.Context(SSL.TLS_SERVER_METHOD)
        self._context.use_certificate_chain_file(certificate)
        self._context.use_privatekey_file(key)
        if ca is not None:
            self._context.load_verify_locations(ca)
            self._context.set_verify(
                SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *args: bool(args[-1])
            )

        if speaks:
            self._context.set_alpn_select_callback(self._select)

    def _select(self, connection: SSL.Connection, offered: list[bytes]) -> Any:
        self.offered = offered
        known = (name for name in self._speaks if name in offered)
        return next(known, SSL.NO_OVERLAPPING_PROTOCOLS)

    def serverConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        return SSL.Connection(self._context, None)


class Listener(WrappingFactory):
    """A server on a free port of 127.0.0.1, with TLS given a context, that ends when told."""

    def __init__(
        self, reactor: Any, protocol: type[Protocol], context: ServerContext | None = None
    ) -> None:
        super().__init__(Factory.forProtocol(protocol))
        factory = self if context is None else TLSMemoryBIOFactory(context, False, self)
        self._listening = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self._empty: Deferred[None] | None = None
        self.port: int = self._listening.getHost().port

    def unregisterProtocol(self, protocol: Any) -> None:
        super().unregisterProtocol(protocol)
        if self._empty is not None and not self.protocols:
            self._empty.callback(None)

    async def close(self) -> None:
        await self._listening.stopListening()
        if self.protocols:
            self._empty = Deferred()
            for protocol in list(self.protocols):
                protocol.transport.abortConnection()
            await self._empty


class Echo(Protocol):
    """Greets, then sends back what it gets."""

    def connectionMade(self) -> None:
        self.transport.write(b"hello ")

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


class Client(Protocol):
    """Collects what it gets."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: Deferred[BaseException | None] = Deferred()
        self._awaited: tuple[bytes, Deferred[None]] | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self._awaited is not None and self._awaited[0] in self.received:
            (_, awaited), self._awaited = self._awaited, None
            awaited.callback(None)

    async def until(self, text: bytes) -> None:
        if text not in self.received:
            awaited: Deferred[None] = Deferred()
            self._awaited = (text, awaited)
            await awaited

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(reason.value)

    async def close(self) -> None:
        self.transport.abortConnection()
        await self.lost

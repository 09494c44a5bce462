"""TLS towards a server: a connection is there once the handshake is, or fails with the reason.

The names in a certificate are checked here, within the handshake. Twisted's optionsForClientTLS
does that too, but knows only one of service_identity's two exceptions: with today's versions a
certificate without subjectAltName, from any trusted authority, passes for every host. It also
keeps the reason why a chain was refused to itself, and reads the system's roots once per host.
"""

from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity import CertificateError, VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IHandshakeListener,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from sockgw.http.negotiated import NegotiatedFactory
from sockgw.inner.preamble import Preamble
from sockgw.tlstransport import TLSFactory

__all__ = ["TLSEndpoint", "TLSError", "client_context"]

_Code = SSL.X509VerificationCodes
_PROBLEMS: dict[int, str] = {
    _Code.ERR_CERT_HAS_EXPIRED: "certificate has expired",
    _Code.ERR_CERT_NOT_YET_VALID: "certificate is not valid yet",
    _Code.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: "certificate is self-signed and not trusted",
    _Code.ERR_SELF_SIGNED_CERT_IN_CHAIN: "certificate's authority is not trusted",
    _Code.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "certificate's authority is not trusted",
    _Code.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: "certificate's authority is not trusted",
    _Code.ERR_INVALID_PURPOSE: "certificate is not meant for servers",
}


class TLSError(Exception):
    """No TLS connection came about; the text says why, in one line without names of files."""


def client_context(
    ca_files: Sequence[str] = (),
    *,
    system_roots: bool = True,
    certificate: str | None = None,
    private_key: str | None = None,
    verify: bool = True,
) -> SSL.Context:
    """Return a context for clients: TLS 1.2 or newer, trusting what is named here and no more.

    All are PEM files; ``certificate``, which the client sends, may be followed by its chain. Making
    a context reads all of the system's roots, so make one and share it. Raises ValueError naming
    the file that cannot be used.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_verify(SSL.VERIFY_PEER if verify else SSL.VERIFY_NONE)
    if system_roots:
        context.set_default_verify_paths()
    for file in ca_files:
        _load(file, "certificates of authorities", context.load_verify_locations)
    if certificate and private_key:
        _load(certificate, "a certificate", context.use_certificate_chain_file)
        # Not OpenSSL's own way, which would ask for a passphrase on the terminal.
        key = _load(private_key, "an unencrypted private key", _read_key)
        _load(private_key, f"the key of {certificate}", lambda _: context.use_privatekey(key))
    return context


def _read_key(file: str) -> Any:
    return load_pem_private_key(Path(file).read_bytes(), None)


def _load(file: str, content: str, load: Callable[[str], Any]) -> Any:
    try:
        # OpenSSL tells missing files and missing permissions from each other by number only.
        Path(file).open("rb").close()
        return load(file)
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    except (SSL.Error, ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(f"{file}: does not hold {content} in PEM") from None


@implementer(IStreamClientEndpoint)
class TLSEndpoint:
    """Speaks TLS over another endpoint's connection, with the server called ``hostname``.

    ``hostname`` is a name or an address, as the certificate must carry it. Whether certificates
    are verified is a matter of the context.
    """

    def __init__(
        self, clock: Any, endpoint: IStreamClientEndpoint, hostname: str, context: SSL.Context
    ) -> None:
        self._clock = clock
        self._endpoint = endpoint
        self._hostname = hostname.removesuffix(".").lower()
        self._context = context

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Fires with the connected protocol after the handshake, not before.

        Its transport is Twisted's TLS transport. A NegotiatedFactory says what is offered by ALPN,
        and is told what the server has chosen. Fails with TLSError, or as the other endpoint.
        """
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        offers = factory.offers if isinstance(factory, NegotiatedFactory) else ()
        server = _Server(self._hostname, self._context, offers)
        return await _Handshake(factory, server, self._clock).over(self._endpoint)


@implementer(IOpenSSLClientConnectionCreator)
class _Server:
    """The server one connection is meant for; remembers what was wrong with its certificate."""

    def __init__(self, hostname: str, context: SSL.Context, offers: Sequence[bytes]) -> None:
        self._context = context
        self._hostname = hostname
        self._offers = offers
        self.problem: str | None = None

    def clientConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        if self._offers:
            connection.set_alpn_protos(list(self._offers))
        mode = self._context.get_verify_mode()
        try:
            ip_address(self._hostname)
        except ValueError:
            name = self._hostname.encode("idna")
            connection.set_tlsext_host_name(name)  # for names only: RFC 6066, section 3
            self._identity: DNS_ID | IPAddress_ID = DNS_ID(name.decode("ascii"))
        else:
            self._identity = IPAddress_ID(self._hostname)
        if mode != SSL.VERIFY_NONE:
            connection.set_verify(mode, self._verify)
        return connection

    def _verify(
        self, connection: SSL.Connection, certificate: X509, error: int, depth: int, valid: int
    ) -> bool:
        """OpenSSL asks for each certificate of the chain; the server's own has depth 0."""
        problem = None
        if not valid:
            problem = _PROBLEMS.get(error, f"certificate is not valid (X.509 error {error})")
        elif depth == 0:
            try:
                verify_service_identity(extract_patterns(certificate), [self._identity], [])
            except VerificationError:
                problem = f"certificate is not for {self._hostname}"
            except (CertificateError, ValueError):
                problem = "certificate does not say which host it is for"
        self.problem = self.problem or problem
        return problem is None


@implementer(IHandshakeListener)
class _Handshake(Preamble):
    """Waits for the end of the handshake."""

    def __init__(self, factory: IProtocolFactory, server: _Server, clock: Any) -> None:
        super().__init__(factory)
        self._server = server
        self._clock = clock

    def wrap(self, factory: IProtocolFactory) -> IProtocolFactory:
        return TLSFactory(self._server, True, factory, self._clock)

    def handshakeCompleted(self) -> None:
        self.hand_over()

    def choose(self, factory: IProtocolFactory) -> IProtocolFactory:
        if isinstance(factory, NegotiatedFactory):
            return factory.negotiated(self.transport.negotiatedProtocol)
        return factory

    def give_way(self, protocol: IProtocol) -> None:
        # As if the protocol had been there from the beginning: no layer of ours is left.
        self.transport.wrappedProtocol = protocol

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.fail(TLSError(self._server.problem or _explain(reason.value)))


def _explain(error: BaseException | None) -> str:
    if isinstance(error, SSL.Error) and error.args and error.args[0]:
        # The last entry of OpenSSL's queue: library, function, reason.
        return f"handshake failed: {error.args[0][-1][-1]}"
    return "the server closed the connection during the handshake"

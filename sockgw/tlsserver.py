"""TLS for listeners: TLS 1.2 or newer with AEAD suites only, over any other endpoint.

Where a listener has several certificates, a connection starts with a context that has none, and
OpenSSL asks for another one as soon as it knows whom the client wants. It may be told of a context
that has been read since.
"""

# Twisted leaves much of this without types:
# mypy: allow-untyped-calls

from collections.abc import Sequence
from functools import cache
from typing import Any, cast

from cryptography import x509
from OpenSSL import SSL, crypto
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IProtocolNegotiationFactory,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from sockgw.certificates import Pair
from sockgw.certificatestore import CertificateStore
from sockgw.edge import Edge
from sockgw.tlstransport import TLSFactory, TLSTransport

__all__ = ["TLSEndpoint", "server_context"]

_log = Logger()

# RFC 9325, section 4.2, without CBC. TLS 1.3 has AEAD suites only.
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"

# RFC 8446, sections 5.1 and 6: a fatal unrecognized_name in clear, as nothing is encrypted yet.
_UNRECOGNIZED_NAME = b"\x15\x03\x03\x00\x02\x02\x70"


@implementer(IStreamServerEndpoint)
class TLSEndpoint:
    """TLS over another endpoint's connections."""

    def __init__(
        self, reactor: Any, inner: IStreamServerEndpoint, store: CertificateStore, edge: Edge
    ) -> None:
        self._reactor = reactor
        self._inner = inner
        self._store = store
        self._edge = edge

    def listen(self, protocolFactory: IProtocolFactory) -> "Deferred[IListeningPort]":
        return self._inner.listen(
            _TLSFactory(protocolFactory, self._reactor, self._store, self._edge)
        )


class _TLSProtocol(TLSTransport):
    """A connection; tells of handshakes that fail."""

    factory: Any
    refused = False

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        handle = self.getHandle()
        fault = self._reason or reason
        super().connectionLost(reason)
        if handle.get_peer_finished() is None:
            self._handshake_failed(fault)

    def _handshake_failed(self, fault: Failure) -> None:
        if self.refused:
            reason = "no certificate for the name that was asked for"
        elif fault.check(SSL.Error):
            reason = _openssl_reason(cast(SSL.Error, fault.value))
        elif fault.check(ConnectionAborted):
            reason = "not finished in time"
        else:
            return  # the client has left
        edge = self.factory.edge
        edge.handshakes_failed += 1
        if edge.say_handshake.may():
            _log.info(
                "TLS handshake failed address={address}: {reason}{rest}",
                address=getattr(self.getPeer(), "host", "-"),
                reason=reason,
                rest=edge.say_handshake.rest(),
            )


@implementer(IOpenSSLServerConnectionCreator)
class _TLSFactory(TLSFactory):
    protocol = _TLSProtocol

    def __init__(
        self, wrapped: IProtocolFactory, reactor: Any, store: CertificateStore, edge: Edge
    ) -> None:
        super().__init__(self, False, wrapped, clock=reactor)
        self.edge = edge
        self._store = store
        self._undecided: SSL.Context | None = None
        if store.several:
            self._undecided = store.nobody()
            try:
                self._undecided.set_tlsext_servername_callback(self._decide)
            except MemoryError:
                raise ValueError(
                    "certificates cannot be chosen by name where systemd's MemoryDenyWriteExecute "
                    "forbids this process to make callbacks"
                ) from None

    def logPrefix(self) -> str:
        return "TLS"

    def startFactory(self) -> None:
        self._store.start()

    def stopFactory(self) -> None:
        self._store.stop()

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        connection = SSL.Connection(self._undecided or self._store.only, None)
        connection.set_app_data(tlsProtocol)
        return connection

    def _decide(self, connection: SSL.Connection) -> None:
        """The client has said whom it wants."""
        protocol = connection.get_app_data()
        name = (connection.get_servername() or b"").decode("ascii", "replace")
        address = str(getattr(protocol.transport.getHost(), "host", ""))
        context = self._store.choose(name, address)
        if context is not None:
            connection.set_context(context)
            return
        # OpenSSL goes on, finds no certificate and fails; the client has heard why before.
        protocol.refused = True
        protocol.transport.write(_UNRECOGNIZED_NAME)


def _openssl_reason(error: BaseException) -> str:
    """Return OpenSSL's words for an error: none of them are the peer's."""
    try:
        return str(error.args[0][-1][-1]) or "unknown"
    except (IndexError, TypeError):
        return "unknown"


def server_context(pair: Pair | None, authorities: Sequence[x509.Certificate] = ()) -> SSL.Context:
    """Return the settings of a server that shows this certificate, or none.

    With ``authorities`` clients must show one by them. What is spoken within TLS (ALPN) is asked of
    the connection's factory. Raises ValueError with a sentence for an operator.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_CIPHERS)
    # Tickets and cached sessions would outlive the forward secrecy that ECDHE gives.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(
        SSL.OP_NO_TICKET
        | SSL.OP_NO_COMPRESSION
        | SSL.OP_NO_RENEGOTIATION
        | SSL.OP_CIPHER_SERVER_PREFERENCE
    )
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # 34 KB less for each idle connection
    if pair is not None:
        try:
            context.use_certificate(pair.chain[0])
            context.use_privatekey(pair.key)
            for certificate in pair.chain[1:]:
                context.add_extra_chain_cert(certificate)
        except SSL.Error as error:
            raise ValueError(
                f"OpenSSL does not take the certificate: {_openssl_reason(error)}"
            ) from None
    if authorities:
        store = cast(crypto.X509Store, context.get_cert_store())
        for certificate in authorities:
            store.add_cert(crypto.X509.from_cryptography(certificate))
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    try:
        context.set_alpn_select_callback(_select_protocol)
    except MemoryError:  # systemd's MemoryDenyWriteExecute=yes forbids callbacks
        _say_no_protocols()
    return context


@cache
def _say_no_protocols() -> None:
    _log.warn("no ALPN, hence no HTTP/2 over TLS: this process is forbidden to make callbacks")


def _select_protocol(connection: SSL.Connection, offered: list[bytes]) -> Any:
    """Choose what to speak (RFC 7301), by the order of ours; without agreement go on without."""
    factory = connection.get_app_data().factory.wrappedFactory
    if IProtocolNegotiationFactory.providedBy(factory):
        for protocol in factory.acceptableProtocols():
            if protocol in offered:
                return protocol
    return SSL.NO_OVERLAPPING_PROTOCOLS

"""TLS for listeners: TLS 1.2 or newer with AEAD suites only, over any other endpoint."""

# Twisted leaves much of this without types:
# mypy: allow-untyped-calls

from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from sockgw.certificates import Pair, read_certificates

__all__ = ["TLSEndpoint", "server_context"]

# RFC 9325, section 4.2, without CBC. TLS 1.3 has AEAD suites only.
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"


@implementer(IStreamServerEndpoint, IOpenSSLServerConnectionCreator)
class TLSEndpoint:
    """TLS over another endpoint's connections."""

    def __init__(self, reactor: Any, inner: IStreamServerEndpoint, context: SSL.Context) -> None:
        self._reactor = reactor
        self._inner = inner
        self._context = context

    def listen(self, protocolFactory: IProtocolFactory) -> "Deferred[IListeningPort]":
        factory = TLSMemoryBIOFactory(self, False, protocolFactory, clock=self._reactor)
        return self._inner.listen(factory)

    def serverConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        return SSL.Connection(self._context, None)


def server_context(pair: Pair, client_ca: str = "") -> SSL.Context:
    """Return the settings of a server that shows this certificate.

    With ``client_ca``, a file, clients must show one by those in it. Raises ValueError with a
    sentence for an operator.
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
    try:
        context.use_certificate(pair.chain[0])
        context.use_privatekey(pair.key)
    except SSL.Error as error:
        raise ValueError(f"OpenSSL does not take the certificate: {error.args[0][0][-1]}") from None
    for certificate in pair.chain[1:]:
        context.add_extra_chain_cert(certificate)
    if client_ca:
        read_certificates(client_ca)  # for the better error
        context.load_verify_locations(client_ca)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    return context

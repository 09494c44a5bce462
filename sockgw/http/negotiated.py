"""Factories whose protocol is known once TLS has negotiated it (ALPN, RFC 7301)."""

from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import Factory

__all__ = ["NegotiatedFactory"]


class NegotiatedFactory(Factory):
    """What a TLS connection is dialled with where the server has a choice."""

    #: What is offered, what we like best first.
    offers = (b"h2", b"http/1.1")

    def negotiated(self, protocol: bytes | None) -> IProtocolFactory:
        """Return what builds the protocol of that name; None: the server knows no ALPN."""
        raise NotImplementedError

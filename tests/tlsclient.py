"""A TLS client against a server without sockets."""

import ssl

from twisted.internet.address import IPv4Address
from twisted.internet.testing import StringTransport

__all__ = ["ADDRESS", "Client", "trusting"]

ADDRESS = IPv4Address("TCP", "127.0.0.1", 4321)


class Client:
    """A TLS client of the standard library, against a protocol over a StringTransport."""

    def __init__(self, context, reactor, first=b"", *, name=None, host="127.0.0.1"):
        """``name`` is asked for; ``host`` is the server's address."""
        self._reactor = reactor
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=name)
        self.server = reactor.tcpServers[0][1].buildProtocol(ADDRESS)
        self.transport = StringTransport(
            peerAddress=ADDRESS, hostAddress=IPv4Address("TCP", host, 443)
        )
        self.server.makeConnection(self.transport)
        if first:
            self.server.dataReceived(first)

    def pump(self):
        if self._out.pending:
            self.server.dataReceived(self._out.read())
        self._reactor.advance(0)  # TLS gathers small writes of one turn
        self._in.write(self.transport.value())
        self.transport.clear()

    def do(self, call, *arguments):
        for _ in range(10):
            try:
                result = call(*arguments)
            except ssl.SSLWantReadError:
                self.pump()
            else:
                self.pump()
                return result
        raise AssertionError("no end of it")

    def ask(self, data):
        self.do(self.tls.do_handshake)
        self.do(self.tls.write, data)
        return self.do(self.tls.read, 100)


def trusting(certificate=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(certificate.with_suffix(".crt"), certificate.with_suffix(".key"))
    return context

"""The demonstration's origin with clients in memory."""

from http_clients import LIMITS, Transport, request
from twisted.internet.task import Clock

from sockgw.deadlines import Deadlines
from sockgw.demo.origin import Origin
from sockgw.http.front import ClientFactory
from sockgw.http.patience import ServerLimits

__all__ = ["Server", "get"]


class Server:
    """A client's connection to the origin."""

    def __init__(self, flushing=True, line=None, of=None):
        self.clock = of.clock if of else Clock()
        self.factory = (
            of.factory
            if of
            else ClientFactory(
                Origin(self.clock, line),
                Deadlines(self.clock),
                ServerLimits(**LIMITS),
                self.clock.seconds,
            )
        )
        self.connection = self.factory.buildProtocol(None)
        self.transport = Transport(self.clock, flushing)
        self.transport.protocol = self.connection
        self.connection.makeConnection(self.transport)

    def another(self):
        """Another client of the same origin."""
        return Server(of=self)

    def send(self, *data):
        for piece in data:
            self.connection.dataReceived(piece)
            self.clock.advance(0)

    @property
    def written(self):
        return bytes(self.transport.written)

    def answer(self):
        """The status, the headers and the body of all that has been written, as one response."""
        head, _, body = self.written.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        headers = dict(field.lower().split(": ", 1) for field in fields)
        if headers.get("transfer-encoding") == "chunked":
            body = unchunked(body)
        return int(line.split()[1]), headers, body


def unchunked(data):
    pieces = []
    while data:
        size, _, data = data.partition(b"\r\n")
        pieces.append(data[: int(size, 16)])
        assert data[int(size, 16) :].startswith(b"\r\n")
        data = data[int(size, 16) + 2 :]
    return b"".join(pieces)


def get(path, *fields, method="GET"):
    server = Server()
    server.send(request(f"{method} {path} HTTP/1.1".encode(), *fields))
    return server

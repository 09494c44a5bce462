"""Closing a listener: whom the kernel has let in is served."""

import os
import socket
from tempfile import TemporaryDirectory

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from sockgw.endpoints import server_endpoint
from sockgw.listeners import close_listener

WAITING = 300  # more than Twisted accepts in one turn


class Greeter(Protocol):
    def connectionMade(self):
        self.factory.connections.append(self)
        self.transport.write(b"hello")
        self.transport.loseConnection()


class Closing(TestCase):
    def setUp(self):
        from twisted.internet import reactor

        self.reactor = reactor
        self.factory = Factory.forProtocol(Greeter)
        self.factory.connections = []

    def connect(self, address, family=socket.AF_INET):
        """Return a connected socket; the reactor does not get to see it yet."""
        client = socket.socket(family)
        self.addCleanup(client.close)
        client.connect(address)
        return client

    def close(self, port):
        return Deferred.fromCoroutine(close_listener(self.reactor, port))

    @inlineCallbacks
    def turns(self, done):
        """Let the reactor work until it is done."""
        for _ in range(1000):
            if done():
                return
            turn = Deferred()
            self.reactor.callLater(0.001, turn.callback, None)
            yield turn
        raise AssertionError("it does not get done")

    @inlineCallbacks
    def all_are_greeted(self, clients):
        connections = self.factory.connections
        yield self.turns(lambda: all(each.transport.disconnected for each in connections))
        for client in clients:
            client.settimeout(1)
            assert client.recv(10) == b"hello"
            assert client.recv(10) == b""

    @inlineCallbacks
    def check(self, description, make_address, family=socket.AF_INET, waiting=WAITING):
        port = yield server_endpoint(self.reactor, description).listen(self.factory)
        address = make_address(port)
        clients = [self.connect(address, family) for _ in range(waiting)]
        yield self.close(port)
        with socket.socket(family) as late:
            error = late.connect_ex(address)
        assert error, "the socket is closed"
        assert len(self.factory.connections) == waiting
        yield self.all_are_greeted(clients)

    def test_tcp(self):
        return self.check(
            "tcp:0:interface=127.0.0.1", lambda port: ("127.0.0.1", port.getHost().port)
        )

    def test_all_addresses(self):
        return self.check("0", lambda port: ("127.0.0.1", port.getHost().port))

    def test_unix(self):
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = os.path.join(directory.name, "s")
        return self.check(f"unix:{path}", lambda port: path, socket.AF_UNIX, 40)

    @inlineCallbacks
    def test_haproxy(self):
        port = yield server_endpoint(self.reactor, "haproxy:0").listen(self.factory)
        client = self.connect(("127.0.0.1", port.getHost().port))
        client.sendall(b"PROXY TCP4 203.0.113.7 203.0.113.1 5555 80\r\n")
        yield self.close(port)
        yield self.turns(lambda: self.factory.connections)
        yield self.all_are_greeted([client])

    @inlineCallbacks
    def test_who_has_left_meanwhile_harms_nobody(self):
        port = yield server_endpoint(self.reactor, "0").listen(self.factory)
        address = ("127.0.0.1", port.getHost().port)
        left, stays = self.connect(address), self.connect(address)
        left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        left.close()
        yield self.close(port)
        yield self.all_are_greeted([stays])

    @inlineCallbacks
    def test_a_socket_that_is_somebody_elses_too_goes_on(self):
        """As one that systemd handed over."""
        with socket.create_server(("127.0.0.1", 0)) as held:
            held.setblocking(False)
            port = self.reactor.adoptStreamPort(held.fileno(), socket.AF_INET, self.factory)
            yield self.close(port)
            self.connect(held.getsockname())
            connection, _ = held.accept()
            connection.close()

    @inlineCallbacks
    def test_a_port_without_a_socket_is_closed(self):
        class Port:
            closed = 0

            def stopListening(self):
                self.closed += 1

        port = Port()
        yield self.close(port)
        assert port.closed == 1

    @inlineCallbacks
    def test_no_descriptor_is_left(self):
        counts = []
        for _ in range(3):
            port = yield server_endpoint(self.reactor, "tcp:0:interface=127.0.0.1").listen(
                self.factory
            )
            client = self.connect(("127.0.0.1", port.getHost().port))
            yield self.close(port)
            yield self.all_are_greeted([client])
            client.close()
            counts.append(len(os.listdir("/proc/self/fd")))
        assert counts[1] == counts[2]  # in the first round Twisted makes what it needs

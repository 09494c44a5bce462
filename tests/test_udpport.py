"""A UDP port that lets others have their turn, on real sockets."""

import errno
import socket

import pytest
from twisted.internet import reactor
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import ConnectedDatagramProtocol, DatagramProtocol
from twisted.trial.unittest import TestCase

from sockgw.udpport import UDPPort


class Collector(DatagramProtocol):
    noisy = False

    def __init__(self):
        self.received = []

    def datagramReceived(self, datagram, addr):
        self.received.append((datagram, addr))
        if datagram == b"bad":
            raise RuntimeError("bad")


class Connected(ConnectedDatagramProtocol):
    noisy = False
    refused = 0

    def connectionRefused(self):
        self.refused += 1


class Ports(TestCase):
    def listen(self, protocol, interface="127.0.0.1", port=0, **options):
        made = UDPPort(reactor, port, protocol, interface, **options)
        made.startListening()
        self.addCleanup(made.stopListening)
        return made

    def send(self, port, *datagrams, host="127.0.0.1"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as wire:
            wire.bind((host, 0))
            for datagram in datagrams:
                wire.sendto(datagram, (host, port.getHost().port))
            return wire.getsockname()[:2]

    def test_a_turn_is_short(self):
        collector = Collector()
        port = self.listen(collector)
        sender = self.send(port, *[b"", b"x"] * 50)
        port.doRead()
        assert len(collector.received) == 32
        while len(collector.received) < 100:
            port.doRead()
        assert collector.received == [(b"", sender), (b"x", sender)] * 50
        port.doRead()  # there is nothing left

    def test_one_that_is_not_taken_costs_no_other(self):
        collector = Collector()
        port = self.listen(collector)
        self.send(port, b"bad", b"good")
        port.doRead()
        assert [datagram for datagram, _ in collector.received] == [b"bad", b"good"]
        self.flushLoggedErrors(RuntimeError)

    def test_all_addresses(self):
        collector = Collector()
        port = self.listen(collector, "::")
        first, second = self.send(port, b"4"), self.send(port, b"6", host="::1")
        port.doRead()
        assert collector.received == [(b"4", (f"::ffff:{first[0]}", first[1])), (b"6", second)]

    def test_a_port_that_is_taken(self):
        number = self.listen(Collector()).getHost().port
        with pytest.raises(CannotListenError):
            self.listen(Collector(), port=number)

    def test_a_port_that_is_shared(self):
        number = self.listen(Collector(), reuse_port=True).getHost().port
        self.listen(Collector(), port=number, reuse_port=True)

    def test_errors_of_a_connected_port(self):
        protocol = Connected()
        port = self.listen(protocol, "0.0.0.0")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
            nobody.bind(("127.0.0.1", 0))
            port.connect("127.0.0.1", nobody.getsockname()[1])
        for code in (errno.ECONNREFUSED, errno.EHOSTUNREACH):
            real, port.socket = port.socket, Failing(code)
            port.doRead()
            port.socket = real
        assert protocol.refused == 2


class Failing:
    def __init__(self, code):
        self.code = code

    def recvfrom(self, size):
        raise OSError(self.code, "no")

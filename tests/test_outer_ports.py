"""Listeners of targets: all or none of them, and no connection lost when one goes."""

import socket

import pytest
from harness import own_address
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from sockgw.edge import Edge
from sockgw.outer.ports import TargetPorts
from sockgw.outer.targetsfile import parse_targets
from sockgw.yamlfile import ConfigError


def targets(**listeners):
    lines = [
        f"  {name}: {{protocol: tcp, hostname: h, port: 1, listen: {listen!r}}}"
        for name, listen in listeners.items()
    ]
    return parse_targets("\n".join(["targets:", *lines]), "t.yaml").ports


class Greeter(Protocol):
    def connectionMade(self):
        self.transport.write(self.factory.target.name.encode() + b"\n")


class Greeting(Factory):
    protocol = Greeter
    noisy = False

    def __init__(self, target):
        self.target = target


class Ports(TestCase):
    def setUp(self):
        from twisted.internet import reactor

        self.reactor = reactor
        edge = Edge(reactor.seconds)
        self.ports = TargetPorts(reactor, Greeting, self.no_udp, edge=edge, reuse_port=False)
        self.addCleanup(self.ports.close)
        # Of addresses that nobody else uses: a port of the common one may be taken in between.
        self.places = [own_address() for _ in range(3)]
        self.endpoints = [f"tcp:{place.port}:interface={place.host}" for place in self.places]

    def no_udp(self, target):
        raise AssertionError("no UDP here")

    @inlineCallbacks
    def turns(self, done):
        for _ in range(2000):
            if done():
                return
            turn = Deferred()
            self.reactor.callLater(0.001, turn.callback, None)
            yield turn
        raise AssertionError("it does not get done")

    @inlineCallbacks
    def greeted(self, place):
        """Return what a listener says, "" where there is none, and leave the connection open."""
        wire = socket.socket()
        self.addCleanup(wire.close)
        if wire.connect_ex(place):
            return ""
        wire.setblocking(False)
        said = []

        def heard():
            try:
                said.append(wire.recv(100))
            except BlockingIOError:
                return False
            return True

        yield self.turns(heard)
        self.wire = wire
        return said[0].decode().strip()

    @inlineCallbacks
    def test_they_follow_the_targets(self):
        one, two, three = self.endpoints
        self.ports.use(targets(a=one, b=two))
        assert (yield self.greeted(self.places[0])) == "a"
        assert (yield self.greeted(self.places[1])) == "b"
        self.ports.use(targets(c=two, d=three))
        yield self.turns(lambda: True)
        assert (yield self.greeted(self.places[1])) == "c"  # the same listener
        assert (yield self.greeted(self.places[2])) == "d"
        assert (yield self.greeted(self.places[0])) == ""

    @inlineCallbacks
    def test_where_one_cannot_be_all_stays_as_it_was(self):
        one, two, three = self.endpoints
        self.ports.use(targets(a=one))
        with (
            socket.create_server(self.places[2]),
            pytest.raises(ConfigError, match=f"target c: listen: {three}: the port is taken"),
        ):
            self.ports.use(targets(b=two, c=three))
        assert (yield self.greeted(self.places[0])) == "a"
        assert (yield self.greeted(self.places[1])) == ""

    @inlineCallbacks
    def test_no_two_share_an_address(self):
        """With SO_REUSEPORT the system lets them, and gives each some of the other's clients."""
        place = self.places[0]
        host, number = place
        edge = Edge(self.reactor.seconds)
        own = []
        ports = TargetPorts(
            self.reactor, Greeting, self.no_udp, edge=edge, others=lambda: own, reuse_port=True
        )
        self.addCleanup(ports.close)
        twice = targets(a=f"tcp:{number}", b=f"tcp:{number}:interface=0.0.0.0")
        with pytest.raises(ConfigError, match=f"target b: listen: tcp:{number}.*taken by target a"):
            ports.use(twice)

        def closed():
            with socket.socket() as wire:
                return bool(wire.connect_ex(place))

        yield self.turns(closed)
        other = self.places[1]
        endpoint = TCP4ServerEndpoint(self.reactor, other.port, interface=other.host)
        own.append((yield endpoint.listen(Greeting(twice[0]))))
        self.addCleanup(own[0].stopListening)
        ports.use(targets(a=self.endpoints[0]))
        ports.use(targets(b=f"tcp:{number}:interface={host}:backlog=5"))  # in a's place
        said = "a"
        while said == "a":  # it is about to close
            said = yield self.greeted(place)
        assert said == "b"

    @inlineCallbacks
    def test_connections_outlive_their_listener(self):
        self.ports.use(targets(a=self.endpoints[0]))
        assert (yield self.greeted(self.places[0])) == "a"
        yield self.ports.close()
        with pytest.raises(BlockingIOError):
            self.wire.recv(1)

    @inlineCallbacks
    def test_what_is_closed_stays_closed(self):
        self.ports.use(targets(a=self.endpoints[0]))
        yield self.ports.close()
        self.ports.use(targets(a=self.endpoints[0], b=self.endpoints[1]))
        for place in self.places:
            assert (yield self.greeted(place)) == ""

    def test_an_endpoint_that_is_none(self):
        bad = targets(a="tcp:1")[0]
        object.__setattr__(bad, "listen", "nonsense:1")
        with pytest.raises(ConfigError, match="target a: listen: nonsense:1: cannot listen"):
            self.ports.use([bad])

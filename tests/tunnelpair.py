"""Two tunnels joined by carriers in memory, on one clock."""

from twisted.internet.task import Clock

from sockgw.protocol.memory import Limits
from sockgw.tunnel.tunnel import Tunnel


class FakeCarrier:
    """A carrier that hands messages to its peer when told, and is strict about its own use."""

    def __init__(self, host="gateway.test"):
        self.listener = None
        self.peer = None
        self.peer_address = "192.0.2.1"
        self.host = host
        self.sent = []
        self.large = False
        self.open = True
        self.refused = False
        self.dismissed = False
        self.binding = None

    def send(self, message):
        assert self.open, "a message on a closed carrier"
        assert type(message) is bytes
        assert message
        self.sent.append(message)

    def allow_large(self):
        self.large = True

    def refuse(self):
        self.refused = True
        self._end("", True)

    def close(self):
        self._end("closed with code 1000", False)

    def abort(self):
        self._end("aborted", False)

    def channel_binding(self):
        return self.binding

    def _end(self, reason, refused):
        if self.open:
            self.deliver()
            self.open = False
            if self.peer is not None and self.peer.open:
                self.peer.open = False
                self.peer.listener.closed(reason, refused)

    def deliver(self):
        """Hand over what was sent; return whether there was something."""
        sent, self.sent = self.sent, []
        for message in sent:
            if self.peer.open:
                self.peer.listener.message_received(message)
        return bool(sent)


def carriers():
    """Return both ends of a connection."""
    outer, inner = FakeCarrier(), FakeCarrier()
    outer.peer, inner.peer = inner, outer
    return outer, inner


def acknowledge(*tunnels):
    """Do what the tunnels would some milliseconds later; return whether there was something."""
    untold = [tunnel.session for tunnel in tunnels if tunnel.session.untold]
    for session in untold:
        session.acknowledge()
    return bool(untold)


class Owner:
    """Owns tunnels, and keeps what it is told of them."""

    def __init__(self):
        self.ends = []
        self.suspensions = []
        self.left = []

    def ended(self, tunnel, reason):
        assert not tunnel.available
        self.ends.append((tunnel, reason))

    def suspended(self, tunnel, reason):
        assert not tunnel.available
        self.suspensions.append((tunnel, reason))

    def told_to_leave(self, tunnel):
        self.left.append(tunnel)


class TunnelPair:
    """An outer and an inner tunnel."""

    def __init__(self, opener, clock=None, **options):
        self.clock = clock or Clock()
        self.owner = Owner()
        self.ended = self.owner.ends
        self.outer_carrier, self.inner_carrier = carriers()
        options = {
            "identifier": "office",
            "limits": Limits(max_streams=100),
            "ping_interval": 15.0,
            "ping_timeout": 10.0,
            **options,
        }
        self.outer = Tunnel(self.clock, self.outer_carrier, self.owner, **options)
        self.inner = Tunnel(self.clock, self.inner_carrier, self.owner, opened=opener, **options)

    def cut(self):
        """The carrier is lost with all that is on it; both sides notice."""
        for carrier in (self.outer_carrier, self.inner_carrier):
            carrier.sent.clear()
            carrier.open = False
        for carrier in (self.outer_carrier, self.inner_carrier):
            carrier.listener.closed("cut", False)

    def reconnect(self):
        """Give both a new carrier, as a handshake would."""
        self.outer_carrier, self.inner_carrier = carriers()
        inner_received = self.inner.session.received
        self.outer.detach()
        outer_received = self.outer.session.received
        self.outer.resume_on(self.outer_carrier, inner_received)
        self.inner.resume_on(self.inner_carrier, outer_received)

    def run(self):
        """Let both sides talk until they are silent; no time passes."""
        busy = True
        while busy:
            self.clock.advance(0)
            busy = self.outer_carrier.deliver() | self.inner_carrier.deliver()
            busy = busy or acknowledge(self.outer, self.inner)

"""Two tunnels joined by carriers in memory, on one clock."""

from twisted.internet.task import Clock

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
                self.peer.listener.heard()
                self.peer.listener.message_received(message)
        return bool(sent)


def carriers():
    """Return both ends of a connection."""
    outer, inner = FakeCarrier(), FakeCarrier()
    outer.peer, inner.peer = inner, outer
    return outer, inner


class TunnelPair:
    """An outer and an inner tunnel."""

    def __init__(self, opener, clock=None, **options):
        self.clock = clock or Clock()
        self.ended = []
        self.outer_carrier, self.inner_carrier = carriers()
        options = {"max_streams": 100, "ping_interval": 15.0, "ping_timeout": 10.0, **options}

        def ended(tunnel, reason):
            self.ended.append((tunnel, reason))

        self.outer = Tunnel(
            self.clock, self.outer_carrier, identifier="office", ended=ended, **options
        )
        self.inner = Tunnel(
            self.clock,
            self.inner_carrier,
            identifier="office",
            ended=ended,
            opened=opener,
            **options,
        )

    def run(self):
        """Let both sides talk until they are silent; no time passes."""
        busy = True
        while busy:
            self.clock.advance(0)
            busy = self.outer_carrier.deliver() | self.inner_carrier.deliver()

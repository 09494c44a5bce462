"""One end of a carrier, of which the test is the other: stricter than a real one."""

from tunnelpair import FakeCarrier

from sockgw.protocol.frames import decode


class Wire(FakeCarrier):
    """Keeps what is sent, and tells its listener of its end, in the next turn where we ended it."""

    def __init__(self, clock, host="gateway.test", binding=None):
        super().__init__(host)
        self.clock = clock
        self.binding = binding
        self.calls = []
        self.lost = False

    def refuse(self):
        self._close("refuse")

    def close(self):
        self._close("close")

    def abort(self):
        self._close("abort")

    def _close(self, how):
        if self.open:
            self.open = False
            self.calls.append(how)
            self.clock.callLater(0, self.lose, "closed by us")

    # What the peer does.

    def lose(self, reason="closed by the peer", refused=False):
        """The connection is over."""
        self.open = False
        if not self.lost:
            self.lost = True
            self.listener.closed(reason, refused)

    def say(self, *messages):
        """Messages arrive, until the connection is closed."""
        for message in messages:
            if self.open:
                self.listener.message_received(message)

    def take(self):
        """Return type and payload of the frames that were sent since the last time."""
        sent, self.sent = self.sent, []
        return [(kind, payload) for message in sent for kind, _, _, payload in decode(message)]

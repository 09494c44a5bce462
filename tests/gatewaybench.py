"""A gateway with everything in front of it and behind it, in memory and on one clock.

Clients are real connections of the HTTP server on strict transports; inner layers are real tunnels
whose streams a test answers as it likes.
"""

from collections import Counter

from http_clients import LIMITS, Transport
from tunnelpair import Owner, carriers
from twisted.internet.task import Clock

from sockgw.config import load
from sockgw.deadlines import Deadlines
from sockgw.http.forwarded import Forwarding
from sockgw.http.front import ClientFactory
from sockgw.http.networks import Networks
from sockgw.http.patience import ServerLimits
from sockgw.outer.config import OuterConfig
from sockgw.outer.gateway import Gateway
from sockgw.outer.metrics import Metrics
from sockgw.outer.registry import Member, Registry
from sockgw.outer.targetsfile import parse_targets
from sockgw.protocol.frames import decode
from sockgw.protocol.heads import ResponseHead
from sockgw.protocol.memory import Limits
from sockgw.protocol.windows import WINDOW
from sockgw.tunnel.tunnel import Tunnel

TARGETS = """
targets:
  a.example: {hostname: origin.internal, protocol: http, port: 8080}
  secure.example: {hostname: origin.internal}
  kept.example: {hostname: origin.internal, preserve-host: true}
  v6.example: {hostname: "fd00::7", protocol: http, port: 81}
  service.example: {service: wiki}
  office.example: {hostname: origin.internal, identifier: office}
  plant.example: {hostname: origin.internal, identifier: [plant, mill]}
  strict.example:
    hostname: origin.internal
    policy:
      /public: [GET, POST]
      ^/api/: "*"
"""


class Incoming:
    """A stream as the inner layer sees it; insists on the promises that streams make."""

    def __init__(self, inner, stream, head, to, complete):
        self.inner = inner
        self.stream = stream
        self.head = head
        self.to = to
        self.complete = complete
        self.consume = True
        self.chunks = []
        self.unconsumed = 0
        self.trailers = [] if complete else None
        self.code = None
        self.detail = ""
        self.drains = 0

    @property
    def body(self):
        return b"".join(self.chunks)

    @property
    def headers(self):
        return self.head.headers

    def values(self, name):
        return [value for key, value in self.head.headers if key.lower() == name.lower()]

    def head_received(self, head):
        raise AssertionError("a response head to the inner layer")

    def data_received(self, data):
        assert self.code is None
        assert self.trailers is None
        self.chunks.append(data)
        self.unconsumed += len(data)
        assert self.unconsumed <= WINDOW
        if self.consume:
            self.take()

    def take(self):
        count, self.unconsumed = self.unconsumed, 0
        self.stream.consumed(count)

    def ended(self, trailers):
        assert self.trailers is None
        self.trailers = trailers

    def reset(self, code, detail):
        assert self.code is None
        self.code, self.detail = code, detail

    def drained(self):
        self.drains += 1

    # What an origin would do.

    def respond(self, status=200, headers=(), reason=b"", *, end=False, origin=None, upgrade=b""):
        head = ResponseHead(status, reason, list(headers), origin, upgrade)
        self.stream.respond(head, end=end)

    def answer(self, body=b"ok", status=200, headers=()):
        self.respond(status, [(b"Content-Length", b"%d" % len(body)), *headers])
        self.stream.write(body)
        self.stream.end()


class Inner:
    """An inner layer's end of a tunnel, and its member."""

    def __init__(self, bench, identifier="office", max_streams=100, resume_window=0.0):
        self.bench = bench
        self.streams = []
        self.consume = True
        self.outer_carrier, self.carrier = carriers()
        options = {
            "identifier": identifier,
            "limits": Limits(max_streams=max_streams),
            "ping_interval": 1e9,  # its pings would end the calm in which tests look around
            "ping_timeout": 1e9,
            "resume_window": resume_window,
        }
        self.outer = Tunnel(bench.clock, self.outer_carrier, bench, **options)
        self.tunnel = Tunnel(bench.clock, self.carrier, Owner(), opened=self._opened, **options)
        self.member = Member(self.outer, identifier, b"f" * 32, "192.0.2.1", 0.0)
        bench.registry.add(self.member)
        bench.inners.append(self)

    def _opened(self, tunnel, stream, head, to, complete):
        incoming = Incoming(self, stream, head, to, complete)
        incoming.consume = self.consume
        self.streams.append(incoming)
        return incoming

    @property
    def last(self):
        return self.streams[-1]

    def inject(self, *frames):
        """The outer layer gets these frames, as if they came from a hostile inner layer."""
        message = b"".join(frames)
        # As the real end would have counted them, or it would take offence at being acknowledged.
        self.tunnel.session._outbox.sent += sum(number > 0 for _, _, number, _ in decode(message))
        self.outer.heard()
        self.outer.message_received(message)
        self.bench.run()

    def cut(self):
        """The carrier breaks, and both ends wait for another."""
        for carrier in (self.outer_carrier, self.carrier):
            carrier.sent.clear()
            carrier.open = False
        self.outer.closed("cut", False)
        self.tunnel.closed("cut", False)
        self.bench.run()

    def come_back(self):
        """There is another."""
        self.outer_carrier, self.carrier = carriers()
        received = self.tunnel.session.received, self.outer.session.received
        self.outer.resume_on(self.outer_carrier, received[0])
        self.tunnel.resume_on(self.carrier, received[1])
        self.bench.registry.resumed(self.member)
        self.bench.run()

    def lose(self):
        """The carrier breaks, and with it the tunnel."""
        self.tunnel.detach()
        self.outer.closed("broken", False)
        self.bench.run()


class Reading(Transport):
    """A transport whose peer reads on after it was full, too."""

    def write(self, data):
        super().write(data)
        self._flush_later()


class Client:
    """A client's connection."""

    def __init__(self, bench, flushing=True, peer=None):
        self.bench = bench
        self.connection = bench.factory.buildProtocol(None)
        self.transport = Reading(bench.clock, flushing)
        if peer is not None:
            self.transport.getPeer = lambda: peer
        self.transport.protocol = self.connection
        self.connection.makeConnection(self.transport)

    def send(self, data, step=0):
        """Bytes arrive; then all is quiet again. None arrives while reading is paused."""
        size = step or len(data)
        for start in range(0, len(data), size):
            if not self.transport.reading or self.transport.lost:
                return False
            self.connection.dataReceived(data[start : start + size])
        self.bench.run()
        return True

    def get(self, target="/", host="a.example", *fields, method="GET", body=None):
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *fields]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))
        return self

    @property
    def written(self):
        return bytes(self.transport.written)

    def take(self):
        """Return what has been written since the last time."""
        written = self.written
        self.transport.written.clear()
        return written

    @property
    def head(self):
        """The first response's status and its fields, with names in lower case."""
        head, separator, _ = self.written.partition(b"\r\n\r\n")
        assert separator, "no whole response head"
        line, *fields = head.split(b"\r\n")
        self.line = line
        return int(line.split(b" ")[1]), [
            (name.lower(), value) for name, value in (field.split(b": ", 1) for field in fields)
        ]

    @property
    def status(self):
        return self.head[0]

    def values(self, name):
        return [value for key, value in self.head[1] if key == name.lower()]

    @property
    def body(self):
        return self.written.partition(b"\r\n\r\n")[2]

    def leave(self):
        self.transport.close_by_peer()
        self.bench.run()

    @property
    def ended(self):
        return self.transport.lost

    @property
    def closing(self):
        transport = self.transport
        return any(
            (transport.disconnecting, transport.write_closing, transport.aborted, transport.lost)
        )


class Log:
    """An access log that keeps its entries."""

    wanted = True

    def __init__(self):
        self.entries = []

    def record(self, entry):
        self.entries.append(entry)


class Bench:
    """The gateway. ``texts`` are settings as an operator writes them; nothing is held unless they
    say so. It has run for ``uptime`` seconds."""

    def __init__(self, limits=None, targets=TARGETS, uptime=3600.0, **texts):
        self.clock = Clock()
        self.clock.advance(1_000_000)
        settings = {
            "public-key": ["unused"],
            "targets": ["unused"],
            "hold": ["0"],
            **{name.replace("_", "-"): [text] for name, text in texts.items()},
        }
        self.config = load(OuterConfig, settings, {})
        self.registry = Registry(self.config.max_tunnels, seconds=self.clock.seconds)
        self.clock.advance(uptime)
        self.deadlines = Deadlines(self.clock)
        self.metrics = Metrics()
        self.log = Log()
        self.counts = Counter()
        request_done = self.metrics.request_done

        def counted(target, status, seconds, bytes_in, bytes_out):
            assert seconds >= 0
            self.counts[target, status] += 1
            request_done(target, status, seconds, bytes_in, bytes_out)

        self.metrics.request_done = counted
        self.gateway = Gateway(
            self.config,
            self.clock,
            self.deadlines,
            self.registry,
            Forwarding(Networks.parse(self.config.trust_proxy)),
            self.metrics,
            self.log,
        )
        self.gateway.use(parse_targets(targets, "targets.yaml"))
        self.factory = ClientFactory(
            self.gateway,
            self.deadlines,
            ServerLimits(**{**LIMITS, **(limits or {})}),
            self.clock.seconds,
        )
        self.inners = []
        self.frames = []  # from the outer layer

    def ended(self, tunnel, reason):
        self.registry.remove(tunnel)

    def suspended(self, tunnel, reason):
        self.registry.suspended(tunnel)

    def told_to_leave(self, tunnel):
        pass

    def run(self):
        """Let everybody talk until all are silent; no time passes."""
        busy = True
        while busy:
            self.clock.advance(0)
            now = self.clock.seconds()
            busy = any(call.getTime() <= now for call in self.clock.getDelayedCalls())
            for inner in self.inners:
                for message in inner.outer_carrier.sent:
                    self.frames += decode(message)
                busy |= inner.outer_carrier.deliver()
                busy |= inner.carrier.deliver()

    def wait(self, seconds):
        """Time passes, in steps as fine as the deadlines' tick."""
        for _ in range(int(seconds / 0.25)):
            self.clock.advance(0.25)
            self.run()

    def inner(self, identifier="office", **options):
        inner = Inner(self, identifier, **options)
        self.run()
        return inner

    def client(self, **options):
        return Client(self, **options)

    @property
    def entry(self):
        """The only entry of the access log, which the metrics have counted as well."""
        (entry,) = self.log.entries
        assert self.counts == {(entry.target_name or "-", entry.status): 1}
        return entry

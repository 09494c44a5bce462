"""The connector: when it dials again, what it makes of a refusal, and that it stops when told."""

import os
from types import SimpleNamespace

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from wire import Wire

from sockgw.config import load
from sockgw.inner import line as line_module
from sockgw.inner.config import InnerConfig
from sockgw.inner.connector import Connector
from sockgw.keys import generate, load_private_key
from sockgw.protocol.errors import StreamCode, TunnelCode
from sockgw.protocol.frames import FrameType, encode
from sockgw.protocol.handshake import (
    NONCE_SIZE,
    SECRET_SIZE,
    TUNNEL_ID_SIZE,
    Authenticated,
    OuterHandshake,
)
from sockgw.protocol.heads import RequestHead, ResponseHead
from sockgw.protocol.payloads import (
    Destination,
    decode_goaway,
    encode_goaway,
    encode_open,
    u64,
)

URL = "ws://localhost:3001"
STABLE = 1.0  # seconds
LOGS = ("sockgw.inner.line.Line", "sockgw.inner.connector.Connector")
CHANCE = 0.55  # of a delay, where chance says one half


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    directory = tmp_path_factory.mktemp("keys")
    generate(directory / "key", directory / "crt", common_name="office")
    return load_private_key(directory / "key")


@pytest.fixture
def events():
    """What the connector logs, as (level, text)."""
    seen = []

    def observe(event):
        assert event.get("log_failure") is None, event
        if event["log_level"] >= LogLevel.info and event["log_namespace"] in LOGS:
            seen.append((event["log_level"].name, formatEvent(event)))

    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


class Opening(Wire):
    """A connection from its beginning: before it is open, its end is a failure to open."""

    def __init__(self, clock, factory):
        super().__init__(clock, "localhost")
        self.factory = factory
        self.listener = self
        self.failed = False

    def closed(self, reason, refused):
        assert not self.failed
        self.failed = True
        self.factory.failed(reason)

    def upgraded(self):
        """The WebSocket is open."""
        self.listener = None
        self.factory.opened(self)
        assert self.listener is not None


class Dial:
    """An attempt to connect."""

    def __init__(self, clock, factory):
        self.clock = clock
        self.factory = factory
        self.cancelled = False
        self.deferred = Deferred(self._cancel)

    def _cancel(self, deferred):
        self.cancelled = True

    def fail(self, error):
        self.deferred.errback(error)

    def connect(self):
        """TCP and TLS are there."""
        wire = Opening(self.clock, self.factory)
        self.deferred.callback(wire)
        return wire

    def open(self):
        wire = self.connect()
        wire.upgraded()
        return wire


class OuterLayer:
    """Where the connector dials."""

    url = URL

    def __init__(self, clock):
        self.clock = clock
        self.dials = []
        self.timeouts = []

    def endpoint(self, reactor, timeout):
        assert reactor is self.clock
        self.timeouts.append(timeout)
        return self

    def connect(self, factory):
        dial = Dial(self.clock, factory)
        self.dials.append((self.clock.seconds(), dial))
        return dial.deferred

    @property
    def last(self):
        return self.dials[-1][1]

    @property
    def times(self):
        return [time for time, _ in self.dials]


class Incoming:
    """Handles a stream; keeps why it was reset."""

    def __init__(self):
        self.code = None

    def reset(self, code, detail):
        assert self.code is None
        self.code = code


class Inner:
    """A connector, and how the outer layer answers it."""

    def __init__(self, key, random=0.5, **texts):
        settings = {
            "private-key": ["unused"],
            "outer-layer": [URL],
            **{name.replace("_", "-"): [text] for name, text in texts.items()},
        }
        self.config = load(InnerConfig, settings, {})
        self.key = key
        self.clock = Clock()
        self.outer_layer = OuterLayer(self.clock)
        self.opened = []
        self.handlers = []
        self.asked = None  # for which tunnel, by the last proof
        self.random = random
        self.connector = Connector(
            self.config,
            self.clock,
            self.outer_layer,
            key,
            self._opened,
            lambda: self.random,
        )
        self.connector.startService()

    def _opened(self, *arguments):
        self.opened.append(arguments)
        self.handlers.append(Incoming())
        return self.handlers[-1]

    @property
    def last(self):
        return self.outer_layer.last

    def live(self, wire, seconds):
        """Time passes, with a sign of life now and then."""
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            wire.listener.heard()

    def gap(self):
        """Wait for the next attempt; return how long that took."""
        self.clock.advance(0)
        before = len(self.outer_layer.dials)
        calls = [call.getTime() for call in self.clock.getDelayedCalls()]
        assert len(calls) == 1, "one timer, and no other"
        began = self.clock.seconds()
        self.clock.advance(calls[0] - began)
        assert len(self.outer_layer.dials) == before + 1
        return self.clock.seconds() - began

    def handshake(self, wire, identifiers=("office",), secrets=()):
        """Be the outer layer up to the proof; return its side.

        ``secrets``: of the tunnels that it has, by their ids.
        """
        outer = OuterHandshake(
            nonce=os.urandom(NONCE_SIZE),
            hosts=("localhost",),
            channel_binding=None,
            lookup=lambda fingerprint: SimpleNamespace(
                identifiers=identifiers, verify=self.key.public_key.verify
            ),
            decoy=self.key.public_key,
            secret_of=dict(secrets).get,
        )
        ((kind, payload),) = wire.take()
        wire.say(framed(*outer.receive(kind, payload)))
        ((kind, payload),) = wire.take()
        known = outer.receive(kind, payload)
        assert type(known) is Authenticated
        self.asked = known.resumption
        return outer

    def welcome(self, wire, *more, identifiers=("office",), tunnel=bytes(TUNNEL_ID_SIZE)):
        outer = self.handshake(wire, identifiers)
        wire.say(framed(*outer.welcome(tunnel=tunnel, max_streams=10)) + b"".join(more))
        return wire

    def tunnel(self):
        """Connect and be let in."""
        return self.welcome(self.last.open())

    def lasting(self, number=1, resume_window=30):
        """Connect and be let in, with a tunnel that can be resumed."""
        wire = self.last.open()
        outer = self.handshake(wire)
        assert self.asked is None
        name, secret = bytes([number]) * TUNNEL_ID_SIZE, bytes([number]) * SECRET_SIZE
        welcome = {"tunnel": name, "secret": secret, "resume_window": resume_window}
        wire.say(framed(*outer.welcome(max_streams=10, **welcome)))
        return wire

    def come_back(self, received, number=1):
        """Dial again when it is time, and be let in with the same tunnel."""
        self.gap_of_many()
        wire = self.last.open()
        name, secret = bytes([number]) * TUNNEL_ID_SIZE, bytes([number]) * SECRET_SIZE
        outer = self.handshake(wire, secrets={name: secret})
        assert self.asked is not None
        assert self.asked.tunnel == name
        frame = outer.welcome(tunnel=name, max_streams=10, resume_window=30, received=received)
        wire.say(framed(*frame))
        return wire

    def gap_of_many(self):
        """Wait for the next attempt, whatever other timers there are; return how long that took."""
        before, began = len(self.outer_layer.dials), self.clock.seconds()
        while len(self.outer_layer.dials) == before:
            self.clock.advance(0.01)
            assert self.clock.seconds() < began + 400
        return self.clock.seconds() - began

    def open_stream(self, wire, number=1):
        """The outer layer opens a stream; return this end of it, and its handler."""
        payload = encode_open(RequestHead(b"GET", b"/", []), Destination("http", "a", 80))
        wire.say(encode(FrameType.OPEN, 1, number, payload))
        return self.opened[-1][1], self.handlers[-1]

    def stop(self):
        stopped = self.connector.stopService()
        self.clock.advance(0)
        assert self.clock.getDelayedCalls() == []
        assert stopped is None or stopped.called
        return stopped


def framed(kind, payload):
    return encode(FrameType(kind), 0, 0, payload)


class Factory:
    """In place of the carrier's."""

    def __init__(self, reactor, url, handshake_timeout, opened, failed):
        assert url == URL
        self.handshake_timeout = handshake_timeout
        self.opened = opened
        self.failed = failed


@pytest.fixture(autouse=True)
def factory(monkeypatch):
    monkeypatch.setattr(line_module, "client_factory", Factory)


@pytest.fixture
def inner(key):
    return Inner(key)


# ---------------------------------------------------------------------- success


def test_it_connects_and_says_so(inner, key, events):
    assert len(inner.outer_layer.dials) == 1
    assert inner.outer_layer.timeouts == [inner.config.handshake_timeout]
    assert inner.last.factory.handshake_timeout == inner.config.handshake_timeout
    wire = inner.tunnel()
    assert inner.connector.tunnel.identifier == "office"
    assert wire.listener is inner.connector.tunnel
    assert wire.large
    assert events == [("info", f"connected to the outer layer {URL} as office")]
    inner.stop()


def test_it_asks_for_the_identifier_that_is_configured(key):
    inner = Inner(key, identifier="two")
    inner.welcome(inner.last.open(), identifiers=("one", "two"))
    assert inner.connector.tunnel.identifier == "two"


def test_streams_reach_the_forwarder(inner):
    wire = inner.tunnel()
    head = RequestHead(b"GET", b"/", [])
    payload = encode_open(head, Destination("http", "a", 80))
    wire.say(encode(FrameType.OPEN, 1, 1, payload))
    ((tunnel, stream, seen, to, complete),) = inner.opened
    assert tunnel is inner.connector.tunnel
    assert (stream.id, seen, to.hostname, complete) == (1, head, "a", True)


def test_frames_that_share_the_message_of_welcome_count(inner):
    wire = inner.last.open()
    inner.welcome(wire, framed(FrameType.PING, u64.pack(7)))
    inner.clock.advance(0)
    assert (FrameType.PONG, u64.pack(7)) in wire.take()


def test_no_timer_of_the_handshake_is_left(inner):
    inner.tunnel()
    inner.clock.advance(inner.config.handshake_timeout + 1)
    assert inner.connector.tunnel is not None


# ---------------------------------------------------------------------- failures


def test_the_delay_doubles_up_to_its_cap(key):
    inner = Inner(key, reconnect_delay="500", max_reconnect_delay="5000")
    gaps = []
    for _ in range(8):
        inner.last.fail(ConnectionRefusedError())
        gaps.append(inner.gap())
    assert gaps == pytest.approx([CHANCE * gap for gap in (0.5, 1, 2, 4, 5, 5, 5, 5)])


def test_the_delay_of_very_many_failures_is_the_cap_still(key):
    inner = Inner(key)
    for _ in range(2_000):
        inner.last.fail(ConnectionRefusedError())
        gap = inner.gap()
    assert gap == pytest.approx(1.75 * CHANCE)


@pytest.mark.parametrize(("random", "factor"), [(0.0, 0.1), (0.25, 0.325), (0.999999, 1.0)])
def test_jitter_is_proportional(key, random, factor):
    inner = Inner(key, random, max_reconnect_delay="30000")
    for delay in (1.25, 2.5, 5, 10, 20, 30, 30):
        inner.last.fail(ConnectionRefusedError())
        assert inner.gap() == pytest.approx(delay * factor, rel=1e-4)


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        (lambda inner: inner.last.fail(ConnectionRefusedError()), "Connection was refused"),
        (lambda inner: inner.last.fail(ValueError()), "ValueError"),
        (lambda inner: inner.last.connect().lose("no upgrade"), "no upgrade"),
        (lambda inner: inner.last.open().lose("the cable broke"), "the cable broke"),
        (lambda inner: inner.last.open().say(b"junk"), "broke the handshake: a frame header"),
        (lambda inner: inner.last.open().say(b""), "broke the handshake: no frame"),
        (
            lambda inner: inner.last.open().say(framed(FrameType.WELCOME, b"\x80")),
            "broke the handshake: frame of type 4",
        ),
        (lambda inner: inner.welcome(inner.last.open(), tunnel=b"x" * 16).lose("later"), "later"),
    ],
)
def test_each_failure_is_told_once_and_leads_to_another_attempt(key, events, fail, reason):
    inner = Inner(key)
    fail(inner)
    inner.clock.advance(0)
    warnings = [text for level, text in events if level != "info"]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"no connection to the outer layer {URL}: ")
    assert reason in warnings[0]
    assert warnings[0].endswith(" Trying again in 0.7 s")
    assert inner.connector.tunnel is None
    assert inner.gap() == pytest.approx(1.25 * CHANCE)
    assert len(inner.outer_layer.dials) == 2
    inner.tunnel()


def test_more_than_one_frame_with_a_challenge_is_an_error(inner, events):
    wire = inner.last.open()
    outer = OuterHandshake(
        nonce=os.urandom(NONCE_SIZE),
        hosts=(),
        channel_binding=None,
        lookup=lambda fingerprint: None,
        decoy=inner.key.public_key,
    )
    challenge = framed(*outer.receive(*wire.take()[0]))
    wire.say(challenge + challenge)
    assert wire.calls == ["abort"]
    assert wire.sent == []
    assert "more than one frame" in events[-1][1]


def test_a_handshake_that_takes_too_long(key, events):
    inner = Inner(key, handshake_timeout="3000")
    for reason in ("no CHALLENGE in time", "no WELCOME in time"):
        wire = inner.last.open()
        if "WELCOME" in reason:
            inner.handshake(wire)
        inner.clock.advance(2.9)
        assert wire.open
        wire.listener.heard()
        inner.clock.advance(0.2)
        assert wire.calls == ["abort"]
        inner.clock.advance(0)
        assert reason in events[-1][1]
        assert len(events) == len(inner.outer_layer.dials)
        inner.gap()


def test_what_comes_after_a_failed_handshake_changes_nothing(inner, events):
    wire = inner.last.open()
    listener = wire.listener
    wire.say(b"junk")
    listener.message_received(b"junk")
    listener.pause()
    listener.resume()
    listener.closed("again", True)
    assert len(events) == 1
    inner.gap()


def test_only_a_stable_tunnel_resets_the_delay(key):
    inner = Inner(key, reconnect_delay="500", max_reconnect_delay="30000")
    inner.clock.advance(1)
    for delay in (0.5, 1, 2):
        inner.tunnel().lose()
        assert inner.gap() == pytest.approx(delay * CHANCE)
    wire = inner.tunnel()
    inner.live(wire, STABLE - 0.2)
    wire.lose()
    assert inner.gap() == pytest.approx(4 * CHANCE)
    wire = inner.tunnel()
    inner.live(wire, STABLE + 0.2)
    wire.lose()
    assert inner.gap() == pytest.approx(0.5 * CHANCE)


def dismiss(wire):
    """The outer layer closes in good order: it has no place."""
    wire.dismissed = True
    wire.lose("closed with code 1000")


@pytest.mark.parametrize(
    ("way", "most"),
    [
        (lambda inner: inner.last.connect().lose(), 640),
        (lambda inner: inner.last.open().lose(), 640),
        (lambda inner: dismiss(inner.last.open()), 30),
        (lambda inner: inner.tunnel().lose(), 640),
    ],
    ids=["connects", "opens", "opens and dismisses", "welcomes"],
)
def test_a_server_that_accepts_and_drops_is_not_hammered(inner, way, most):
    """However far it lets us come; who has no place for us is asked seldom."""
    while inner.clock.seconds() < 600:
        way(inner)
        inner.gap()
    assert len(inner.outer_layer.dials) < most


def test_a_dead_tunnel_leads_to_a_new_one(key, events):
    inner = Inner(key, ping_interval="15000", ping_timeout="10000")
    wire = inner.tunnel()
    for _ in range(26):
        inner.clock.advance(1)
    assert wire.calls == ["abort"]
    assert "no sign of life for 10 s after a ping" in events[-1][1]
    assert len(inner.outer_layer.dials) == 2
    inner.tunnel()


def test_an_outer_layer_that_breaks_the_protocol(inner, events):
    wire = inner.tunnel()
    wire.say(b"junk")
    inner.clock.advance(0)
    assert wire.calls == ["close"]
    assert inner.connector.tunnel is None
    assert "a frame header is cut short" in events[-1][1]
    inner.gap()


# ---------------------------------------------------------------------- refusals


def refuse(inner):
    wire = inner.last.open()
    inner.handshake(wire)
    wire.lose("closed with code 1008", refused=True)


def test_a_refusal_is_told_once_and_waited_out(key, events):
    inner = Inner(key, refused_delay="120000")
    for _ in range(5):
        refuse(inner)
        assert inner.gap() == 120
    ((level, text),) = events
    assert level == "error"
    assert text.startswith(f"the outer layer {URL} refuses this inner layer (its key ")
    assert str(key.public_key) in text
    assert "Asking again every 120 s" in text
    inner.tunnel()
    assert len(events) == 2


@pytest.mark.parametrize(("random", "gap"), [(0.0, 60), (0.999999, 180)])
def test_refused_ones_do_not_come_back_together(key, random, gap):
    inner = Inner(key, random)
    refuse(inner)
    assert inner.gap() == pytest.approx(gap, rel=1e-4)


def test_a_refusal_before_the_proof_is_one_too(key, events):
    inner = Inner(key)
    inner.last.open().lose("closed with code 1008", refused=True)
    assert inner.gap() == 120


def test_a_new_refusal_is_told_again(key, events):
    inner = Inner(key)
    refuse(inner)
    inner.gap()
    inner.tunnel().lose()
    inner.gap()
    refuse(inner)
    assert [level for level, _ in events] == ["error", "info", "warn", "error"]


def test_a_failure_between_refusals_is_told_but_not_the_refusal_again(key, events):
    inner = Inner(key)
    refuse(inner)
    inner.gap()
    inner.last.fail(ConnectionRefusedError())
    assert inner.gap() == pytest.approx(1.25 * CHANCE)
    refuse(inner)
    inner.gap()
    assert [level for level, _ in events] == ["error", "warn"]


def test_a_key_that_is_revoked_asks_again_soon_and_then_seldom(key, events):
    inner = Inner(key)
    wire = inner.tunnel()
    inner.live(wire, STABLE + 1)
    wire.lose("closed with code 1008", refused=True)
    assert inner.gap() == pytest.approx(1.25 * CHANCE)
    refuse(inner)
    assert inner.gap() == 120


# ---------------------------------------------------------------------- stopping


def test_stop_while_dialling(inner, events):
    inner.stop()
    assert inner.last.cancelled
    assert events == []


def test_stop_while_waiting(inner):
    inner.last.fail(ConnectionRefusedError())
    inner.stop()
    inner.clock.advance(1_000)
    assert len(inner.outer_layer.dials) == 1


def test_stop_while_the_websocket_opens(inner, events):
    wire = inner.last.connect()
    inner.stop()
    assert wire.calls == ["abort"]
    assert wire.failed
    inner.clock.advance(1_000)
    assert len(inner.outer_layer.dials) == 1
    assert events == []


def test_stop_while_greeting(inner, events):
    wire = inner.last.open()
    inner.stop()
    assert wire.calls == ["abort"]
    inner.clock.advance(1_000)
    assert len(inner.outer_layer.dials) == 1
    assert events == []


def test_stop_with_a_tunnel_tells_the_outer_layer(inner, events):
    wire = inner.tunnel()
    wire.take()
    stopped = inner.connector.stopService()
    assert wire.calls == ["close"]
    (kind, payload) = wire.take()[-1]
    assert kind == FrameType.GOAWAY
    assert decode_goaway(payload)[1:] == (TunnelCode.CLOSED, "the inner layer stops")
    # The process must not end before that is out.
    assert not stopped.called
    wire.listener.heard()
    wire.listener.pause()
    wire.listener.message_received(b"too late")
    wire.listener.resume()
    inner.clock.advance(0)
    assert stopped.called
    assert inner.clock.getDelayedCalls() == []
    assert [level for level, _ in events] == ["info"]


def test_stop_when_it_was_refused(inner):
    refuse(inner)
    inner.stop()


def test_a_connection_that_comes_all_the_same_after_the_stop(inner):
    """Not every endpoint can be cancelled."""
    dial = inner.last
    dial.deferred = Deferred(lambda deferred: deferred.callback(wire))
    wire = Opening(inner.clock, dial.factory)
    line = inner.connector._line
    line._connecting = dial.deferred
    dial.deferred.addCallbacks(line._connected, line._failed)
    inner.stop()
    assert wire.calls == ["abort"]


def test_it_may_start_again(inner):
    inner.tunnel()
    inner.stop()
    inner.connector.startService()
    inner.tunnel()
    assert len(inner.outer_layer.dials) == 2
    inner.stop()


def test_a_cancelled_attempt_is_no_failure(inner, events):
    inner.last.fail(CancelledError())
    assert len(events) == 1  # nobody has stopped us: somebody else's cancelling is one
    inner.gap()


# ---------------------------------------------------------------------- coming back


def goaway(code, detail=""):
    return encode(FrameType.GOAWAY, 0, 0, encode_goaway(0, code, detail))


def kinds(wire):
    return [kind for kind, _ in wire.take()]


def test_a_lost_tunnel_goes_on_where_it_was(inner, events):
    wire = inner.lasting()
    tunnel = inner.connector.tunnel
    stream, handler = inner.open_stream(wire)
    wire.lose("the cable broke")
    assert inner.connector.tunnel is tunnel
    assert tunnel.suspended
    assert inner.connector.streams == 1
    stream.respond(ResponseHead(200, b"", []))  # meanwhile
    wire = inner.come_back(received=0)
    assert inner.asked.received == 1  # the OPEN
    inner.clock.advance(0)
    assert inner.connector.tunnel is tunnel
    assert wire.listener is tunnel
    assert not tunnel.suspended
    assert FrameType.HEAD in kinds(wire)
    assert handler.code is None
    assert events[-2][0] == "warn"
    assert "the cable broke" in events[-2][1]
    assert events[-1] == ("info", "the tunnel goes on: 1 streams, 0 bytes are sent again")
    inner.stop()


def test_it_comes_back_again_and_again(inner):
    wire = inner.lasting()
    for number in range(1, 9, 2):
        inner.open_stream(wire, number)
        wire.lose()
        wire = inner.come_back(received=0)
        assert inner.asked.received == (number + 1) / 2
    assert inner.connector.streams == 4
    assert {handler.code for handler in inner.handlers} == {None}
    inner.stop()


def test_an_outer_layer_that_has_lost_the_tunnel_gives_a_new_one(inner, events):
    """It was restarted: the streams are over at once, and the next can come."""
    wire = inner.lasting()
    old = inner.connector.tunnel
    _, handler = inner.open_stream(wire)
    wire.lose()
    inner.gap_of_many()
    wire = inner.last.open()
    outer = inner.handshake(wire)  # it knows of no tunnel
    assert inner.asked is None
    assert handler.code is None
    frame = outer.welcome(
        tunnel=b"2" * TUNNEL_ID_SIZE, max_streams=10, resume_window=30, secret=b"2" * SECRET_SIZE
    )
    wire.say(framed(*frame))
    assert handler.code is StreamCode.TUNNEL_LOST
    assert inner.connector.tunnel is not old
    assert wire.listener is inner.connector.tunnel
    assert not inner.connector.tunnel.suspended
    assert [text for _, text in events if "is lost, with its streams" in text]
    inner.open_stream(wire)
    inner.stop()


def test_the_proof_names_the_tunnel_also_to_who_has_lost_it(inner):
    wire = inner.lasting()
    wire.lose()
    inner.gap_of_many()
    inner.handshake(inner.last.open(), secrets={b"\1" * 16: b"\1" * 32})
    assert inner.asked.tunnel == b"\1" * 16


def test_an_outer_layer_that_claims_what_cannot_be(inner):
    """More frames than were ever sent: there is nothing to go on with."""
    wire = inner.lasting()
    _, handler = inner.open_stream(wire)
    wire.lose()
    wire = inner.come_back(received=5)
    assert handler.code is StreamCode.TUNNEL_LOST
    assert wire.calls == ["close"]
    ((kind, payload),) = wire.take()
    assert kind == FrameType.GOAWAY
    assert decode_goaway(payload)[1] is TunnelCode.CLOSED
    assert inner.connector.tunnel is None
    inner.gap_of_many()
    inner.handshake(inner.last.open())
    assert inner.asked is None
    inner.stop()


def test_a_tunnel_that_is_not_resumed_in_time(inner):
    """The outer layer's window, and what it may have needed to notice the loss."""
    wire = inner.lasting(resume_window=30)
    _, handler = inner.open_stream(wire)
    wire.lose()
    config = inner.config
    window = 30 + config.ping_interval + config.ping_timeout
    began = inner.clock.seconds()
    while inner.connector.tunnel is not None:
        inner.gap_of_many()
        inner.last.fail(ConnectionRefusedError())
        assert inner.clock.seconds() - began < window + 5
    assert inner.clock.seconds() - began >= window
    assert handler.code is StreamCode.TUNNEL_LOST
    inner.gap_of_many()
    inner.tunnel()
    assert inner.asked is None


def test_a_window_that_closes_during_the_handshake(inner):
    wire = inner.lasting(resume_window=1)
    wire.lose()
    while inner.connector.tunnel is not None:
        inner.gap_of_many()
        if inner.clock.seconds() > 24:
            wire = inner.last.open()
            outer = inner.handshake(wire, secrets={b"\1" * 16: b"\1" * 32})
            inner.clock.advance(4)
            break
        inner.last.fail(ConnectionRefusedError())
    assert inner.connector.tunnel is None
    frame = outer.welcome(tunnel=b"\1" * 16, max_streams=10, resume_window=30, received=0)
    wire.say(framed(*frame))
    assert wire.calls == ["close"]
    assert kinds(wire) == [FrameType.GOAWAY]
    inner.gap_of_many()
    inner.lasting()
    inner.stop()


@pytest.mark.parametrize(("resume_window", "secret"), [(0, b"\1" * SECRET_SIZE), (30, b"")])
def test_an_outer_layer_that_cannot_resume(inner, resume_window, secret):
    wire = inner.last.open()
    outer = inner.handshake(wire)
    welcome = {"max_streams": 10, "resume_window": resume_window, "secret": secret}
    wire.say(framed(*outer.welcome(tunnel=bytes(TUNNEL_ID_SIZE), **welcome)))
    _, handler = inner.open_stream(wire)
    wire.lose()
    assert handler.code is StreamCode.TUNNEL_LOST
    assert inner.connector.tunnel is None
    inner.gap()
    inner.tunnel()
    assert inner.asked is None


def test_a_dead_carrier_is_left_and_its_tunnel_kept(inner):
    wire = inner.lasting()
    tunnel = inner.connector.tunnel
    for _ in range(26):
        inner.clock.advance(1)
    assert wire.calls == ["abort"]
    assert inner.connector.tunnel is tunnel
    assert tunnel.suspended


# ---------------------------------------------------------------------- leaving


def told_to_leave(inner, wire):
    wire.say(goaway(TunnelCode.NO_ERROR, "restarting"))


def test_who_is_told_to_leave_opens_the_next_line_before(inner, events):
    wire = inner.lasting()
    old = inner.connector.tunnel
    stream, handler = inner.open_stream(wire)
    told_to_leave(inner, wire)
    assert inner.gap_of_many() == pytest.approx(0.625, abs=0.02)  # half of reconnect-delay
    successor = inner.lasting(2)
    assert inner.connector.tunnel is not old
    assert successor.listener is inner.connector.tunnel
    assert wire.open
    assert wire.listener is old
    inner.open_stream(successor)
    assert inner.connector.streams == 2
    wire.take()
    stream.respond(ResponseHead(200, b"", []), end=True)
    inner.clock.advance(0)
    assert FrameType.HEAD in kinds(wire)
    assert handler.code is None
    wire.say(goaway(TunnelCode.CLOSED))
    inner.clock.advance(0)
    assert not wire.open
    assert inner.connector.streams == 1
    assert inner.connector._left == []
    assert len(inner.outer_layer.dials) == 2
    assert not [text for level, text in events if level in ("warn", "error")]
    inner.stop()


def test_being_told_twice_changes_nothing(inner):
    wire = inner.lasting()
    told_to_leave(inner, wire)
    told_to_leave(inner, wire)
    inner.clock.advance(1)
    assert len(inner.outer_layer.dials) == 2
    inner.stop()


def test_a_line_that_is_left_comes_back_too(inner):
    wire = inner.lasting()
    old = inner.connector.tunnel
    _, handler = inner.open_stream(wire)
    told_to_leave(inner, wire)
    inner.gap_of_many()
    inner.lasting(2)
    wire.lose()
    assert old.suspended
    wire = inner.come_back(received=0)
    assert wire.listener is old
    assert handler.code is None
    wire.say(goaway(TunnelCode.CLOSED))
    assert handler.code is StreamCode.TUNNEL_LOST
    inner.clock.advance(0)
    assert inner.connector._left == []
    inner.stop()


def test_a_line_that_is_left_makes_no_new_tunnel(inner):
    wire = inner.lasting()
    _, handler = inner.open_stream(wire)
    told_to_leave(inner, wire)
    inner.gap_of_many()
    inner.lasting(2)
    successor = inner.connector.tunnel
    wire.lose()
    inner.gap_of_many()
    wire = inner.welcome(inner.last.open(), tunnel=b"3" * TUNNEL_ID_SIZE)
    assert handler.code is StreamCode.TUNNEL_LOST
    assert wire.calls == ["close"]
    assert kinds(wire) == [FrameType.GOAWAY]
    assert inner.connector.tunnel is successor
    assert inner.connector._left == []
    inner.stop()


def test_an_outer_layer_that_sends_us_away_for_ever_does_not_make_us_grow(inner):
    wires = []
    for number in range(1, 30):
        wires.append(inner.lasting(number))
        inner.open_stream(wires[-1])
        told_to_leave(inner, wires[-1])
        inner.gap_of_many()
    assert inner.connector.streams == 8
    assert [wire.open for wire in wires] == [False] * 21 + [True] * 8
    assert [handler.code for handler in inner.handlers] == (
        [StreamCode.TUNNEL_LOST] * 21 + [None] * 8
    )
    inner.stop()


# ---------------------------------------------------------------------- draining


def test_draining_waits_for_the_streams(inner):
    wire = inner.lasting()
    stream, handler = inner.open_stream(wire)
    drained = inner.connector.drain()
    inner.clock.advance(0)
    wire.take()
    inner.open_stream(wire, 3)  # was on its way
    inner.clock.advance(0)
    assert FrameType.RESET in kinds(wire)
    assert len(inner.opened) == 1
    assert not drained.called
    stream.respond(ResponseHead(200, b"", []), end=True)
    inner.clock.advance(0)
    assert FrameType.HEAD in kinds(wire)
    assert not drained.called  # until it has arrived
    wire.say(encode(FrameType.ACK, 0, 0, u64.pack(2)))
    assert handler.code is None
    assert decode_goaway(wire.take()[-1][1])[1] is TunnelCode.CLOSED
    assert wire.calls == ["close"]
    assert not drained.called  # until that is out
    inner.clock.advance(0)
    assert drained.called
    assert inner.connector.drain() is drained
    inner.stop()
    assert len(inner.outer_layer.dials) == 1


def test_draining_tells_the_outer_layer(inner):
    wire = inner.lasting()
    inner.open_stream(wire)
    wire.take()
    inner.connector.drain()
    inner.clock.advance(0)
    (payload,) = [payload for kind, payload in wire.take() if kind == FrameType.GOAWAY]
    assert decode_goaway(payload)[1] is TunnelCode.NO_ERROR
    inner.stop()


@pytest.mark.parametrize(
    "come_so_far",
    [
        lambda inner: None,
        lambda inner: inner.last.fail(ConnectionRefusedError()),
        lambda inner: inner.last.connect(),
        lambda inner: inner.last.open(),
        lambda inner: inner.lasting().lose(),
    ],
    ids=["dialling", "waiting", "opening", "greeting", "suspended without a stream"],
)
def test_draining_without_a_stream_is_done_at_once(inner, come_so_far):
    come_so_far(inner)
    drained = inner.connector.drain()
    inner.clock.advance(0)
    assert drained.called
    inner.stop()
    inner.clock.advance(1_000)
    assert len(inner.outer_layer.dials) == 1


def test_draining_a_suspended_tunnel_waits_for_it(inner):
    wire = inner.lasting()
    stream, _ = inner.open_stream(wire)
    wire.lose()
    drained = inner.connector.drain()
    inner.clock.advance(0)
    assert not drained.called
    wire = inner.come_back(received=0)
    stream.respond(ResponseHead(200, b"", []), end=True)
    inner.clock.advance(0)
    assert not drained.called
    wire.say(encode(FrameType.ACK, 0, 0, u64.pack(1)))
    inner.clock.advance(0)
    assert drained.called
    inner.stop()


def test_draining_a_tunnel_that_is_lost_and_cannot_be_resumed(inner):
    wire = inner.tunnel()
    inner.open_stream(wire)
    drained = inner.connector.drain()
    inner.clock.advance(0)
    assert not drained.called
    wire.lose()
    inner.clock.advance(0)
    assert drained.called
    inner.stop()


def test_draining_a_suspended_tunnel_that_never_comes_back(inner):
    wire = inner.lasting()
    inner.open_stream(wire)
    wire.lose()
    drained = inner.connector.drain()
    dials = len(inner.outer_layer.dials)
    while not drained.called:
        inner.clock.advance(0.1)
        if len(inner.outer_layer.dials) > dials:
            dials += 1
            inner.last.fail(ConnectionRefusedError())
        assert inner.clock.seconds() < 100
    assert dials > 20
    inner.stop()


# ---------------------------------------------------------------------- stopping, again


@pytest.mark.parametrize(
    "come_so_far",
    [
        lambda inner: inner.gap_of_many(),
        lambda inner: (inner.gap_of_many(), inner.last.connect()),
        lambda inner: (inner.gap_of_many(), inner.last.open()),
        lambda inner: inner.come_back(received=0),
        lambda inner: None,
    ],
    ids=["dialling", "opening", "greeting", "resumed", "waiting"],
)
def test_stop_with_a_tunnel_that_was_lost(inner, come_so_far):
    wire = inner.lasting()
    _, handler = inner.open_stream(wire)
    wire.lose()
    come_so_far(inner)
    inner.stop()
    assert handler.code is StreamCode.TUNNEL_LOST
    dials = len(inner.outer_layer.dials)
    inner.clock.advance(1_000)
    assert len(inner.outer_layer.dials) == dials


def test_stop_with_lines_that_were_left(inner):
    wires = []
    for number in range(1, 4):
        wires.append(inner.lasting(number))
        told_to_leave(inner, wires[-1])
        inner.gap_of_many()
    wires[0].lose()
    inner.stop()
    assert not any(wire.open for wire in wires)

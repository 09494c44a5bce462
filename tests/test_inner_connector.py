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
from sockgw.protocol.errors import TunnelCode
from sockgw.protocol.frames import FrameType, encode
from sockgw.protocol.handshake import (
    NONCE_SIZE,
    TUNNEL_ID_SIZE,
    Authenticated,
    OuterHandshake,
)
from sockgw.protocol.heads import RequestHead
from sockgw.protocol.payloads import Destination, decode_goaway, encode_open, u64

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
        self.random = random
        self.connector = Connector(
            self.config,
            self.clock,
            self.outer_layer,
            key,
            lambda *arguments: self.opened.append(arguments) or SimpleNamespace(),
            lambda: self.random,
        )
        self.connector.startService()

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

    def handshake(self, wire, identifiers=("office",)):
        """Be the outer layer up to the proof; return its side."""
        outer = OuterHandshake(
            nonce=os.urandom(NONCE_SIZE),
            hosts=("localhost",),
            channel_binding=None,
            lookup=lambda fingerprint: SimpleNamespace(
                identifiers=identifiers, verify=self.key.public_key.verify
            ),
            decoy=self.key.public_key,
        )
        ((kind, payload),) = wire.take()
        wire.say(framed(*outer.receive(kind, payload)))
        ((kind, payload),) = wire.take()
        assert type(outer.receive(kind, payload)) is Authenticated
        return outer

    def welcome(self, wire, *more, identifiers=("office",), tunnel=bytes(TUNNEL_ID_SIZE)):
        outer = self.handshake(wire, identifiers)
        wire.say(framed(*outer.welcome(tunnel=tunnel, max_streams=10)) + b"".join(more))
        return wire

    def tunnel(self):
        """Connect and be let in."""
        return self.welcome(self.last.open())

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
    assert gap == pytest.approx(2 * CHANCE)


@pytest.mark.parametrize(("random", "factor"), [(0.0, 0.1), (0.25, 0.325), (0.999999, 1.0)])
def test_jitter_is_proportional(key, random, factor):
    inner = Inner(key, random, max_reconnect_delay="30000")
    for delay in (0.75, 1.5, 3, 6, 12, 24, 30, 30):
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
    assert warnings[0].endswith(" Trying again in 0.4 s")
    assert inner.connector.tunnel is None
    assert inner.gap() == pytest.approx(0.75 * CHANCE)
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


@pytest.mark.parametrize(
    ("way", "most"),
    [
        (lambda inner: inner.last.connect().lose(), 560),
        (lambda inner: inner.last.open().lose(), 30),
        (lambda inner: inner.tunnel().lose(), 560),
    ],
    ids=["connects", "opens", "welcomes"],
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
    assert inner.gap() == pytest.approx(0.75 * CHANCE)
    refuse(inner)
    inner.gap()
    assert [level for level, _ in events] == ["error", "warn"]


def test_a_key_that_is_revoked_asks_again_soon_and_then_seldom(key, events):
    inner = Inner(key)
    wire = inner.tunnel()
    inner.live(wire, STABLE + 1)
    wire.lose("closed with code 1008", refused=True)
    assert inner.gap() == pytest.approx(0.75 * CHANCE)
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

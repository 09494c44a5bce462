"""Admission: who gets a tunnel, who does not, and what the log and the metrics say of it."""

import os
import time
from types import SimpleNamespace

import msgpack
import pytest
from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from wire import Wire

from sockgw.config import load
from sockgw.keys import generate, load_private_key
from sockgw.outer.admission import Admission
from sockgw.outer.config import OuterConfig
from sockgw.outer.keyring import Keyring
from sockgw.outer.metrics import Metrics
from sockgw.outer.registry import Registry
from sockgw.protocol.errors import StreamCode, TunnelCode
from sockgw.protocol.frames import FIN, FrameType, encode
from sockgw.protocol.handshake import (
    CHALLENGE,
    HELLO,
    MAX_PAYLOAD,
    NONCE_SIZE,
    PROOF,
    WELCOME,
    InnerHandshake,
    Refused,
    Resumption,
    Welcome,
    signed_message,
)
from sockgw.protocol.heads import RequestHead, ResponseHead
from sockgw.protocol.payloads import Destination, decode_goaway, encode_goaway, encode_response, u64

GOODBYE = encode(FrameType.GOAWAY, 0, 0, encode_goaway(0, TunnelCode.CLOSED, "bye"))
HOST = "gateway.test"
ADDRESS = "192.0.2.1"


def framed(kind, payload):
    return encode(FrameType(kind), 0, 0, payload)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Private keys by name; ``office``, ``plant`` and ``both`` have a certificate that is known."""
    directory = tmp_path_factory.mktemp("keys")
    result = {"directory": directory}
    for name in ("office", "plant", "both", "stranger"):
        private = directory / f"{name}.key"
        generate(private, directory / f"{name}.crt", common_name=name)
        result[name] = load_private_key(private)
    return result


@pytest.fixture
def events():
    """What is logged, as (level, text)."""
    seen = []

    def observe(event):
        assert event.get("log_failure") is None, event
        if event["log_level"] >= LogLevel.info and "admission" in event["log_namespace"]:
            seen.append((event["log_level"].name, formatEvent(event)))

    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


class Outer:
    """Admission with all that it needs."""

    def __init__(self, keys, **texts):
        directory = keys["directory"]
        settings = {
            "public-key": [
                f"{directory}/office.crt",
                f"{directory}/plant.crt",
                f"one,two={directory}/both.crt",
            ],
            "targets": ["unused"],
            **{name.replace("_", "-"): [text] for name, text in texts.items()},
        }
        self.config = load(OuterConfig, settings, {})
        self.clock = Clock()
        self.keyring = Keyring(self.config.public_key, self.clock)
        self.registry = Registry(self.config.max_tunnels, self.config.max_tunnels_per_key)
        self.metrics = Metrics()
        self.admission = Admission(
            self.config,
            self.clock,
            self.keyring,
            self.registry,
            self.metrics,
            self.keyring.decoy,
        )

    def open(self, **options):
        wire = Wire(self.clock, **options)
        self.admission.opened(wire)
        return wire

    @property
    def refusals(self):
        """How many were turned away, by kind."""
        return {kind: n for kind, n in self.metrics._handshake_failures.items() if n}


@pytest.fixture
def outer(keys):
    return Outer(keys)


def inner_side(key, identifier="", host=HOST, binding=None, resumption=None, secret=b""):
    return InnerHandshake(
        nonce=os.urandom(NONCE_SIZE),
        fingerprint=key.public_key.fingerprint,
        sign=key.sign,
        identifier=identifier,
        host=host,
        channel_binding=binding,
        agent="test/1",
        resumption=resumption,
        secret=secret,
    )


def greet(outer, key, identifier="", host=HOST, binding=None, wire=None, **coming_back):
    """Perform the handshake up to the proof; return the connection and the inner side."""
    wire = wire or outer.open(binding=binding)
    inner = inner_side(key, identifier, host, binding, **coming_back)
    wire.say(framed(*inner.start()))
    ((kind, payload),) = wire.take()
    assert kind == CHALLENGE
    wire.say(framed(*inner.receive(kind, payload)))
    return wire, inner


def admitted(outer, *args, **kwargs):
    wire, inner = greet(outer, *args, **kwargs)
    ((kind, payload), *rest) = wire.take()
    assert kind == WELCOME
    welcome = inner.receive(kind, payload)
    assert type(welcome) is Welcome
    assert rest == []
    wire.say(framed(FrameType.PING, bytes(8)))  # as any inner layer does at once
    return wire, welcome


def is_refused(outer, wire, kind, events, reason):
    """Everything that must be true of an end without a tunnel, now and later."""
    for _ in range(3):
        assert wire.sent == [], "a stranger was told something"
        assert wire.calls == ["refuse"]
        assert len(outer.registry) == 0
        assert outer.refusals == {kind: 1}
        assert len(events) == 1, events
        level, text = events[0]
        assert level == "warn"
        assert text.startswith(f"inner layer refused: {reason} address={ADDRESS} key=")
        outer.clock.advance(100)
    assert outer.clock.getDelayedCalls() == []
    assert not outer.admission._waiting


# ---------------------------------------------------------------------- success


def test_a_known_key_gets_a_tunnel(outer, keys, events):
    wire, welcome = admitted(outer, keys["office"])
    assert wire.large
    assert welcome.identifier == "office"
    assert welcome.max_streams == outer.config.max_streams
    assert welcome.resume_window == outer.config.resume_window == 30
    (member,) = outer.registry
    assert member.identifier == member.tunnel.identifier == "office"
    assert member.fingerprint == keys["office"].public_key.fingerprint
    assert member.address == ADDRESS
    assert abs(member.since - time.time()) < 10
    assert member.tunnel.available
    assert wire.listener is member.tunnel
    assert events == [
        (
            "info",
            f"inner layer office connected address={ADDRESS} key={keys['office'].public_key} "
            "agent=test/1",
        )
    ]
    assert outer.refusals == {}
    assert not outer.admission._waiting


def test_tunnels_have_different_names(outer, keys):
    assert admitted(outer, keys["office"])[1].tunnel != admitted(outer, keys["office"])[1].tunnel
    assert outer.registry.identifiers() == {"office": 2}


@pytest.mark.parametrize(("asked", "given"), [("", "one"), ("one", "one"), ("two", "two")])
def test_a_key_with_several_identifiers(outer, keys, asked, given):
    _, welcome = admitted(outer, keys["both"], asked)
    assert welcome.identifier == given
    assert outer.registry.identifiers() == {given: 1}


def test_a_mapped_address_is_told_as_what_it_is(outer, keys, events):
    wire = outer.open()
    wire.peer_address = "::ffff:192.0.2.9"
    greet(outer, keys["office"], wire=wire)
    (member,) = outer.registry
    assert member.address == "192.0.2.9"
    unix = outer.open()
    unix.peer_address = "unix"
    greet(outer, keys["office"], wire=unix)
    assert [member.address for member in outer.registry] == ["192.0.2.9", "unix"]


def test_no_timer_of_the_greeting_is_left(outer, keys):
    _, _ = admitted(outer, keys["office"])
    (member,) = outer.registry
    outer.clock.advance(9.9)
    member.tunnel.heard()
    outer.clock.advance(0.2)
    assert len(outer.registry) == 1


def test_an_end_is_told(keys, events):
    outer = Outer(keys, resume_window="0")
    wire, _ = admitted(outer, keys["office"])
    events.clear()
    outer.clock.advance(0)
    wire.lose("the cable broke")
    assert len(outer.registry) == 0
    assert events == [
        ("info", f"inner layer office disconnected: the cable broke address={ADDRESS}")
    ]
    assert outer.metrics._ended[1] > 0  # the ping
    outer.clock.advance(100)
    assert outer.clock.getDelayedCalls() == []


# ---------------------------------------------------------------------- refusals


def test_an_unknown_key(outer, keys, events):
    wire, _ = greet(outer, keys["stranger"])
    is_refused(outer, wire, Refused.KEY, events, "unknown key")
    assert events[0][1].endswith(f"key={keys['stranger'].public_key}")


def test_a_wrong_signature(outer, keys, events):
    inner = inner_side(keys["stranger"])
    inner._fingerprint = keys["office"].public_key.fingerprint
    wire = outer.open()
    wire.say(framed(*inner.start()))
    wire.say(framed(*inner.receive(*wire.take()[0])))
    is_refused(outer, wire, Refused.SIGNATURE, events, "wrong signature")
    assert events[0][1].endswith(f"key={keys['office'].public_key}")


def test_a_replayed_proof(outer, keys, events):
    first = outer.open()
    inner = inner_side(keys["office"])
    hello = framed(*inner.start())
    first.say(hello)
    proof = framed(*inner.receive(*first.take()[0]))
    second = outer.open()
    second.say(hello)
    second.take()
    second.say(proof)
    first.lose()
    events[:] = [event for event in events if "went away" not in event[1]]
    outer.metrics._handshake_failures[Refused.LEFT] = 0
    is_refused(outer, second, Refused.SIGNATURE, events, "wrong signature")


def test_an_identifier_of_another_key(outer, keys, events):
    wire, _ = greet(outer, keys["office"], "plant")
    is_refused(outer, wire, Refused.IDENTIFIER, events, "identifier 'plant' is not of its key")


def test_a_proof_for_another_host(outer, keys, events):
    wire, _ = greet(outer, keys["office"], host="evil.test")
    is_refused(outer, wire, Refused.HOST, events, "dialled 'evil.test', which is not our name")


def test_the_host_of_the_connection_is_the_right_one_without_a_list(outer, keys):
    wire = outer.open(host="other.test")
    greet(outer, keys["office"], host="other.test", wire=wire)
    assert len(outer.registry) == 1


def test_listed_hosts_alone_are_right(keys, events):
    outer = Outer(keys, socket_host="Gateway.Test:3001, [::1]")
    for host in (HOST, "::1"):
        # Whatever a proxy in front has made of the Host header.
        wire = outer.open(host="10.0.0.1")
        greet(outer, keys["office"], host=host, wire=wire)
    assert len(outer.registry) == 2
    wire = outer.open(host="10.0.0.1")
    greet(outer, keys["office"], host="10.0.0.1", wire=wire)
    assert wire.calls == ["refuse"]


def test_a_version_that_nobody_speaks(outer, events):
    wire = outer.open()
    hello = msgpack.packb(
        {"versions": [2, 3], "nonce": os.urandom(32), "agent": "later", "capabilities": []}
    )
    wire.say(framed(HELLO, hello))
    is_refused(outer, wire, Refused.VERSION, events, "speaks versions [2, 3], not [1]")


HELLO_FRAME = framed(
    *InnerHandshake(
        nonce=bytes(32),
        fingerprint=bytes(32),
        sign=lambda message: b"s",
        identifier="",
        host=HOST,
        channel_binding=None,
        agent="",
    ).start()
)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([b""], "a message of the handshake holds exactly one frame"),
        ([b"junk"], "a frame header is cut short"),
        ([b"GET / HTTP/1.1\r\n\r\n"], "PING of 4670804 bytes"),
        ([HELLO_FRAME * 2], "a message of the handshake holds exactly one frame"),
        ([HELLO_FRAME, HELLO_FRAME], "frame of type 1 in state AWAITING_PROOF"),
        ([HELLO_FRAME[:-1]], "a payload is cut short"),
        ([HELLO_FRAME[:5] + b"\0\0\0\1" + HELLO_FRAME[9:]], "HELLO on stream 1"),
        ([framed(HELLO, b"\x80")], "HELLO has no proper 'versions'"),
        ([framed(HELLO, b"\xc1")], "HELLO is not the MessagePack expected"),
        ([framed(PROOF, b"\x80")], "frame of type 3 in state AWAITING_HELLO"),
        ([framed(WELCOME, b"\x80")], "frame of type 4 in state AWAITING_HELLO"),
        ([encode(FrameType.PING, 0, 0, bytes(8))], "frame of type 32 in state AWAITING_HELLO"),
        ([encode(FrameType.DATA, 0, 1, b"x")], "a message of the handshake holds exactly one"),
        ([b"\0\x10\1\1\0\0\0\0\0" + bytes(4097)], "HELLO of 4097 bytes"),
        ([HELLO_FRAME, framed(PROOF, b"\x80")], "PROOF has no proper 'key'"),
        ([HELLO_FRAME, framed(PROOF, bytes(MAX_PAYLOAD))], "PROOF is not the MessagePack"),
    ],
)
def test_junk(outer, events, messages, reason):
    wire = outer.open()
    for message in messages:
        wire.say(message)
        if message is HELLO_FRAME and not wire.calls:
            wire.take()
    for level, text in events:
        assert reason in text
        assert level == "warn"
    is_refused(
        outer, wire, Refused.MALFORMED, events, events[0][1].split(": ")[1].split(" addr")[0]
    )


def test_the_peers_text_cannot_forge_a_line(outer, keys, events):
    """Its agent and identifier stand in the log, and so must be printable."""
    for agent in ("a\nb", "\x1b[31m", "\u202e"):
        wire = outer.open()
        hello = msgpack.packb(
            {"versions": [1], "nonce": os.urandom(32), "agent": agent, "capabilities": []}
        )
        wire.say(framed(HELLO, hello))
        assert wire.calls == ["refuse"]
    wire, _ = greet(outer, keys["office"], "a\nb")
    assert wire.calls == ["refuse"]
    assert not any(set("\n\x1b\u202e") & set(text) for _, text in events)


def test_what_comes_after_a_refusal_changes_nothing(outer, keys, events):
    wire = outer.open()
    wire.say(b"junk")
    listener = wire.listener
    for frame in (HELLO_FRAME, b"junk", b""):
        listener.heard()
        listener.message_received(frame)
    listener.pause()
    listener.resume()
    wire.lose()
    is_refused(outer, wire, Refused.MALFORMED, events, "a frame header is cut short")


def test_a_peer_that_leaves(outer, keys, events):
    for steps in range(3):
        wire = outer.open()
        inner = inner_side(keys["office"])
        if steps > 0:
            wire.say(framed(*inner.start()))
        if steps > 1:
            wire.sent.clear()
        wire.lose()
        assert outer.refusals == {Refused.LEFT: steps + 1}
        assert len(events) == steps + 1
        assert "the peer went away during the handshake" in events[-1][1]
    assert outer.clock.getDelayedCalls() == []


# ---------------------------------------------------------------------- time


def test_silence(keys, events):
    outer = Outer(keys, handshake_timeout="3000", validity="1000")
    wire = outer.open()
    outer.clock.advance(2.9)
    assert wire.calls == []
    outer.clock.advance(0.2)
    is_refused(outer, wire, Refused.TIMEOUT, events, "no HELLO in time")


def test_signs_of_life_are_no_hello(keys, events):
    outer = Outer(keys, handshake_timeout="3000")
    wire = outer.open()
    for _ in range(31):
        outer.clock.advance(0.1)
        wire.listener.heard()
    is_refused(outer, wire, Refused.TIMEOUT, events, "no HELLO in time")


def test_a_slow_proof(keys, events):
    outer = Outer(keys, handshake_timeout="10000", validity="1000")
    wire = outer.open()
    inner = inner_side(keys["office"])
    outer.clock.advance(9)
    wire.say(framed(*inner.start()))
    challenge = wire.take()[0]
    outer.clock.advance(0.9)
    assert wire.calls == []
    outer.clock.advance(0.2)
    proof = framed(*inner.receive(*challenge))
    wire.listener.message_received(proof)
    is_refused(outer, wire, Refused.TIMEOUT, events, "challenge expired")


def test_a_proof_in_time(keys):
    outer = Outer(keys, handshake_timeout="1000", validity="5000")
    wire = outer.open()
    inner = inner_side(keys["office"])
    wire.say(framed(*inner.start()))
    challenge = wire.take()[0]
    outer.clock.advance(4.9)
    wire.say(framed(*inner.receive(*challenge)))
    assert len(outer.registry) == 1


# ---------------------------------------------------------------------- channel binding


def test_the_binding_of_the_connection_is_signed(outer, keys, events):
    """A proof that somebody in between passes on has another binding."""
    wire, _ = admitted(outer, keys["office"], binding=b"b" * 32)
    wire = outer.open(binding=b"b" * 32)
    inner = inner_side(keys["office"], binding=b"c" * 32)
    wire.say(framed(*inner.start()))
    wire.say(framed(*inner.receive(*wire.take()[0])))
    assert wire.calls == ["refuse"]
    assert "wrong signature" in events[-1][1]


def test_a_proof_without_the_binding_is_refused(outer, keys, events):
    key = keys["office"]
    wire = outer.open(binding=b"b" * 32)
    hello = msgpack.packb(
        {"versions": [1], "nonce": os.urandom(32), "agent": "", "capabilities": []}
    )
    wire.say(framed(HELLO, hello))
    ((_, challenge),) = wire.take()
    assert msgpack.unpackb(challenge)["binding"] == "tls-exporter"
    fingerprint = key.public_key.fingerprint
    message = signed_message(
        hello=hello,
        challenge=challenge,
        fingerprint=fingerprint,
        identifier="",
        host=HOST,
        channel_binding=b"",
    )
    proof = {
        "key": fingerprint,
        "identifier": "",
        "host": HOST,
        "signature": key.sign(message),
    }
    wire.say(framed(PROOF, msgpack.packb(proof)))
    is_refused(outer, wire, Refused.SIGNATURE, events, "wrong signature")


def test_the_binding_may_be_turned_off(keys):
    outer = Outer(keys, channel_binding="no")
    wire = outer.open(binding=b"b" * 32)
    inner = inner_side(keys["office"], binding=b"another, since TLS ends at a proxy")
    wire.say(framed(*inner.start()))
    ((kind, challenge),) = wire.take()
    assert msgpack.unpackb(challenge)["binding"] == "none"
    wire.say(framed(*inner.receive(kind, challenge)))
    assert len(outer.registry) == 1


# ---------------------------------------------------------------------- limits


def test_a_full_registry(keys, events):
    outer = Outer(keys, max_tunnels="1")
    first, _ = admitted(outer, keys["office"])
    events.clear()
    wire, _ = greet(outer, keys["plant"])
    assert wire.calls == ["close"]  # not refused: it may come again soon
    assert wire.sent == []
    outer.clock.advance(0)
    wire.listener.message_received(HELLO_FRAME)
    assert outer.refusals == {Refused.LIMIT: 1}
    assert events == [
        (
            "error",
            f"inner layer plant turned away: max-tunnels is reached address={ADDRESS}",
        )
    ]
    assert [member.identifier for member in outer.registry] == ["office"]
    first.say(GOODBYE)
    admitted(outer, keys["plant"])


def test_one_key_cannot_take_all_tunnels(keys, events):
    outer = Outer(keys, max_tunnels="3", max_tunnels_per_key="2")
    first, _ = admitted(outer, keys["both"], "one")
    admitted(outer, keys["both"], "two")
    events.clear()
    wire, _ = greet(outer, keys["both"], "one")
    assert wire.calls == ["close"]
    assert wire.sent == []
    assert outer.refusals == {Refused.LIMIT: 1}
    assert [text for _, text in events] == [
        f"inner layer one turned away: max-tunnels-per-key is reached address={ADDRESS}"
    ]
    admitted(outer, keys["office"])
    first.lose()
    admitted(outer, keys["both"], "one")


def test_greetings_are_no_tunnels(keys):
    outer = Outer(keys, max_tunnels="1")
    for _ in range(5):
        outer.open()
    admitted(outer, keys["office"])


# ---------------------------------------------------------------------- revocation


@pytest.fixture
def directory(keys, tmp_path):
    """A directory of keys that may change."""
    for name in ("office", "plant"):
        (tmp_path / f"{name}.crt").write_bytes((keys["directory"] / f"{name}.crt").read_bytes())
    return tmp_path


def test_revocation_ends_exactly_what_is_permitted_no_longer(keys, directory, events):
    outer = Outer(keys, public_key=str(directory))
    outer.keyring.on_change = outer.admission.revoke
    office = [admitted(outer, keys["office"])[0] for _ in range(2)]
    plant, _ = admitted(outer, keys["plant"])
    for wire in (*office, plant):
        wire.sent.clear()
    (directory / "office.crt").unlink()
    outer.keyring.check()
    assert outer.registry.identifiers() == {"plant": 1}
    assert plant.open
    for wire in office:
        assert wire.calls == ["close"]
        sent = dict(wire.take())
        assert decode_goaway(sent[FrameType.GOAWAY])[1] is TunnelCode.REVOKED
    ends = [text for _, text in events if "disconnected" in text]
    assert (
        ends
        == [f"inner layer office disconnected: the key is no longer accepted address={ADDRESS}"] * 2
    )


def test_an_identifier_may_be_revoked_alone(keys, events):
    outer = Outer(keys)
    one, _ = admitted(outer, keys["both"], "one")
    two, _ = admitted(outer, keys["both"], "two")
    entries = dict(outer.keyring._entries)
    fingerprint = keys["both"].public_key.fingerprint
    outer.keyring._entries[fingerprint] = type(entries[fingerprint])(
        entries[fingerprint].public_key, ("two",), "file"
    )
    outer.admission.revoke()
    assert not one.open
    assert two.open


def test_a_key_revoked_within_the_handshake(keys, directory, events):
    outer = Outer(keys, public_key=str(directory))
    outer.keyring.on_change = outer.admission.revoke
    wire = outer.open()
    inner = inner_side(keys["office"])
    wire.say(framed(*inner.start()))
    challenge = wire.take()[0]
    (directory / "office.crt").unlink()
    outer.keyring.check()
    events.clear()
    wire.say(framed(*inner.receive(*challenge)))
    is_refused(outer, wire, Refused.KEY, events, "unknown key")


# ---------------------------------------------------------------------- stopping


def test_stopping_ends_everything_and_is_nobodys_fault(outer, keys, events):
    tunnel, _ = admitted(outer, keys["office"])
    new = outer.open()
    half = outer.open()
    half.say(framed(*inner_side(keys["plant"]).start()))
    half.take()
    outer.clock.advance(0)
    events.clear()
    outer.admission.stop()
    outer.clock.advance(0)
    assert [wire.calls for wire in (tunnel, new, half)] == [["close"], ["abort"], ["abort"]]
    assert len(outer.registry) == 0
    assert outer.refusals == {}
    assert events == [
        ("info", f"inner layer office disconnected: the outer layer stops address={ADDRESS}")
    ]
    assert outer.clock.getDelayedCalls() == []
    assert not outer.admission._waiting


def test_fin_on_a_handshake_frame_is_ignored(outer, keys):
    """Flags that mean nothing may come to mean something in a later version."""
    wire = outer.open()
    kind, payload = inner_side(keys["office"]).start()
    wire.say(encode(FrameType(kind), FIN, 0, payload))
    assert wire.take()[0][0] == CHALLENGE


# ---------------------------------------------------------------------- coming back


class Incoming:
    """Handles a stream of the outer layer; keeps why it was reset."""

    def __init__(self):
        self.code = None
        self.heads = []

    def head_received(self, head):
        self.heads.append(head.status)

    def ended(self, trailers):
        """Nothing to do."""

    def reset(self, code, detail):
        assert self.code is None
        self.code = code


def open_stream(member):
    handler = Incoming()
    head = RequestHead(b"GET", b"/", [])
    handler.stream = member.tunnel.open(head, Destination("http", "a", 80), handler, complete=True)
    return handler


def back(outer, key, welcome, received=0, **changes):
    """Come back to a tunnel; return the connection and what the outer layer says, or None."""
    resumption = Resumption(changes.pop("tunnel", welcome.tunnel), received)
    secret = changes.pop("secret", welcome.secret)
    wire, inner = greet(outer, key, resumption=resumption, secret=secret, **changes)
    frames = wire.take()
    if not frames:
        return wire, None
    kind, payload = frames[0]
    assert kind == WELCOME
    answer = inner.receive(kind, payload)
    wire.say(framed(FrameType.PING, bytes(8)))
    return wire, answer


@pytest.fixture
def lost(outer, keys):
    """An inner layer whose connection broke, with a stream that waits for it."""
    wire, welcome = admitted(outer, keys["office"])
    (member,) = outer.registry
    handler = open_stream(member)
    outer.clock.advance(0)
    wire.lose("the cable broke")
    assert member.tunnel.suspended
    outer.clock.advance(1)
    return SimpleNamespace(member=member, welcome=welcome, handler=handler, wire=wire)


def test_each_tunnel_has_a_secret_of_its_own(outer, keys):
    welcomes = [admitted(outer, keys["office"])[1] for _ in range(5)]
    assert len({welcome.secret for welcome in welcomes}) == 5
    assert {len(welcome.secret) for welcome in welcomes} == {32}
    assert {member.secret for member in outer.registry} == {w.secret for w in welcomes}
    assert not any(welcome.secret.hex() in repr(list(outer.registry)) for welcome in welcomes)
    assert not any(repr(welcome.secret) in repr(list(outer.registry)) for welcome in welcomes)


def test_an_inner_layer_comes_back(outer, keys, events, lost):
    wire, welcome = back(outer, keys["office"], lost.welcome)
    assert welcome.tunnel == lost.welcome.tunnel
    assert welcome.received == 0
    assert welcome.secret == b""
    assert list(outer.registry) == [lost.member]
    assert not lost.member.tunnel.suspended
    assert wire.listener is lost.member.tunnel
    assert lost.handler.code is None
    outer.clock.advance(0)
    assert FrameType.OPEN in [kind for kind, _ in wire.take()]  # it was not received
    assert outer.metrics._events["resumes"] == 1
    assert outer.metrics._events["takeovers"] == 0
    assert [text for _, text in events if "has lost its connection: the cable broke" in text]
    assert "is back address=192.0.2.1: 1 streams go on, 87 bytes are sent again" in events[-1][1]
    # And again, having received the stream's frame.
    wire.lose()
    wire, welcome = back(outer, keys["office"], lost.welcome, received=1)
    assert welcome.received == 0
    outer.clock.advance(0)
    assert FrameType.OPEN not in [kind for kind, _ in wire.take()]


def test_a_newer_connection_takes_over_from_one_that_looks_alive(outer, keys, events):
    old, welcome = admitted(outer, keys["office"])
    (member,) = outer.registry
    handler = open_stream(member)
    new, answer = back(outer, keys["office"], welcome)
    assert answer.received == 0
    assert old.calls == ["abort"]
    assert new.listener is member.tunnel
    assert outer.metrics._events["takeovers"] == 1
    assert "is back while its old connection looked alive" in events[-1][1]
    outer.clock.advance(0)
    assert handler.code is None
    assert not member.tunnel.suspended
    assert len(outer.registry) == 1


def test_the_count_in_welcome_is_that_after_the_last_of_the_old_connection(outer, keys, lost):
    """What the old one still brings must not be counted after it was told."""
    number = lost.handler.stream.id
    response = encode(FrameType.HEAD, 0, number, encode_response(ResponseHead(200, b"", [])))
    wire, _ = back(outer, keys["office"], lost.welcome, received=1)
    wire.say(response)
    _, answer = back(outer, keys["office"], lost.welcome, received=1)
    assert answer.received == 1
    wire.listener.message_received(encode(FrameType.DATA, FIN, number, b""))
    assert lost.member.tunnel.session.received == 1
    assert lost.handler.heads == [200]


def test_a_stolen_id_without_the_secret(outer, keys, events, lost):
    wire, answer = back(outer, keys["office"], lost.welcome, secret=b"x" * 32)
    assert answer is None
    assert wire.calls == ["refuse"]
    assert outer.refusals == {Refused.SIGNATURE: 1}
    assert "wrong secret of a tunnel" in events[-1][1]
    assert lost.member.tunnel.suspended
    assert lost.handler.code is None


@pytest.mark.parametrize("suspended", [True, False])
def test_another_key_with_a_stolen_id_and_secret_gets_a_tunnel_of_its_own(
    outer, keys, lost, suspended
):
    if not suspended:
        back(outer, keys["office"], lost.welcome)
    resumption = Resumption(lost.welcome.tunnel, 0)
    secret = lost.welcome.secret
    wire, inner = greet(outer, keys["plant"], resumption=resumption, secret=secret)
    answer = inner.receive(*wire.take()[0])
    assert answer.identifier == "plant"
    assert answer.tunnel != lost.welcome.tunnel
    assert answer.received is None
    assert lost.member.tunnel.suspended is suspended
    assert lost.handler.code is None
    assert outer.metrics._events["resumes"] == (0 if suspended else 1)
    assert len(outer.registry) == 2


def test_another_key_of_the_same_identifier_gets_a_tunnel_of_its_own(outer, keys, lost):
    """Several keys may have one identifier: replicas, each with its own tunnels."""
    fingerprint = keys["plant"].public_key.fingerprint
    entry = outer.keyring._entries[fingerprint]
    outer.keyring._entries[fingerprint] = type(entry)(entry.public_key, ("office",), "file")
    _, answer = back(outer, keys["plant"], lost.welcome)
    assert answer.identifier == "office"
    assert answer.received is None
    assert lost.member.tunnel.suspended
    assert lost.handler.code is None


def test_another_identifier_of_the_same_key_gets_a_tunnel_of_its_own(outer, keys):
    wire, welcome = admitted(outer, keys["both"], identifier="one")
    wire.lose()
    _, answer = back(outer, keys["both"], welcome, identifier="two")
    assert answer.identifier == "two"
    assert answer.received is None
    assert outer.registry.identifiers() == {"two": 1}
    assert outer.registry.suspended_identifiers() == {"one": 1}


@pytest.mark.parametrize("received", [2, 1_000, 2**64 - 1])
def test_who_has_received_more_than_was_sent_gets_a_new_tunnel(outer, keys, lost, received):
    _, answer = back(outer, keys["office"], lost.welcome, received=received)
    assert answer.received is None
    assert answer.tunnel != lost.welcome.tunnel
    assert lost.handler.code is None  # until its window is over


def test_who_has_received_less_than_it_said_gets_a_new_tunnel(outer, keys, lost):
    wire, _ = back(outer, keys["office"], lost.welcome, received=1)
    wire.lose()
    _, answer = back(outer, keys["office"], lost.welcome, received=0)
    assert answer.received is None


def test_a_window_that_is_over_is_told(outer, keys, events, lost):
    events.clear()
    outer.clock.advance(outer.config.resume_window)
    assert events == [
        (
            "info",
            "inner layer office disconnected: not resumed in time after: the cable broke"
            f" address={ADDRESS}",
        )
    ]
    assert outer.clock.getDelayedCalls() == []


def test_a_tunnel_that_is_over_is_not_resumed(outer, keys, lost):
    outer.clock.advance(outer.config.resume_window)
    assert lost.handler.code is StreamCode.TUNNEL_LOST
    assert len(outer.registry) == 0
    _, answer = back(outer, keys["office"], lost.welcome)
    assert answer.received is None
    assert answer.tunnel != lost.welcome.tunnel
    assert answer.secret not in (b"", lost.welcome.secret)


def test_an_outer_layer_that_was_restarted(outer, keys, lost):
    other = Outer(keys)
    _, answer = back(other, keys["office"], lost.welcome)
    assert answer.received is None
    assert len(other.registry) == 1


def test_without_a_window_there_is_no_secret_and_no_coming_back(keys):
    outer = Outer(keys, resume_window="0")
    wire, welcome = admitted(outer, keys["office"])
    assert welcome.resume_window == 0
    assert welcome.secret == b""
    (member,) = outer.registry
    handler = open_stream(member)
    outer.clock.advance(0)
    wire.lose()
    assert handler.code is StreamCode.TUNNEL_LOST
    assert len(outer.registry) == 0
    assert outer.clock.getDelayedCalls() == []


def test_a_window_of_less_than_a_second_is_not_told_as_none(keys):
    _, welcome = admitted(Outer(keys, resume_window="200"), keys["office"])
    assert welcome.resume_window == 1


def test_an_inner_layer_that_cannot_come_back_is_not_waited_for(outer, keys):
    inner = inner_side(keys["office"])
    _, hello = inner.start()
    fields = {**msgpack.unpackb(hello), "capabilities": []}
    hello = msgpack.packb(fields)
    wire = outer.open()
    wire.say(framed(HELLO, hello))
    ((_, challenge),) = wire.take()
    message = signed_message(
        hello=hello,
        challenge=challenge,
        fingerprint=keys["office"].public_key.fingerprint,
        identifier="office",
        host=HOST,
        channel_binding=b"",
    )
    proof = {
        "key": keys["office"].public_key.fingerprint,
        "identifier": "office",
        "host": HOST,
        "signature": keys["office"].sign(message),
    }
    wire.say(framed(PROOF, msgpack.packb(proof)))
    fields = msgpack.unpackb(wire.take()[0][1])
    assert fields["resume_window"] == 0
    assert "secret" not in fields
    wire.say(framed(FrameType.PING, bytes(8)))
    wire.lose()
    assert len(outer.registry) == 0


def test_who_never_said_a_word_is_not_waited_for(outer, keys):
    """WELCOME may have been lost: nobody knows of that tunnel."""
    wire, _ = greet(outer, keys["office"])
    assert len(outer.registry) == 1
    wire.lose()
    assert len(outer.registry) == 0


def test_a_revoked_key_does_not_come_back(keys, directory, events):
    outer = Outer(keys, public_key=str(directory))
    wire, welcome = admitted(outer, keys["office"])
    (member,) = outer.registry
    outer.clock.advance(0)
    wire.lose()
    (directory / "office.crt").unlink()
    outer.keyring.check()
    outer.admission.revoke()
    assert len(outer.registry) == 0
    _, answer = back(outer, keys["office"], welcome)
    assert answer is None
    assert outer.refusals == {Refused.KEY: 1}
    assert not member.tunnel.available


def test_waiting_tunnels_of_a_key_make_room_for_its_new_ones(keys):
    """The oldest first; those of others, and those that are connected, stay."""
    outer = Outer(keys, max_tunnels_per_key="3")
    admitted(outer, keys["plant"])[0].lose()
    wires = [admitted(outer, keys["office"])[0] for _ in range(3)]
    plant, *members = outer.registry
    handlers = [open_stream(member) for member in members]
    outer.clock.advance(0)
    wires[0].lose()
    wires[1].lose()
    admitted(outer, keys["office"])
    assert [handler.code for handler in handlers] == [StreamCode.TUNNEL_LOST, None, None]
    admitted(outer, keys["office"])
    assert [handler.code for handler in handlers] == [StreamCode.TUNNEL_LOST] * 2 + [None]
    wire, _ = greet(outer, keys["office"])
    assert wire.take() == []
    assert wire.calls == ["close"]
    assert outer.refusals == {Refused.LIMIT: 1}
    assert plant in list(outer.registry)


def test_coming_back_needs_no_room(keys):
    outer = Outer(keys, max_tunnels="1", max_tunnels_per_key="1")
    wire, welcome = admitted(outer, keys["office"])
    _, answer = back(outer, keys["office"], welcome)
    assert answer.received == 0
    assert len(outer.registry) == 1
    assert wire.calls == ["abort"]


def test_two_inner_layers_with_one_key_never_fight(outer, keys):
    """Each has a tunnel, and comes back to its own."""
    pairs = [admitted(outer, keys["office"]) for _ in range(2)]
    for _ in range(3):
        for wire, _ in pairs:
            wire.lose()
        pairs = [
            (back(outer, keys["office"], welcome)[0], welcome) for _, welcome in reversed(pairs)
        ]
        assert len(outer.registry) == 2
        assert not any(member.tunnel.suspended for member in outer.registry)
    assert outer.metrics._events["resumes"] == 6
    assert outer.metrics._events["takeovers"] == 0


def test_a_successor_retires_the_tunnel_whose_numbers_run_out(outer, keys):
    wire, _ = admitted(outer, keys["office"])
    _, _ = admitted(outer, keys["plant"])
    old, plant = outer.registry
    for member in (old, plant):
        member.tunnel.session._last_id = 0x7FFF_FFFF - 2
    handler = open_stream(old)
    outer.clock.advance(0)
    wire.take()
    admitted(outer, keys["office"])
    outer.clock.advance(0)
    assert not old.tunnel.available
    assert handler.code is None
    assert plant in list(outer.registry)
    number = handler.stream.id
    answer = encode(FrameType.HEAD, FIN, number, encode_response(ResponseHead(200, b"", [])))
    wire.say(answer + framed(FrameType.ACK, u64.pack(1)))
    outer.clock.advance(0)
    assert handler.heads == [200]
    assert old not in list(outer.registry)
    assert len(outer.registry) == 2


def test_stopping_ends_what_waits_too(outer, keys, lost):
    outer.admission.stop()
    assert lost.handler.code is StreamCode.TUNNEL_LOST
    outer.clock.advance(0)
    assert outer.clock.getDelayedCalls() == []
    assert len(outer.registry) == 0


def test_a_resume_window_of_a_week_lets_inner_layers_in_all_the_same(keys):
    outer = Outer(keys, resume_window="604800000")
    wire, inner = greet(outer, keys["office"])
    ((kind, payload), *_) = wire.take()
    assert inner.receive(kind, payload).resume_window == 86_400


def test_the_secret_is_in_no_text(keys, outer):
    wire, inner = greet(outer, keys["office"])
    ((kind, payload), *_) = wire.take()
    welcome = inner.receive(kind, payload)
    (member,) = outer.registry
    assert welcome.secret
    assert repr(welcome.secret) not in repr(welcome) + repr(member)

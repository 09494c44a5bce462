"""The handshake: happy paths, every bit flipped, replay, relay, junk, and a worked example.

``python tests/test_protocol_handshake.py`` prints the worked example in hexadecimal.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from sockgw.keys import PrivateKey, PublicKey
from sockgw.protocol.errors import LocalError, RemoteError
from sockgw.protocol.handshake import (
    CHALLENGE,
    HELLO,
    MAX_PAYLOAD,
    PROOF,
    WELCOME,
    Authenticated,
    Frame,
    HandshakeError,
    InnerHandshake,
    OuterHandshake,
    Refused,
    Resumption,
    State,
    Welcome,
    host_name,
    signed_message,
)

INNER_NONCE = b"\x11" * 32
OUTER_NONCE = b"\x22" * 32
TUNNEL = b"\x33" * 16
EXPORTED = b"\x44" * 32
SECRET = b"\x66" * 32
AGENT = "sockgw/0.1.0"


def wrap(key: Any) -> PrivateKey:
    public = key.public_key()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return PrivateKey(key, PublicKey(public, sha256(der).digest()))


KEY = wrap(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = wrap(ed25519.Ed25519PrivateKey.from_private_bytes(b"\x55" * 32))


@dataclass
class Known:
    """A verifier that tells whether it was asked."""

    public_key: PublicKey
    identifiers: Sequence[str] = ("office", "warehouse")
    asked: int = 0

    def verify(self, message: bytes, signature: bytes) -> bool:
        self.asked += 1
        return self.public_key.verify(message, signature)


def make_outer(**changes: Any) -> OuterHandshake:
    keys = {KEY.public_key.fingerprint: Known(KEY.public_key)}
    arguments: dict[str, Any] = {
        "nonce": OUTER_NONCE,
        "hosts": {"gateway.example.org"},
        "channel_binding": EXPORTED,
        "lookup": keys.get,
        "decoy": Known(OTHER.public_key),
    }
    return OuterHandshake(**{**arguments, **changes})


def make_inner(key: PrivateKey = KEY, **changes: Any) -> InnerHandshake:
    arguments: dict[str, Any] = {
        "nonce": INNER_NONCE,
        "fingerprint": key.public_key.fingerprint,
        "sign": key.sign,
        "identifier": "office",
        "host": "gateway.example.org",
        "channel_binding": EXPORTED,
        "agent": AGENT,
    }
    return InnerHandshake(**{**arguments, **changes})


def frame(outcome: Any) -> Frame:
    assert isinstance(outcome, tuple)
    return outcome


def until_proof(inner: InnerHandshake, outer: OuterHandshake) -> Frame:
    return frame(inner.receive(*frame(outer.receive(*inner.start()))))


def shake(inner: InnerHandshake, outer: OuterHandshake) -> tuple[Authenticated, Welcome]:
    authenticated = outer.receive(*until_proof(inner, outer))
    assert isinstance(authenticated, Authenticated)
    welcome = inner.receive(*outer.welcome(tunnel=TUNNEL, max_streams=1000))
    assert isinstance(welcome, Welcome)
    return authenticated, welcome


def repacked(payload: bytes, **changes: Any) -> bytes:
    fields = {**msgpack.unpackb(payload), **changes}
    return bytes(msgpack.packb({k: v for k, v in fields.items() if v is not ...}))


# --- the way it should go


def test_happy_path() -> None:
    inner, outer = make_inner(), make_outer()
    authenticated, welcome = shake(inner, outer)
    assert authenticated == Authenticated(KEY.public_key.fingerprint, "office", 1, AGENT)
    assert welcome == Welcome(1, "office", TUNNEL, 0, 1000, (), b"", None)
    assert inner.state is outer.state is State.WELCOMED


@pytest.mark.parametrize(
    "key",
    [
        KEY,
        wrap(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
        wrap(ec.generate_private_key(ec.SECP256R1())),
        wrap(ec.generate_private_key(ec.SECP384R1())),
        wrap(ec.generate_private_key(ec.SECP521R1())),
    ],
    ids=["ed25519", "rsa", "p256", "p384", "p521"],
)
def test_every_type_of_key(key: PrivateKey) -> None:
    outer = make_outer(lookup=lambda fingerprint: Known(key.public_key))
    authenticated, _ = shake(make_inner(key), outer)
    assert authenticated.fingerprint == key.public_key.fingerprint


@pytest.mark.parametrize(
    ("inner_has", "outer_has"), [(EXPORTED, EXPORTED), (EXPORTED, None), (None, None)]
)
def test_channel_binding_is_as_strong_as_the_outer_layer_can(
    inner_has: bytes | None, outer_has: bytes | None
) -> None:
    shake(make_inner(channel_binding=inner_has), make_outer(channel_binding=outer_has))


def test_an_inner_layer_without_identifier_gets_the_first_of_its_key() -> None:
    authenticated, welcome = shake(make_inner(identifier=""), make_outer())
    assert authenticated.identifier == welcome.identifier == "office"


def test_any_identifier_of_the_key_will_do() -> None:
    authenticated, welcome = shake(make_inner(identifier="warehouse"), make_outer())
    assert authenticated.identifier == welcome.identifier == "warehouse"


def test_later_versions_may_add_keys_and_versions() -> None:
    outer = make_outer()
    _, hello = make_inner().start()
    kind, challenge = frame(outer.receive(HELLO, repacked(hello, versions=[3, 1, 2], new=[{}])))
    assert kind == CHALLENGE
    assert msgpack.unpackb(challenge)["version"] == 1

    inner = make_inner()
    inner.start()
    inner.receive(CHALLENGE, repacked(challenge, new={"a": {"b": None}}))
    _, welcome = shake(make_inner(), make_outer())
    payload = msgpack.packb(
        {
            "version": 1,
            "identifier": "office",
            "tunnel": TUNNEL,
            "resume_window": 30,
            "max_streams": 7,
            "capabilities": ["resume"],
            "new": 1,
        }
    )
    welcome = inner.receive(WELCOME, payload)
    assert welcome == Welcome(1, "office", TUNNEL, 30, 7, ("resume",), b"", None)


# --- who is not let in


def refused(outer: OuterHandshake, kind: int, payload: bytes, reason: str) -> HandshakeError:
    with pytest.raises(HandshakeError, match=reason) as caught:
        outer.receive(kind, payload)
    assert outer.state is State.FAILED
    assert isinstance(caught.value, RemoteError)
    assert caught.value.reason == str(caught.value)
    return caught.value


def test_unknown_key_costs_a_verification() -> None:
    decoy = Known(OTHER.public_key)
    outer = make_outer(decoy=decoy)
    error = refused(outer, *until_proof(make_inner(OTHER), outer), "unknown key")
    assert error.fingerprint == OTHER.public_key.fingerprint
    assert decoy.asked == 1


def test_unknown_key_is_refused_even_if_it_is_the_decoy() -> None:
    # The decoy verifies this proof: its answer must not count.
    outer = make_outer(decoy=Known(OTHER.public_key))
    refused(outer, *until_proof(make_inner(OTHER), outer), "unknown key")


def test_wrong_key() -> None:
    outer = make_outer()
    error = refused(outer, *until_proof(make_inner(sign=OTHER.sign), outer), "wrong signature")
    assert error.fingerprint == KEY.public_key.fingerprint


def test_wrong_identifier() -> None:
    outer = make_outer()
    refused(outer, *until_proof(make_inner(identifier="vault"), outer), "identifier 'vault'")


def test_a_key_without_identifiers_has_none() -> None:
    outer = make_outer(lookup=lambda fingerprint: Known(KEY.public_key, identifiers=()))
    refused(outer, *until_proof(make_inner(identifier=""), outer), "identifier ''")


def test_dialled_under_another_name() -> None:
    outer = make_outer()
    refused(outer, *until_proof(make_inner(host="evil.example"), outer), "dialled 'evil.example'")


def test_replay_against_another_challenge() -> None:
    inner = make_inner()
    recorded = until_proof(inner, make_outer())
    outer = make_outer(nonce=b"\x23" * 32)
    outer.receive(*make_inner().start())
    refused(outer, *recorded, "wrong signature")


def test_replay_after_another_hello() -> None:
    recorded = until_proof(make_inner(), make_outer())
    outer = make_outer()
    outer.receive(*make_inner(nonce=b"\x12" * 32).start())
    refused(outer, *recorded, "wrong signature")


def test_relay_over_another_tls_connection() -> None:
    inner, outer = make_inner(channel_binding=b"\x45" * 32), make_outer()
    refused(outer, *until_proof(inner, outer), "wrong signature")


def test_nobody_can_talk_the_channel_binding_away() -> None:
    inner, outer = make_inner(), make_outer()
    _, challenge = frame(outer.receive(*inner.start()))
    proof = frame(inner.receive(CHALLENGE, repacked(challenge, binding="none")))
    refused(outer, *proof, "wrong signature")


def test_no_version_can_be_talked_down() -> None:
    # What the inner layer offers besides is signed with the rest of HELLO.
    inner, outer = make_inner(), make_outer()
    kind, hello = inner.start()
    challenge = frame(outer.receive(kind, repacked(hello, versions=[1, 2])))
    refused(outer, *frame(inner.receive(*challenge)), "wrong signature")


@pytest.mark.parametrize("versions", [[], [2], [2, 65535]])
def test_other_versions(versions: list[int]) -> None:
    _, hello = make_inner().start()
    refused(make_outer(), HELLO, repacked(hello, versions=versions), r"speaks versions .*not \[1\]")


def test_expired_challenge() -> None:
    outer = make_outer()
    proof = until_proof(make_inner(), outer)
    assert outer.expire().reason == "challenge expired"
    refused(outer, *proof, "in state FAILED")
    with pytest.raises(LocalError):
        outer.welcome(tunnel=TUNNEL, max_streams=1)


def test_silence() -> None:
    assert make_outer().expire().reason == "no HELLO in time"
    inner = make_inner()
    inner.start()
    assert inner.expire().reason == "no CHALLENGE in time"
    inner, outer = make_inner(), make_outer()
    proof = until_proof(inner, outer)
    assert inner.expire().reason == "no WELCOME in time"
    outer.receive(*proof)
    with pytest.raises(HandshakeError, match="in state FAILED"):
        inner.receive(*outer.welcome(tunnel=TUNNEL, max_streams=1))


# --- what the inner layer does not take


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "chose version 2, which we did not offer"),
        ({"version": 0}, "CHALLENGE has no proper 'version'"),
        ({"version": True}, "CHALLENGE has no proper 'version'"),
        ({"version": 1.0}, "CHALLENGE has no proper 'version'"),
        ({"nonce": INNER_NONCE}, "CHALLENGE reflects our nonce"),
        ({"nonce": OUTER_NONCE[1:]}, "CHALLENGE has no proper 'nonce'"),
        ({"nonce": OUTER_NONCE + b"2"}, "CHALLENGE has no proper 'nonce'"),
        ({"nonce": "2" * 32}, "CHALLENGE has no proper 'nonce'"),
        ({"nonce": ...}, "CHALLENGE has no proper 'nonce'"),
        ({"binding": "tls-unique"}, "asks for the unknown channel binding 'tls-unique'"),
        ({"binding": None}, "CHALLENGE has no proper 'binding'"),
    ],
)
def test_bad_challenges(changes: dict[str, Any], reason: str) -> None:
    inner = make_inner()
    _, challenge = frame(make_outer().receive(*inner.start()))
    with pytest.raises(HandshakeError) as caught:
        inner.receive(CHALLENGE, repacked(challenge, **changes))
    assert caught.value.reason == reason
    assert inner.state is State.FAILED


def test_a_binding_is_asked_for_that_we_do_not_have() -> None:
    inner = make_inner(channel_binding=None)
    challenge = frame(make_outer().receive(*inner.start()))
    with pytest.raises(HandshakeError, match="we have no TLS"):
        inner.receive(*challenge)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "WELCOME says version 2, not 1"),
        ({"identifier": "vault"}, "WELCOME is for identifier 'vault'"),
        ({"identifier": ""}, "WELCOME is for identifier ''"),
        ({"identifier": "a\nb"}, "WELCOME has no proper 'identifier'"),
        ({"tunnel": TUNNEL[1:]}, "WELCOME has no proper 'tunnel'"),
        ({"resume_window": -1}, "WELCOME has no proper 'resume_window'"),
        ({"max_streams": 0}, "WELCOME has no proper 'max_streams'"),
        ({"max_streams": 1 << 31}, "WELCOME has no proper 'max_streams'"),
        ({"capabilities": ["x"] * 33}, "WELCOME has no proper 'capabilities'"),
        ({"capabilities": ["x" * 65]}, "WELCOME has no proper 'capabilities'"),
        ({"capabilities": [1]}, "WELCOME has no proper 'capabilities'"),
        ({"capabilities": "resume"}, "WELCOME has no proper 'capabilities'"),
        ({"secret": SECRET[1:]}, "WELCOME has no proper 'secret'"),
        ({"secret": "x" * 32}, "WELCOME has no proper 'secret'"),
        ({"secret": b""}, "WELCOME has no proper 'secret'"),
        ({"received": 0}, "WELCOME resumes what was not asked for, or does not say how"),
        ({"received": -1}, "WELCOME has no proper 'received'"),
        ({"received": True}, "WELCOME has no proper 'received'"),
    ],
)
def test_bad_welcomes(changes: dict[str, Any], reason: str) -> None:
    inner, outer = make_inner(), make_outer()
    outer.receive(*until_proof(inner, outer))
    _, welcome = outer.welcome(tunnel=TUNNEL, max_streams=1000)
    with pytest.raises(HandshakeError) as caught:
        inner.receive(WELCOME, repacked(welcome, **changes))
    assert caught.value.reason == reason
    assert inner.state is State.FAILED


def test_a_welcome_names_an_identifier_even_if_we_did_not() -> None:
    inner, outer = make_inner(identifier=""), make_outer()
    outer.receive(*until_proof(inner, outer))
    _, welcome = outer.welcome(tunnel=TUNNEL, max_streams=1000)
    with pytest.raises(HandshakeError, match="WELCOME is for identifier ''"):
        inner.receive(WELCOME, repacked(welcome, identifier=""))


# --- coming back to a tunnel


RESUMPTION = Resumption(TUNNEL, 3)
SECRETS = {TUNNEL: SECRET}


def make_returning(**changes: Any) -> InnerHandshake:
    return make_inner(**{"resumption": RESUMPTION, "secret": SECRET, **changes})


def make_keeper(**changes: Any) -> OuterHandshake:
    return make_outer(**{"secret_of": SECRETS.get, **changes})


def test_who_has_the_secret_comes_back() -> None:
    inner, outer = make_returning(), make_keeper()
    authenticated = outer.receive(*until_proof(inner, outer))
    assert isinstance(authenticated, Authenticated)
    assert authenticated.resumption == RESUMPTION
    assert outer.resumes
    kind, payload = outer.welcome(tunnel=TUNNEL, max_streams=9, resume_window=30, received=7)
    welcome = inner.receive(kind, payload)
    assert welcome == Welcome(1, "office", TUNNEL, 30, 9, (), b"", 7)
    assert SECRET not in payload


def test_the_secret_never_crosses_the_wire_again() -> None:
    inner, outer = make_returning(), make_keeper()
    _, proof = until_proof(inner, outer)
    assert SECRET not in proof
    assert msgpack.unpackb(proof)["tunnel"] == TUNNEL
    assert msgpack.unpackb(proof)["received"] == 3


@pytest.mark.parametrize("received", [0, 1, 2**64 - 1])
def test_any_number_of_frames_may_have_come(received: int) -> None:
    inner, outer = make_returning(resumption=Resumption(TUNNEL, received)), make_keeper()
    authenticated = outer.receive(*until_proof(inner, outer))
    assert isinstance(authenticated, Authenticated)
    assert authenticated.resumption == Resumption(TUNNEL, received)


def test_a_stolen_id_is_worth_nothing() -> None:
    for secret in (b"\x67" * 32, bytes(32)):
        outer = make_keeper()
        proof = until_proof(make_returning(secret=secret), outer)
        error = refused(outer, *proof, "wrong secret of a tunnel")
        assert error.kind is Refused.SIGNATURE
        assert error.fingerprint == KEY.public_key.fingerprint


def test_the_secret_alone_is_worth_nothing() -> None:
    """Without a key that is known, or with another's signature."""
    outer = make_keeper()
    other = make_returning(fingerprint=OTHER.public_key.fingerprint, sign=OTHER.sign)
    refused(outer, *until_proof(other, outer), "unknown key")
    outer = make_keeper()
    refused(outer, *until_proof(make_returning(sign=OTHER.sign), outer), "wrong signature")


def test_a_tunnel_that_is_over_leads_to_a_new_one() -> None:
    inner, outer = make_returning(), make_keeper(secret_of=lambda tunnel: None)
    authenticated = outer.receive(*until_proof(inner, outer))
    assert isinstance(authenticated, Authenticated)
    assert authenticated.resumption is None
    fresh = b"\x34" * 16
    frames = outer.welcome(tunnel=fresh, max_streams=9, resume_window=30, secret=b"\x77" * 32)
    assert inner.receive(*frames) == Welcome(1, "office", fresh, 30, 9, (), b"\x77" * 32, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"tunnel": b"\x34" * 16},
        {"received": 4},
        {"received": 2},
        {"code": bytes(32)},
        {"tunnel": ..., "received": ..., "code": ...},
        {"received": ...},
        {"code": ...},
        {"code": b"\x01" * 31},
        {"received": -1},
        {"received": 3.0},
        {"received": True},
        {"tunnel": TUNNEL[1:]},
    ],
    ids=str,
)
def test_what_was_proved_cannot_be_changed(changes: dict[str, Any]) -> None:
    secrets = {TUNNEL: SECRET, b"\x34" * 16: SECRET}
    outer = make_keeper(secret_of=secrets.get)
    _, proof = until_proof(make_returning(), outer)
    refused(outer, PROOF, repacked(proof, **changes), "wrong signature|PROOF has no proper")


def test_a_signer_who_does_not_know_the_secret_cannot_make_up_a_code() -> None:
    """The key's owner signs whatever code; it is the code that counts."""
    inner, outer = make_returning(secret=b"\x67" * 32), make_keeper()
    refused(outer, *until_proof(inner, outer), "wrong secret of a tunnel")


def test_replay_of_a_proof_that_resumed() -> None:
    first = make_keeper()
    recorded = until_proof(make_returning(), first)
    first.receive(*recorded)
    second = make_keeper(nonce=b"\x23" * 32)
    second.receive(*make_returning().start())
    refused(second, *recorded, "wrong signature")


def test_a_code_is_good_for_one_challenge_only() -> None:
    """Also where somebody has the key: an old code under a new signature."""
    old = msgpack.unpackb(until_proof(make_returning(), make_keeper())[1])["code"]
    inner, outer = make_returning(), make_keeper(nonce=b"\x23" * 32)
    _, challenge = frame(outer.receive(*inner.start()))
    message = signed_message(
        hello=make_returning().start()[1],
        challenge=challenge,
        fingerprint=KEY.public_key.fingerprint,
        identifier="office",
        host="gateway.example.org",
        channel_binding=EXPORTED,
        resumption=(TUNNEL, (3).to_bytes(8, "big"), old),
    )
    _, proof = frame(inner.receive(CHALLENGE, challenge))
    forged = repacked(proof, code=old, signature=KEY.sign(message))
    refused(outer, PROOF, forged, "wrong secret of a tunnel")


def test_an_inner_layer_of_before() -> None:
    """It does not say that it can resume: then the fields of old are signed, and no more."""
    hello = repacked(make_inner().start()[1], capabilities=[])
    outer = make_keeper()
    _, challenge = frame(outer.receive(HELLO, hello))
    assert msgpack.unpackb(challenge)["capabilities"] == []
    assert not outer.resumes
    message = signed_message(
        hello=hello,
        challenge=challenge,
        fingerprint=KEY.public_key.fingerprint,
        identifier="office",
        host="gateway.example.org",
        channel_binding=EXPORTED,
    )
    proof = {
        "key": KEY.public_key.fingerprint,
        "identifier": "office",
        "host": "gateway.example.org",
        "signature": KEY.sign(message),
        "tunnel": "reserved then",
    }
    authenticated = outer.receive(PROOF, bytes(msgpack.packb(proof)))
    assert isinstance(authenticated, Authenticated)
    assert authenticated.resumption is None


@pytest.mark.parametrize("capabilities", [..., [], ["other"]])
def test_an_outer_layer_of_before(capabilities: Any) -> None:
    """Its CHALLENGE says nothing of resuming: the tunnel is not named, the rest is as it was."""
    inner = make_returning()
    hello = inner.start()[1]
    challenge = repacked(frame(make_outer().receive(HELLO, hello))[1], capabilities=capabilities)
    _, proof = frame(inner.receive(CHALLENGE, challenge))
    fields = msgpack.unpackb(proof)
    assert set(fields) == {"key", "identifier", "host", "signature"}
    message = signed_message(
        hello=hello,
        challenge=challenge,
        fingerprint=KEY.public_key.fingerprint,
        identifier="office",
        host="gateway.example.org",
        channel_binding=EXPORTED,
    )
    assert KEY.public_key.verify(message, fields["signature"])
    fresh = repacked(shake_welcome(), tunnel=b"\x34" * 16)
    assert inner.receive(WELCOME, fresh) == Welcome(
        1, "office", b"\x34" * 16, 0, 1000, (), b"", None
    )


def shake_welcome() -> bytes:
    inner, outer = make_inner(), make_outer()
    outer.receive(*until_proof(inner, outer))
    return outer.welcome(tunnel=TUNNEL, max_streams=1000)[1]


@pytest.mark.parametrize(
    ("resumption", "changes"),
    [
        (None, {"received": 3}),
        (RESUMPTION, {"received": ...}),
        (RESUMPTION, {"tunnel": b"\x34" * 16}),
    ],
    ids=["never asked", "does not say how", "another one"],
)
def test_a_welcome_resumes_what_was_asked_for_or_nothing(
    resumption: Resumption | None, changes: dict[str, Any]
) -> None:
    inner, outer = make_returning(resumption=resumption), make_keeper()
    outer.receive(*until_proof(inner, outer))
    _, welcome = outer.welcome(tunnel=TUNNEL, max_streams=9, resume_window=30, received=7)
    with pytest.raises(HandshakeError, match="resumes what was not asked for"):
        inner.receive(WELCOME, repacked(welcome, **changes))


def test_any_bit_flipped_in_a_proof_that_resumes_refuses() -> None:
    hello = make_returning().start()[1]
    _, proof = until_proof(make_returning(), make_keeper())
    for payload in flipped(proof):
        outer = make_keeper()
        outer.receive(HELLO, hello)
        with pytest.raises(HandshakeError):
            outer.receive(PROOF, payload)


# --- sizes, types, order


@pytest.mark.parametrize(
    "changes",
    [
        {"versions": [1] * 33},
        {"versions": [True]},
        {"versions": [0]},
        {"versions": [65536]},
        {"versions": 1},
        {"nonce": b""},
        {"agent": "x" * 129},
        {"agent": "two\nlines"},
        {"agent": "\u202ereversed"},
        {"agent": ...},
        {"capabilities": ...},
        {"capabilities": [b"x"]},
    ],
    ids=str,
)
def test_bad_hellos(changes: dict[str, Any]) -> None:
    _, hello = make_inner().start()
    refused(
        make_outer(), HELLO, repacked(hello, **changes), "HELLO has no proper " + repr(*changes)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"key": KEY.public_key.fingerprint[:31]},
        {"key": None},
        {"identifier": "x" * 129},
        {"identifier": None},
        {"host": "x" * 256},
        {"signature": b""},
        {"signature": b"x" * 2049},
        {"signature": "text"},
    ],
    ids=str,
)
def test_bad_proofs(changes: dict[str, Any]) -> None:
    outer = make_outer()
    _, proof = until_proof(make_inner(), outer)
    refused(outer, PROOF, repacked(proof, **changes), "PROOF has no proper " + repr(*changes))


def test_size_is_judged_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    _, hello = make_inner().start()
    room = MAX_PAYLOAD - len(repacked(hello, more=b"x" * 256)) + 256
    largest = repacked(hello, more=b"x" * room)
    assert len(largest) == MAX_PAYLOAD
    make_outer().receive(HELLO, largest)
    monkeypatch.setattr(msgpack, "unpackb", None)
    refused(make_outer(), HELLO, largest + b"x", "HELLO has 4097 bytes")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc0",
        b"\x90",
        b"\x80\x80",  # two values
        b"\x81\xa1a",  # incomplete
        b"\xc1",  # never used
        b"\xdd\xff\xff\xff\xff",  # an array of 4 G items
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa1a" + b"\x91" * 4000 + b"\xc0",  # deep
    ],
)
def test_payloads_that_are_no_map(payload: bytes) -> None:
    refused(make_outer(), HELLO, payload, "HELLO is (no map|not the MessagePack expected)")


@pytest.mark.parametrize(
    "extra",
    [
        b"\xa5nonce\xc4\x20" + b"\x12" * 32,  # a key twice
        b"\x01\x01",  # a key that is a number
        b"\xc4\x01a\x01",  # a key that is bytes
        b"\xa1a\xd6\xff\x00\x00\x00\x01",  # a timestamp
        b"\xa1a\xd4\x05x",  # another extension type
        b"\xa1a\xa1\xff",  # not UTF-8
    ],
    ids=["twice", "number", "bytes", "timestamp", "extension", "utf8"],
)
def test_maps_that_are_refused_for_one_key(extra: bytes) -> None:
    _, hello = make_inner().start()
    assert hello[0] == 0x84
    make_outer().receive(HELLO, b"\x85" + hello[1:] + b"\xa1a\x01")
    refused(make_outer(), HELLO, b"\x85" + hello[1:] + extra, "not the MessagePack expected")


ORDER = [HELLO, CHALLENGE, PROOF, WELCOME, 0, 5, 255]


@pytest.mark.parametrize("kind", ORDER)
def test_frames_out_of_order(kind: int) -> None:
    """Each side takes one type in each state; after a refusal it takes nothing."""
    inner, outer = make_inner(), make_outer()
    proof = until_proof(inner, outer)
    fresh = make_outer()
    fresh.receive(*make_inner().start())
    done = make_outer()
    done.receive(*until_proof(make_inner(), done))
    waiting = make_inner()
    waiting.start()
    payloads = {HELLO: make_inner().start()[1], PROOF: proof[1]}
    proper: dict[str, tuple[Any, int | None]] = {
        "AWAITING_HELLO": (make_outer(), HELLO),
        "AWAITING_PROOF": (fresh, PROOF),
        "AUTHENTICATED": (done, None),
        "NEW": (make_inner(), None),
        "AWAITING_CHALLENGE": (waiting, CHALLENGE),
        "AWAITING_WELCOME": (inner, WELCOME),
    }
    for state, (side, takes) in proper.items():
        assert side.state.name == state
        if kind == takes:
            continue
        with pytest.raises(HandshakeError, match=f"frame of type {kind} in state {state}"):
            side.receive(kind, payloads.get(kind, b"\x80"))
        for again in ORDER:
            with pytest.raises(HandshakeError, match="in state FAILED"):
                side.receive(again, payloads.get(again, b"\x80"))


def test_our_own_mistakes_are_ours() -> None:
    with pytest.raises(LocalError):
        make_outer(nonce=b"short")
    with pytest.raises(LocalError):
        make_inner(nonce=b"short")
    with pytest.raises(LocalError):
        make_inner(fingerprint=b"short")
    inner = make_inner()
    inner.start()
    with pytest.raises(LocalError):
        inner.start()
    outer = make_outer()
    with pytest.raises(LocalError):
        outer.welcome(tunnel=TUNNEL, max_streams=1)
    outer.receive(*until_proof(make_inner(), outer))
    outer.welcome(tunnel=TUNNEL, max_streams=1)
    with pytest.raises(LocalError):
        outer.welcome(tunnel=TUNNEL, max_streams=1)


# --- properties


def flipped(payload: bytes) -> list[bytes]:
    number = int.from_bytes(payload, "big")
    return [(number ^ 1 << bit).to_bytes(len(payload), "big") for bit in range(8 * len(payload))]


def test_any_bit_flipped_in_hello_refuses() -> None:
    _, hello = make_inner().start()
    for payload in flipped(hello):
        inner, outer = make_inner(), make_outer()
        inner.start()
        with pytest.raises(HandshakeError):
            outer.receive(*frame(inner.receive(*frame(outer.receive(HELLO, payload)))))


def test_any_bit_flipped_in_challenge_refuses() -> None:
    _, challenge = frame(make_outer().receive(*make_inner().start()))
    for payload in flipped(challenge):
        inner, outer = make_inner(), make_outer()
        outer.receive(*inner.start())
        with pytest.raises(HandshakeError):
            outer.receive(*frame(inner.receive(CHALLENGE, payload)))


def test_any_bit_flipped_in_proof_refuses() -> None:
    _, proof = until_proof(make_inner(), make_outer())
    _, hello = make_inner().start()
    for payload in flipped(proof):
        outer = make_outer()
        outer.receive(HELLO, hello)
        with pytest.raises(HandshakeError):
            outer.receive(PROOF, payload)


def test_any_bit_flipped_in_welcome_is_refused_or_within_bounds() -> None:
    inner, outer = make_inner(), make_outer()
    outer.receive(*until_proof(inner, outer))
    _, welcome = outer.welcome(tunnel=TUNNEL, max_streams=1000)
    for payload in flipped(welcome):
        inner = make_inner()
        until_proof(inner, make_outer())
        try:
            granted = inner.receive(WELCOME, payload)
        except HandshakeError:
            continue
        assert isinstance(granted, Welcome)
        assert (granted.version, granted.identifier) == (1, "office")
        assert 0 < granted.max_streams < 1 << 31


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=40)
    | st.sampled_from([INNER_NONCE, OUTER_NONCE, KEY.public_key.fingerprint, "office", "none"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
names = st.sampled_from(
    ["versions", "version", "nonce", "agent", "capabilities", "binding", "key", "identifier"]
    + ["host", "signature", "tunnel", "resume_window", "max_streams"]
)
junk = st.binary(max_size=200) | st.dictionaries(names | st.text(max_size=8), values).map(
    lambda fields: bytes(msgpack.packb(fields))
)
frames = st.tuples(st.integers(0, 5), junk)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2), st.lists(frames, min_size=1, max_size=4))
def test_junk_raises_only_handshake_errors(steps: int, sent: list[Frame]) -> None:
    inner, outer = make_inner(), make_outer()
    if steps == 2:
        outer.receive(*until_proof(inner, outer))
    else:
        hello = inner.start()
        if steps == 1:
            outer.receive(*hello)
    for kind, payload in sent:
        for side in (inner, outer):
            outcome: object = None
            try:
                outcome = side.receive(kind, payload)
            except HandshakeError as error:
                outcome = error
            assert not isinstance(outcome, Authenticated)
            if isinstance(outcome, HandshakeError):
                assert outcome.reason.isprintable()
                assert side.state is State.FAILED


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(*[st.binary(max_size=5)] * 3, *[st.text(max_size=3)] * 2, st.binary(max_size=5)),
    st.tuples(*[st.binary(max_size=5)] * 3, *[st.text(max_size=3)] * 2, st.binary(max_size=5)),
)
def test_different_fields_never_make_the_same_message(one: Any, other: Any) -> None:
    names = ("hello", "challenge", "fingerprint", "identifier", "host", "channel_binding")
    same = signed_message(**dict(zip(names, one, strict=True))) == signed_message(
        **dict(zip(names, other, strict=True))
    )
    assert same == (one == other)


def test_fields_do_not_run_into_each_other() -> None:
    def message(identifier: str, host: str) -> bytes:
        return signed_message(
            hello=b"",
            challenge=b"",
            fingerprint=b"",
            identifier=identifier,
            host=host,
            channel_binding=b"",
        )

    assert message("ab", "c") != message("a", "bc")


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("Gateway.Example.ORG", "gateway.example.org"),
        ("gateway.example.org.:3001", "gateway.example.org"),
        ("localhost:3001", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]:3001", "::1"),
        ("[2001:DB8::1]", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("", ""),
    ],
)
def test_host_name(authority: str, host: str) -> None:
    assert host_name(authority) == host


# --- the worked example


def worked_example() -> dict[str, bytes]:
    """Return the payloads of one handshake, and what is signed, for fixed keys and nonces.

    Of a new tunnel, and of one that is resumed.
    """
    inner, outer = make_inner(), make_outer()
    _, hello = inner.start()
    _, challenge = frame(outer.receive(HELLO, hello))
    _, proof = frame(inner.receive(CHALLENGE, challenge))
    outer.receive(PROOF, proof)
    _, welcome = outer.welcome(tunnel=TUNNEL, max_streams=1000, resume_window=30, secret=SECRET)
    returning, keeper = make_returning(), make_keeper()
    proof_again = until_proof(returning, keeper)[1]
    keeper.receive(PROOF, proof_again)
    _, welcome_again = keeper.welcome(tunnel=TUNNEL, max_streams=1000, resume_window=30, received=7)

    def message(*resumption: bytes) -> bytes:
        return signed_message(
            hello=hello,
            challenge=challenge,
            fingerprint=KEY.public_key.fingerprint,
            identifier="office",
            host="gateway.example.org",
            channel_binding=EXPORTED,
            resumption=resumption,
        )

    return {
        "private key": bytes(range(32)),
        "channel binding": EXPORTED,
        "HELLO": hello,
        "CHALLENGE": challenge,
        "signed message": message(b"", b"", b""),
        "PROOF": proof,
        "WELCOME": welcome,
        "PROOF that resumes": proof_again,
        "WELCOME that resumes": welcome_again,
    }


def test_worked_example() -> None:
    """Written out by hand, so that no change of the wire goes unnoticed."""
    example = worked_example()
    hello = (
        b"\x84"
        b"\xa8versions\x91\x01"
        b"\xa5nonce\xc4\x20" + INNER_NONCE + b"\xa5agent\xacsockgw/0.1.0"
        b"\xaccapabilities\x91\xa6resume"
    )
    challenge = (
        b"\x84\xa7version\x01\xa5nonce\xc4\x20" + OUTER_NONCE + b"\xa7binding\xactls-exporter"
        b"\xaccapabilities\x91\xa6resume"
    )
    fingerprint = bytes.fromhex("a050837d85070582ccf7394b0988847cc312cb88259b894899f6f239cf1791a5")
    signed = (
        b"sockgw.1 inner layer\0"
        + len(hello).to_bytes(2, "big")
        + hello
        + len(challenge).to_bytes(2, "big")
        + challenge
        + b"\x00\x20"
        + fingerprint
        + b"\x00\x06office"
        + b"\x00\x13gateway.example.org"
        + b"\x00\x20"
        + EXPORTED
    )
    named = b"\x00\x10" + TUNNEL + b"\x00\x08" + (3).to_bytes(8, "big")
    code = hmac.digest(SECRET, signed + named, "sha256")
    assert example["HELLO"] == hello
    assert example["CHALLENGE"] == challenge
    assert example["signed message"] == signed + bytes(6)
    proof = (
        b"\xa3key\xc4\x20" + fingerprint + b"\xaaidentifier\xa6office"
        b"\xa4host\xb3gateway.example.org"
        b"\xa9signature\xc4\x40"
    )
    assert example["PROOF"] == b"\x84" + proof + KEY.sign(signed + bytes(6))
    assert example["PROOF that resumes"] == (
        b"\x87" + proof + KEY.sign(signed + named + b"\x00\x20" + code) + b"\xa6tunnel\xc4\x10"
        + TUNNEL + b"\xa8received\x03\xa4code\xc4\x20" + code
    )  # fmt: skip
    welcome = (
        b"\xa7version\x01"
        b"\xaaidentifier\xa6office"
        b"\xa6tunnel\xc4\x10" + TUNNEL + b"\xadresume_window\x1e"
        b"\xabmax_streams\xcd\x03\xe8"
        b"\xaccapabilities\x90"
    )
    assert example["WELCOME"] == b"\x87" + welcome + b"\xa6secret\xc4\x20" + SECRET
    assert example["WELCOME that resumes"] == b"\x87" + welcome + b"\xa8received\x07"
    # Ed25519 signatures are the same each time; this one and the code were made with openssl.
    assert example["PROOF"][-64:].hex() == SIGNATURE
    assert code.hex() == CODE


SIGNATURE = (
    "79e7780e5452927edfa0ecff35b45305371199aef328baf0c3f5c0f517480087"
    "64235f2bf68dde699a19fcf11831dba548c1b1f173b69da54f4e2d773d093606"
)
CODE = "4ef60d816c838d93df91e96dd266f8809e0feec00796eea072d2daf6fd519d15"


if __name__ == "__main__":
    for title, content in worked_example().items():
        print(f"{title} ({len(content)} bytes)")
        for start in range(0, len(content), 32):
            print("   ", content[start : start + 32].hex(" "))

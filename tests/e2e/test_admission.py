"""Who is let in: nobody without the right key, name and moment; and each refusal is logged once."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgpack
import pytest
from cable import Cable
from clients import fetch
from harness import Gateway, Inner, Keys, Outer, require, run, wait_until
from wsclient import BINARY, PING, TEXT, Stranger, WebSocket, frame, masked

from sockgw.keys import load_private_key

HELLO, PROOF, OPEN, HEAD, DATA, CREDIT = 0x01, 0x03, 0x10, 0x11, 0x12, 0x13
REFUSED = 1008  # the close code without a reason

Refusal = Callable[[str], AbstractContextManager[None]]
"""Asserts that within it one log line comes with that reason; see :func:`refused`."""


@pytest.fixture(scope="session")
def other_keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """A key that nobody knows."""
    return Keys(tmp_path_factory.mktemp("other-keys"), "other")


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Gateway]:
    """A gateway that gives handshakes half a second."""
    outer = ("--handshake-timeout", "500", "--validity", "500")
    with Gateway(tmp_path_factory.mktemp("impatient"), keys, outer) as gateway:
        yield gateway


@contextmanager
def refused(gateway: Gateway, reason: str, nginx_port: int) -> Iterator[None]:
    """Whatever happens within, one log line says why, and others are served as before."""
    host = gateway.route(nginx_port, host="nginx.test")
    mark = gateway.outer.log.mark()
    yield
    gateway.outer.log.wait(reason, mark)
    assert fetch(gateway.port, host, "/hello").body == b"hello\n"
    lines = gateway.outer.log.lines(mark)
    assert len(lines) == 1, lines
    assert gateway.inner.status is None


@pytest.fixture
def refusal(gateway: Gateway, nginx_port: int) -> Refusal:
    return lambda reason: refused(gateway, reason, nginx_port)


@pytest.fixture
def late_refusal(impatient: Gateway, nginx_port: int) -> Refusal:
    return lambda reason: refused(impatient, reason, nginx_port)


# ---------------------------------------------------------------------- keys


def test_wrong_signature(gateway: Gateway, keys: Keys, other_keys: Keys, refusal: Refusal) -> None:
    with (
        refusal("inner layer refused: wrong signature address=127.0.0.1 key=SHA256:"),
        Stranger(gateway.outer.socket_port) as stranger,
    ):
        stranger.greet(keys.private, sign=load_private_key(other_keys.private).sign)
        stranger.prove()
        assert stranger.receive() == (8, REFUSED.to_bytes(2, "big")), "no reason for strangers"
        assert stranger.receive() is None


def test_unknown_key(gateway: Gateway, other_keys: Keys, refusal: Refusal) -> None:
    with (
        refusal("inner layer refused: unknown key"),
        Stranger(gateway.outer.socket_port) as stranger,
    ):
        stranger.greet(other_keys.private)
        stranger.prove()
        assert stranger.receive() == (8, REFUSED.to_bytes(2, "big")), "no reason for strangers"
        assert stranger.receive() is None


def test_inner_layer_with_an_unknown_key(
    gateway: Gateway, other_keys: Keys, tmp_path: Path
) -> None:
    """It asks again, less often, and complains once."""
    mark = gateway.outer.log.mark()
    port = gateway.outer.socket_port
    with Inner(tmp_path, other_keys.private, port, "--refused-delay", "100") as inner:
        wait_until(
            lambda: len(gateway.outer.log.matching("refused: unknown key", mark)) >= 3,
            "three attempts",
        )
        assert len(inner.log.matching("refuses this inner layer")) == 1
        assert "SHA256:" in inner.log.matching("refuses this inner layer")[0]


def test_refused_inner_layer_does_not_hammer(
    gateway: Gateway, other_keys: Keys, tmp_path: Path
) -> None:
    with Inner(tmp_path, other_keys.private, gateway.outer.socket_port) as inner:
        assert "Asking again every 120 s" in inner.log.wait("refuses this inner layer")


def test_wrong_identifier(gateway: Gateway, keys: Keys, refusal: Refusal, tmp_path: Path) -> None:
    with refusal("inner layer refused: .*identifier 'somebody'"):
        port = gateway.outer.socket_port
        with Inner(tmp_path, keys.private, port, "--identifier", "somebody") as inner:
            inner.log.wait("refuses this inner layer")


def test_signature_for_another_outer_layer(gateway: Gateway, keys: Keys, refusal: Refusal) -> None:
    with (
        refusal("inner layer refused: dialled 'elsewhere.test'"),
        Stranger(gateway.outer.socket_port) as stranger,
    ):
        stranger.greet(keys.private, host="elsewhere.test")
        stranger.prove()
        assert stranger.wait_closed() == REFUSED


def test_replayed_proof(gateway: Gateway, keys: Keys, refusal: Refusal, tmp_path: Path) -> None:
    """What an honest inner layer sent, byte for byte, is worth nothing the second time."""
    with Cable(gateway.outer.socket_port) as cable:
        with Inner(tmp_path, keys.private, cable.port) as inner:
            inner.wait_connected()
            gateway.outer.wait_for_tunnels(2)
            recording = bytes(cable.recordings[0])
        gateway.outer.wait_for_tunnels(1)
    upgrade, _, frames = recording.partition(b"\r\n\r\n")
    assert b"Sec-WebSocket-Protocol: sockgw.1" in upgrade
    hello, proof = _client_frames(frames)[:2]
    with refusal("inner layer refused: wrong signature"):
        upgrade += b"\r\n\r\n"
        with Stranger(gateway.outer.socket_port, upgrade=upgrade) as stranger:
            assert stranger.status == 101
            stranger.socket.sendall(hello)
            stranger.challenge()
            stranger.socket.sendall(proof)
            assert stranger.wait_closed() == REFUSED


def _client_frames(data: bytes) -> list[bytes]:
    """Split masked frames of less than 64 KiB."""
    frames = []
    while len(data) >= 2:
        size = data[1] & 0x7F
        start = 6
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 8
        frames.append(data[: start + size])
        data = data[start + size :]
    return frames


@pytest.mark.parametrize("kind", ["rsa", "ec", "ed25519"])
def test_keys_made_by_openssl(gateway: Gateway, tmp_path: Path, nginx_port: int, kind: str) -> None:
    openssl = require("openssl")
    algorithm = {
        "rsa": ("rsa:4096",),
        "ec": ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        "ed25519": ("ed25519",),
    }[kind]
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = run(
        *(openssl, "req", "-x509", "-nodes", "-subj", f"/CN=made-by-openssl-{kind}"),
        *("-newkey", *algorithm, "-keyout", key, "-out", certificate),
    )
    assert made.returncode == 0, made.stderr
    with (
        Outer(tmp_path, certificate) as outer,
        Inner(tmp_path, key, outer.socket_port) as inner,
    ):
        assert f"as made-by-openssl-{kind}" in inner.log.wait("connected to the outer layer")
        assert fetch(outer.app_port, outer.route(nginx_port), "/hello").status == 200


def test_revoked_key(keys: Keys, nginx_port: int, tmp_path: Path) -> None:
    """A key goes and comes without a restart."""
    directory = tmp_path / "keys.d"
    directory.mkdir()
    accepted = directory / "office.crt"
    shutil.copy(keys.certificate, accepted)
    with (
        Outer(tmp_path, directory) as outer,
        Inner(tmp_path, keys.private, outer.socket_port, "--refused-delay", "100") as inner,
    ):
        outer.wait_for_tunnels(1)
        host = outer.route(nginx_port)
        assert fetch(outer.app_port, host, "/hello").status == 200
        accepted.unlink()
        begun = time.monotonic()
        outer.log.wait("inner layer innerLayer disconnected: the key is no longer accepted")
        assert time.monotonic() - begun < 2
        assert fetch(outer.app_port, host, "/hello").status == 502
        inner.log.wait("refuses this inner layer")
        again = outer.log.mark()
        shutil.copy(keys.certificate, accepted)
        outer.log.wait("inner layer innerLayer connected", again)
        assert fetch(outer.app_port, host, "/hello").status == 200


def test_several_identifiers_for_a_key(keys: Keys, tmp_path: Path, nginx_port: int) -> None:
    with (
        Outer(tmp_path, f"office,plant={keys.certificate}") as outer,
        Inner(tmp_path, keys.private, outer.socket_port, name="first") as first,
        Inner(
            tmp_path, keys.private, outer.socket_port, "--identifier", "plant", name="second"
        ) as second,
    ):
        assert "as office" in first.log.wait("connected to the outer layer")
        assert "as plant" in second.log.wait("connected to the outer layer")
        outer.wait_for_tunnels(2)
        mark = outer.access.mark()
        host = outer.route(nginx_port, identifier="plant")
        for _ in range(4):
            assert fetch(outer.app_port, host, "/hello").status == 200
        wait_until(lambda: len(outer.access.lines(mark)) == 4, "four lines")
        assert len(outer.access.matching(" identifier=plant ", mark)) == 4


# ---------------------------------------------------------------------- handshakes


def hello(versions: list[int]) -> bytes:
    fields = {"versions": versions, "nonce": os.urandom(32), "agent": "t", "capabilities": []}
    return frame(HELLO, msgpack.packb(fields))


def test_newer_version_only(gateway: Gateway, refusal: Refusal) -> None:
    with (
        refusal(r"inner layer refused: speaks versions \[2, 3\]"),
        Stranger(gateway.outer.socket_port) as stranger,
    ):
        stranger.send(hello([2, 3]))
        assert stranger.wait_closed() == REFUSED


def test_newer_version_too(gateway: Gateway) -> None:
    mark = gateway.outer.log.mark()
    with Stranger(gateway.outer.socket_port) as stranger:
        stranger.send(hello([2, 1]))
        assert msgpack.unpackb(stranger.challenge())["version"] == 1
    gateway.outer.log.wait("refused: the peer went away during the handshake", mark)


def test_unknown_subprotocol(gateway: Gateway) -> None:
    from wsclient import upgrade_request

    request = upgrade_request(subprotocol="chat")
    with WebSocket(gateway.outer.socket_port, upgrade=request) as stranger:
        assert stranger.status == 400


OVERSIZED = b"\x82\xff" + (1 << 30).to_bytes(8, "big") + b"mask"
MALFORMED = {
    "no frame": (masked(b"hello"), "a frame header is cut short"),
    "cut payload": (masked(b"\0\1\0\1" + b"\0" * 10), "a payload is cut short"),
    "oversized frame": (masked(b"\0\x20\0\1\0\0\0\0\0" + b"\0" * 8183), "HELLO of 8192 bytes"),
    "no MessagePack": (masked(frame(HELLO, b"\xc1" * 50)), "HELLO is not the MessagePack expected"),
    "bomb": (masked(frame(HELLO, b"\x91" * 4000)), "HELLO is not the MessagePack expected"),
    "empty map": (masked(frame(HELLO, b"\x80")), "HELLO has no proper 'versions'"),
    "wrong order": (masked(frame(PROOF, b"\x80")), "frame of type 3 in state AWAITING_HELLO"),
    "before its time": (masked(frame(OPEN, b"\x80", stream=1)), "exactly one frame"),
    "two frames": (masked(hello([1]) + hello([1])), "exactly one frame"),
    "text": (masked(b"hello", TEXT), "went away"),
    "oversized message": (OVERSIZED, "went away"),
    "endless fragments": (
        masked(b"x" * 5000, fin=False) + masked(b"x" * 5000, 0, fin=False),
        "went away",
    ),
    "unmasked": (b"\x82\x05hello", "went away"),
    "reserved bits": (b"\xf2" + masked(b"hello")[1:], "went away"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_greeting(gateway: Gateway, refusal: Refusal, name: str) -> None:
    data, reason = MALFORMED[name]
    with (
        refusal(f"inner layer refused: .*{reason}"),
        Stranger(gateway.outer.socket_port) as stranger,
    ):
        stranger.socket.sendall(data)
        stranger.wait_closed()


def test_silence_after_the_upgrade(impatient: Gateway, late_refusal: Refusal) -> None:
    with (
        late_refusal("inner layer refused: no HELLO in time"),
        Stranger(impatient.outer.socket_port) as stranger,
    ):
        begun = time.monotonic()
        stranger.wait_closed()
        assert 0.4 < time.monotonic() - begun < 2


def test_unanswered_challenge(impatient: Gateway, keys: Keys, late_refusal: Refusal) -> None:
    with (
        late_refusal("inner layer refused: challenge expired"),
        Stranger(impatient.outer.socket_port) as stranger,
    ):
        stranger.greet(keys.private)
        stranger.challenge()
        begun = time.monotonic()
        stranger.wait_closed()
        assert 0.4 < time.monotonic() - begun < 2


def test_chatter_instead_of_a_greeting(impatient: Gateway, late_refusal: Refusal) -> None:
    """Pings are signs of life, and none of progress."""
    with (
        late_refusal("inner layer refused: no HELLO in time"),
        Stranger(impatient.outer.socket_port) as stranger,
    ):
        begun = time.monotonic()

        def closed() -> bool:
            try:
                stranger.send(b"", PING)
            except ConnectionError:
                return True
            return False

        wait_until(closed, "the connection is closed", 3)
        assert time.monotonic() - begun < 2


# ---------------------------------------------------------------------- known ones that misbehave

MISBEHAVIOUR = {
    "opens a stream": (frame(OPEN, b"\x80", stream=1), "OPEN of stream 1"),
    "a stream that never was": (frame(DATA, b"x", stream=999_999), "was never opened"),
    "an even stream": (frame(DATA, b"x", stream=2), "was never opened"),
    "DATA on stream 0": (frame(DATA, b"x"), "DATA on stream 0"),
    "too large DATA": (frame(DATA, b"x" * 65_537, stream=1), "DATA of 65537 bytes"),
    "short CREDIT": (frame(CREDIT, b"\0\0\1", stream=1), "CREDIT of 3 bytes"),
    "cut frame": (b"\0\0", "a frame header is cut short"),
    "ACK of what was not sent": (frame(0x22, b"\xff" * 8), "ACK of "),
    "a second handshake": (hello([1]), "a handshake frame after the handshake"),
    "flood": (frame(0x21, b"\0" * 8) * 10_001, "more frames without content"),
    "flood of unknown frames": (frame(0x77) * 10_001, "more frames without content"),
}


@pytest.mark.parametrize("name", MISBEHAVIOUR)
def test_misbehaving_inner_layer(gateway: Gateway, keys: Keys, nginx_port: int, name: str) -> None:
    """Its own tunnel ends, with a line; that of another with the same key goes on."""
    data, reason = MISBEHAVIOUR[name]
    host = gateway.route(nginx_port, host="nginx.test")
    mark = gateway.outer.log.mark()
    with Stranger(gateway.outer.socket_port) as stranger:
        stranger.enter(keys.private)
        stranger.send(data)
        stranger.wait_closed()
    line = gateway.outer.log.wait("broke the protocol|ends it", mark)
    assert reason in line
    gateway.outer.wait_for_tunnels(1)
    assert fetch(gateway.port, host, "/hello").body == b"hello\n"
    lines = gateway.outer.log.lines(mark)
    assert [line for line in lines if " connected " not in line and "disconnected" not in line] == [
        line
    ]


def test_unknown_frames_are_ignored(gateway: Gateway, keys: Keys) -> None:
    with Stranger(gateway.outer.socket_port) as stranger:
        stranger.enter(keys.private)
        stranger.send(frame(0x77, b"from a later version") + frame(0x20, b"are you?"))
        while (received := stranger.receive()) is not None:
            if received[1][3] == 0x21:
                break
        assert received
        assert received[1] == frame(0x21, b"are you?")
        # Without a farewell its tunnel would wait for it.
        stranger.send(frame(0x23, b"\0\0\0\0\0\7"))
        stranger.wait_closed()
    gateway.outer.wait_for_tunnels(1)


def test_message_larger_than_any(gateway: Gateway, keys: Keys) -> None:
    with Stranger(gateway.outer.socket_port) as stranger:
        stranger.enter(keys.private)
        stranger.socket.sendall(OVERSIZED)
        stranger.wait_closed()
    gateway.outer.wait_for_tunnels(1)


def test_ping_is_answered_by_the_websocket_too(gateway: Gateway, keys: Keys) -> None:
    with Stranger(gateway.outer.socket_port) as stranger:
        stranger.enter(keys.private)
        stranger.send(b"abc", PING)
        while (received := stranger.receive()) is not None and received[0] == BINARY:
            pass
        assert received == (10, b"abc")
    gateway.outer.wait_for_tunnels(1)

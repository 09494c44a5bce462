"""The keyring: entries, identifiers, live changes, and that it fails closed."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher

from sockgw.keys import load_public_key
from sockgw.outer.keyring import Keyring
from sockgw.protocol.handshake import InnerHandshake, OuterHandshake
from sockgw.yamlfile import ConfigError

NOW = datetime(2030, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)

KEYS = [ed25519.Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in range(4)]


def public(number: int) -> bytes:
    return KEYS[number].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private(number: int) -> bytes:
    return KEYS[number].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificate(
    number: int, name: str, before: datetime = NOW - DAY, after: datetime = NOW + DAY
) -> bytes:
    names = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name(names))
        .issuer_name(x509.Name([]))
        .public_key(KEYS[number].public_key())
        .serial_number(1)
        .not_valid_before(before)
        .not_valid_after(after)
        .sign(KEYS[number], None)
        .public_bytes(Encoding.PEM)
    )


FINGERPRINTS = [load_public_key(public(i)).fingerprint for i in range(4)]


class Ring:
    """A keyring under a fake clock, and everything it told."""

    def __init__(self, *entries: object) -> None:
        self.clock = Clock()
        self.now = NOW
        self.removed: list[set[bytes]] = []
        self.changes = 0
        self.keyring = Keyring(map(str, entries), self.clock, now=lambda: self.now)
        self.keyring.on_removed = self.removed.append
        self.keyring.on_change = self._count
        self.keyring.start()

    def _count(self) -> None:
        self.changes += 1

    def tick(self) -> None:
        self.clock.advance(1.0)

    @property
    def identifiers(self) -> dict[int, tuple[str, ...]]:
        """By the key's number."""
        entries = {entry.public_key.fingerprint: entry for entry in self.keyring}
        assert len(entries) == len(self.keyring)
        for fingerprint in FINGERPRINTS:
            assert self.keyring.find(fingerprint) is entries.get(fingerprint)
        return {FINGERPRINTS.index(f): entry.identifiers for f, entry in entries.items()}


class Log:
    """What was logged since it was last asked."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def taken(self, level: str = "warn") -> list[str]:
        lines = [formatEvent(event) for event in self.events if event["log_level"].name == level]
        self.events.clear()
        return lines


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    observer = log.events.append
    globalLogPublisher.addObserver(observer)
    yield log
    globalLogPublisher.removeObserver(observer)


# --- entries


def test_identifier_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "one.crt").write_bytes(certificate(0, "office"))
    (tmp_path / "two.pub").write_bytes(public(1))
    (tmp_path / "three.crt").write_bytes(certificate(2, ""))
    ring = Ring(*(tmp_path / name for name in ("one.crt", "two.pub", "three.crt")))
    assert ring.identifiers == {0: ("office",), 1: ("two",), 2: ("three",)}
    entry = ring.keyring.find(FINGERPRINTS[0])
    assert entry is not None
    assert entry.source == str(tmp_path / "one.crt")


def test_names_override(tmp_path: Path) -> None:
    path = tmp_path / "one.crt"
    path.write_bytes(certificate(0, "a name, with everything/in it"))
    ring = Ring(f"office, warehouse,office={path}")
    assert ring.identifiers == {0: ("office", "warehouse")}
    assert ring.keyring.permits(FINGERPRINTS[0], "warehouse")
    assert not ring.keyring.permits(FINGERPRINTS[0], "vault")
    assert not ring.keyring.permits(FINGERPRINTS[1], "warehouse")


def test_a_path_with_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.pub").write_bytes(public(0))
    (tmp_path / "b.pub").write_bytes(public(1))
    assert Ring("a=b.pub").identifiers == {0: ("a=b",)}
    assert Ring("c=a=b.pub").identifiers == {0: ("c",)}
    (tmp_path / "a=b.pub").unlink()
    assert Ring("a=b.pub").identifiers == {1: ("a",)}


def test_directory(tmp_path: Path, log: Log) -> None:
    (tmp_path / "a.crt").write_bytes(certificate(0, "office"))
    (tmp_path / "b.PEM").write_bytes(public(1))
    (tmp_path / "c.key").write_bytes(public(2))
    (tmp_path / ".hidden.crt").write_bytes(public(3))
    (tmp_path / "e.txt").write_bytes(public(3))
    (tmp_path / "f.crt~").write_bytes(public(3))
    (tmp_path / "g").mkdir()
    ring = Ring(tmp_path)
    assert ring.identifiers == {0: ("office",), 1: ("b",), 2: ("c",)}
    assert log.taken() == []


def test_bad_files_in_a_directory_do_not_harm_the_others(tmp_path: Path, log: Log) -> None:
    (tmp_path / "a.crt").write_bytes(certificate(0, "office"))
    (tmp_path / "b.crt").write_bytes(b"junk")
    (tmp_path / "c.crt").write_bytes(certificate(1, "two words"))
    (tmp_path / "d.key").write_bytes(private(2))
    (tmp_path / "e.pem").mkdir()
    (tmp_path / "f.pub").symlink_to("nowhere")
    ring = Ring(tmp_path)
    assert ring.identifiers == {0: ("office",)}
    told = log.taken()
    assert [line.split(": it ")[0] for line in told] == [
        f"no key is taken from {tmp_path / name}"
        for name in ("b.crt", "c.crt", "d.key", "e.pem", "f.pub")
    ]
    assert "says 'two words', but an identifier has no space" in told[1]
    assert "holds a private key" in told[2]
    ring.tick()
    (tmp_path / "g.pub").write_bytes(public(3))
    ring.tick()
    assert ring.identifiers == {0: ("office",), 3: ("g",)}
    assert log.taken() == []  # each problem is told once


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("missing.crt", "'missing.crt' cannot be read: No such file"),
        ("junk.crt", "'junk.crt' holds no public key"),
        ("name=missing.crt", "'missing.crt' cannot be read: No such file"),
        ("private.key", "'private.key' holds a private key"),
        ("words.crt", "'words.crt' says 'two words', but an identifier has no space"),
        ("=good.pub", "'=good.pub' names no identifier"),
        ("a,,b=good.pub", "'a,,b=good.pub' names no identifier"),
        ("a b=good.pub", "'a b=good.pub' names no identifier"),
        ("name=.", "'name=.' names a directory"),
        ("name=", "'' cannot be read"),
        ("", "'' cannot be read"),
    ],
)
def test_what_is_wrong_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.pub").write_bytes(public(0))
    (tmp_path / "junk.crt").write_bytes(b"junk")
    (tmp_path / "private.key").write_bytes(private(0))
    (tmp_path / "words.crt").write_bytes(certificate(0, "two words"))
    with pytest.raises(ConfigError) as caught:
        Keyring(["good.pub", entry], Clock())
    assert str(caught.value).startswith(f"public-key: {problem}")


def test_same_key_twice(tmp_path: Path) -> None:
    (tmp_path / "a.crt").write_bytes(certificate(0, "office"))
    (tmp_path / "b.pub").write_bytes(public(0))
    ring = Ring(tmp_path, f"b,c={tmp_path / 'a.crt'}")
    assert ring.identifiers == {0: ("office", "b", "c")}
    entry = ring.keyring.find(FINGERPRINTS[0])
    assert entry is not None
    assert str(tmp_path / "a.crt") in entry.source
    assert str(tmp_path / "b.pub") in entry.source


def test_nothing_at_all(tmp_path: Path, log: Log) -> None:
    for entries in ([], [tmp_path]):
        assert Ring(*entries).identifiers == {}
        assert log.taken() == ["no public key is accepted: no inner layer can connect"]


# --- live


def test_removing_a_file(tmp_path: Path, log: Log) -> None:
    for number in range(3):
        (tmp_path / f"{number}.pub").write_bytes(public(number))
    ring = Ring(tmp_path)
    (tmp_path / "0.pub").unlink()
    (tmp_path / "2.pub").rename(tmp_path / "2.txt")
    assert ring.removed == []
    ring.tick()
    assert ring.removed == [{FINGERPRINTS[0], FINGERPRINTS[2]}]
    assert ring.changes == 1
    assert ring.identifiers == {1: ("1",)}
    assert not ring.keyring.permits(FINGERPRINTS[0], "0")
    ring.tick()
    assert ring.changes == 1
    (tmp_path / "1.pub").unlink()
    ring.tick()
    assert ring.removed[1:] == [{FINGERPRINTS[1]}]
    assert log.taken()[-1] == "no public key is accepted: no inner layer can connect"


def test_adding_a_file(tmp_path: Path, log: Log) -> None:
    ring = Ring(tmp_path)
    (tmp_path / "office.crt").write_bytes(public(0))
    log.taken()
    ring.tick()
    assert ring.identifiers == {0: ("office",)}
    assert (ring.removed, ring.changes) == ([], 1)
    (line,) = log.taken("info")
    assert line.startswith("key SHA256:")
    assert line.endswith(f" is accepted: office, from {tmp_path / 'office.crt'}")


def test_another_key_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "office.pub"
    path.write_bytes(public(0))
    ring = Ring(path)
    path.write_bytes(public(1))
    ring.tick()
    assert ring.identifiers == {1: ("office",)}
    assert ring.removed == [{FINGERPRINTS[0]}]


def test_another_identifier_for_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "a.crt"
    path.write_bytes(certificate(0, "office"))
    ring = Ring(path)
    path.write_bytes(certificate(0, "warehouse"))
    ring.tick()
    assert (ring.removed, ring.changes) == ([], 1)
    assert not ring.keyring.permits(FINGERPRINTS[0], "office")
    assert ring.keyring.permits(FINGERPRINTS[0], "warehouse")


def test_a_renewed_certificate_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.crt"
    path.write_bytes(certificate(0, "office"))
    ring = Ring(path)
    path.write_bytes(certificate(0, "office", after=NOW + 9 * DAY))
    ring.tick()
    assert (ring.removed, ring.changes) == ([], 0)
    ring.now = NOW + 2 * DAY
    ring.tick()
    assert ring.identifiers == {0: ("office",)}


@pytest.mark.parametrize("how", ["vanishes", "breaks", "becomes a directory", "several", "private"])
@pytest.mark.parametrize("entry", ["{}", "office={}"])
def test_an_explicit_file_fails_closed(tmp_path: Path, log: Log, how: str, entry: str) -> None:
    path = tmp_path / "office.crt"
    path.write_bytes(certificate(0, "office"))
    ring = Ring(entry.format(path))
    path.unlink()
    if how == "becomes a directory":
        path.mkdir()
    elif how != "vanishes":
        path.write_bytes({"breaks": b"junk", "several": public(0) * 2, "private": private(0)}[how])
    ring.tick()
    assert ring.identifiers == {}
    assert ring.removed == [{FINGERPRINTS[0]}]
    told = log.taken()
    assert told[-1] == "no public key is accepted: no inner layer can connect"
    if not (how == "becomes a directory" and entry == "{}"):  # an empty one is no error
        assert told[0].startswith(f"no key is taken from {path}: it ")

    if path.is_dir():
        path.rmdir()
    path.write_bytes(certificate(0, "office"))
    ring.tick()
    assert ring.identifiers == {0: ("office",)}
    path.unlink()
    ring.tick()
    assert len(log.taken()) == 2  # a problem that comes back is told again


def test_a_directory_that_vanishes(tmp_path: Path, log: Log) -> None:
    directory = tmp_path / "keys"
    directory.mkdir()
    (directory / "a.pub").write_bytes(public(0))
    ring = Ring(directory)
    directory.rename(tmp_path / "elsewhere")
    ring.tick()
    assert ring.removed == [{FINGERPRINTS[0]}]
    assert log.taken()[0].startswith(f"no key is taken from {directory}: it cannot be read")
    (tmp_path / "elsewhere").rename(directory)
    ring.tick()
    assert ring.identifiers == {0: ("a",)}


def test_swap_as_kubernetes_does(tmp_path: Path) -> None:
    for number, version in enumerate(("..one", "..two")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "office.pub").write_bytes(public(number))
    (tmp_path / "..data").symlink_to("..one")
    (tmp_path / "office.pub").symlink_to("..data/office.pub")
    ring = Ring(tmp_path)
    assert ring.identifiers == {0: ("office",)}
    (tmp_path / "..new").symlink_to("..two")
    os.replace(tmp_path / "..new", tmp_path / "..data")
    ring.tick()
    assert ring.identifiers == {1: ("office",)}
    assert ring.removed == [{FINGERPRINTS[0]}]


def test_dates_are_kept_without_any_change_of_files(tmp_path: Path, log: Log) -> None:
    (tmp_path / "a.crt").write_bytes(certificate(0, "later", before=NOW + DAY, after=NOW + 2 * DAY))
    (tmp_path / "b.pub").write_bytes(public(1))
    ring = Ring(tmp_path)
    assert ring.identifiers == {1: ("b",)}
    assert log.taken() == [
        f"no key is taken from {tmp_path / 'a.crt'}: "
        "it is a certificate that is not valid before 2030-06-02 00:00:00 UTC"
    ]
    ring.tick()
    assert log.taken() == []
    ring.now = NOW + DAY
    ring.tick()
    assert ring.identifiers == {0: ("later",), 1: ("b",)}
    ring.now = NOW + 2 * DAY + timedelta(seconds=1)
    ring.tick()
    assert ring.identifiers == {1: ("b",)}
    assert ring.removed == [{FINGERPRINTS[0]}]
    assert ring.changes == 2
    (line,) = log.taken()
    assert line.endswith("it is a certificate that expired at 2030-06-03 00:00:00 UTC")
    ring.tick()
    (tmp_path / "c.pub").write_bytes(public(2))
    ring.tick()
    assert log.taken() == []


def test_an_expired_certificate_does_not_hide_a_good_one_of_the_same_key(tmp_path: Path) -> None:
    (tmp_path / "a.crt").write_bytes(certificate(0, "old", NOW - 9 * DAY, NOW - DAY))
    (tmp_path / "b.crt").write_bytes(certificate(0, "office"))
    assert Ring(tmp_path).identifiers == {0: ("office",)}


def test_a_failing_callback_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.pub").write_bytes(public(0))
    ring = Ring(tmp_path)

    def fail(fingerprints: object) -> None:
        raise RuntimeError("oops")

    ring.keyring.on_removed = fail
    (tmp_path / "a.pub").unlink()
    ring.tick()
    assert ring.changes == 1
    (tmp_path / "a.pub").write_bytes(public(0))
    ring.tick()
    assert ring.identifiers == {0: ("a",)}


def test_on_demand(tmp_path: Path) -> None:
    ring = Ring(tmp_path)
    (tmp_path / "a.pub").write_bytes(public(0))
    ring.keyring.check()
    assert ring.identifiers == {0: ("a",)}


def test_stop_leaves_no_timer(tmp_path: Path) -> None:
    ring = Ring(tmp_path)
    ring.keyring.start()
    assert len(ring.clock.getDelayedCalls()) == 1
    ring.keyring.stop()
    ring.keyring.stop()
    assert not ring.clock.getDelayedCalls()


def test_the_real_time_of_day_is_the_default(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    (tmp_path / "a.crt").write_bytes(certificate(0, "now", now - DAY, now + DAY))
    (tmp_path / "b.crt").write_bytes(certificate(1, "past", now - 2 * DAY, now - DAY))
    keyring = Keyring([str(tmp_path)], Clock())
    assert [entry.identifiers for entry in keyring] == [("now",)]


def test_it_is_what_the_handshake_asks(tmp_path: Path) -> None:
    (tmp_path / "office.pub").write_bytes(public(0))
    keyring = Ring(tmp_path).keyring
    outer = OuterHandshake(
        nonce=b"o" * 32,
        hosts={"localhost"},
        channel_binding=None,
        lookup=keyring.find,
        decoy=keyring.decoy,
    )
    inner = InnerHandshake(
        nonce=b"i" * 32,
        fingerprint=FINGERPRINTS[0],
        sign=KEYS[0].sign,
        identifier="",
        host="localhost",
        channel_binding=None,
        agent="test",
    )
    frame: Any = inner.start()
    for side in (outer, inner, outer):
        frame = side.receive(*frame)
    assert frame.identifier == "office"

"""The fields of handshake payloads: of exactly the type and size that is asked for, or refused."""

from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockgw.protocol.errors import HandshakeError
from sockgw.protocol.fields import MAX_PAYLOAD, Fields, pack


def fields(**values):
    return Fields("PROOF", pack(**values))


def _shown(value):
    """A name that is the same in each process."""
    return "read" if callable(value) else str(value)[:40]


GOOD = [
    (lambda f: f.binary("x", 3), b"abc"),
    (lambda f: f.binary("x", 1, 5), b"abc"),
    (lambda f: f.text("x", 3), "abc"),
    (lambda f: f.text("x", 3), ""),
    (lambda f: f.text("x", 3), "äöü"),
    (lambda f: f.whole("x", 0, 5), 0),
    (lambda f: f.whole("x", 0, 5), 5),
    (lambda f: f.whole("x", 0, 2**64 - 1), 2**64 - 1),
    (lambda f: f.texts("x", 3), ["abc", ""]),
    (lambda f: f.texts("x", 3), ["x"] * 32),
    (lambda f: f.texts("x", 3), []),
    (lambda f: f.versions("x"), [1, 0xFFFF]),
]


@pytest.mark.parametrize(("read", "value"), GOOD, ids=_shown)
def test_what_is_proper(read, value):
    found = read(fields(x=value))
    assert found == (tuple(value) if isinstance(value, list) else value)


BAD = [
    (lambda f: f.binary("x", 3), [b"ab", b"abcd", "abc", None, 3, [97, 98, 99]]),
    (lambda f: f.binary("x", 1, 5), [b"", b"abcdef", "abc"]),
    (lambda f: f.text("x", 3), ["abcd", b"abc", "a\nb", "\x7f", "\u202e", None, 1]),
    (lambda f: f.whole("x", 1, 5), [0, 6, -1, True, 1.0, "1", None]),
    (lambda f: f.texts("x", 3), [["abcd"], [b"x"], ["x"] * 33, "x", {"x": 1}, None]),
    (lambda f: f.texts("x", 3, optional=True), [["abcd"], None, 1]),
    (lambda f: f.versions("x"), [[0], [0x10000], [True], ["1"], [1] * 33, 1]),
]


@pytest.mark.parametrize(("read", "value"), [(r, v) for r, vs in BAD for v in vs], ids=_shown)
def test_what_is_not(read, value):
    with pytest.raises(HandshakeError, match="PROOF has no proper 'x'"):
        read(fields(x=value))


@pytest.mark.parametrize(("read", "_"), BAD)
def test_what_is_missing(read, _):
    if read is BAD[5][0]:
        assert read(fields(y=1)) == ()
        return
    with pytest.raises(HandshakeError, match="PROOF has no proper 'x'"):
        read(fields(y=1))


def test_what_is_there():
    assert fields(x=None).has("x")
    assert not fields(x=None).has("y")


@given(st.binary(max_size=200))
def test_junk_raises_only_what_the_peer_is_to_blame_for(payload):
    with suppress(HandshakeError):
        assert Fields("HELLO", payload)._fields == msgpack.unpackb(payload)


def test_size():
    payload = pack(x=bytes(MAX_PAYLOAD - 6))
    assert len(payload) == MAX_PAYLOAD
    Fields("HELLO", payload)
    with pytest.raises(HandshakeError, match="HELLO has 4097 bytes, over 4096"):
        Fields("HELLO", payload + b"\0")

"""PROXY headers: those of the specification, every way to cut them, and everything else."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockgw.proxyprotocol import MAX_FOLLOWING, MAX_LINE, Addresses, Header, HeaderError, parse
from sockgw.proxyprotocol import _crc32c as crc32c

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
V4 = socket.inet_aton("203.0.113.7") + socket.inet_aton("198.51.100.1") + b"\xdc\x04\x01\xbb"
V6 = (
    socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + b"\xdc\x04\x01\xbb"
)
FOUR = Addresses(("203.0.113.7", 56324), ("198.51.100.1", 443))
SIX = Addresses(("2001:db8::7", 56324), ("2001:db8::1", 443))


def binary(following, *, family=0x11, command=0x21):
    return SIGNATURE + struct.pack("!BBH", command, family, len(following)) + following


def tlv(kind, value):
    return struct.pack("!BH", kind, len(value)) + value


def with_checksum(following, **options):
    header = binary(following + tlv(3, bytes(4)), **options)
    return header[:-4] + crc32c(header).to_bytes(4, "big")


WHOLE = {
    "line 4": (b"PROXY TCP4 203.0.113.7 198.51.100.1 56324 443\r\n", FOUR),
    "line 6": (b"PROXY TCP6 2001:db8::7 2001:DB8:0::1 56324 443\r\n", SIX),
    "longest line": (
        b"PROXY TCP6 %b %b 65535 65535\r\n" % ((b"ffff:" * 8)[:-1], (b"ffff:" * 8)[:-1]),
        Addresses((("ffff:" * 8)[:-1], 65535), (("ffff:" * 8)[:-1], 65535)),
    ),
    "unknown": (b"PROXY UNKNOWN\r\n", None),
    "unknown with more": (b"PROXY UNKNOWN ffff::1 whatever 99999999 x\r\n", None),
    "binary 4": (binary(V4), FOUR),
    "binary 6": (binary(V6, family=0x21), SIX),
    "fields": (binary(V4 + tlv(1, b"h2") + tlv(0x20, b"\1" * 80) + tlv(4, b"")), FOUR),
    "checksum": (with_checksum(V4 + tlv(1, b"h2")), FOUR),
    "unix": (binary(b"/run/app".ljust(216, b"\0"), family=0x31), None),
    "datagram": (binary(V4, family=0x12), None),
    "unspecified": (binary(b"junk", family=0x00), None),
    "local": (binary(b"", family=0x00, command=0x20), None),
    "local with more": (binary(b"junk", family=0x11, command=0x20), None),
    "longest": (binary(V4 + tlv(0xEA, bytes(MAX_FOLLOWING - 15))), FOUR),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_in_pieces_and_with_more_behind(name):
    data, addresses = WHOLE[name]
    assert parse(data) == Header(len(data), addresses)
    assert parse(data + b"\r\nGET / HTTP/1.1\r\n") == Header(len(data), addresses)
    for end in range(len(data)):
        assert parse(data[:end]) is None


REFUSED = {
    "http": b"GET / HTTP/1.1\r\n",
    "http that begins alike": b"PUT / HTTP/1.1\r\n",
    "tls": b"\x16\x03\x01\x02\x00",
    "empty lines": b"\r\n\r\nGET",
    "lower case": b"proxy TCP4 203.0.113.7 198.51.100.1 56324 443\r\n",
    "no end": b"PROXY " + b"x" * (MAX_LINE - 6),
    "end too late": b"PROXY UNKNOWN " + b"x" * (MAX_LINE - 15) + b"\r\n",
    "bare LF": b"PROXY TCP4 203.0.113.7 198.51.100.1 56324 443\n\r\n",
    "two spaces": b"PROXY TCP4  203.0.113.7 198.51.100.1 56324 443\r\n",
    "no destination": b"PROXY TCP4 203.0.113.7 56324 443\r\n",
    "one too many": b"PROXY TCP4 203.0.113.7 198.51.100.1 56324 443 1\r\n",
    "leading zero": b"PROXY TCP4 203.0.113.07 198.51.100.1 56324 443\r\n",
    "leading zero in port": b"PROXY TCP4 203.0.113.7 198.51.100.1 056324 443\r\n",
    "port": b"PROXY TCP4 203.0.113.7 198.51.100.1 65536 443\r\n",
    "negative port": b"PROXY TCP4 203.0.113.7 198.51.100.1 -1 443\r\n",
    "6 as 4": b"PROXY TCP4 2001:db8::7 2001:db8::1 56324 443\r\n",
    "4 as 6": b"PROXY TCP6 203.0.113.7 198.51.100.1 56324 443\r\n",
    "zone": b"PROXY TCP6 fe80::1%eth0 2001:db8::1 56324 443\r\n",
    "protocol": b"PROXY UDP4 203.0.113.7 198.51.100.1 56324 443\r\n",
    "unknown and more": b"PROXY UNKNOWNS\r\n",
    "version 1 in binary": binary(V4, command=0x11),
    "version 3": binary(V4, command=0x31),
    "command": binary(V4, command=0x22),
    "family": binary(V4, family=0x41),
    "kind": binary(V4, family=0x13),
    "short 4": binary(V4[:-1]),
    "short 6": binary(V4, family=0x21),
    "short unix": binary(V6, family=0x31),
    "field cut": binary(V4 + b"\1\0"),
    "field too long": binary(V4 + b"\1\0\3h2"),
    "too long": binary(bytes(MAX_FOLLOWING + 1)),
    "too long, seen at once": binary(bytes(MAX_FOLLOWING + 1))[:16],
    "checksum": with_checksum(V4)[:-1] + b"\0",
    "checksum of something else": with_checksum(V4).replace(b"\xdc\x04", b"\xdc\x05"),
    "checksum of another size": binary(V4 + tlv(3, b"abc")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    with pytest.raises(HeaderError):
        parse(REFUSED[name])


@pytest.mark.parametrize("data", [b"GET /", b"PU", b"\r\nG", b"\x16", b"\r\n\r\n\0\r\nQUIT\r"])
def test_what_is_none_is_told_with_the_first_byte_that_differs(data):
    with pytest.raises(HeaderError):
        parse(data)
    assert len(data) == 1 or data[:1] not in b"P\r" or parse(data[:1]) is None


def test_crc32c():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the catalogues
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4


ADDRESSES4 = st.ip_addresses(v=4)
ADDRESSES6 = st.ip_addresses(v=6)
PORTS = st.integers(0, 65535)


@given(
    st.one_of(
        st.tuples(st.just(0x11), ADDRESSES4, ADDRESSES4),
        st.tuples(st.just(0x21), ADDRESSES6, ADDRESSES6),
    ),
    PORTS,
    PORTS,
    st.lists(st.tuples(st.integers(0, 255).filter(lambda kind: kind != 3), st.binary(max_size=99))),
    st.booleans(),
    st.binary(max_size=20),
)
def test_round_trip(addresses, source_port, destination_port, fields, summed, behind):
    family, source, destination = addresses
    expected = Addresses((str(source), source_port), (str(destination), destination_port))
    following = source.packed + destination.packed
    following += struct.pack("!HH", source_port, destination_port)
    following += b"".join(tlv(*field) for field in fields[:10])
    data = (with_checksum if summed else binary)(following, family=family)
    assert parse(data + behind) == Header(len(data), expected)
    kind = 4 if family == 0x11 else 6
    line = f"PROXY TCP{kind} {source} {destination} {source_port} {destination_port}\r\n".encode()
    assert parse(line + behind) == Header(len(line), expected)


MUTATIONS = st.sampled_from([data for data, _ in WHOLE.values()]).flatmap(
    lambda data: st.tuples(
        st.just(data), st.integers(0, len(data) - 1), st.binary(max_size=3), st.integers(0, 3)
    )
)


@given(st.one_of(st.binary(max_size=300), MUTATIONS), st.integers(0, 300))
def test_junk_raises_this_error_only_and_more_bytes_change_nothing(junk, end):
    if isinstance(junk, tuple):
        data, place, new, removed = junk
        junk = data[:place] + new + data[place + removed :]
    try:
        header = parse(junk)
    except HeaderError:
        with pytest.raises(HeaderError):
            parse(junk + b"more")
        return
    if header is None:
        assert len(junk) < 16 + MAX_FOLLOWING
        return
    assert 0 < header.size <= len(junk)
    if end < header.size:
        assert parse(junk[:end]) is None
    assert parse(junk[: header.size]) == header

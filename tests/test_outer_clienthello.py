"""The ClientHello: real ones, built ones, broken ones, in any pieces."""

import socket
import ssl
import subprocess
import threading

import pytest
from harness import require
from hellos import context, extension, hello, message, real_hello, records, server_name, vector
from hypothesis import given, settings
from hypothesis import strategies as st

from sockgw.outer.clienthello import ClientHello, Fault, HelloError, HelloReader, NotTLS

LIMIT = 65_536


def read(*pieces, limit=LIMIT):
    """Return a ClientHello or (fault, reason), and after how many pieces it came."""
    reader = HelloReader(limit)
    for number, piece in enumerate(pieces, 1):
        try:
            found = reader.feed(piece)
        except HelloError as error:
            return (error.fault, str(error)), number
        except NotTLS:
            return (NotTLS, ""), number
        if found is not None:
            assert bytes(reader.received) == b"".join(pieces[:number])
            return found, number
    assert bytes(reader.received) == b"".join(pieces)
    return None, len(pieces)


def one(data, limit=LIMIT):
    return read(data, limit=limit)[0]


def byte_by_byte(data, limit=LIMIT):
    return read(*(data[i : i + 1] for i in range(len(data))), limit=limit)[0]


def both(data, limit=LIMIT):
    whole = one(data, limit)
    assert byte_by_byte(data, limit) == whole
    return whole


def fault(data, limit=LIMIT):
    found = both(data, limit)
    assert isinstance(found, tuple), found
    assert not isinstance(found, ClientHello), found
    return found


# ---------------------------------------------------------------------- real ones


def test_python() -> None:
    data = real_hello("Service.Example.Org")
    assert both(data) == ClientHello("service.example.org", False)
    assert byte_by_byte(data[:-1]) is None
    # What follows is not looked at: early data, say.
    assert one(data + b"\x14\x03\x03\0\1\1\x17\x03\x03") == ClientHello(
        "service.example.org", False
    )


def test_python_without_a_name() -> None:
    assert both(real_hello(None)) == ClientHello(None, False)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions(version) -> None:
    made = context("h2", "http/1.1")
    made.minimum_version = made.maximum_version = version
    assert both(real_hello("a.test", made)) == ClientHello("a.test", False)


def test_more_than_one_record() -> None:
    """OpenSSL makes records of 16 KiB."""
    made = context(*(f"{number:04}-{'x' * 200}" for number in range(200)))
    data = real_hello("a.test", made)
    assert len(data) > 2 * 16_384
    assert data[:3] == data[16_389:16_392] == b"\x16\x03\x01"
    assert both(data) == ClientHello("a.test", False)


@pytest.fixture
def captured():
    """Give a port, and a function that returns what the first one who came there said first."""
    said = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen():
            wire, _ = listener.accept()
            with wire:
                wire.settimeout(10)
                said.append(wire.recv(65_536))

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()

        def get():
            thread.join(10)
            return said[0]

        yield listener.getsockname()[1], get


def test_openssl(captured) -> None:
    port, said = captured
    where = ("-connect", f"127.0.0.1:{port}", "-servername", "a.test")
    command = [require("openssl"), "s_client", *where, "-alpn", "h2"]
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
    assert both(said()) == ClientHello("a.test", False)


def test_curl(captured) -> None:
    port, said = captured
    resolve = ("--resolve", f"b.test:{port}:127.0.0.1")
    command = [require("curl"), "-q", "-sk", "--noproxy", "*", *resolve, f"https://b.test:{port}/"]
    subprocess.run(command, capture_output=True, timeout=10, check=False)
    assert both(said()) == ClientHello("b.test", False)


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (b"a.test", "a.test"),
        (b"A.TEST.", "a.test"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"_x.a-b.test", "_x.a-b.test"),
        (b"localhost", "localhost"),
        (b"192.0.2.1", "192.0.2.1"),
        (b"a" * 63 + b".test", "a" * 63 + ".test"),
        (b".".join([b"a"] * 128), ".".join(["a"] * 128)),
        (b".".join([b"a" * 63] * 4) + b".", ".".join(["a" * 63] * 4)),
    ],
)
def test_names(name, found) -> None:
    assert both(hello(name)) == ClientHello(found, False)


@pytest.mark.parametrize(
    "name",
    [
        *(b".", b"..", b"a..test", b".a.test", b"a.test..", b"a.test:443", b"[::1]", b"::1"),
        *(
            b"a test",
            b"a.test\0",
            b"a.test\n",
            b"\n",
            b"a/b",
            b"*.test",
            b"*",
            b"b\xc3\xbccher.test",
        ),
        b".".join([b"a" * 63] * 3 + [b"a" * 62, b"a"]),
        *(b"a" * 64, b".".join([b"a"] * 129), b"a" * 40_000, b"a.test\0.b.test", b"a,b"),
    ],
)
def test_names_that_are_none(name) -> None:
    kind, reason = fault(hello(name))
    assert kind is Fault.MALFORMED
    assert reason == "a server name that is no host name"


@pytest.mark.parametrize(
    "body",
    [
        b"",  # as a server answers
        b"\0",
        b"\0\0",
        b"\0\1\0",
        vector(2, b"\0" + vector(2, b"")),
        vector(2, b"\0" + vector(2, b"a.test") + b"\0"),
        vector(2, b"\0" + vector(2, b"a.test")) + b"\0",
        vector(2, b"\0" + vector(2, b"a.test"))[:-1],
        vector(2, b"\0\0\7a.test"),
        server_name(b"a.test", b"b.test")[1],
        server_name(b"a.test", b"a.test")[1],
        server_name(b"a.test", kind=1)[1],
        vector(2, b"\1" + vector(2, b"x") + b"\0" + vector(2, b"a.test")),
    ],
)
def test_server_names_that_are_broken(body) -> None:
    assert fault(records(message([(0, body)])))[0] is Fault.MALFORMED


# ---------------------------------------------------------------------- extensions


def test_no_extensions() -> None:
    assert both(records(message(None))) == ClientHello(None, False)
    assert both(records(message([]))) == ClientHello(None, False)
    assert both(records(message(None, session=b"", version=b"\3\1"))) == ClientHello(None, False)


def test_encrypted() -> None:
    """The outer name counts, whatever is within."""
    assert both(hello(b"public.test", extension(0xFE0D, 300))) == ClientHello("public.test", True)
    assert both(records(message([extension(0xFE0D, 300)]))) == ClientHello(None, True)


def test_grease() -> None:
    grease = [(0x1A1A, b""), (0x2A2A, b"\0")]
    suites = b"\x0a\x0a\x13\x01"
    data = records(message([grease[0], server_name(b"a.test"), grease[1]], suites=suites))
    assert both(data) == ClientHello("a.test", False)


def test_twice() -> None:
    for kind in (0, 16, 0xFE0D, 0x1A1A):
        body = server_name(b"a.test")[1] if kind == 0 else b""
        found = fault(records(message([(kind, body), (21, b""), (kind, body)])))
        assert found == (Fault.MALFORMED, "an extension that stands twice")


def test_large() -> None:
    """As large as post-quantum key shares make it, and far larger."""
    for size in (1_216, 15_000, 16_384, 40_000):
        data = hello(b"a.test", extension(51, size), extension(21, size // 2))
        assert one(data) == ClientHello("a.test", False)
        small = hello(
            b"a.test", extension(51, size), extension(21, size // 2), sizes=[1, 2, 1, 300]
        )
        assert byte_by_byte(small) == ClientHello("a.test", False)


@pytest.mark.parametrize(
    "broken",
    [
        message(session=bytes(33)),
        message(suites=b""),
        message(suites=b"\x13\1\x13"),
        message(compression=b""),
        message(after=b"\0"),
        message(None, after=b"\0"),
        message(None, after=b"\0\4\0\0\0\1"),
        message([(0, server_name(b"a.test")[1]), (16, b"")])[:4],
        b"\1\0\0\0",
        b"\1" + vector(3, bytes(34)),
        message()[:-2] + b"\0\1",
        message() + b"\0",
        message() + message(),
        b"\2" + message()[1:],
        b"\0",
    ],
)
def test_messages_that_are_broken(broken) -> None:
    if len(broken) > 4 or broken[:1] != b"\1":
        assert fault(records(broken))[0] is Fault.MALFORMED
    found = both(records(broken, [3, 1, 1]))
    assert found is None or found[0] is Fault.MALFORMED


def test_lengths_that_lie() -> None:
    """Each byte that is a length, or part of one, says one more or one less."""
    good = hello(b"a.test", extension(16, 3))
    data = bytearray(good)
    for place in (4, 8, 43, 77, 80, 83, 87, 89, 92, 102):
        for change in (-1, 1):
            data[place] = (good[place] + change) % 256
            found = both(bytes(data) + bytes(40))
            assert isinstance(found, tuple), place
            assert not isinstance(found, ClientHello), place
        data[place] = good[place]
    assert both(bytes(data)) == ClientHello("a.test", False)


# ---------------------------------------------------------------------- records


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x80\x2e\1\0\2\0\x15\0\0\0\x10",  # SSLv2's ClientHello
        b"\x80\x2e\1\3\1\0\x15\0\0\0\x10",  # the same, of a client that knows TLS 1.0
        b"SSH-2.0-x\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"\0",
        b"\x15\x03\x03\0\2\2\x28",
        b"\x17\x03\x03\0\1\0",
        b"\x16\x02\0\0\1\1",
        b"\x16\xfe\xfd",  # DTLS
    ],
)
def test_other_protocols(data) -> None:
    assert fault(data)[0] is NotTLS


def test_any_minor_version() -> None:
    for minor in range(256):
        data = records(message([server_name(b"a.test")]), version=bytes([3, minor]))
        assert one(data) == ClientHello("a.test", False)


@pytest.mark.parametrize(
    "between",
    [
        b"\x15\x03\x01\0\2\1\0",  # a warning
        b"\x14\x03\x01\0\1\1",
        b"\x17\x03\x01\0\1\0",
        b"\x16\x02\x01\0\1\1",
        b"\x16\x03\x01\0\0",
        b"GET /",
    ],
)
def test_other_records_between(between) -> None:
    data = hello(b"a.test", sizes=[20])
    assert fault(data[:25] + between + data[25:])[0] is Fault.MALFORMED


def test_empty_and_overlong_records() -> None:
    assert fault(b"\x16\x03\x01\0\0" * 100)[0] is Fault.MALFORMED
    assert fault(b"\x16\x03\x01\x40\x01") == (
        Fault.MALFORMED,
        "a record longer than 16,384 bytes",
    )
    assert both(b"\x16\x03\x01\x40\x00") is None


def test_limit() -> None:
    data = hello(b"a.test", extension(21, 500), sizes=[100, 100])
    assert both(data, len(data)) == ClientHello("a.test", False)
    assert one(data + bytes(1000), len(data)) == ClientHello("a.test", False)
    kind, reason = fault(data, len(data) - 1)
    assert kind is Fault.TOO_LARGE
    assert reason == f"a ClientHello of more than {len(data) - 1} bytes"


def test_too_much_is_refused_before_it_is_there() -> None:
    # By the record's length, and by the message's.
    assert fault(b"\x16\x03\x01\x10\0", 4096)[0] is Fault.TOO_LARGE
    assert fault(records(b"\1" + (5000).to_bytes(3, "big")), 4096)[0] is Fault.TOO_LARGE
    # Records of one byte cost six.
    endless = records(b"\1\0\x0f\0" + bytes(4000), [1] * 4004)
    found, pieces = read(*(endless[i : i + 6] for i in range(0, len(endless), 6)), limit=4096)
    assert found[0] is Fault.TOO_LARGE
    assert pieces == 4096 // 6 + 1


# ---------------------------------------------------------------------- properties

LDH = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=63)
EXTENSIONS = st.lists(
    st.tuples(st.integers(1, 65_535), st.binary(max_size=300)), max_size=8, unique_by=lambda e: e[0]
)


@st.composite
def good_hellos(draw):
    """Records, and what is in them."""
    extensions = draw(EXTENSIONS)
    encrypted = any(kind == 0xFE0D for kind, _ in extensions)
    name = None
    if draw(st.booleans()):
        name = ".".join(draw(st.lists(LDH, min_size=1, max_size=3)))
        place = draw(st.integers(0, len(extensions)))
        extensions.insert(place, server_name(name.encode()))
    sizes = draw(st.lists(st.integers(1, 200), max_size=30))
    return records(message(extensions), sizes), ClientHello(name, encrypted)


@st.composite
def cut(draw, data):
    """The same bytes in any pieces."""
    places = sorted(draw(st.sets(st.integers(0, len(data)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@given(st.data(), good_hellos(), st.binary(max_size=20))
@settings(deadline=None, max_examples=300)
def test_any_pieces_of_a_good_one(data, made, after) -> None:
    sent, found = made
    assert read(*data.draw(cut(sent + after)))[0] == found
    assert one(sent[:-1]) is None


@given(st.data(), good_hellos())
@settings(deadline=None, max_examples=300)
def test_any_pieces_of_a_broken_one(data, made) -> None:
    """It is read in the same way however it is cut, and never fails in another way."""
    sent = bytearray(made[0])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(sent) - 1))
        change = data.draw(st.integers(0, 2))
        if change == 0:
            sent[place] = data.draw(st.integers(0, 255))
        elif change == 1:
            del sent[place]
        else:
            sent[place:place] = data.draw(st.binary(max_size=5))
        if not sent:
            return
    limit = data.draw(st.sampled_from([64, 300, LIMIT]))
    whole = one(bytes(sent), limit)
    assert byte_by_byte(bytes(sent), limit) == whole
    assert read(*data.draw(cut(bytes(sent))), limit=limit)[0] == whole


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x16\x03\x01", b"\x16\x03\x01\0\x40\1\0\0\x3c"]),
)
@settings(deadline=None, max_examples=300)
def test_junk(junk, start) -> None:
    found = both(start + junk, 128)
    assert found is None or isinstance(found, tuple)

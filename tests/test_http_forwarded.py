"""Whose word about the client is believed, and what the origin reads of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockgw.http.forwarded import STRIPPED, ClientView, Forwarding, is_protected
from sockgw.http.headers import get, lower
from sockgw.http.networks import Networks
from sockgw.protocol.heads import Headers

FORWARDING = Forwarding(Networks.parse(["loopback", "10.0.0.0/8"]))


def get_all(headers, name):
    return [value for key, value in headers if lower(key) == name]


def view(*headers: tuple[str, str], peer: str = "127.0.0.1", host: str = "a.example") -> ClientView:
    fields = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return FORWARDING.client_of(peer, False, 3000, host.encode(), fields)


def told(client: ClientView) -> dict[str, str]:
    fields = FORWARDING.headers_for(client)
    assert len({name.lower() for name, _ in fields}) == len(fields)
    return {name.decode(): value.decode("latin-1") for name, value in fields}


LIES = (
    ("X-Forwarded-For", "6.6.6.6"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "evil.example"),
    ("X-Forwarded-Port", "666"),
    ("X-Real-IP", "6.6.6.6"),
    ("X-Request-ID", "mine"),
    ("Forwarded", "for=6.6.6.6;proto=https;host=evil.example"),
)


def test_a_stranger_is_not_believed() -> None:
    client = view(*LIES, peer="192.0.2.1", host="a.example:3000")
    assert client == ClientView(
        "192.0.2.1", b"http", b"a.example:3000", b"3000", False, b"", "192.0.2.1"
    )
    assert told(client) == {
        "X-Forwarded-For": "192.0.2.1",
        "X-Forwarded-Host": "a.example:3000",
        "X-Forwarded-Port": "3000",
        "X-Forwarded-Proto": "http",
        "X-Real-IP": "192.0.2.1",
        "Forwarded": 'for=192.0.2.1;proto=http;host="a.example:3000"',
    }


def test_a_trusted_proxy_is_believed() -> None:
    client = view(
        ("x-forwarded-for", "192.0.2.1"),
        ("x-forwarded-proto", "HTTPS"),
        ("x-forwarded-host", "b.example:8443"),
        ("x-request-id", "r-1"),
    )
    assert (client.address, client.trusted, client.request_id) == ("192.0.2.1", True, b"r-1")
    assert told(client) == {
        "X-Forwarded-For": "192.0.2.1, 127.0.0.1",
        "X-Forwarded-Host": "b.example:8443",
        "X-Forwarded-Port": "8443",
        "X-Forwarded-Proto": "https",
        "X-Real-IP": "192.0.2.1",
        "Forwarded": 'for=192.0.2.1, for=127.0.0.1;proto=https;host="b.example:8443"',
    }


def test_tls_to_a_stranger() -> None:
    client = FORWARDING.client_of("2001:DB8::1", True, 3000, b"[2001:db8::9]", [])
    assert told(client) == {
        "X-Forwarded-For": "2001:db8::1",
        "X-Forwarded-Host": "[2001:db8::9]",
        "X-Forwarded-Port": "443",
        "X-Forwarded-Proto": "https",
        "X-Real-IP": "2001:db8::1",
        "Forwarded": 'for="[2001:db8::1]";proto=https;host="[2001:db8::9]"',
    }


@pytest.mark.parametrize(
    ("values", "address", "passed_on"),
    [
        ([], "127.0.0.1", ""),
        ([""], "127.0.0.1", ""),
        (["192.0.2.1"], "192.0.2.1", "192.0.2.1, "),
        (["6.6.6.6, 192.0.2.1, 10.0.0.1"], "192.0.2.1", "6.6.6.6, 192.0.2.1, 10.0.0.1, "),
        (["6.6.6.6", "192.0.2.1 ,10.0.0.1"], "192.0.2.1", "6.6.6.6, 192.0.2.1, 10.0.0.1, "),
        (["127.0.0.1, 192.0.2.1"], "192.0.2.1", "127.0.0.1, 192.0.2.1, "),
        (["10.0.0.2, 10.0.0.1"], "10.0.0.2", "10.0.0.2, 10.0.0.1, "),
        (["192.0.2.1,, 10.0.0.1,\t"], "192.0.2.1", "192.0.2.1, 10.0.0.1, "),
        (["192.0.2.1:5000"], "192.0.2.1", "192.0.2.1, "),
        (["[2001:DB8::1]:5000"], "2001:db8::1", "2001:db8::1, "),
        (["[2001:db8::1]", "::ffff:10.0.0.1"], "2001:db8::1", "2001:db8::1, 10.0.0.1, "),
        (["2001:db8::1"], "2001:db8::1", "2001:db8::1, "),
        (["fe80::1%eth0"], "fe80::1", "fe80::1, "),
        # What makes no sense ends the chain: the last hop that somebody vouched for is the client.
        (["junk"], "127.0.0.1", ""),
        (["192.0.2.1, junk, 10.0.0.1"], "10.0.0.1", "10.0.0.1, "),
        (["192.0.2.1, unknown"], "127.0.0.1", ""),
        (["192.0.2.1, unix"], "127.0.0.1", ""),
        (["192.0.2.1, 10.0.0.1\xff"], "127.0.0.1", ""),
        (["192.0.2.1, 10.0.0.1:x"], "127.0.0.1", ""),
        (["192.0.2.1, [::1"], "127.0.0.1", ""),
        (["192.0.2.1, [::1]x"], "127.0.0.1", ""),
        (["192.0.2.1, []"], "127.0.0.1", ""),
        (["192.0.2.1, 10.0.0.300"], "127.0.0.1", ""),
        (["192.0.2.1; 10.0.0.1"], "127.0.0.1", ""),
    ],
)
def test_chains(values: list[str], address: str, passed_on: str) -> None:
    client = view(*[("X-Forwarded-For", value) for value in values])
    assert client.address == address
    fields = told(client)
    assert fields["X-Forwarded-For"] == passed_on + "127.0.0.1"
    assert fields["X-Real-IP"] == address


def test_a_chain_is_bounded() -> None:
    client = view(("X-Forwarded-For", ", ".join(["6.6.6.6"] + ["10.0.0.1"] * 32)))
    assert client.address == "10.0.0.1"
    assert told(client)["X-Forwarded-For"].count(",") == 32
    long = view(("X-Forwarded-For", ",".join(["192.0.2.1"] + [""] * 10_000 + ["10.0.0.1"])))
    assert long.address == "10.0.0.1"


@pytest.mark.parametrize(
    ("value", "proto"),
    [
        ("https", b"https"),
        ("https, http", b"https"),
        ("http", b"http"),
        ("wss", b"https"),
        ("ws", b"http"),
        ("gopher", b"https"),
        ("", b"https"),
        ("https;x", b"https"),
    ],
)
def test_proto(value: str, proto: bytes) -> None:
    fields = [(b"X-Forwarded-Proto", value.encode())]
    client = FORWARDING.client_of("127.0.0.1", True, 3000, b"a.example", fields)
    assert client.proto == proto


@pytest.mark.parametrize(
    "value", ["", "a b", 'a"b', "a/b", "a@b", "a:b", "[::1", "a:123456", "<x>", "x" * 300]
)
def test_a_senseless_host_counts_as_absent(value: str) -> None:
    assert view(("X-Forwarded-Host", value)).host == b"a.example"


@pytest.mark.parametrize(
    ("headers", "host", "port", "authority"),
    [
        ([], "a.example", b"80", b"a.example"),
        ([], "a.example:3000", b"3000", b"a.example:3000"),
        ([], "a.example:", b"80", b"a.example:"),
        ([], "[::1]:3000", b"3000", b"[::1]:3000"),
        ([], "[::1]", b"80", b"[::1]"),
        ([], "a.example:99999", b"80", b"a.example:99999"),
        ([], "", b"3000", b""),
        ([("X-Forwarded-Proto", "https")], "a.example", b"443", b"a.example"),
        ([("X-Forwarded-Port", "443")], "a.example", b"443", b"a.example:443"),
        ([("X-Forwarded-Port", "08443")], "a.example", b"8443", b"a.example:8443"),
        ([("X-Forwarded-Port", "8443, 80")], "[::1]", b"8443", b"[::1]:8443"),
        ([("X-Forwarded-Port", "8443")], "a.example:", b"8443", b"a.example:"),
        ([("X-Forwarded-Port", "0")], "a.example", b"80", b"a.example"),
        ([("X-Forwarded-Port", "65536")], "a.example:3000", b"3000", b"a.example:3000"),
        ([("X-Forwarded-Port", "-1")], "a.example", b"80", b"a.example"),
        ([("X-Forwarded-Host", "b.example")], "a.example:3000", b"80", b"b.example"),
    ],
)
def test_port_and_authority(
    headers: list[tuple[str, str]], host: str, port: bytes, authority: bytes
) -> None:
    client = view(*headers, host=host)
    assert (client.port, client.authority()) == (port, authority)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["abc-1.2:3_@=+/"], b"abc-1.2:3_@=+/"),
        (["x" * 128], b"x" * 128),
        ([" r\t"], b"r"),
        (["x" * 129], b""),
        ([""], b""),
        (["a b"], b""),
        (["a\xe9"], b""),
        (["a", "b"], b""),
    ],
)
def test_request_id(values: list[str], expected: bytes) -> None:
    headers = [("X-Request-ID", value) for value in values]
    assert view(*headers).request_id == expected
    assert view(*headers, peer="192.0.2.1").request_id == b""


@pytest.mark.parametrize("peer", ["", "unix"])
def test_unix_peers_are_of_this_machine(peer: str) -> None:
    client = view(("X-Forwarded-For", "192.0.2.1"), peer=peer)
    assert client.address == "192.0.2.1"
    assert told(client)["X-Forwarded-For"] == "192.0.2.1, 127.0.0.1"
    stranger = Forwarding(Networks()).client_of(peer, False, 1, b"", [])
    assert (stranger.address, stranger.trusted) == ("127.0.0.1", False)


def test_a_peer_without_address_is_unknown() -> None:
    client = view(*LIES, peer="somewhere")
    assert not client.trusted
    assert told(client)["X-Forwarded-For"] == "unknown"
    assert told(client)["Forwarded"] == "for=unknown;proto=http;host=a.example"


def test_mapped_addresses_and_zones_are_told_plainly() -> None:
    assert view(peer="::ffff:127.0.0.1").trusted
    assert told(view(peer="::ffff:192.0.2.1"))["X-Real-IP"] == "192.0.2.1"
    assert told(view(peer="fe80::1%eth0"))["Forwarded"].startswith('for="[fe80::1]";')


def test_without_a_host_none_is_told() -> None:
    fields = told(view(host="", peer="192.0.2.1"))
    assert "X-Forwarded-Host" not in fields
    assert fields["Forwarded"] == "for=192.0.2.1;proto=http"


def test_hosts_are_quoted() -> None:
    fields = told(view(host='a"\\;b', peer="192.0.2.1"))
    assert fields["Forwarded"] == 'for=192.0.2.1;proto=http;host="a\\"\\\\;b"'


OWN = "for=127.0.0.1;proto=http;host=a.example"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["for=192.0.2.1"], "for=192.0.2.1, " + OWN),
        (['for="[::1]:80";by=_x', " for=b\t"], 'for="[::1]:80";by=_x, for=b, ' + OWN),
        (['for="a, b\\""'], 'for="a, b\\"", ' + OWN),
        (["", "for=a"], OWN),
        (["for"], OWN),
        (["for=a b"], OWN),
        (['for="a'], OWN),
        (['for="a\\"'], OWN),
        (["for=a;"], OWN),
        (["for=a\xe9"], OWN),
        (["for=[::1]"], OWN),
        ([", ".join(["for=a"] * 33)], OWN),
    ],
)
def test_forwarded_alone_is_passed_on_but_decides_nothing(values: list[str], expected: str) -> None:
    client = view(*[("Forwarded", value) for value in values])
    assert client.address == "127.0.0.1"
    assert told(client)["Forwarded"] == expected


@pytest.mark.parametrize(
    ("chain", "expected"), [("192.0.2.1", "for=192.0.2.1, " + OWN), ("junk", OWN)]
)
def test_forwarded_beside_a_chain_is_written_anew(chain: str, expected: str) -> None:
    client = view(("Forwarded", "for=6.6.6.6;proto=https"), ("X-Forwarded-For", chain))
    assert told(client)["Forwarded"] == expected
    assert client.proto == b"http"


@pytest.mark.parametrize(
    ("name", "outside", "trusted"),
    [
        *[(name, True, True) for name in sorted(STRIPPED)],
        (b"x-forwarded-prefix", True, False),
        (b"x_forwarded_for", True, True),
        (b"x.forwarded.for", True, True),
        (b"x-forwarded_for", True, True),
        (b"x~forwarded!for", True, True),
        (b"x_forwarded_prefix", True, True),
        (b"x_real_ip", True, True),
        (b"x.request_id", True, True),
        (b"content_length", True, True),
        (b"content.length", True, True),
        (b"transfer_encoding", True, True),
        (b"content-length", False, False),
        (b"transfer-encoding", False, False),
        (b"host", False, False),
        (b"accept", False, False),
        (b"x_custom", False, False),
        (b"x-forwardedfor", False, False),
        (b"x-real-ips", False, False),
        (b"hosts", False, False),
    ],
)
def test_protected_names(name: bytes, outside: bool, trusted: bool) -> None:
    assert is_protected(name) is outside
    assert is_protected(name, trusted=True) is trusted


def test_what_is_told_is_protected() -> None:
    client = view(*LIES)
    assert all(is_protected(name.lower(), True) for name, _ in FORWARDING.headers_for(client))
    assert {name.lower() for name, _ in FORWARDING.headers_for(client)} <= STRIPPED


PARTS = st.sampled_from(
    [b"192.0.2.1", b"10.0.0.1", b"::1", b"[::1]:8", b",", b" ", b'"', b"\\", b"for=", b";", b"\xff"]
)
VALUES = st.lists(PARTS | st.binary(max_size=4), max_size=12).map(
    lambda parts: b"".join(parts).translate(None, bytes([*range(9), *range(10, 32), 127]))
)
FIELDS: st.SearchStrategy[Headers] = st.lists(
    st.tuples(st.sampled_from([*sorted(STRIPPED), b"X-Forwarded-For"]), VALUES), max_size=8
)


@given(FIELDS, VALUES, st.sampled_from(["127.0.0.1", "10.9.9.9", "192.0.2.9", "::1", ""]))
def test_anything_is_survived(headers: Headers, host: bytes, peer: str) -> None:
    client = FORWARDING.client_of(peer, False, 3000, host, headers)
    fields = FORWARDING.headers_for(client)
    assert not any(byte in value for _, value in fields for byte in b"\r\n\0")
    chain = get(fields, b"x-forwarded-for")
    assert chain is not None
    # What we tell, a second gateway that trusts the same proxies understands in the same way.
    again = FORWARDING.client_of("127.0.0.1", False, 3000, host, fields)
    assert again.chain == [*client.chain, client.peer][-32:]
    if len(client.chain) < 32:
        assert again.address == client.address
    assert (again.proto, again.port) == (client.proto, client.port)


@given(FIELDS, st.binary(max_size=20))
def test_a_stranger_changes_nothing(headers: Headers, host: bytes) -> None:
    client = FORWARDING.client_of("192.0.2.1", True, 443, host, headers)
    assert client == FORWARDING.client_of("192.0.2.1", True, 443, host, [])


@given(st.lists(st.ip_addresses().map(str), max_size=6))
def test_walks_as_express_does(chain: list[str]) -> None:
    client = view(("X-Forwarded-For", ", ".join(chain)))
    trusted = Networks.parse(["loopback", "10.0.0.0/8"])
    expected = "127.0.0.1"
    for hop in reversed(chain):
        if not trusted.contains(expected):
            break
        expected = hop
    assert told(client)["X-Real-IP"] == view(peer=expected).address
    assert len(get_all(FORWARDING.headers_for(client), b"forwarded")) == 1

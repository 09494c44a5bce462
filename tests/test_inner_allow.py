"""The allow list: entries, names, addresses, and what no general entry opens."""

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockgw.inner.allow import AllowList

METADATA = ["169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200"]
GUARDED = [
    *METADATA,
    "168.63.129.16",
    "192.0.0.192",
    "fd20:ce::254",
    "169.254.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "febf::1",
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "224.0.0.1",
    "239.255.255.255",
    "ff02::1",
    "255.255.255.255",
    "::ffff:169.254.169.254",
    "::ffff:0.0.0.0",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::1",
]
ORDINARY = ["127.0.0.1", "::1", "10.1.2.3", "192.168.0.1", "fd00::1", "8.8.8.8", "2606:4700::1"]


@pytest.mark.parametrize(
    ("entry", "hostname", "address", "port", "permitted"),
    [
        ("db.internal", "db.internal", "10.0.0.7", 80, True),
        ("db.internal", "DB.Internal.", "10.0.0.7", 443, True),
        ("DB.Internal.", "db.internal", "10.0.0.7", 443, True),
        ("db.internal", "xdb.internal", "10.0.0.7", 80, False),
        ("db.internal", "a.db.internal", "10.0.0.7", 80, False),
        ("db.internal:80", "db.internal", "10.0.0.7", 80, True),
        ("db.internal:80", "db.internal", "10.0.0.7", 81, False),
        ("my_db-1", "my_db-1", "10.0.0.7", 80, True),
        ("*.example.org", "a.example.org", "10.0.0.7", 80, True),
        ("*.example.org", "a.b.EXAMPLE.org", "10.0.0.7", 80, True),
        ("*.example.org", "example.org", "10.0.0.7", 80, False),
        ("*.example.org", "badexample.org", "10.0.0.7", 80, False),
        ("*.example.org:443", "a.example.org", "10.0.0.7", 443, True),
        ("*.example.org:443", "a.example.org", "10.0.0.7", 80, False),
        ("*", "anything", "10.0.0.7", 80, True),
        ("*", "10.0.0.7", "10.0.0.7", 80, True),
        ("*:443", "anything", "10.0.0.7", 443, True),
        ("*:443", "anything", "10.0.0.7", 80, False),
        ("10.0.0.7", "anything", "10.0.0.7", 80, True),
        ("10.0.0.7", "anything", "10.0.0.8", 80, False),
        ("10.0.0.7", "anything", "::ffff:10.0.0.7", 80, True),
        ("10.0.0.7", "anything", "::ffff:10.0.0.8", 80, False),
        ("10.0.0.7", "10.0.0.7", "10.0.0.8", 80, False),
        ("10.0.0.0/8:443", "anything", "10.255.0.1", 443, True),
        ("10.0.0.0/8:443", "anything", "10.255.0.1", 80, False),
        ("10.0.0.0/8", "anything", "11.0.0.1", 80, False),
        # A relay's or translator's 10.0.0.1 is another one.
        ("10.0.0.0/8", "anything", "2002:a00:1::1", 80, False),
        ("10.0.0.0/8", "anything", "64:ff9b::10.0.0.1", 80, False),
        ("::ffff:10.0.0.0/104", "anything", "10.0.0.1", 80, True),
        ("[fd00::]/8", "anything", "fd12::1", 80, True),
        ("[fd00::/8]:443", "anything", "fd12::1", 443, True),
        ("[fd00::]/8:443", "anything", "fd12::1", 80, False),
        ("fd00::/8", "anything", "fd12::1", 80, True),
        ("fd00::/8", "anything", "10.0.0.1", 80, False),
        ("[::1]:8080", "localhost", "::1", 8080, True),
        ("[::1]:8080", "localhost", "::1", 8081, False),
        ("::1", "::1", "::1", 8081, True),
        ("::1", "[::1]", "::1", 8081, True),
        ("fe80::1%eth0", "fe80::1%eth1", "fe80::1", 80, True),
        (" 10.0.0.7:80 ", "anything", "10.0.0.7", 80, True),
    ],
)
def test_entry(entry: str, hostname: str, address: str, port: int, permitted: bool) -> None:
    allow = AllowList.parse([entry])
    assert allow.listed
    assert allow.permits(hostname, address, port) is permitted
    if permitted:
        assert allow.permits_name(hostname, port)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        ":80",
        "db.internal:",
        "db.internal:0",
        "db.internal:65536",
        "db.internal:http",
        "db.internal:-1",
        "db.internal:٣",
        "http://db.internal",
        "db.internal/path",
        "user@db.internal",
        "db internal",
        "db..internal",
        ".internal",
        "*internal",
        "a.*.internal",
        "*.*.internal",
        "*.10.0.0.1",
        "a" * 64,
        "bücher.example",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "10.0.0",
        "0x7f.1",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "256.0.0.1",
        "[10.0.0.1]:80",
        "[::1",
        "[::1]80",
        "[::1]:",
        "[db]:80",
        "::1:zz",
        "[fd00::]/129",
    ],
)
def test_bad_entry_is_named(entry: str) -> None:
    with pytest.raises(ValueError, match=r"^'") as caught:
        AllowList.parse(["db.internal", entry])
    assert str(caught.value).startswith(repr(entry))


@pytest.mark.parametrize("address", ORDINARY)
def test_without_a_list_everything_ordinary_is_allowed(address: str) -> None:
    allow = AllowList.parse([])
    assert not allow.listed
    assert allow.permits_name("anything", 80)
    assert allow.permits_name(address, 80)
    assert allow.permits("anything", address, 80)


@pytest.mark.parametrize("address", GUARDED)
@pytest.mark.parametrize(
    "entries", [[], ["*"], ["evil.example"], ["0.0.0.0/0", "::/0"], ["169.0.0.0/8", "fe00::/9"]]
)
def test_guarded_addresses_stay_shut_to_general_entries(entries: list[str], address: str) -> None:
    allow = AllowList.parse(entries)
    assert not allow.permits("evil.example", address, 80)
    assert not allow.permits_name(address, 80)


@pytest.mark.parametrize("address", METADATA)
def test_a_guarded_address_opens_when_named(address: str) -> None:
    for entry in (address, f"[{address}]:80" if ":" in address else f"{address}:80"):
        allow = AllowList.parse([entry])
        assert allow.permits("anything", address, 80)
        assert allow.permits_name(address, 80)
    assert not allow.permits("anything", address, 81)


def test_a_guarded_network_opens_when_named() -> None:
    allow = AllowList.parse(["169.254.0.0/16", "fe80::/10", "100.100.0.0/16"])
    assert allow.permits("anything", "169.254.169.254", 80)
    assert allow.permits("anything", "::ffff:169.254.169.254", 80)
    assert allow.permits("anything", "fe80::1%eth0", 80)
    assert allow.permits("anything", "100.100.100.201", 80)
    assert not allow.permits("anything", "100.100.100.200", 80)


def test_a_guarded_address_named_for_one_port_stays_shut_on_others() -> None:
    allow = AllowList.parse(["169.254.169.254:80", "*"])
    assert allow.permits("anything", "169.254.169.254", 80)
    assert not allow.permits("anything", "169.254.169.254", 8080)
    assert allow.permits("anything", "10.0.0.1", 8080)


def test_names_that_cannot_be_permitted_are_not_resolved() -> None:
    names = AllowList.parse(["db.internal:80", "*.example.org"])
    assert names.permits_name("db.internal", 80)
    assert not names.permits_name("db.internal", 81)
    assert not names.permits_name("other", 80)
    assert not names.permits_name("10.0.0.1", 80)
    networks = AllowList.parse(["10.0.0.0/8:443"])
    assert networks.permits_name("anything", 443)
    assert not networks.permits_name("anything", 80)
    assert not networks.permits_name("11.0.0.1", 443)


@pytest.mark.parametrize("spelling", ["0x7f.1", "2130706433", "0177.0.0.1", "127.1"])
def test_odd_spellings_are_judged_by_what_they_lead_to(spelling: str) -> None:
    address = str(socket.getaddrinfo(spelling, 80, type=socket.SOCK_STREAM)[0][4][0])
    assert address == "127.0.0.1"
    loopback = AllowList.parse(["127.0.0.0/8"])
    assert loopback.permits_name(spelling, 80)
    assert loopback.permits(spelling, address, 80)
    assert not AllowList.parse(["10.0.0.0/8"]).permits(spelling, address, 80)
    assert not AllowList.parse(["db.internal"]).permits_name(spelling, 80)


@given(st.text(max_size=40))
def test_any_text_is_an_entry_or_a_value_error(text: str) -> None:
    try:
        allow = AllowList.parse([text])
    except ValueError:
        return
    assert allow.listed


def carries_ipv4(address: IPv4Address | IPv6Address) -> bool:
    prefixes = ("::ffff:0:0/96", "64:ff9b::/32", "2001::/32", "2002::/16")
    return any(address in IPv6Network(prefix) for prefix in prefixes)


ADDRESSES = st.ip_addresses().filter(lambda address: not carries_ipv4(address)).map(str)


@given(st.lists(ADDRESSES, min_size=1, max_size=4), ADDRESSES)
def test_an_address_is_permitted_where_it_is_listed_only(entries: list[str], address: str) -> None:
    allow = AllowList.parse(entries)
    assert allow.permits("name.example", address, 80) is (address in entries)
    assert allow.permits("name.example", entries[0], 80)

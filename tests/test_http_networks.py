"""Which addresses lie in which set, and what is no set at all."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockgw.http import networks
from sockgw.http.networks import Networks, canonical


@pytest.mark.parametrize(
    ("entry", "inside", "outside"),
    [
        ("loopback", ["127.0.0.1", "127.255.0.9", "::1"], ["128.0.0.1", "::2", "0.0.0.0"]),
        ("linklocal", ["169.254.1.1", "fe80::1", "febf::1"], ["169.253.0.1", "fec0::1"]),
        (
            "uniquelocal",
            ["10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.0.1", "fc00::1", "fdff::1"],
            ["11.0.0.1", "172.15.0.1", "172.32.0.1", "192.169.0.1", "fe00::1", "127.0.0.1"],
        ),
        ("192.0.2.7", ["192.0.2.7", "::ffff:192.0.2.7"], ["192.0.2.8", "::192.0.2.7"]),
        ("192.0.2.7/24", ["192.0.2.0", "192.0.2.255"], ["192.0.3.0"]),
        ("2001:db8::/32", ["2001:DB8:0::1"], ["2001:db9::1", "192.0.2.1"]),
        ("::ffff:10.0.0.0/104", ["10.9.9.9", "::ffff:10.200.9.9"], ["11.0.0.1"]),
        ("::/0", ["::1", "2001:db8::1"], ["192.0.2.1", "::ffff:192.0.2.1"]),
        ("0.0.0.0/0", ["192.0.2.1", "::ffff:192.0.2.1", ""], ["::1"]),
        ("10.0.0.1, loopback ,fe80::/10", ["10.0.0.1", "::1", "fe80::2%eth0"], ["10.0.0.2"]),
    ],
)
def test_membership(entry: str, inside: list[str], outside: list[str]) -> None:
    trusted = Networks.parse([entry])
    for _ in range(2):  # the second time from the cache
        assert [a for a in inside if not trusted.contains(a)] == []
        assert [a for a in outside if trusted.contains(a)] == []


@pytest.mark.parametrize("peer", ["", "unix"])
def test_unix_peers_count_as_loopback(peer: str) -> None:
    assert Networks.parse(["loopback"]).contains(peer)
    assert not Networks.parse(["uniquelocal"]).contains(peer)


@pytest.mark.parametrize("text", ["unix:", "example.org", "1.2.3", "1.2.3.4:80", "[::1]", " ::1"])
def test_what_is_no_address_lies_in_no_set(text: str) -> None:
    assert not Networks.parse(["0.0.0.0/0", "::/0"]).contains(text)


@pytest.mark.parametrize(
    "entry", ["abc", "10.0.0.0/33", "Loopback", "1", "true", "10.0.0", "fe80::1%eth0", "::1/129"]
)
def test_a_wrong_entry_is_named(entry: str) -> None:
    with pytest.raises(ValueError, match="uniquelocal") as caught:
        Networks.parse(["loopback", entry])
    assert repr(entry) in str(caught.value)


@pytest.mark.parametrize("entries", [[], [""], [" ", ",,"]])
def test_nothing_is_the_empty_set(entries: list[str]) -> None:
    nobody = Networks.parse(entries)
    assert not nobody
    assert not nobody.contains("127.0.0.1")
    assert Networks.parse(["10.0.0.1"])
    assert Networks.parse(["::1"])


def test_the_cache_is_bounded_and_stays_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_MAX_CACHED", 8)
    trusted = Networks.parse(["10.0.0.0/8"])
    for number in range(100):
        assert trusted.contains(f"10.0.0.{number}")
        assert not trusted.contains(f"11.0.0.{number}")
        assert not trusted.contains("x" * 1000)
        assert len(trusted._known) <= 8
    assert all(len(address) < 20 for address in trusted._known)


def test_repr_shows_the_set() -> None:
    assert repr(Networks.parse(["::1", "10.0.0.1/8"])) == "Networks(10.0.0.0/8, ::1/128)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::FFFF:192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_canonical(text: str, expected: str) -> None:
    assert canonical(text) == expected


@pytest.mark.parametrize("text", ["", "unix", "1.2.3.04", "1.2.3.4%eth0", "fe80::1%" + "x" * 60])
def test_canonical_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="address"):
        canonical(text)


@given(
    st.ip_addresses(v=6) | st.ip_addresses(v=4),
    st.ip_addresses(v=6) | st.ip_addresses(v=4),
    st.integers(0, 32),
)
def test_agrees_with_ipaddress(base: object, address: object, length: int) -> None:
    network = ip_network(f"{base}/{length}", strict=False)
    mapped = getattr(address, "ipv4_mapped", None)
    expected = (mapped or ip_address(str(address))) in network
    assert Networks.parse([str(network)]).contains(str(address)) is expected


@given(st.text(max_size=80))
def test_any_text_is_answered(text: str) -> None:
    assert Networks.parse(["loopback"]).contains(text) in (True, False)

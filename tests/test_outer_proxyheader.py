"""The PROXY header: as the specification has it, for whatever a client's socket is."""

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from sockgw.outer.proxyheader import proxy_header


class Transport:
    def __init__(self, peer, host):
        self.getPeer = lambda: peer
        self.getHost = lambda: host


def v4(host, port):
    return IPv4Address("TCP", host, port)


def v6(host, port):
    return IPv6Address("TCP", host, port)


SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")


@pytest.mark.parametrize(
    ("peer", "host", "text", "binary"),
    [
        (
            v4("192.0.2.7", 40000),
            v4("192.0.2.1", 2222),
            b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 2222\r\n",
            "2111000c c0000207 c0000201 9c40 08ae",
        ),
        (  # a client of IPv4 on a socket for both
            v6("::ffff:192.0.2.7", 40000),
            v6("::ffff:192.0.2.1", 2222),
            b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 2222\r\n",
            "2111000c c0000207 c0000201 9c40 08ae",
        ),
        (
            v6("2001:db8::7", 40000),
            v6("fe80::1%eth0", 2222),
            b"PROXY TCP6 2001:db8::7 fe80::1 40000 2222\r\n",
            "21210024 20010db8000000000000000000000007 fe800000000000000000000000000001 9c40 08ae",
        ),
        (UNIXAddress(None), UNIXAddress(b"/run/x"), b"PROXY UNKNOWN\r\n", "21000000"),
        (v4("192.0.2.7", 1), v6("::1", 2), b"PROXY UNKNOWN\r\n", "21000000"),
    ],
)
def test_headers(peer, host, text, binary):
    transport = Transport(peer, host)
    assert proxy_header(1, transport) == text
    assert proxy_header(2, transport) == SIGNATURE + bytes.fromhex(binary)

"""The header by which a load balancer tells who its client is: PROXY protocol, versions 1 and 2.

After HAProxy's proxy-protocol.txt. Version 1 is a line of text, version 2 binary, with further
fields (TLVs) behind the addresses; the two differ in their first byte. ::

    PROXY TCP4 203.0.113.7 198.51.100.1 56324 443\\r\\n

    0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a   signature
    21                                    version 2, command: 0 LOCAL, 1 PROXY
    11                                    family (1 IPv4, 2 IPv6, 3 Unix), 1 stream or 2 datagram
    00 0c                                 length of what follows: 12 + TLVs
    cb 00 71 07  c6 33 64 01  dc 04  01 bb

Of the TLVs only the checksum is looked at; none decides anything here.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from struct import unpack_from

__all__ = ["MAX_FOLLOWING", "MAX_LINE", "Addresses", "Header", "HeaderError", "parse"]

MAX_LINE = 107
"""Bytes of a header of version 1 (section 2.1)."""

MAX_FOLLOWING = 2048
"""Bytes behind the fixed part of a header of version 2. 65,535 could be; the addresses take 216 at
most, and TLVs of HAProxy and cloud balancers, certificates' names included, some hundred."""

_WORD = b"PROXY "
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = 16  # bytes of version 2 up to its length

_PORT = rb"(0|[1-9][0-9]{0,4})"
_LINE = re.compile(rb"PROXY TCP([46]) ([0-9a-fA-F:.]+) ([0-9a-fA-F:.]+) %b %b\r\n" % (_PORT, _PORT))
_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")

_IPV4, _IPV6, _UNIX = 1, 2, 3
_ADDRESS_BYTES = {_IPV4: 12, _IPV6: 36, _UNIX: 216}
_STREAM, _DATAGRAM = 1, 2
_LOCAL, _PROXY = 0, 1

_TLV_CRC32C = 0x03


class HeaderError(ValueError):
    """The bytes are no PROXY header. Its text may be logged: none of it is the peer's."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Who has connected to whom, as IP address and port; both IPv4, or both IPv6."""

    source: tuple[str, int]
    destination: tuple[str, int]


@dataclass(frozen=True, slots=True)
class Header:
    """A whole header."""

    size: int  #: in bytes; what follows is the client's
    #: None: the load balancer speaks for itself (LOCAL), or for what has no IP address (UNKNOWN,
    #: Unix sockets); then the connection's own addresses hold.
    addresses: Addresses | None


def parse(data: bytes) -> Header | None:
    """Read the header with which ``data`` begins; None where more of it has to come.

    Never asks for more than ``16 + MAX_FOLLOWING`` bytes. Raises HeaderError.
    """
    if data.startswith(b"P"):
        return _parse_line(data)
    if not data.startswith(_SIGNATURE[: len(data)]):
        raise HeaderError("no PROXY header")
    return _parse_binary(data) if len(data) >= _FIXED else None


# ------------------------------------------------------------------ version 1


def _parse_line(data: bytes) -> Header | None:
    if not data.startswith(_WORD[: len(data)]):
        raise HeaderError("no PROXY header")
    size = data.find(b"\r\n", 0, MAX_LINE) + 2
    if size < 2:
        if len(data) >= MAX_LINE:
            raise HeaderError("a PROXY line that does not end")
        return None
    line = data[:size]
    if _UNKNOWN.fullmatch(line):
        return Header(size, None)
    found = _LINE.fullmatch(line)
    if found is None:
        raise HeaderError("a malformed PROXY line")
    kind, source, destination, source_port, destination_port = found.groups()
    return Header(
        size,
        Addresses(
            (_address(kind, source), _port(source_port)),
            (_address(kind, destination), _port(destination_port)),
        ),
    )


def _address(kind: bytes, text: bytes) -> str:
    try:
        return str((IPv4Address if kind == b"4" else IPv6Address)(text.decode("ascii")))
    except ValueError:
        raise HeaderError("a PROXY line with a malformed address") from None


def _port(text: bytes) -> int:
    number = int(text)
    if number > 65535:
        raise HeaderError("a PROXY line with a malformed port")
    return number


# ------------------------------------------------------------------ version 2


def _parse_binary(data: bytes) -> Header | None:
    version_command, family_kind, length = unpack_from("!BBH", data, len(_SIGNATURE))
    version, command = version_command >> 4, version_command & 15
    if version != 2 or command not in (_LOCAL, _PROXY):
        raise HeaderError("a PROXY header of another version, or with an unknown command")
    if length > MAX_FOLLOWING:
        raise HeaderError("a PROXY header that is too long")
    size = _FIXED + length
    if len(data) < size:
        return None
    if command == _LOCAL:
        return Header(size, None)  # section 2.2: whatever follows
    family, kind = family_kind >> 4, family_kind & 15
    if family > _UNIX or kind > _DATAGRAM:
        raise HeaderError("a PROXY header of an unknown family")
    if not family:
        return Header(size, None)
    after = _FIXED + _ADDRESS_BYTES[family]
    if after > size:
        raise HeaderError("a PROXY header that is too short for its addresses")
    _check_fields(data[:size], after)
    if family == _UNIX or kind != _STREAM:
        return Header(size, None)
    if family == _IPV4:
        source, destination, source_port, destination_port = unpack_from("!4s4sHH", data, _FIXED)
        addresses = Addresses(
            (str(IPv4Address(source)), source_port),
            (str(IPv4Address(destination)), destination_port),
        )
    else:
        source, destination, source_port, destination_port = unpack_from("!16s16sHH", data, _FIXED)
        addresses = Addresses(
            (str(IPv6Address(source)), source_port),
            (str(IPv6Address(destination)), destination_port),
        )
    return Header(size, addresses)


def _check_fields(header: bytes, start: int) -> None:
    """Walk through the TLVs; check the checksum where there is one (section 2.2.3)."""
    while start < len(header):
        if start + 3 > len(header):
            raise HeaderError("a PROXY header with a malformed field")
        kind, length = unpack_from("!BH", header, start)
        start += 3
        end = start + length
        if end > len(header):
            raise HeaderError("a PROXY header with a malformed field")
        if kind == _TLV_CRC32C:
            zeroed = header[:start] + bytes(length) + header[end:]
            if length != 4 or int.from_bytes(header[start:end], "big") != _crc32c(zeroed):
                raise HeaderError("a PROXY header with a wrong checksum")
        start = end


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C = _crc32c_table()


def _crc32c(data: bytes) -> int:
    """Return the checksum of RFC 9260, appendix A."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC32C[(value ^ byte) & 255]
    return value ^ 0xFFFFFFFF

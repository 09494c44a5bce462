"""What a TLS client asks for before anything is encrypted: the server name in its ClientHello.

::

    record    22, version 3.x, length u16 (1 to 16,384), a piece of the message     RFC 8446, 5.1
    message   1, length u24, version u16, 32 random bytes,                          RFC 8446, 4.1.2
              session id <0..32>, suites <2..65534>, compression <1..255>,
              extensions <..65535>, each a type u16 and a body <..65535>

The message may be cut into records, and the records into reads, in any way. What comes is judged as
soon as it is there, and a length before anything is waited for, so that no more than ``limit``
bytes and one read are ever kept. Of the extensions only ``server_name`` is looked into (RFC 6066,
section 3); whatever else the client offers, and values that are there to be ignored (GREASE, RFC
8701), is between it and the server.

With an encrypted ClientHello (RFC 9849) the name is that of the outer one, which everybody may
read: who may route by the inner one has the key, and terminates.
"""

import enum
import re
from typing import NamedTuple, NoReturn

__all__ = ["ClientHello", "Fault", "HelloError", "HelloReader", "NotTLS"]

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_MAJOR_VERSION = 3  # of a record; the minor one says nothing (RFC 8446, section 5.1)
_RECORD_HEAD = 5  # bytes
_MESSAGE_HEAD = 4
_MAX_RECORD = 16_384  # bytes of content
_SERVER_NAME = 0
_HOST_NAME = 0
_ENCRYPTED_CLIENT_HELLO = 0xFE0D

# Letters, digits and hyphens, and the underscore that targets may have, too. An IPv4 address passes
# as a name; what RFC 6066 says of it is for servers that take it for one.
_NAME = re.compile(rb"(?=.{1,255}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")


class Fault(enum.Enum):
    """What is wrong with a ClientHello; the values are labels of a metric."""

    MALFORMED = "malformed"
    TOO_LARGE = "too-large"
    TIMEOUT = "timeout"


class NotTLS(Exception):
    """The first bytes are those of another protocol."""


class HelloError(Exception):
    """It is no good ClientHello. The text is for logs, and holds nothing that the client sent."""

    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(reason)
        self.fault = fault


class ClientHello(NamedTuple):
    """What routing needs of it."""

    server_name: str | None
    """In lower case and without the root's dot; None where the client names none."""
    encrypted: bool
    """It carries, or pretends to carry, an encrypted one; then the name may be a public one."""


class HelloReader:
    """Reads one ClientHello; without I/O. After a result or an error it takes no more."""

    __slots__ = ("_expected", "_limit", "_message", "_record", "received")

    def __init__(self, limit: int) -> None:
        """``limit`` is in bytes of records, up to the end of the ClientHello."""
        self._limit = limit
        self._record = 0  # where the first record begins that is not complete
        self._message = 0  # bytes of the message so far
        self._expected = 0  # bytes of the whole message; 0: not known yet
        #: All that came, for whoever is to read it again.
        self.received = bytearray()

    def feed(self, data: bytes) -> ClientHello | None:
        """Take bytes as they come; return the ClientHello once it is complete, or None.

        Raises NotTLS or HelloError. How the bytes are cut makes no difference.
        """
        received = self.received
        received += data
        while True:
            start = self._record
            available = len(received) - start
            if not available:
                return None
            if received[start] != _HANDSHAKE:
                self._refuse("a record of another type")
            if available == 1:
                return None
            if received[start + 1] != _MAJOR_VERSION:
                self._refuse("a record of another protocol")
            if available < _RECORD_HEAD:
                return None
            length = int.from_bytes(received[start + 3 : start + 5], "big")
            end = start + _RECORD_HEAD + length
            if not length:
                self._refuse("an empty record")
            if length > _MAX_RECORD:
                self._refuse("a record longer than 16,384 bytes")
            if end > self._limit:
                raise HelloError(Fault.TOO_LARGE, f"a ClientHello of more than {self._limit} bytes")
            if len(received) < end:
                return None
            self._record = end
            self._message += length
            if self._whole():
                return _parse(self._joined())

    def _refuse(self, reason: str) -> NoReturn:
        """Raise what is wrong with a record; of the first one it may be that it is none of TLS."""
        first = self.received[:2]
        if first[0] != _HANDSHAKE or first[1] != _MAJOR_VERSION:
            raise NotTLS
        raise HelloError(Fault.MALFORMED, reason)

    def _whole(self) -> bool:
        """Look at the message's head, once it is there; return whether all of it is."""
        if not self._expected:
            if self.received[_RECORD_HEAD] != _CLIENT_HELLO:
                raise HelloError(Fault.MALFORMED, "a message that is no ClientHello")
            if self._message < _MESSAGE_HEAD:
                return False
            length = int.from_bytes(self._joined(_MESSAGE_HEAD)[1:], "big")
            self._expected = _MESSAGE_HEAD + length
            if self._expected > self._limit:
                raise HelloError(Fault.TOO_LARGE, f"a ClientHello of more than {self._limit} bytes")
        if self._message > self._expected:
            raise HelloError(Fault.MALFORMED, "a record that does not end with the ClientHello")
        return self._message == self._expected

    def _joined(self, least: int | None = None) -> bytes:
        """Return what the complete records hold; not much more than ``least`` bytes."""
        pieces = []
        size = start = 0
        while start < self._record and (least is None or size < least):
            end = start + _RECORD_HEAD + int.from_bytes(self.received[start + 3 : start + 5], "big")
            pieces.append(self.received[start + _RECORD_HEAD : end])
            size += len(pieces[-1])
            start = end
        return b"".join(pieces)[:least]


class _Fields:
    """Reads a message field by field; what is too short for the next one is malformed."""

    __slots__ = ("_data", "_place")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def __bool__(self) -> bool:
        """Return whether there is more."""
        return self._place < len(self._data)

    def take(self, count: int) -> bytes:
        """Return so many bytes."""
        start, self._place = self._place, self._place + count
        if self._place > len(self._data):
            raise HelloError(Fault.MALFORMED, "a length beyond the end")
        return self._data[start : self._place]

    def number(self, size: int) -> int:
        """Return a number of so many bytes."""
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int, least: int, most: int, what: str) -> bytes:
        """Return what follows a length of ``size`` bytes, which must be within bounds."""
        length = self.number(size)
        if not least <= length <= most:
            raise HelloError(Fault.MALFORMED, f"a wrong length of {what}")
        return self.take(length)


def _parse(message: bytes) -> ClientHello:
    fields = _Fields(message)
    fields.take(_MESSAGE_HEAD + 2 + 32)
    fields.vector(1, 0, 32, "the session's id")
    if len(fields.vector(2, 2, 65_534, "the cipher suites")) % 2:
        raise HelloError(Fault.MALFORMED, "a wrong length of the cipher suites")
    fields.vector(1, 1, 255, "the compression methods")
    if not fields:  # TLS 1.2 and older, without extensions
        return ClientHello(None, encrypted=False)
    extensions = _Fields(fields.vector(2, 0, 65_535, "the extensions"))
    if fields:
        raise HelloError(Fault.MALFORMED, "more after the extensions")
    server_name = None
    seen: set[int] = set()
    while extensions:
        kind = extensions.number(2)
        body = extensions.vector(2, 0, 65_535, "an extension")
        if kind in seen:
            raise HelloError(Fault.MALFORMED, "an extension that stands twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            server_name = _server_name(body)
    return ClientHello(server_name, encrypted=_ENCRYPTED_CLIENT_HELLO in seen)


def _server_name(body: bytes) -> str:
    """Return the one host name of the extension: no other kind of name was ever defined."""
    fields = _Fields(body)
    names = _Fields(fields.vector(2, 1, 65_535, "the server names"))
    if fields or names.number(1) != _HOST_NAME:
        raise HelloError(Fault.MALFORMED, "server names that are no host name")
    name = names.vector(2, 1, 65_535, "the host name")
    if names:
        raise HelloError(Fault.MALFORMED, "more than one server name")
    name = name.lower().removesuffix(b".")
    if not _NAME.fullmatch(name):
        raise HelloError(Fault.MALFORMED, "a server name that is no host name")
    return name.decode("ascii")

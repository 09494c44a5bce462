"""TLS as Twisted does it, with less to do for what is written.

Twisted cuts what it is given into pieces of 16 KiB, encrypts one after the other, and hands each to
the transport below by itself; here all of a write leaves in one. Twisted's buffering puts writes
off by a timer each; here they wait for the end of the reactor's turn, before which nothing would be
sent anyhow. Who writes whole messages already says so (:meth:`TLSTransport.write_at_once`), and
nothing is put off.

Handshakes, errors, ends and what arrives are left to Twisted.
"""

# Twisted leaves much of this without types:
# mypy: allow-untyped-calls, allow-untyped-defs

from collections.abc import Iterable
from typing import Any

from OpenSSL.SSL import Error, WantReadError
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol

__all__ = ["TLSFactory", "TLSTransport"]

_RECORD = 16_384  # bytes that a record holds at most: RFC 8446, section 5.1
_OVERHEAD = 64  # bytes; a record's head and tag have 22, or 29 in TLS 1.2
_WAITING = 64_000  # bytes put off before they are written after all, and the writer may be paused


class TLSTransport(TLSMemoryBIOProtocol):
    """A connection. Small writes of a turn share a record."""

    factory: Any
    transport: Any

    def __init__(self, factory: Any, wrappedProtocol: Any, _connectWrapped: bool = True) -> None:
        super().__init__(factory, wrappedProtocol, _connectWrapped)
        self._at_once = False
        self._waiting: list[bytes] = []
        self._waiting_size = 0

    def write_at_once(self) -> None:
        """From now on put nothing off."""
        self._flush()
        self._at_once = True

    def write(self, data: bytes) -> None:
        if self._at_once:
            super().write(data)
            return
        waiting = self._waiting
        waiting.append(data)
        self._waiting_size += len(data)
        if self._waiting_size > _WAITING:
            self._flush()
        elif len(waiting) == 1:
            self.factory.at_turn_end(self._flush)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        self.write(b"".join(iovec))

    def _flush(self) -> None:
        waiting = self._waiting
        if waiting:
            self._waiting = []
            self._waiting_size = 0
            super().write(waiting[0] if len(waiting) == 1 else b"".join(waiting))

    def loseConnection(self) -> None:
        self._flush()
        super().loseConnection()

    def _write(self, data: bytes) -> None:
        size = len(data)
        if size <= _RECORD or self._lostTLSConnection:
            super()._write(data)
            return
        view = memoryview(data)
        sent = 0
        try:
            while sent < size:
                sent += self._tlsConnection.send(view[sent:])  # a record of it
        except Error:
            pass  # what that means is Twisted's to say, below
        if sent:
            self._hand_down(sent + (sent // _RECORD + 1) * _OVERHEAD)
        if sent < size:
            super()._write(bytes(view[sent:]))

    def _hand_down(self, size: int) -> None:
        """Take out of OpenSSL what it has encrypted, about ``size`` bytes."""
        more = True
        while more:
            try:
                data = self._tlsConnection.bio_read(size)
            except WantReadError:
                return
            more = len(data) == size
            self.transport.write(data)


class TLSFactory(TLSMemoryBIOFactory):
    """Makes them; see Twisted's."""

    protocol: type[TLSMemoryBIOProtocol] = TLSTransport

    def __init__(self, creator: Any, isClient: bool, wrappedFactory: Any, clock: Any) -> None:
        super().__init__(creator, isClient, wrappedFactory, clock=clock)
        # The services' reactor has a cheaper way to the end of a turn than a timer.
        self.at_turn_end = getattr(clock, "at_turn_end", None) or (
            lambda call: clock.callLater(0, call)
        )

"""How a client's connection ends, once no more requests are taken from it.

To close a socket while bytes are unread, or still to come, sends an RST, and that can overtake the
answer and take it from the client (RFC 9112, section 9.6). So after an answer that the client may
not expect yet (a refusal, one before the end of its request), we close our half only, and read and
throw away what it still sends: until its FIN, or for ``linger_timeout``.
"""

import enum
from typing import Any

from twisted.internet.interfaces import IHalfCloseableDescriptor

from sockgw.deadlines import Deadlines

__all__ = ["Farewell"]


class _Stage(enum.Enum):
    FLUSHING = enum.auto()  #: the client has not read the last answer yet; then we linger
    LINGERING = enum.auto()  #: it has, or is about to; now it sends what it must
    CLOSING = enum.auto()  #: the transport writes what it has and closes
    GONE = enum.auto()


class Farewell:
    """Takes over a transport, of which the connection stays the registered producer at first.

    Whoever makes it calls one of :meth:`close`, :meth:`linger` and :meth:`reset`, and lets no more
    be written. What happens to the transport is then told here.
    """

    __slots__ = (
        "_deadlines",
        "_idle_timeout",
        "_linger_timeout",
        "_registered",
        "_secure",
        "_stage",
        "_transport",
        "deadline",
    )

    def __init__(
        self,
        transport: Any,
        secure: bool,
        deadlines: Deadlines,
        idle_timeout: float,
        linger_timeout: float,
        registered: bool = True,
    ) -> None:
        """Times in seconds; ``idle_timeout`` is for a client that reads nothing.

        ``registered``: whether the connection is the producer still.
        """
        self._transport = transport
        self._secure = secure
        self._deadlines = deadlines
        self._idle_timeout = idle_timeout
        self._linger_timeout = linger_timeout
        self._registered = registered
        self._stage = _Stage.FLUSHING
        self.deadline: float | None = deadlines.after(idle_timeout, self)
        deadlines.watch(self)

    def close(self) -> None:
        """Send what has been written, then close."""
        if self._stage in (_Stage.FLUSHING, _Stage.LINGERING):
            self._stage = _Stage.CLOSING
            self._unregister()
            self.deadline = self._deadlines.after(self._idle_timeout, self)
            self._transport.loseConnection()

    def linger(self, congested: bool) -> None:
        """Send what has been written, then wait for the client to close."""
        if not congested:
            self.drained()

    def reset(self) -> None:
        """Cut the connection off: RST, and what was not sent yet is lost."""
        if self._stage is not _Stage.GONE:
            self._stage = _Stage.GONE
            self._unregister()
            self.deadline = None
            self._transport.abortConnection()

    def drained(self) -> None:
        """The transport has written everything, or has so little left that it need not pause us."""
        if self._stage is _Stage.FLUSHING:
            self._stage = _Stage.LINGERING
            self._unregister()
            self.deadline = self._deadlines.after(self._linger_timeout, self)
            # Twisted's TLS would half-close the TCP below it, without a close-notify.
            halves = IHalfCloseableDescriptor.providedBy(self._transport) and not self._secure
            if halves:
                self._transport.loseWriteConnection()

    def write_half_closed(self) -> None:
        """Our FIN is out: only now the client can take note of it."""
        if self._stage is _Stage.LINGERING:
            self.deadline = self._deadlines.after(self._linger_timeout, self)

    def expired(self) -> None:
        if self._stage is _Stage.LINGERING:
            self.close()
        else:
            self.reset()

    def over(self) -> None:
        """The connection is lost."""
        self._stage = _Stage.GONE
        self._deadlines.discard(self)

    def _unregister(self) -> None:
        if self._registered:
            self._registered = False
            self._transport.unregisterProducer()

"""What can go wrong on the wire: whose fault it was, how much it ends, and its code.

::

    ProtocolError
    ├── LocalError                 our own code broke a rule of the protocol: a bug here
    └── RemoteError                the peer broke one
        ├── HandshakeError         the peer is not let in: the carrier closes, without a reason
        ├── TunnelError            ends the tunnel (GOAWAY with a TunnelCode)
        └── StreamError            ends one stream (RESET with a StreamCode)
"""

from enum import Enum, IntEnum, unique

__all__ = [
    "HandshakeError",
    "LocalError",
    "ProtocolError",
    "Refused",
    "RemoteError",
    "StreamCode",
    "StreamError",
    "TunnelCode",
    "TunnelError",
]


@unique
class StreamCode(IntEnum):
    """Why a stream was reset. Below 16: the protocol's reasons. From 16: what the origin did."""

    NO_ERROR = 0  #: the answer is complete; what is left of the request is not wanted
    CANCELLED = 1  #: the client has gone
    REFUSED = 2  #: refused before any work was done: another tunnel may try
    PROTOCOL_ERROR = 3
    FLOW_CONTROL_ERROR = 4
    INTERNAL_ERROR = 5
    TUNNEL_LOST = 6  #: the tunnel ended; each side tells itself, it is never on the wire
    OVERLOADED = 7  #: what is held for slow readers has reached its bound, this one holds most
    DNS_ERROR = 16
    CONNECTION_REFUSED = 17
    CONNECTION_TIMEOUT = 18
    UNREACHABLE = 19
    TLS_ERROR = 20
    NOT_ALLOWED = 21  #: the inner layer's allow list forbids the address
    UNKNOWN_SERVICE = 22
    ORIGIN_CLOSED = 23  #: the origin's connection ended before its answer did
    ORIGIN_MALFORMED = 24  #: the origin's answer is not HTTP
    RESPONSE_TIMEOUT = 25  #: no response head in time
    IDLE_TIMEOUT = 26  #: no byte either way in time
    TOO_LARGE = 27  #: a head or body over a configured limit


@unique
class TunnelCode(IntEnum):
    """Why a tunnel ends (GOAWAY)."""

    NO_ERROR = 0  #: leaving in good order: no new streams, those that are open go on
    PROTOCOL_ERROR = 1
    FRAME_SIZE_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    FLOODED = 4  #: more control frames than anybody needs
    REVOKED = 5  #: the key is no longer accepted
    INTERNAL_ERROR = 6
    CLOSED = 7  #: the tunnel is over in good order: there is nothing to resume


class ProtocolError(Exception):
    """Base of everything below."""


class LocalError(ProtocolError):
    """Our own code asked for something that the protocol does not allow."""


class RemoteError(ProtocolError):
    """The peer sent something that the protocol does not allow."""


class TunnelError(RemoteError):
    """The tunnel cannot go on."""

    def __init__(self, code: TunnelCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class StreamError(RemoteError):
    """One stream cannot go on; the tunnel and its other streams do."""

    def __init__(self, stream: int, code: StreamCode, detail: str) -> None:
        super().__init__(detail)
        self.stream = stream
        self.code = code
        self.detail = detail


@unique
class Refused(Enum):
    """What kind of thing was wrong with a handshake; the value is its label in metrics."""

    MALFORMED = "malformed"
    VERSION = "version"
    KEY = "key"  #: unknown
    SIGNATURE = "signature"
    HOST = "host"
    IDENTIFIER = "identifier"
    TIMEOUT = "timeout"
    LEFT = "left"  #: the peer went away before the end
    LIMIT = "limit"  #: no fault of the peer's: there are too many


class HandshakeError(RemoteError):
    """The peer is not let in.

    ``reason`` is for the operator's log, safe to print, and never for the peer. ``fingerprint`` is
    the key that the peer claimed to have (32 bytes), or None before it named one.
    """

    def __init__(
        self,
        reason: str,
        fingerprint: bytes | None = None,
        kind: Refused = Refused.MALFORMED,
    ) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.fingerprint = fingerprint

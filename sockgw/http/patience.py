"""What a client may use, and what is awaited of it at a time."""

import enum
from dataclasses import dataclass

__all__ = ["Awaited", "ServerLimits"]


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a client may use. Sizes in bytes, times in seconds."""

    max_header_size: int  #: of a whole head, and of trailers with all else that frames chunks
    max_header_count: int
    max_body_size: int  #: 0: no limit
    head_timeout: float  #: from the first byte of a head to its end
    keep_alive_timeout: float  #: between requests
    idle_timeout: float  #: while a body is awaited, and while the client does not read
    half_close_timeout: float  #: after the client's FIN: see ClientConnection.readConnectionLost
    max_h2_streams: int = 100  #: requests at a time on one connection of HTTP/2
    max_h2_resets: int = 1000  #: streams that end before their time, at once; see h2server
    linger_timeout: float = 2.0  #: for what a client still sends after its last answer


class Awaited(enum.Enum):
    """What a connection waits for, which says how long it may take and what follows then."""

    NOTHING = enum.auto()  #: of the client: it is the application's turn
    REQUEST = enum.auto()  #: the first byte of a head; then silence
    HEAD = enum.auto()  #: the rest of a head; then 408
    BODY = enum.auto()  #: more of a request's body; then 408, or a broken response
    READER = enum.auto()  #: that the client takes what we have written; then it is cut off
    SIGN_OF_LIFE = enum.auto()  #: after a FIN; then it may count as gone

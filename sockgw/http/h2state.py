"""What the library h2 keeps of a client's connection, with what it judges too harshly taken out."""

from h2.config import H2Configuration
from h2.connection import AllowedStreamIDs, H2Connection
from h2.settings import SettingCodes, Settings
from h2.stream import H2Stream

from sockgw.http.h2settings import PeerSettings
from sockgw.http.patience import ServerLimits

__all__ = ["CONNECTION_WINDOW", "STREAM_WINDOW", "ServerState", "header_list_size"]

# Bytes that a client may send on a stream before its handler has taken them.
STREAM_WINDOW = 131_072
# The same on a connection, before we have looked at them: what is on its way.
CONNECTION_WINDOW = 4 * 1024 * 1024
_DEFAULT_WINDOW = 65_535  # RFC 9113, section 6.9.2

# Bytes of the table of header fields, in either direction: RFC 9113's default. What a client offers
# beyond that would be our memory.
_TABLE_SIZE = 4_096

# Reset streams whose late frames are told from an error; each costs some 100 bytes.
_MAX_CLOSED = 1_024

_CONFIGURATION = H2Configuration(
    client_side=False,
    header_encoding=None,
    # Ours to do: see h2request.
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)


def header_list_size(limits: ServerLimits) -> int:
    """Return the most bytes of a header list that are read.

    RFC 9113, section 6.5.2: a field counts 32 bytes more. Twice what a request may have: over that
    the connection ends, since the table of fields is lost, below it one stream.
    """
    return 2 * (limits.max_header_size + 32 * limits.max_header_count)


class ServerState(H2Connection):
    """The state of a connection with ``max_streams`` requests at a time."""

    MAX_CLOSED_STREAMS = _MAX_CLOSED

    def __init__(self, header_list: int, max_streams: int) -> None:
        """``header_list`` is twice what the client is told, in bytes."""
        super().__init__(_CONFIGURATION)
        self.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.HEADER_TABLE_SIZE: _TABLE_SIZE,
                SettingCodes.MAX_CONCURRENT_STREAMS: max_streams,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: header_list // 2,
                SettingCodes.ENABLE_CONNECT_PROTOCOL: 1,
            },
        )
        self.remote_settings = PeerSettings(client=True)
        self.decoder.max_header_list_size = header_list

    def begin(self) -> None:
        """Say what we have to say first."""
        self.initiate_connection()
        self.increment_flow_control_window(CONNECTION_WINDOW - _DEFAULT_WINDOW)

    def keep_table_small(self) -> None:
        """After settings of the client."""
        if self.encoder.header_table_size > _TABLE_SIZE:
            self.encoder.header_table_size = _TABLE_SIZE

    @property
    def open_inbound_streams(self) -> int:
        """None, as h2 is to see: for one too many it would end the connection."""
        self._open_streams(1)  # lets closed ones go
        return 0

    def _begin_new_stream(self, stream_id: int, allowed_ids: AllowedStreamIDs) -> H2Stream:
        stream = super()._begin_new_stream(stream_id, allowed_ids)
        # RFC 9113, section 8.1.1: a wrong length is the end of a stream. h2 would end them all.
        stream._initialize_content_length = _nothing  # type: ignore[method-assign]
        return stream


def _nothing(headers: object) -> None:
    """In place of h2's look at content-length, which ends the connection where it is wrong."""

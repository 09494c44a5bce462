"""What goes wrong before there is a connection."""

from sockgw.protocol.errors import StreamCode

__all__ = ["OriginError"]


class OriginError(Exception):
    """The origin cannot be reached; raised by what dials it."""

    def __init__(self, code: StreamCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail

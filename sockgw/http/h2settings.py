"""What a peer says of itself in HTTP/2, as far as it means anything to us."""

from h2.settings import SettingCodes, Settings

__all__ = ["PeerSettings"]

_KNOWN = frozenset(SettingCodes)


class PeerSettings(Settings):
    """Settings of a peer, of which those that h2 knows are kept.

    RFC 9113, section 6.5.2, has the others ignored. h2 keeps a queue for each, so that 400 KB of
    SETTINGS frames would become 54 MB.
    """

    def __setitem__(self, key: SettingCodes | int, value: int) -> None:
        if key in _KNOWN:
            super().__setitem__(key, value)

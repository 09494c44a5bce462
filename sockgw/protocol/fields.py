"""The payloads of the handshake: MessagePack maps whose fields are checked one by one.

Unknown keys are ignored, so that later versions can add some; duplicate keys, extension types and
values of another type are refused. The size is bounded before anything is decoded.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from sockgw.protocol.errors import HandshakeError

__all__ = ["MAX_PAYLOAD", "Fields", "pack"]

MAX_PAYLOAD: Final = 4096  # bytes; a PROOF with an RSA-4096 signature has about 700

_MAX_ITEMS = 32  # versions or capabilities
_MAX_VERSION = 0xFFFF


class Fields:
    """The decoded fields of a payload; each method returns one of them, of exactly that type."""

    def __init__(self, name: str, payload: bytes) -> None:
        self._name = name
        if len(payload) > MAX_PAYLOAD:
            raise HandshakeError(f"{name} has {len(payload)} bytes, over {MAX_PAYLOAD}")
        try:
            fields = msgpack.unpackb(payload, object_pairs_hook=_unique, max_ext_len=0)
        except (ValueError, RecursionError):  # the latter from msgpack's pure Python version
            raise HandshakeError(f"{name} is not the MessagePack expected") from None
        if type(fields) is not dict:
            raise HandshakeError(f"{name} is no map")
        self._fields: dict[str, Any] = fields

    def has(self, key: str) -> bool:
        """Whether the key is there."""
        return key in self._fields

    def _wrong(self, key: str) -> HandshakeError:
        return HandshakeError(f"{self._name} has no proper {key!r}")

    def binary(self, key: str, shortest: int, longest: int | None = None) -> bytes:
        """Bytes of a length; of exactly ``shortest`` without ``longest``."""
        value = self._fields.get(key)
        if type(value) is not bytes or not shortest <= len(value) <= (longest or shortest):
            raise self._wrong(key)
        return value

    def text(self, key: str, longest: int) -> str:
        return self._text(key, self._fields.get(key), longest)

    def _text(self, key: str, value: object, longest: int) -> str:
        # Printable only: it goes into logs and pages.
        if type(value) is not str or len(value) > longest or not value.isprintable():
            raise self._wrong(key)
        return value

    def whole(self, key: str, lowest: int, highest: int) -> int:
        return self._whole(key, self._fields.get(key), lowest, highest)

    def _whole(self, key: str, value: object, lowest: int, highest: int) -> int:
        # Not isinstance: True is no number here.
        if type(value) is not int or not lowest <= value <= highest:
            raise self._wrong(key)
        return value

    def _list(self, key: str) -> list[object]:
        value = self._fields.get(key)
        if type(value) is not list or len(value) > _MAX_ITEMS:
            raise self._wrong(key)
        return value

    def texts(self, key: str, longest: int, *, optional: bool = False) -> tuple[str, ...]:
        if optional and not self.has(key):
            return ()
        return tuple(self._text(key, item, longest) for item in self._list(key))

    def versions(self, key: str) -> tuple[int, ...]:
        return tuple(self._whole(key, item, 1, _MAX_VERSION) for item in self._list(key))


def _unique(pairs: list[tuple[object, object]]) -> dict[object, object]:
    """Build a map, where two readers of one payload must not see different values."""
    fields = dict(pairs)
    if len(fields) != len(pairs) or not all(type(key) is str for key in fields):
        raise ValueError("a key is there twice, or is no text")
    return fields


def pack(**fields: object) -> bytes:
    """Return the map of these fields."""
    payload: bytes = msgpack.packb(fields)
    return payload

"""The masking of RFC 6455, section 5.3: bytes combined with a key of four bytes, over and over.

Of what Autobahn brings, the C function alone is used: its Python around that costs a small message
four times as much, and copies a large one twice more. Numbers as long as the message do the same
for small ones with less, and for all of them where there is no C.
"""

from typing import Any

try:
    from _nvx_xormasker import ffi, lib
except ImportError:  # Autobahn was built without a compiler
    ffi = lib = None

__all__ = ["FAST", "mask"]

_LARGE = 256  # bytes from which on C is faster


def _by_numbers(key: bytes, data: bytes | bytearray) -> bytes:
    size = len(data)
    keys = (key * (size // 4 + 1))[:size]
    number = int.from_bytes(data, "little") ^ int.from_bytes(keys, "little")
    return number.to_bytes(size, "little")


def _native(key: bytes, data: bytes | bytearray) -> bytes:
    if len(data) < _LARGE:
        return _by_numbers(key, data)
    masked = bytearray(data)
    masker = lib.nvx_xormask_new(key)
    if not masker:
        raise MemoryError
    try:
        lib.nvx_xormask_process(masker, ffi.from_buffer("uint8_t[]", masked), len(masked))
    finally:
        lib.nvx_xormask_free(masker)
    return bytes(masked)


def _works(function: Any) -> bool:
    """Whether the C functions, which nobody has promised to us, do what they should."""
    try:
        data = bytes(range(251)) * 5
        return all(
            function(b"\x00\x5a\xa5\xff", data[:size])
            == _by_numbers(b"\x00\x5a\xa5\xff", data[:size])
            for size in range(_LARGE, _LARGE + 70)
        )
    except (AttributeError, TypeError):
        return False


FAST: bool = _works(_native)
"""Whether masking is native; without it large messages cost a hundred times as much."""

mask = _native if FAST else _by_numbers
"""Mask or unmask, which is the same, with a key of four bytes."""

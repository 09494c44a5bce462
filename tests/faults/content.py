"""Bodies: as random as AES makes them, the same for the same seed, and made faster than sent."""

from __future__ import annotations

import hashlib
from functools import cache

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

__all__ = ["PIECE", "Checked", "Content"]

PIECE = 262_144  # bytes

_ZEROS = memoryview(bytes(PIECE))


class Content:
    """A stream of bytes that a seed determines."""

    def __init__(self, seed: str) -> None:
        key = hashlib.sha256(seed.encode()).digest()
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def take(self, count: int) -> bytes:
        """Return the next bytes, at most PIECE."""
        return self._cipher.update(_ZEROS[:count])


@cache
def _sha256(seed: str, size: int) -> str:
    content = Content(seed)
    digest = hashlib.sha256()
    while size:
        piece = content.take(min(size, PIECE))
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest()


class Checked:
    """What was received, against what should have been."""

    def __init__(self, seed: str, size: int) -> None:
        self._seed = seed
        self._size = size
        self._content = Content(seed)
        self._digest = hashlib.sha256()
        self.received = 0
        #: Where the first byte lies in a piece that is not as it should be.
        self.differs_at: int | None = None

    def add(self, piece: memoryview) -> None:
        """Count bytes, at most PIECE."""
        self._digest.update(piece)
        if self.differs_at is None and self._content.take(len(piece)) != piece:
            self.differs_at = self.received
        self.received += len(piece)

    @property
    def equal(self) -> bool:
        """Whether the SHA-256 of all is that of the whole content."""
        return self._digest.hexdigest() == _sha256(self._seed, self._size)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

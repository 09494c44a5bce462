"""Answers to the challenges of a certificate authority (ACME's http-01, RFC 8555, section 8.3).

An ACME client writes them below its *webroot*, as ``.well-known/acme-challenge/TOKEN``. Whoever may
write there must gain nothing else by it: links are not followed, pipes are not waited for, and what
is no small file is not there.
"""

import os
import re
from stat import S_ISREG

__all__ = ["MAX_ANSWER", "PREFIX", "Challenges"]

PREFIX = b"/.well-known/acme-challenge/"

MAX_ANSWER = 1024
"""Bytes of a file; a key authorization is the token, a dot and 43 characters."""

_TOKEN = re.compile(rb"[A-Za-z0-9_-]{1,128}")
_ABOVE = (".well-known", "acme-challenge")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


class Challenges:
    """The answers below one webroot."""

    def __init__(self, webroot: str) -> None:
        self._webroot = webroot

    def find(self, target: bytes) -> bytes | None:
        """Return the answer for a request's target; None where there is none."""
        token = target[len(PREFIX) :]
        if not target.startswith(PREFIX) or not _TOKEN.fullmatch(token):
            return None
        try:
            return self._read(token)
        except OSError:
            return None

    def _read(self, token: bytes) -> bytes | None:
        directory = os.open(self._webroot, _DIRECTORY)
        try:
            for name in _ABOVE:
                below = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                os.close(directory)
                directory = below
            file = os.open(token, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        finally:
            os.close(directory)
        try:
            if not S_ISREG(os.fstat(file).st_mode):
                return None
            data = os.read(file, MAX_ANSWER + 1)
        finally:
            os.close(file)
        return data if len(data) <= MAX_ANSWER else None

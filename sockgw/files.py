"""Notice that a file, or what a directory holds, is no longer what it was.

Polling ``stat`` works where inotify does not: on network file systems, and when Kubernetes swaps
the symbolic link that a whole directory of files hangs on. Links are followed everywhere, so such a
swap looks like any other change.
"""

import os
from collections.abc import Callable, Iterable
from stat import S_ISDIR

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

__all__ = ["POLL_INTERVAL", "Signature", "Watched", "signature"]

POLL_INTERVAL = 1.0
"""Seconds between two looks: what "at once" means to somebody who edits a file."""

Signature = tuple[object, ...] | None
"""Equal as long as nothing changed; None where there is nothing to read."""

_log = Logger()
_callback_guarded = _log.failureHandler("after a file changed:")


def signature(path: str) -> Signature:
    """Return the signature of a file or, for a directory, of everything directly in it.

    The time of the last status change is part of it, because a file that becomes readable, or is
    replaced by one of the same size and time, must count too.
    """
    try:
        status = os.stat(path)
        if not S_ISDIR(status.st_mode):
            return _file_signature(status)
        return tuple((name, _entry_signature(path, name)) for name in sorted(os.listdir(path)))
    except OSError:
        return None


def _entry_signature(directory: str, name: str) -> Signature:
    try:
        return _file_signature(os.stat(os.path.join(directory, name)))
    except OSError:  # a link that leads nowhere, or a file that has gone meanwhile
        return None


def _file_signature(status: os.stat_result) -> Signature:
    return (
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_size,
        status.st_ino,
        status.st_dev,
    )


class Watched:
    """Calls ``changed()`` when one of ``paths`` changes, appears or vanishes.

    The state at construction is the first one: construct, then read the files, so that a change in
    between is seen. However many paths changed, one look makes one call. An exception from
    ``changed`` is logged, and watching goes on. ``look`` may see more in a path than
    :func:`signature` does.
    """

    def __init__(
        self,
        clock: IReactorTime,
        paths: Iterable[str],
        changed: Callable[[], object],
        interval: float = POLL_INTERVAL,
        look: Callable[[str], Signature] = signature,
    ) -> None:
        self.paths = tuple(paths)
        self._changed = changed
        self._interval = interval
        self._signature = look
        self._seen = self._look()
        self._loop = LoopingCall(self.check)
        self._loop.clock = clock

    def _look(self) -> list[Signature]:
        return [self._signature(path) for path in self.paths]

    def start(self) -> None:
        """Look every ``interval`` seconds from now on."""
        if not self._loop.running:
            self._loop.start(self._interval, now=False)

    def stop(self) -> None:
        """Look no more; leaves no timer behind."""
        if self._loop.running:
            self._loop.stop()

    def check(self) -> bool:
        """Look now, and return whether there was a change (after ``changed`` was called)."""
        now = self._look()
        if now == self._seen:
            return False
        # Before the call: what changes while `changed` reads is the next look's business.
        self._seen = now
        with _callback_guarded:
            self._changed()
        return True

"""One line per request: remembered on the request path, formatted and written in batches off it.

Standard output may be a pipe whose reader has stopped or a terminal under Ctrl-S. It is shared with
other processes, so it cannot be made non-blocking; instead each write is of a size for which
poll(2) has just promised room. What cannot be written waits, up to a bound, and is dropped beyond.
"""

import errno
import json
import os
import re
import select
import stat
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

__all__ = ["AccessLog", "Entry"]

_log = Logger()

_INTERVAL = 0.1  # seconds from a record to its line
# Records until a batch is written without waiting for the timer: with heads of 32 KiB at most, it
# bounds memory at 16 MiB, and a batch holds the reactor up for about 2 ms.
_MAX_ENTRIES = 500
_MAX_PENDING = 4 * 1024 * 1024  # bytes formatted and not yet written, before lines are dropped
# Linux reports a pipe writable when a page is free, and writes up to PIPE_BUF are atomic (pipe(7)).
_CHUNK = select.PIPE_BUF
_FILE_CHUNK = 256 * 1024  # bytes; regular files are always ready


class Entry(NamedTuple):
    """A finished request. Bytes stand as the client sent them; sizes count body bytes."""

    time: float  #: when it began, in seconds since the epoch
    client: str  #: IP address
    method: bytes
    target: bytes  #: request target: path and query
    protocol: str  #: such as HTTP/1.1, HTTP/2.0, TCP
    status: int
    bytes_out: int  #: to the client
    bytes_in: int  #: from the client
    referer: bytes | None
    user_agent: bytes | None
    target_name: str  #: name in the targets file, or ""
    identifier: str  #: of the inner layer, or ""
    request_id: bytes
    duration: float  #: seconds
    first_byte: float | None  #: seconds until the answer began; None if it never did
    tries: int  #: how many inner layers were asked
    held: float  #: seconds for which it waited for one
    outcome: str  #: "" or what went wrong, e.g. "client left"


class AccessLog:
    """Writes entries to standard output (``"-"``), to a file that is appended to, or nowhere."""

    def __init__(
        self, destination: str, format: str, clock: IReactorTime, *, stdout: int = 1
    ) -> None:
        """Open the destination: ``"-"``, ``"off"`` or a path. ``format`` is "text" or "json".

        Raises OSError where the file cannot be opened.
        """
        self._path = "" if destination in ("-", "off") else os.path.abspath(destination)
        self._format = _as_json if format == "json" else _as_text
        self._clock = clock
        self._timer: IDelayedCall | None = None
        self._entries: list[Entry] = []
        self._pending = bytearray()
        self._dropped = 0
        self._complained = False
        self._fd = -1
        if destination == "-":
            self._use(stdout)
        elif self._path:
            self._use(_open(self._path))

    @property
    def wanted(self) -> bool:
        """Whether anybody reads what is recorded."""
        return self._fd >= 0

    def record(self, entry: Entry) -> None:
        """Remember a request; its line follows within a moment."""
        if self._fd < 0:
            return
        self._entries.append(entry)
        if self._timer is None:
            self._timer = self._clock.callLater(_INTERVAL, self._tick)
        elif len(self._entries) >= _MAX_ENTRIES:
            self.flush()

    def flush(self) -> None:
        """Write what was recorded, as far as the destination takes it now."""
        entries, self._entries = self._entries, []
        if len(self._pending) > _MAX_PENDING:
            self._write()
        if len(self._pending) > _MAX_PENDING:
            self._dropped += len(entries)
        else:
            self._pending += "".join(map(self._format, entries)).encode("ascii")
            self._write()

    def reopen(self) -> None:
        """Open the path anew, after logrotate has moved the file (SIGHUP)."""
        if not self._path:
            return
        self.flush()
        try:
            fd = _open(self._path)
        except OSError as error:
            _log.error("access log: cannot reopen {path}: {error}", path=self._path, error=error)
            return
        self._close_file()
        self._use(fd)

    def close(self) -> None:
        """Write what is left, as far as the destination takes it, and stop."""
        if self._fd >= 0:
            self.flush()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._close_file()

    def _use(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        try:
            regular = stat.S_ISREG(os.fstat(fd).st_mode)
        except OSError:
            regular = False
        self._chunk = _FILE_CHUNK if regular else _CHUNK

    def _close_file(self) -> None:
        if self._fd >= 0 and self._path:
            os.close(self._fd)
        self._fd = -1

    def _tick(self) -> None:
        self._timer = None
        self.flush()
        if self._pending and self._fd >= 0:
            self._timer = self._clock.callLater(_INTERVAL, self._tick)

    def _write(self) -> None:
        pending = self._pending
        try:
            # Also ready: a broken pipe and a closed descriptor, of which the write then tells.
            while pending and self._poll.poll(0):
                # Whole lines, so that others who write to the same place cannot split one.
                end = pending.rfind(b"\n", 0, self._chunk) + 1 or self._chunk
                del pending[: os.write(self._fd, bytes(pending[:end]))]
        except BlockingIOError:
            return
        except OSError as error:
            self._failed(error)
            return
        if self._dropped and not pending:
            _log.warn("access log: {count} lines dropped, nobody read", count=self._dropped)
            self._dropped = 0
        self._complained = self._complained and bool(pending)

    def _failed(self, error: OSError) -> None:
        self._pending.clear()
        if not self._path or error.errno in (errno.EPIPE, errno.EBADF):
            _log.error("access log: stopped: {error}", error=error)
            self._close_file()
        elif not self._complained:
            # A full disk may have room again: go on trying.
            self._complained = True
            _log.error("access log: {path}: {error}", path=self._path, error=error)


def _open(path: str) -> int:
    # Non-blocking, for a named pipe; regular files do not care.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    return os.open(path, flags, 0o640)


# Apache's combined format, with fields of ours behind it.
_LINE = (
    '%s - - [%s] "%s %s" %s %s "%s" "%s" target=%s identifier=%s id=%s'
    " duration=%.3f first_byte=%s bytes_in=%s tries=%s held=%s outcome=%s\n"
)


def _as_text(entry: Entry) -> str:
    """Return the entry's line, in which nothing from outside ends its field or the line."""
    (
        time, client, method, target, protocol, status, bytes_out, bytes_in, referer,
        user_agent, target_name, identifier, request_id, duration, first_byte, tries,
        held, outcome,
    ) = entry  # fmt: skip
    request = method + b" " + target
    referer, user_agent, number = referer or b"", user_agent or b"", request_id.decode("latin-1")
    if (request + referer + user_agent).translate(None, _PLAIN):
        quoted = _quoted(request), _quoted(referer), _quoted(user_agent)
    else:
        # Hardly any line has something to escape, and this look at all of it takes half the time.
        quoted = request.decode("ascii"), referer.decode("ascii"), user_agent.decode("ascii")
    if not _BARE.fullmatch(f"{client}{target_name}{identifier}{number}{outcome}"):
        client, target_name, identifier = _bare(client), _bare(target_name), _bare(identifier)
        number, outcome = _bare(number), _bare(outcome)
    begun = "-" if first_byte is None else f"{first_byte:.3f}"
    return _LINE % (
        client or "-", _apache_time(int(time)), quoted[0], protocol, status, bytes_out,
        quoted[1] or "-", quoted[2] or "-", target_name or "-", identifier or "-",
        number or "-", duration, begun, bytes_in, tries, f"{held:.3f}" if held else "0",
        outcome or "-",
    )  # fmt: skip


def _as_json(entry: Entry) -> str:
    fields: dict[str, object] = entry._asdict()
    for name, value in fields.items():
        if isinstance(value, bytes):
            fields[name] = value.decode("utf-8", "backslashreplace")
    second, part = divmod(entry.time, 1)
    fields["time"] = f"{_iso_time(int(second))}.{int(part * 1000):03d}Z"
    fields["duration"] = round(entry.duration, 6)
    fields["held"] = round(entry.held, 6)
    if entry.first_byte is not None:
        fields["first_byte"] = round(entry.first_byte, 6)
    return json.dumps(fields) + "\n"


@lru_cache(maxsize=4)
def _apache_time(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%d/%b/%Y:%H:%M:%S +0000")


@lru_cache(maxsize=4)
def _iso_time(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


# Printable ASCII without the quote and the backslash: what stands between quotes as it is.
_PLAIN = bytes(range(32, 127)).translate(None, b'"\\')
_ODD = re.compile(r"[^ !#-\[\]-~]")  # anything else
_BARE = re.compile(r"[0-9A-Za-z.:*_@/\[\]-]+")


def _quoted(value: bytes) -> str:
    """Return what may stand between quotes: what is not plain as \\xhh, byte by byte."""
    return _ODD.sub(_escape, value.decode("latin-1"))


def _bare(value: str) -> str:
    """Return a word as it is, anything else between quotes."""
    if not value or _BARE.fullmatch(value):
        return value
    return f'"{_quoted(value.encode("utf-8", "surrogatepass"))}"'


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return "\\" + character if character in '"\\' else f"\\x{ord(character):02x}"

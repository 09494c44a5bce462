"""Processes that are started, measured and ended: CPU seconds and resident memory from /proc."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Failed", "Process", "Usage", "environment", "family", "usage_of"]

PATIENCE = 20.0
"""Seconds after which what has not happened is taken to never happen."""

GRACE = 3.0
"""Seconds that processes have to end by themselves, once they are told to."""

_TICKS = os.sysconf("SC_CLK_TCK")
# What would change how programs behave, or lead them through somebody's proxy. SG_ is
# socket-gateway's.
_FOREIGN = re.compile(
    r"(SOCKGW|WATCHDOG|SG|CHISEL|BORE|WSTUNNEL|RUST|UV)_.*|NOTIFY_SOCKET|NODE_OPTIONS|AUTH"
    r"|(HTTPS?|ALL|NO)_PROXY|GO(GC|DEBUG|MEMLIMIT|MAXPROCS)",
    re.IGNORECASE,
)


class Failed(Exception):
    """Something could not be measured; the text says why, for the report."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without what has no place in a measurement."""
    kept = {name: value for name, value in os.environ.items() if not _FOREIGN.fullmatch(name)}
    return {**kept, **(extra or {})}


class Process:
    """A process that runs until it is ended, with all that it has started itself."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str | Path],
        log: Path,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                [str(argument) for argument in arguments],
                cwd=cwd,
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        self.pid = self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    def assert_running(self) -> None:
        """Raise :exc:`Failed`, with the last lines of its log, if it has ended."""
        if self.status is not None:
            raise Failed(f"{self.name} ended with status {self.status}: {self.last_words()}")

    def last_words(self) -> str:
        """Return the end of its log as one line."""
        lines = self.log.read_text("utf-8", "replace").split("\n")
        return " / ".join(line.strip() for line in lines if line.strip())[-400:] or "no word"


def end(processes: Iterable[Process]) -> None:
    """End processes and all their descendants: all are told first, then those left are killed.

    On return they are gone, so that they share no time with what is measured next.
    """
    started = list(processes)
    pids = {pid for each in started for pid in family(each.pid)}
    born = {pid: _born(pid) for pid in pids}
    for each in started:
        if each.status is None:
            os.kill(each.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline and any(each.status is None for each in started):
        time.sleep(0.01)
    for pid in pids:
        # The number may be somebody else's by now.
        if born[pid] is not None and _born(pid) == born[pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    for each in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.pid, signal.SIGKILL)
        each._process.wait()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and any(
        (fields := _stat(pid)) and fields[0] != "Z" and fields[19] == born[pid] for pid in pids
    ):
        time.sleep(0.002)


@dataclass(frozen=True)
class Usage:
    """What a process and its descendants have used."""

    cpu: float
    """Seconds of CPU since the start, in user and kernel mode."""
    resident: int
    """Bytes of resident memory now. What several processes share is counted for each."""
    peak: int
    """Bytes of resident memory at their highest, likewise added up."""


def family(pid: int) -> list[int]:
    """Return a process and its descendants, those that run."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found = [pid] if _stat(pid) else []
    for each in found:
        found.extend(children.get(each, ()))
    return found


def usage_of(pid: int) -> Usage:
    """Return what a process and its descendants use; zeros once it has ended."""
    cpu, resident, peak = 0, 0, 0
    for each in family(pid):
        fields = _stat(each)
        # utime, stime, and those of children that have ended: proc(5), fields 14 to 17.
        cpu += sum(int(field) for field in fields[11:15])
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{each}/status").read_text()
            resident += _kilobytes(status, "VmRSS")
            peak += _kilobytes(status, "VmHWM")
    return Usage(cpu / _TICKS, resident, peak)


def _kilobytes(status: str, key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on: state, ppid, ..."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _born(pid: int) -> str | None:
    """Return when a process started, by which it is told from a later one of the same number."""
    fields = _stat(pid)
    return fields[19] if fields else None

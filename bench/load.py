"""What loads the contestants: wrk, curl and our own WebSocket client, each as a process."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.origins import LARGE, POST, PROGRAMS, SMALL, SMALL_BODY
from bench.processes import Failed, environment
from bench.room import Route

__all__ = ["Load", "Requests"]

_GRACE = 60.0  # seconds that a load may take longer than it was told to
_TRANSFER_TIMEOUT = 600  # seconds
_ERRORS = ("connect", "read", "write", "status", "timeout")


@dataclass(frozen=True)
class Requests:
    """What wrk measured."""

    count: int
    rate: float  #: requests per second
    mean: float  #: microseconds, as the next two
    p50: float
    p99: float


@dataclass(frozen=True)
class Load:
    """The programs, and how long they load."""

    wrk: str
    curl: str
    file: Path  #: what is uploaded; it has the size of what is downloaded
    seconds: float

    @property
    def size(self) -> int:
        """Bytes of one transfer."""
        return self.file.stat().st_size

    # -------------------------------------------------------------- wrk

    def get(self, route: Route, connections: int) -> Requests:
        """Ask for the small file, again and again."""
        return self._wrk(route, SMALL, connections, least=len(SMALL_BODY))

    def get_anew(self, route: Route, connections: int) -> Requests:
        """Ask for the small file, each time on a new connection."""
        return self._wrk(route, SMALL, connections, "close", least=len(SMALL_BODY))

    def post(self, route: Route, connections: int, size: int) -> Requests:
        """Send bodies of ``size`` bytes."""
        return self._wrk(route, POST, connections, "post", str(size))

    def _wrk(
        self, route: Route, path: str, connections: int, *arguments: str, least: int = 0
    ) -> Requests:
        """Run wrk with one thread, for whole seconds, as it knows no parts of them."""
        seconds = max(1, math.ceil(self.seconds))
        output = _call(
            [
                *(self.wrk, "-t", "1", "-c", str(connections), "-d", f"{seconds}s"),
                *("--timeout", "10s", "-s", str(PROGRAMS / "load.lua")),
                *("-H", f"Host: {route.host}", route.url(path), "--", *arguments),
            ],
            seconds + _GRACE,
        )
        found = re.search(r"^RESULT (\{.*\})$", output, re.MULTILINE)
        if found is None:
            raise Failed(f"wrk said no result: {' '.join(output.split())[-300:]}")
        result = json.loads(found[1])
        errors = {name: result[name] for name in _ERRORS if result[name]}
        if errors or not result["requests"]:
            told = ", ".join(f"{count} {name}" for name, count in errors.items()) or "no answers"
            raise Failed(f"errors of wrk, beside {result['requests']} requests: {told}")
        if result["bytes"] < least * result["requests"]:
            raise Failed(f"wrk got {result['bytes']} bytes for {result['requests']} requests")
        rate = result["requests"] / (result["us"] / 1e6)
        return Requests(result["requests"], rate, result["mean"], result["p50"], result["p99"])

    # -------------------------------------------------------------- curl

    def download(self, route: Route, count: int) -> float:
        """Fetch the large file ``count`` times at once; return the bytes per second of all."""
        options = ("-o", "/dev/null")
        return self._transfer(route, LARGE, options, "%{size_download}", count)

    def upload(self, route: Route, count: int) -> float:
        """Send the large file ``count`` times at once; return the bytes per second of all."""
        # Without "Expect:", whose answer some contestants swallow: curl would wait a second for it.
        options = ("-T", str(self.file), "-H", "Expect:", "-o", "/dev/null")
        return self._transfer(route, "/sink", options, "%{size_upload}", count)

    def _transfer(
        self, route: Route, path: str, options: Sequence[str], size: str, count: int
    ) -> float:
        """Run ``count`` curls. One by itself tells its time; of several the whole time counts."""
        command = [
            *(self.curl, "-q", "-sS", "--max-time", str(_TRANSFER_TIMEOUT)),
            *("-H", f"Host: {route.host}", *options),
            *("-w", "%{http_code} " + size + " %{time_total}", route.url(path)),
        ]
        began = time.monotonic()
        running: list[subprocess.Popen[str]] = []
        try:
            for _ in range(count):
                running.append(_start(command))
            outputs = [each.communicate(timeout=_TRANSFER_TIMEOUT + _GRACE) for each in running]
        finally:
            for each in running:
                each.kill()
                each.wait()
        seconds = time.monotonic() - began
        for output, error in outputs:
            status, moved, own = (*output.split(), "", "", "")[:3]
            if error or status != "200" or int(float(moved)) != self.size:
                told = " ".join(error.split()) or f"status {status}, {moved} bytes"
                raise Failed(f"curl: {told}; expected status 200, {self.size} bytes")
            if count == 1:
                seconds = float(own)
        return count * self.size / seconds

    # -------------------------------------------------------------- WebSockets

    def messages(self, route: Route, connections: int, window: int) -> dict[str, float]:
        """Send WebSocket messages; return ``messages``, ``seconds``, or also ``p50``, ``p99``."""
        output = _call(
            [
                *(sys.executable, "-P", str(PROGRAMS / "wsload.py")),
                *(route.address.host, str(route.address.port), route.host, "/echo"),
                *(str(self.seconds), str(connections), str(window)),
            ],
            self.seconds + _GRACE,
        )
        result: dict[str, Any] = json.loads(output)
        if "problem" in result:
            raise Failed(f"WebSocket: {result['problem']}")
        return result


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _call(command: Sequence[str], patience: float) -> str:
    """Run a load to its end; return what it prints."""
    process = _start(command)
    name = Path(command[0]).name
    try:
        output, error = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        raise Failed(f"{name} has not ended within {patience:g} s") from None
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        raise Failed(f"{name} failed: {' '.join((error or output).split())[-300:]}")
    return output

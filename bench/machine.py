"""What the machine is, and which versions of everything were there."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

from bench.contestants import Programs, version_of

__all__ = ["describe"]

_LIBRARIES = ("twisted", "autobahn", "httptools", "pyOpenSSL", "cryptography", "msgpack")


def describe(programs: Programs) -> dict[str, object]:
    """Return a description that tells runs apart, without names of machines or people."""
    versions = {}
    for name, option in (("wrk", "-v"), ("curl", "--version"), ("nginx", "-v")):
        path = programs.find(name)
        versions[name] = version_of(path, option) if path else "not there"
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _first(r"^model name\s*: (.*)$", "/proc/cpuinfo"),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
        "programs": versions,
        "revision": _revision(),
    }


def _first(pattern: str, path: str) -> str:
    found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    return found[1] if found else "unknown"


def _revision() -> str:
    """Return the commit of the checkout, and whether it was changed."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"

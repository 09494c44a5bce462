"""Compares the CPU time of the hot path's works under several interpreters, each with its sockgw.

::

    python tests/hottimes.py .venv/bin/python .venv-compiled/bin/python

Both layers run in one process without sockets (:mod:`hotpath`), one interpreter after the other,
over and over. Printed are the least CPU microseconds for each unit, and ratios to the first
interpreter.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hotpath import WORKS, Gateway

from sockgw.build import BUILD

_ROUNDS = 5  # processes of each interpreter
_TIMES = 5  # of each work in a process

Times = dict[str, float]


def measure() -> Times:
    """Return the least microseconds of each work's units here."""
    times: Times = {}
    with tempfile.TemporaryDirectory() as directory:
        gateway = Gateway(Path(directory))
        for name, work in WORKS.items():
            clients = work.begin(gateway)
            work.run(gateway, clients)  # fills caches
            least = float("inf")
            for _ in range(_TIMES):
                start = time.process_time()
                work.run(gateway, clients)
                least = min(least, time.process_time() - start)
            times[name] = least * 1e6 / work.count
    return times


def main(interpreters: list[str]) -> None:
    """Measure in turn, and print a table."""
    found: list[list[Times]] = [[] for _ in interpreters]
    builds = [""] * len(interpreters)
    for _ in range(_ROUNDS):
        for number, interpreter in enumerate(interpreters):
            output = subprocess.check_output([interpreter, __file__, "--here"], text=True)
            builds[number], times = json.loads(output)
            found[number].append(times)
    print(f"{'us of CPU, least':36}", *(f"{build:>12}" for build in builds), " ratios")
    for name in found[0][0]:
        least = [min(times[name] for times in rounds) for rounds in found]
        ratios = (f"{each / least[0]:.2f}" for each in least[1:])
        print(f"{name:36}", *(f"{each:12.1f}" for each in least), " ", *ratios)


if __name__ == "__main__":
    if sys.argv[1:] == ["--here"]:
        json.dump((BUILD, measure()), sys.stdout)
    else:
        main(sys.argv[1:])

"""The bench with real programs, as short as it can be: it measures, names, and leaves nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import environment, require, wait_until

ROOT = Path(__file__).parent.parent.parent
BENCH = [sys.executable, "-m", "bench", "compare", "--no-plots", "--size", "1M", "--seconds", "0.3"]
CHOICE = ["--rounds", "1", "--only", "sockgw all on", "--only", "origin alone"]
# One for each kind of load, and for each of the origins.
WORKS = ["get-1", "post", "download-1", "upload-8", "ws-latency", "ws-rate", "cold"]


@pytest.fixture(autouse=True)
def programs() -> None:
    for program in ("wrk", "curl", "nginx", "openssl"):
        require(program)


def test_all_kinds_of_work(tmp_path: Path) -> None:
    ssh = ["--only", "ssh -R", "--program", "ssh=/nowhere"]
    places = ["--output", str(tmp_path / "output"), "--directory", str(tmp_path)]
    done = subprocess.run(
        [*BENCH, *CHOICE, *ssh, *places, "--works", ",".join(WORKS)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    whole = json.loads((tmp_path / "output" / "compare.json").read_text())
    assert list(whole["results"]) == [*WORKS, "memory"]
    for work, contestants in whole["results"].items():
        ours = contestants["sockgw all on"]
        assert ours["failed"] is None, work
        assert all(value > 0 for name, value in ours["median"].items() if name != "cpu"), work
        assert contestants["ssh -R"]["failed"] == "ssh: /nowhere does not exist"
        if work not in ("cold", "memory"):
            assert contestants["origin alone"]["failed"] is None, work
            assert set(ours["cpu"]) == {"outer", "inner", "web", "sink", "echo"}
    assert 0 < whole["results"]["get-1"]["origin alone"]["ratio"]["rate"] < 1
    assert whole["contestants"]["sockgw all on"]["versions"].keys() == {"sockgw"}
    assert whole["machine"]["programs"]["wrk"].startswith("wrk ")
    assert "ssh: /nowhere does not exist" in done.stdout
    assert [each.name for each in tmp_path.iterdir()] == ["output"]


def test_it_can_be_interrupted(tmp_path: Path) -> None:
    places = ["--output", str(tmp_path / "output"), "--directory", str(tmp_path)]
    with subprocess.Popen(
        [*BENCH, *CHOICE, *places, "--works", "get-1", "--seconds", "60"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    ) as bench:
        try:
            # nginx and its worker, sink, echo, both layers; and the work, which takes a minute.
            below = wait_until(lambda: _descendants(bench.pid, 7, "wrk"), "wrk runs", 30)
            bench.send_signal(signal.SIGINT)
            output, _ = bench.communicate(timeout=30)
        finally:
            bench.kill()
    assert bench.returncode == 130
    assert "INTERRUPTED" in output
    # Those whose parent has ended are buried by the system, in its time.
    wait_until(lambda: not [pid for pid in below if os.path.exists(f"/proc/{pid}")], "all are gone")
    assert [each.name for each in tmp_path.iterdir()] == ["output"]


def _descendants(pid: int, least: int, name: str) -> list[int]:
    """Return all descendants, once they are so many and there is one of that name."""
    found = [pid]
    names = set()
    with contextlib.suppress(OSError):  # one has just ended
        for each in found:
            names.add(Path(f"/proc/{each}/comm").read_text().strip())
            for task in Path(f"/proc/{each}/task").glob("*/children"):
                found.extend(map(int, task.read_text().split()))
    return found[1:] if name in names and len(found) > least else []

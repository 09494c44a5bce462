"""``sockgw demo`` as a user starts it, and ends it."""

import fcntl
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
from harness import command, environment

from sockgw.demo import run

FREE = ("--app-port", "0", "--socket-port", "0", "--origin-port", "0")
PATIENCE = 60.0  # seconds for all of it


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Demo:
    """A running demonstration, in a directory of its own."""

    def __init__(self, directory: Path, *arguments: str, typed: int | None = None) -> None:
        """``typed`` is the descriptor of a terminal, which then is ours."""
        self.directory = directory
        self.mark = f"SCENE={directory}"
        self._process = subprocess.Popen(
            [command("sockgw"), "demo", *arguments],
            cwd=directory,
            env={**environment({"TMPDIR": str(directory)}), "SCENE": str(directory)},
            stdin=subprocess.DEVNULL if typed is None else typed,
            start_new_session=typed is not None,
            preexec_fn=None if typed is None else _own_terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.pid = self._process.pid
        self.text = ""

    def read_until(self, part: str) -> str:
        """Read lines up to one with that part, which is returned."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.text += line
            if part in line:
                return line
        raise AssertionError(f"no {part!r} in:\n{self.text}")

    def found(self, pattern: str) -> list[str]:
        return re.findall(pattern, self.text)

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def finish(self) -> int:
        """Return the exit status."""
        rest, _ = self._process.communicate(timeout=PATIENCE)
        self.text += rest
        return self._process.returncode

    def left(self) -> list[str]:
        """What is there still: processes, which have the mark in their environment, and files."""
        left = [path.name for path in self.directory.iterdir()]
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark in (process / "environ").read_bytes().decode(errors="replace"):
                    left.append((process / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue  # it has gone, or is another user's
        return left

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def demo(directory: Path, *arguments: str, typed: int | None = None) -> Iterator[Demo]:
    running = Demo(directory, *arguments, typed=typed)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(autouse=True)
def _linux() -> None:
    if sys.platform != "linux":
        pytest.skip("/proc is not there")


def test_once(tmp_path: Path) -> None:
    with demo(tmp_path, "--once", *FREE) as running:
        assert running.finish() == 0, running.text
        assert running.text.count("  ok  ") == 8
        assert "FAILED" not in running.text
        assert "taken" not in running.text
        assert running.left() == []


def test_a_check_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(run, "run_checks", lambda client, interrupted: False)
    options = {"once": 1, "app-port": 0, "socket-port": 0, "origin-port": 0}
    assert run.main(options) == 1
    error = capsys.readouterr().err
    for log in ("origin.log", "outer-layer.log", "inner-layer.log"):
        assert log in error
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with demo(tmp_path, "--once", *FREE, "--origin-port", str(port)) as running:
            assert running.finish() == 1
            sentence = f"sockgw demo: --origin-port {port}: the port is taken"
            assert running.text.splitlines()[-1].startswith(sentence)
            assert running.left() == []


def test_ctrl_c_ends_everything(tmp_path: Path) -> None:
    with demo(tmp_path, *FREE) as running:
        running.read_until("Ctrl-C")
        assert len(running.left()) == 5  # ours, three more, and the directory
        (url,) = running.found(r"\n  (http://localhost:\d+)/  ")
        (admin,) = running.found(r"\n  (http://localhost:\d+)/admin")
        assert get(url, "/echo") == 200
        assert get(admin, "/admin") == 401
        running.send(signal.SIGINT)
        assert running.finish() == 0, running.text
        assert running.left() == []


def test_enter_cuts_the_line_and_goes_on(tmp_path: Path) -> None:
    keyboard, terminal = os.openpty()
    try:
        with demo(tmp_path, *FREE, typed=terminal) as running:
            running.read_until("Enter cuts the line for some seconds, Ctrl-C ends it.")
            os.write(keyboard, b"\n")
            while "cut for 4 s" not in running.read_until(" cut "):
                os.write(keyboard, b"\n")  # the checks had cut it only just now
            os.write(keyboard, b"\n")
            running.read_until("It was cut only just now.")
            os.write(keyboard, b"\x04")  # the end of what is typed is not ours
            (url,) = running.found(r"\n  (http://localhost:\d+)/  ")
            assert get(url, "/echo") == 200  # once the line is back
            os.write(keyboard, b"\x03")
            assert running.finish() == 0, running.text
            assert running.left() == []
    finally:
        os.close(keyboard)
        os.close(terminal)


@pytest.mark.parametrize(
    ("part", "number"),
    [("sockgw ", signal.SIGTERM), ("In /", signal.SIGHUP), ("  origin  ", signal.SIGINT)],
)
def test_a_signal_ends_it_at_any_moment(tmp_path: Path, part: str, number: int) -> None:
    with demo(tmp_path, *FREE) as running:
        running.read_until(part)
        running.send(number)
        assert running.finish() == 0, running.text
        assert "Traceback" not in running.text
        assert running.left() == []


def test_interrupted_checks_are_no_success(tmp_path: Path) -> None:
    with demo(tmp_path, "--once", *FREE) as running:
        running.read_until("Through")
        running.send(signal.SIGTERM)
        assert running.finish() == 1
        assert running.left() == []


def test_a_process_that_dies_ends_the_rest(tmp_path: Path) -> None:
    with demo(tmp_path, *FREE) as running:
        running.read_until("Ctrl-C")
        (pid,) = running.found(r"\n  outer layer .*\(process (\d+)\)")
        os.kill(int(pid), signal.SIGKILL)
        assert running.finish() == 1
        assert "sockgw demo: the outer layer ended by signal 9\n" in running.text
        assert running.left() == []


def test_no_process_outlives_a_demo_that_is_killed(tmp_path: Path) -> None:
    with demo(tmp_path, *FREE) as running:
        running.read_until("Ctrl-C")
        ends = [os.pidfd_open(int(pid)) for pid in running.found(r"\(process (\d+)\)")]
        assert len(ends) == 3
        running.send(signal.SIGKILL)
        for end in ends:
            assert select.select([end], [], [], PATIENCE)[0]  # readable when it has ended
            os.close(end)


def get(url: str, path: str) -> int:
    """The status of a GET."""
    host = url.removeprefix("http://")
    connection = HTTPConnection("127.0.0.1", int(host.partition(":")[2]), timeout=PATIENCE)
    try:
        connection.request("GET", path, headers={"Host": host})
        return connection.getresponse().status
    finally:
        connection.close()

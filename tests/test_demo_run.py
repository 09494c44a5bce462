"""The demonstration's ports, processes and checks. As a whole: tests/e2e/test_demo.py."""

import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sockgw.demo import children
from sockgw.demo.checks import CHECKS, Client, run_checks
from sockgw.demo.children import Child, DemoError, Port
from sockgw.demo.run import main
from sockgw.endpoints import validate


@pytest.fixture
def held():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


# ---------------------------------------------------------------------- ports


def test_a_usual_port_that_is_taken_becomes_another(held, taken, capsys):
    port = Port.claim(held, "app-port", None, taken)
    assert port.number != taken
    assert capsys.readouterr().out == f"Port {taken} is taken: it is {port.number} instead.\n"


def test_a_wanted_port_that_is_taken_is_an_error(held, taken):
    with pytest.raises(DemoError) as raised:
        Port.claim(held, "app-port", taken, 3000)
    assert str(raised.value).startswith(f"--app-port {taken}: the port is taken")


def test_a_port_that_only_ipv6_has_taken_is_taken(held):
    try:
        listening = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("IPv6 is missing")
    with listening:
        number = listening.getsockname()[1]
        with pytest.raises(DemoError, match="is taken"):
            Port.claim(held, "app-port", number, 3000)


def test_a_claimed_port_is_for_those_who_allow_reuse(held):
    port = Port.claim(held, "app-port", 0, 3000)
    assert port.addresses[0] == "127.0.0.1"
    for address in port.addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind((address, port.number))
        with socket.create_server((address, port.number), family=family) as server:
            assert server.getsockname()[1] == port.number


def test_claimed_ports_are_different(held):
    ports = [Port.claim(held, "app-port", 0, 3000) for _ in range(5)]
    assert len({port.number for port in ports}) == 5


def test_endpoints(held):
    port = Port(4711, ("127.0.0.1", "::1"))
    assert port.endpoints == ["tcp:4711:interface=127.0.0.1", r"tcp:4711:interface=\:\:1"]
    for endpoint in port.endpoints:
        validate(endpoint)


# ---------------------------------------------------------------------- processes


def child(directory, code):
    """Start a process that runs the code, and wait until that has said it is ready."""
    os.mkfifo(directory / "ready")
    (directory / "program.py").write_text(
        "import os, signal, sys, time\ndef ready():\n    with open('ready', 'w'): pass\n" + code
    )
    started = Child("small program", directory, ["program"])
    with (directory / "ready").open() as file:
        file.read()
    return started


def test_a_process_that_lives(tmp_path):
    started = child(tmp_path, "ready()\nsignal.pause()\n")
    started.check()
    started.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(started.pid, 0)


def test_a_process_that_dies_tells_why(tmp_path):
    code = (
        "print(*range(30), sep='\\n', flush=True)\n"
        "print('alas', file=sys.stderr)\n"
        "ready()\n"
        "sys.exit(3)\n"
    )
    started = child(tmp_path, code)
    os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(DemoError) as raised:
        started.check()
    first, log, *lines = str(raised.value).splitlines()
    assert first == "the small program ended with status 3"
    assert log == f"  {tmp_path}/small-program.log:"
    assert [line.strip() for line in lines[-2:]] == ["29", "alas"]
    assert len(lines) == 10
    started.stop()


def test_a_process_that_will_not_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "_STOP_TIMEOUT", 0.05)
    code = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "signal.alarm(10)\n"  # where nobody kills it
        "ready()\n"
        "signal.pause()\n"
    )
    started = child(tmp_path, code)
    started.stop()
    with pytest.raises(DemoError, match="ended by signal 9"):
        started.check()


def test_a_process_gets_nothing_of_ours_that_would_mislead_it(tmp_path, monkeypatch):
    misleading = {
        "SOCKGW_ADMIN_PORT": "1",
        "http_proxy": "http://proxy.example",
        "HTTPS_PROXY": "http://proxy.example",
        "NOTIFY_SOCKET": "/run/notify",
        "LISTEN_FDS": "1",
    }
    for name, value in misleading.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HARMLESS", "1")
    code = "with open('environment', 'w') as f: f.write('\\n'.join(os.environ))\nready()\n"
    child(tmp_path, code).stop()
    names = (tmp_path / "environment").read_text().splitlines()
    assert "HARMLESS" in names
    assert not set(misleading) & set(names)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux is missing")
def test_a_process_dies_with_its_parent(tmp_path):
    os.mkfifo(tmp_path / "alive")
    (tmp_path / "program.py").write_text(
        "import os, signal\n"
        "os.open('alive', os.O_WRONLY)\n"  # until the end of the process
        "signal.alarm(20)\n"
        "signal.pause()\n"
    )
    code = (
        "import pathlib, signal, sys; from sockgw.demo.children import Child;"
        "Child('small program', pathlib.Path(sys.argv[1]), ['program']); signal.pause()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, tmp_path])
    with (tmp_path / "alive").open() as alive:
        parent.kill()
        parent.wait()
        assert select.select([alive], [], [], 10)[0]
        assert alive.read() == ""  # it ends when nobody has it open for writing


# ---------------------------------------------------------------------- checks


def test_checks_fail_without_a_server(held, capsys):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert not run_checks(Client(bound.getsockname()[1]))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CHECKS)
    assert all(line.startswith("  FAILED  ") for line in lines)


class _Answers200(BaseHTTPRequestHandler):
    """Answers everything in the same way."""

    def do_GET(self, body=b"one\ntwo\nthree\nfour\n"):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        if self.headers.get("Transfer-Encoding"):
            while self.rfile.readline() != b"0\r\n":
                pass
            self.do_GET(b'{"bytes": 8388608, "sha256": "wrong"}')
        else:
            self.do_GET(b"head\n\nbody\n")

    def log_message(self, *arguments):
        pass


def test_checks_notice_wrong_answers(capsys):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers200) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            assert not run_checks(Client(server.server_port))
        finally:
            server.shutdown()
            thread.join()
    out = capsys.readouterr().out
    assert out.count("FAILED") == len(CHECKS), out


# ---------------------------------------------------------------------- the whole


def test_a_wanted_port_that_is_taken_starts_nothing(taken, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    options = {"once": 1, "app-port": taken, "socket-port": 0, "origin-port": 0}
    assert main(options) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"sockgw demo: --app-port {taken}: the port is taken")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

"""The wall clock is set to another day while everything runs: nobody notices."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from clients import Client
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_certificate
from harness import PATIENCE, Inner, Keys, Outer, require, run
from origins import Connection, Origin, Request, answering

DAY = 86_400

# Pings come several times a second: one that is judged by the wrong clock ends the tunnel.
PINGS = ("--ping-interval", "200", "--ping-timeout", "5000")
TIMEOUT = 3.0  # seconds that an origin has for the first byte; a busy machine needs one of them


class WallClock:
    """What libfaketime tells processes that ask for the time of day."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)
        preload = run(require("faketime"), "-m", "now", "printenv", "LD_PRELOAD").stdout.strip()
        assert preload, "faketime does not say which library it uses"
        self.environment = {
            "LD_PRELOAD": preload,
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            # Both names, of older and newer versions.
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset: float) -> None:
        """From now on it is so many seconds later than it is."""
        self.offset = offset
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset:+g}\n")
        new.replace(self._file)

    def now(self) -> float:
        return time.time() + self.offset


class Office:
    """Both layers with clocks that can be set, and an origin that answers when it is told to."""

    def __init__(self, stack: ExitStack, directory: Path, keys: Keys) -> None:
        self.clock = WallClock(directory / "clock")
        self.asked = threading.Event()
        self.release = threading.Event()
        origin = stack.enter_context(Origin(answering(self._respond)))
        key = f"{keys.name}={_bare(keys, directory)}"
        options = (*PINGS, "--timeout", f"{TIMEOUT * 1000:.0f}", "--log-format", "json")
        env = self.clock.environment
        self.outer = stack.enter_context(Outer(directory, key, *options, env=env))
        inner = Inner(directory, keys.private, self.outer.socket_port, *PINGS, env=env)
        stack.enter_context(inner)
        self.outer.wait_for_tunnels(1)
        self.host = self.outer.route(origin)

    def _respond(self, connection: Connection, request: Request) -> None:
        if request.target == "/silent":
            connection.wait_gone()
        elif request.target == "/slow":
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
            self.asked.set()
            assert self.release.wait(PATIENCE)
            connection.send(b" last")
        else:
            connection.answer(b"quick")

    def entry(self, path: str) -> dict[str, Any]:
        """Return the last line of the access log about that path."""
        line: dict[str, Any] = json.loads(self.outer.access.wait(f'"target": "{path}"'))
        return line


def _bare(keys: Keys, directory: Path) -> Path:
    """Return a file with the public key alone: a certificate of today is not valid yesterday."""
    certificate = load_pem_x509_certificate(keys.certificate.read_bytes())
    file = directory / "bare.pub"
    file.write_bytes(
        certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return file


@pytest.fixture
def office(tmp_path: Path, keys: Keys) -> Iterator[Office]:
    with ExitStack() as stack:
        yield Office(stack, tmp_path, keys)


def told(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize("jump", [DAY, -DAY], ids=["ahead", "back"])
def test_wall_clock_is_set(office: Office, jump: int) -> None:
    outer = office.outer
    with Client(outer.app_port) as slow, Client(outer.app_port) as kept:
        assert kept.request(office.host, "/before").text == "quick"
        slow.ask(office.host, "/slow")
        assert office.asked.wait(PATIENCE)
        office.clock.set(jump)

        # It holds already: the answer to this one is dated by it, and so is its line in the log.
        answer = kept.request(office.host, "/after")
        assert answer.text == "quick", "a connection that was open did not stay"
        date = datetime.strptime(answer.header("Date") or "", "%a, %d %b %Y %H:%M:%S GMT")
        assert abs(date.replace(tzinfo=UTC).timestamp() - office.clock.now()) < 5
        entry = office.entry("/after")
        assert abs(told(entry["time"]) - office.clock.now()) < 5
        assert 0 <= entry["duration"] < TIMEOUT

        # Deadlines are neither met early nor never.
        begun = time.monotonic()
        answer = kept.request(office.host, "/silent")
        assert answer.status == 504
        assert TIMEOUT <= time.monotonic() - begun < 2 * TIMEOUT

        # Several pings later the tunnel is the same one, and what it carried goes on.
        office.release.set()
        assert slow.answer().text == "first last"
        entry = office.entry("/slow")
        assert entry["status"] == 200
        assert entry["outcome"] == ""
        assert TIMEOUT < entry["duration"] < 10 * TIMEOUT
        assert abs(told(entry["time"]) + entry["duration"] - office.clock.now()) < 5
        assert kept.request(office.host, "/end").text == "quick"
    assert not outer.log.matching("disconnected")


def test_wall_clock_is_set_there_and_back(office: Office) -> None:
    """Back: timers that were started in between would otherwise hang for a day."""
    office.clock.set(DAY)
    with Client(office.outer.app_port) as client:
        assert client.request(office.host, "/ahead").text == "quick"
        client.ask(office.host, "/silent")
        office.clock.set(0)
        begun = time.monotonic()
        assert client.answer().status == 504
        assert time.monotonic() - begun < 2 * TIMEOUT
        assert client.request(office.host, "/back").text == "quick"
    assert not office.outer.log.matching("disconnected")

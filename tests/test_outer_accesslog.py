"""The access log: its lines, its batches, and destinations that fail."""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher

from sockgw.outer import accesslog
from sockgw.outer.accesslog import AccessLog, Entry

PLAIN = Entry(
    time=1795374429.1239,
    client="192.0.2.1",
    method=b"GET",
    target=b"/a?b=c",
    protocol="HTTP/1.1",
    status=200,
    bytes_out=12,
    bytes_in=3,
    referer=None,
    user_agent=b"curl/8.5.0",
    target_name="*.example.org",
    identifier="office",
    request_id=b"4f7e1b2c",
    duration=0.1234,
    first_byte=0.05,
    tries=1,
    held=0.0,
    outcome="",
)
LINE = (
    '192.0.2.1 - - [22/Nov/2026:19:07:09 +0000] "GET /a?b=c HTTP/1.1" 200 12 "-" "curl/8.5.0"'
    " target=*.example.org identifier=office id=4f7e1b2c duration=0.123 first_byte=0.050"
    " bytes_in=3 tries=1 held=0 outcome=-\n"
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
def events() -> Iterator[list[LogEvent]]:
    seen: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        if event["log_namespace"] == accesslog.__name__:
            seen.append(event)

    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


def written(path: Path, format: str, *entries: Entry) -> str:
    log = AccessLog(str(path), format, Clock())
    for entry in entries:
        log.record(entry)
    log.close()
    return path.read_text("ascii")


def test_text_line(path: Path) -> None:
    assert written(path, "text", PLAIN) == LINE


def test_text_line_with_much_to_escape(path: Path) -> None:
    entry = PLAIN._replace(
        client="fe80::1%eth0",
        target=b"/\r\n\x1b[2J\xff",
        referer=b'"\\',
        user_agent=b'x" 200 "',
        target_name="",
        identifier="büro 2",
        request_id=b'a" outcome=-',
        first_byte=None,
        tries=2,
        held=1.25,
        outcome="client left",
    )
    assert written(path, "text", entry) == (
        '"fe80::1%eth0" - - [22/Nov/2026:19:07:09 +0000] "GET /\\x0d\\x0a\\x1b[2J\\xff HTTP/1.1"'
        ' 200 12 "\\"\\\\" "x\\" 200 \\"" target=- identifier="b\\xc3\\xbcro 2"'
        ' id="a\\" outcome=-" duration=0.123 first_byte=- bytes_in=3 tries=2 held=1.250'
        ' outcome="client left"\n'
    )


def test_json_line(path: Path) -> None:
    assert json.loads(written(path, "json", PLAIN)) == {
        "time": "2026-11-22T19:07:09.123Z",
        "client": "192.0.2.1",
        "method": "GET",
        "target": "/a?b=c",
        "protocol": "HTTP/1.1",
        "status": 200,
        "bytes_out": 12,
        "bytes_in": 3,
        "referer": None,
        "user_agent": "curl/8.5.0",
        "target_name": "*.example.org",
        "identifier": "office",
        "request_id": "4f7e1b2c",
        "duration": 0.1234,
        "first_byte": 0.05,
        "tries": 1,
        "held": 0.0,
        "outcome": "",
    }


HOSTILE = st.builds(
    PLAIN._replace,
    client=st.text(),
    method=st.binary(),
    target=st.binary(),
    referer=st.none() | st.binary(),
    user_agent=st.none() | st.binary(),
    target_name=st.text(),
    identifier=st.text(),
    request_id=st.binary(),
    first_byte=st.none() | st.floats(0, 1e6),
    tries=st.integers(0, 9),
    held=st.just(0.0) | st.floats(0, 1e6),
    outcome=st.text(),
)
QUOTED = r'"(?:[^"\\]|\\["\\]|\\x[0-9a-f]{2})*"'
WORD = rf"(?:[^ \"=]+|{QUOTED})"
GRAMMAR = re.compile(
    rf"{WORD} - - \[[^]]+\] {QUOTED} \d+ \d+ {QUOTED} {QUOTED} target={WORD} identifier={WORD}"
    rf" id={WORD} duration=[0-9.]+ first_byte=(?:-|[0-9.]+) bytes_in=\d+ tries=\d+"
    rf" held=[0-9.]+ outcome={WORD}\n"
)


@given(HOSTILE)
@example(PLAIN._replace(user_agent=b"\\"))
@example(PLAIN._replace(referer=b'"'))
@example(PLAIN._replace(outcome="\ud800 "))
def test_a_record_is_one_line_that_keeps_its_fields(entry: Entry) -> None:
    line = accesslog._as_text(entry)
    assert line.isascii()
    assert line[:-1].isprintable()
    assert GRAMMAR.fullmatch(line)
    line = accesslog._as_json(entry)
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert json.loads(line)["identifier"] == entry.identifier


def test_lines_are_written_in_batches(path: Path, clock: Clock) -> None:
    log = AccessLog(str(path), "text", clock)
    log.record(PLAIN)
    log.record(PLAIN)
    assert path.read_text() == ""
    clock.advance(0.1)
    assert path.read_text() == 2 * LINE
    assert not clock.getDelayedCalls()
    log.record(PLAIN)
    clock.advance(0.1)
    assert path.read_text() == 3 * LINE


def test_a_full_batch_does_not_wait(path: Path, clock: Clock) -> None:
    log = AccessLog(str(path), "text", clock)
    for _ in range(accesslog._MAX_ENTRIES + 1):
        log.record(PLAIN)
    assert path.read_text() == accesslog._MAX_ENTRIES * LINE
    log.close()
    assert path.read_text() == (accesslog._MAX_ENTRIES + 1) * LINE
    assert not clock.getDelayedCalls()


def test_off(clock: Clock) -> None:
    log = AccessLog("off", "text", clock)
    log.record(PLAIN)
    assert not clock.getDelayedCalls()
    log.reopen()
    log.close()


def test_reopen_after_logrotate(path: Path, clock: Clock) -> None:
    log = AccessLog(str(path), "text", clock)
    log.record(PLAIN)
    moved = path.rename(path.with_suffix(".1"))
    log.reopen()
    log.record(PLAIN._replace(status=404))
    log.close()
    assert moved.read_text() == LINE
    assert " 404 " in path.read_text()


def test_reopen_keeps_the_old_file_where_there_is_no_new_one(
    path: Path, clock: Clock, events: list[LogEvent]
) -> None:
    path.parent.joinpath("logs").mkdir()
    path = path.parent / "logs" / "access.log"
    log = AccessLog(str(path), "text", clock)
    moved = path.parent.rename(path.parent.with_suffix(".1"))
    log.reopen()
    assert len(events) == 1
    log.record(PLAIN)
    log.close()
    assert (moved / "access.log").read_text() == LINE


def test_appends_and_is_not_for_everybody(path: Path) -> None:
    written(path, "text", PLAIN)
    assert written(path, "text", PLAIN) == 2 * LINE
    assert not path.stat().st_mode & 0o007


def test_a_path_that_cannot_be_opened(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(OSError, match="directory"):
        AccessLog(str(tmp_path), "text", clock)


class Pipe:
    """Standard output with a reader that the test is."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(self.reader, False)

    def read(self) -> bytes:
        """Return what is there; raise BlockingIOError where nothing is."""
        return os.read(self.reader, 1 << 20)

    def close(self) -> None:
        for fd in (self.reader, self.writer):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_standard_output(pipe: Pipe, clock: Clock) -> None:
    log = AccessLog("-", "text", clock, stdout=pipe.writer)
    log.record(PLAIN)
    clock.advance(0.1)
    assert pipe.read().decode() == LINE
    log.close()
    os.fstat(pipe.writer)  # not ours to close


def test_a_reader_who_stopped_blocks_nothing(
    pipe: Pipe, clock: Clock, monkeypatch: pytest.MonkeyPatch, events: list[LogEvent]
) -> None:
    monkeypatch.setattr(accesslog, "_MAX_PENDING", 20_000)
    log = AccessLog("-", "text", clock, stdout=pipe.writer)
    for count in range(1000):
        log.record(PLAIN._replace(status=count))
        if count % 10 == 9:
            clock.advance(0.1)
    assert len(log._pending) < 25_000
    assert log._dropped > 0
    assert events == []
    # The reader comes back: it gets whole lines in order, then the log says what is missing.
    received = b""
    while clock.getDelayedCalls():
        received += pipe.read()
        clock.advance(0.1)
    received += pipe.read()
    log.record(PLAIN)
    clock.advance(0.1)
    received += pipe.read()
    lines = received.decode().splitlines(keepends=True)
    assert lines[:-1] == [LINE.replace(" 200 ", f" {n} ") for n in range(len(lines) - 1)]
    assert lines[-1] == LINE
    assert [event["count"] for event in events] == [1000 - (len(lines) - 1)]
    log.close()


def test_a_line_longer_than_a_page(pipe: Pipe, clock: Clock) -> None:
    log = AccessLog("-", "text", clock, stdout=pipe.writer)
    log.record(PLAIN._replace(target=b"/" + 10_000 * b"x"))
    received = b""
    clock.advance(0.1)
    while clock.getDelayedCalls():
        received += pipe.read()
        clock.advance(0.1)
    received += pipe.read()
    assert len(received) == len(LINE) - len("/a?b=c") + 10_001
    log.close()


@pytest.mark.parametrize("end", ["reader", "writer"])
def test_closed_standard_output(pipe: Pipe, clock: Clock, end: str, events: list[LogEvent]) -> None:
    log = AccessLog("-", "text", clock, stdout=pipe.writer)
    os.close(getattr(pipe, end))
    setattr(pipe, end, -1)
    for _ in range(3):
        log.record(PLAIN)
        clock.advance(0.1)
    assert len(events) == 1
    assert not clock.getDelayedCalls()
    log.close()


def test_a_full_disk_is_told_once_and_tried_again(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, events: list[LogEvent]
) -> None:
    log = AccessLog(str(path), "text", clock)
    write: Any = os.write

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    for space in (full, full, write, full):
        monkeypatch.setattr(os, "write", space)
        log.record(PLAIN)
        clock.advance(0.1)
    assert path.read_text() == LINE
    assert len(events) == 2
    monkeypatch.undo()
    log.close()

"""Events as lines of text and of JSON, and where they go under twistd."""

import io
import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.application import service
from twisted.application.app import AppLogger
from twisted.logger import ILogObserver, Logger, LogLevel, LogPublisher
from twisted.python import log as legacy
from twisted.python.failure import Failure
from twisted.scripts.twistd import ServerOptions

from sockgw.logs import install, observer


def logger(format: str) -> tuple[Logger, io.StringIO]:
    stream = io.StringIO()
    publisher = LogPublisher(observer(format, stream))
    return Logger("sockgw.test", observer=publisher), stream


def failure(text: str) -> Failure:
    try:
        raise RuntimeError(text)
    except RuntimeError:
        return Failure()


EVENT: dict[str, Any] = {
    "log_time": 1795374429.1239,
    "log_format": "inner layer {identifier} connected address={address}",
    "identifier": "büro",
    "address": "192.0.2.1",
}


def test_text_line() -> None:
    stream = io.StringIO()
    observer("text", stream)(dict(EVENT))
    assert (
        stream.getvalue()
        == "2026-11-22T19:07:09.123Z info  inner layer büro connected address=192.0.2.1\n"
    )


def test_json_line() -> None:
    log, stream = logger("json")
    log.warn(
        "window of {stream}",
        stream=7,
        name=b"\xffx",
        nothing=None,
        rate=math.inf,
        thing=object(),
        system="kept",
    )
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warn",
        "namespace": "sockgw.test",
        "text": "window of 7",
        "fields": {
            "stream": 7,
            "name": "\\xffx",
            "nothing": None,
            "rate": "inf",
            "system": "kept",
        },
    }


@pytest.mark.parametrize("format", ["text", "json"])
def test_debug_events_are_left_out(format: str) -> None:
    log, stream = logger(format)
    log.debug("details")
    assert stream.getvalue() == ""


@given(st.text())
@example("\u2028\u2029\u202e\x85\x1b\r\n\ud800")
def test_no_text_forges_a_line_or_commands_a_terminal(text: str) -> None:
    log, stream = logger("text")
    log.info("refused {text}", text=text)
    written = stream.getvalue()
    assert written.endswith("\n")
    assert len(written.splitlines()) == 1
    assert not any(c < " " or "\x7f" <= c <= "\x9f" for c in written[:-1])
    assert "\u202e" not in written
    written.encode()


@given(st.text())
def test_json_is_one_line_and_round_trips(text: str) -> None:
    log, stream = logger("json")
    log.info("refused {text}", text=text)
    written = stream.getvalue()
    assert len(written.splitlines()) == 1
    assert json.loads(written)["fields"] == {"text": text}


def test_lines_of_a_traceback_are_indented() -> None:
    log, stream = logger("text")
    log.failure("while testing", failure("first\n2026-11-22T19:07:09.123Z info  forged\x1b[2J"))
    head, *rest = stream.getvalue().splitlines()
    assert head.endswith(" critical while testing")
    assert any("RuntimeError: first" in line for line in rest)
    assert all(line.startswith("    ") for line in rest)
    assert "\x1b" not in stream.getvalue()


def test_traceback_in_json() -> None:
    log, stream = logger("json")
    log.failure("while testing", failure("broken"))
    line = json.loads(stream.getvalue())
    assert line["text"] == "while testing"
    assert line["traceback"].endswith("RuntimeError: broken")


@pytest.mark.parametrize("why", [None, "why it broke"])
def test_old_style_failure(why: str | None) -> None:
    stream = io.StringIO()
    old = legacy.LogPublisher(publishPublisher=(publisher := LogPublisher()))
    publisher.addObserver(observer("json", stream))
    old.msg(failure=failure("broken"), why=why, isError=1)
    line = json.loads(stream.getvalue())
    assert line["text"] == (why or "Unhandled error")
    assert line["level"] == "critical"
    assert line["traceback"].endswith("RuntimeError: broken")
    assert line["fields"] == {}


def test_event_that_cannot_be_formatted() -> None:
    log, stream = logger("text")
    log.info("{missing.attribute}", missing=None)
    assert len(stream.getvalue().splitlines()) == 1


def test_what_the_terminal_cannot_show_is_escaped() -> None:
    raw = io.BytesIO()
    terminal = io.TextIOWrapper(raw, encoding="ascii")
    observer("text", terminal)(dict(EVENT))
    assert b"inner layer b\\xfcro connected" in raw.getvalue()


class Plugin(service.Service):
    """As ours: installs the observer when twistd hands it the application."""

    def __init__(self, options: ServerOptions, stream: io.StringIO) -> None:
        self.options = options
        self.stream = stream
        self.installed = False

    def setServiceParent(self, parent: Any) -> None:
        self.installed = install(parent, self.options, "text", self.stream)
        super().setServiceParent(parent)


@pytest.mark.parametrize(
    ("arguments", "ours"),
    [
        (["-n"], True),
        (["-n", "--logfile", "-"], True),
        (["-n", "--logfile", "twistd.log"], False),
        (["-n", "--syslog"], False),
        (["-n", "--logger", "twisted.logger.LogPublisher"], False),
        ([], False),
    ],
)
def test_twistd(arguments: list[str], ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ServerOptions()
    options.parseOptions(arguments)
    stream = io.StringIO()
    plugin = Plugin(options, stream)
    application = service.Application("test")
    plugin.setServiceParent(application)
    assert plugin.installed is ours
    assert (ILogObserver(application, None) is not None) is ours
    if ours:
        began: list[Any] = []
        monkeypatch.setattr("twisted.logger.globalLogBeginner.beginLoggingTo", began.extend)
        AppLogger(options).start(application)
        began[0](dict(EVENT))
        assert "inner layer büro" in stream.getvalue()


def test_no_twistd() -> None:
    assert not install(service.Application("test"), None, "text")
    assert not install(service.MultiService(), {"nodaemon": True}, "text")


@pytest.mark.parametrize(
    "text", ["_Site starting on 3001", "(TCP Port 3001 Closed)", "Stopping factory <x>"]
)
def test_twisteds_remarks_on_listeners_are_left_out(text):
    stream = io.StringIO()
    watcher = observer("text", stream)
    event = {"log_time": 0.0, "log_level": LogLevel.info, "log_format": "{text}", "text": text}
    watcher({**event, "log_namespace": "twisted.internet.tcp"})
    assert stream.getvalue() == ""
    watcher({**event, "log_namespace": "twisted.internet.tcp", "text": "something else"})
    assert "something else" in stream.getvalue()
    watcher({**event, "log_namespace": "sockgw.outer"})
    assert text in stream.getvalue()

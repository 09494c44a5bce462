"""Log observers for events: one line each, as text or as JSON.

Text from outside may stand in any event. No character of it can end a line, so that no line is
forged, nor command a terminal; tracebacks follow in indented lines, as no event's line is.
"""

import io
import json
import math
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from twisted.logger import FileLogObserver, ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.components import Componentized
from twisted.python.failure import Failure

__all__ = ["install", "observer"]

# C0 and C1 controls, line and paragraph separators, overrides of direction (which let a text show
# in another order than it has), and halves of surrogate pairs, which no encoding can write.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# Twisted's ports and factories, by class, address or number.
_NOISE = re.compile(
    r"\S+ starting on |\(.{0,99} Port .{0,99} Closed\)|(?:Starting|Stopping) factory "
)

# What twisted.python.log adds to its events.
_LEGACY = frozenset(("failure", "format", "isError", "message", "printed", "system", "time", "why"))


def observer(format: str, stream: TextIO) -> ILogObserver:
    """Return an observer that writes events of level info and above to the stream.

    ``format`` is ``"text"`` or ``"json"``.
    """
    if isinstance(stream, io.TextIOWrapper):
        # A terminal that cannot show a character is no reason to lose the line.
        stream.reconfigure(errors="backslashreplace")
    written = _as_json if format == "json" else _as_text
    return FileLogObserver(stream, written)


def install(
    application: object,
    twistd: Mapping[str, Any] | None,
    format: str,
    stream: TextIO | None = None,
) -> bool:
    """Make twistd log events our way to standard output; return whether that was done.

    To be called in ``setServiceParent`` of a service that ``makeService`` returned: twistd's
    AppLogger looks for the application's log observer right after that. ``application`` is what
    ``setServiceParent`` was given, ``twistd`` the ``parent`` of the plugin's Options (the
    ServerOptions). Where the user asked twistd for another place (``--logger``, ``--syslog``,
    ``--logfile``), or it becomes a daemon, twistd's own observer stays. ``stream`` is for tests.
    """
    if twistd is None or not isinstance(application, Componentized):
        return False
    if twistd.get("logger") or twistd.get("syslog") or twistd.get("logfile") not in (None, "", "-"):
        return False
    if not (twistd.get("nodaemon") or twistd.get("debug")):
        return False
    # sys.stdout as it is now: twistd replaces it by a file that logs what is printed.
    application.setComponent(ILogObserver, observer(format, stream or sys.stdout))
    return True


def _as_text(event: LogEvent) -> str | None:
    level = _level(event)
    text, failure = _content(event)
    if level < LogLevel.info or _is_noise(event, text):
        return None
    lines = [f"{_time(event)} {level.name:<5} {_UNSAFE.sub(_escape, text)}"]
    if failure is not None:
        lines += ("    " + _UNSAFE.sub(_escape, line) for line in _traceback(failure).split("\n"))
    return "\n".join(lines) + "\n"


def _as_json(event: LogEvent) -> str | None:
    level = _level(event)
    text, failure = _content(event)
    if level < LogLevel.info or _is_noise(event, text):
        return None
    entry: dict[str, object] = {
        "time": _time(event),
        "level": level.name,
        "namespace": str(event.get("log_namespace", "")),
        "text": text,
        "fields": _fields(event),
    }
    if failure is not None:
        entry["traceback"] = _traceback(failure)
    return json.dumps(entry) + "\n"


def _is_noise(event: LogEvent, text: str) -> bool:
    """Tell whether it is Twisted's remark on a listener, which our own event has said better."""
    return _NOISE.match(text) is not None and not str(event.get("log_namespace")).startswith(
        "sockgw"
    )


def _content(event: LogEvent) -> tuple[str, Failure | None]:
    """Return an event's text and its failure, of both Twisted's logging systems."""
    failure = event.get("log_failure")
    if failure is None and isinstance(event.get("failure"), Failure):
        # The old system's text of a failure is its whole traceback.
        return str(event.get("why") or "Unhandled error"), event["failure"]
    return formatEvent(event), failure


def _traceback(failure: Failure) -> str:
    try:
        return failure.getTraceback().rstrip()
    except Exception:  # noqa: BLE001 - an exception's own __str__ may be broken
        return f"(no traceback of {failure.type!r})"


def _fields(event: LogEvent) -> dict[str, object]:
    """Return the event's fields of simple types."""
    legacy = _LEGACY if "isError" in event else frozenset()
    fields: dict[str, object] = {}
    for name, value in event.items():
        if name.startswith("log_") or name in legacy:
            continue
        if isinstance(value, bytes):
            value = value.decode("utf-8", "backslashreplace")
        elif isinstance(value, float) and not math.isfinite(value):
            value = str(value)  # JSON has no such numbers
        if value is None or isinstance(value, (str, int, float)):
            fields[name] = value
    return fields


def _level(event: LogEvent) -> Any:
    return event.get("log_level") or LogLevel.info


def _time(event: LogEvent) -> str:
    moment = datetime.fromtimestamp(event.get("log_time", 0.0), UTC)
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")

"""The admin page: who is connected, what may be reached, what has failed. It changes nothing.

Every cell passes through one escape in :func:`_table`, and the page's policy allows nothing but its
own style sheet, by its hash: text from outside stays text.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from html import escape
from http import HTTPStatus
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.resource import Resource

__all__ = ["AdminResource", "AdminState", "Failure", "TargetView", "TunnelView", "answer"]

_log = Logger()

# Ten wrong passwords from an address and it waits a minute: 14,400 guesses a day.
_MAX_ATTEMPTS = 10
_ATTEMPTS_WINDOW = 60.0  # seconds
_MAX_ADDRESSES = 1000

_MAX_ROWS = 500  # of a table; the JSON view has all
_REFRESH = 5  # seconds


@dataclass(frozen=True, slots=True)
class TunnelView:
    """An inner layer's tunnel. Times in seconds, ``since`` of the epoch."""

    identifier: str
    address: str
    fingerprint: str
    since: float
    streams: int
    bytes_in: int  #: from the inner layer
    bytes_out: int  #: to it
    round_trip: float | None
    suspended: bool  #: it has lost its carrier and may get another
    resumes: int  #: how often it has got another
    takeovers: int  #: how often of these while the one before looked alive
    resent: int  #: bytes sent again to it, for that
    passed_over: Sequence[str]  #: names of targets for which another one is asked at present


@dataclass(frozen=True, slots=True)
class TargetView:
    """An entry of the targets file."""

    name: str
    destination: str
    policy: Sequence[str]  #: lines
    identifiers: Sequence[str]


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that the outer layer had to answer itself. ``time`` in seconds of the epoch."""

    time: float
    target: str
    identifier: str
    status: int
    reason: str
    request_id: str


class AdminState(Protocol):
    """Where the page gets what it shows."""

    def tunnels(self) -> Sequence[TunnelView]:
        """Return the tunnels that stand."""

    def targets(self) -> Sequence[TargetView]:
        """Return the targets in force."""

    def failures(self) -> Sequence[Failure]:
        """Return the last failures, newest first."""


def answer(
    request: Any, status: int, text: str, kind: bytes = b"text/plain; charset=utf-8"
) -> bytes:
    """Set an answer up, and return its body for ``render`` to return."""
    body = text.encode("utf-8", "backslashreplace")
    request.setResponseCode(status, HTTPStatus(status).phrase.encode("ascii"))
    request.setHeader(b"Content-Type", kind)
    request.setHeader(b"X-Content-Type-Options", b"nosniff")
    request.setHeader(b"Cache-Control", b"no-store")
    request.setHeader(b"Content-Length", b"%d" % len(body))
    return b"" if request.method == b"HEAD" else body


class AdminResource(Resource):
    """``/admin``, and ``/admin?format=json``. Without a password there is no such page."""

    isLeaf = True

    def __init__(
        self,
        password: str | None,
        state: AdminState,
        clock: IReactorTime,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """``wall_clock`` gives the seconds since the epoch."""
        super().__init__()
        self._digest = _digest(password) if password else None
        self._state = state
        self._wall_clock = wall_clock
        self._attempts = _Attempts(clock)

    def render(self, request: Any) -> bytes:
        if self._digest is None:
            return answer(request, 404, "Not Found\n")
        for name, value in _SECURITY_HEADERS.items():
            request.setHeader(name, value)
        address = getattr(request.getClientAddress(), "host", "-")
        if self._attempts.blocked(address):
            request.setHeader(b"Retry-After", b"%d" % _ATTEMPTS_WINDOW)
            return answer(request, 429, "Too Many Requests\n")
        given = _password(request.getHeader(b"authorization"))
        # Digests have one length, so that comparing takes one time.
        if given is None or not hmac.compare_digest(_digest(given), self._digest):
            if given is not None:
                self._attempts.failed(address)
                _log.warn("admin page: wrong password from {address}", address=address)
            request.setHeader(b"WWW-Authenticate", b'Basic realm="sockgw", charset="UTF-8"')
            return answer(request, 401, "Unauthorized\n")
        if request.args.get(b"format") == [b"json"]:
            return answer(request, 200, _as_json(self._state), b"application/json")
        page = _as_html(self._state, self._wall_clock())
        return answer(request, 200, page, b"text/html; charset=utf-8")


class _Attempts:
    """Counts wrong passwords by address, of at most so many addresses."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._failures: dict[str, tuple[int, float]] = {}  # count, start of the window

    def blocked(self, address: str) -> bool:
        return self._count(_network(address)) >= _MAX_ATTEMPTS

    def failed(self, address: str) -> None:
        network = _network(address)
        count = self._count(network) + 1
        start = self._failures.pop(network, (0, 0.0))[1]
        if count in (1, _MAX_ATTEMPTS):  # the last one starts the wait
            start = self._clock.seconds()
        if len(self._failures) >= _MAX_ADDRESSES:
            del self._failures[next(iter(self._failures))]  # the one that failed longest ago
        self._failures[network] = (count, start)

    def _count(self, network: str) -> int:
        count, start = self._failures.get(network, (0, 0.0))
        return count if self._clock.seconds() - start < _ATTEMPTS_WINDOW else 0


def _network(address: str) -> str:
    """Return what one stranger has at their disposal: an IPv4 address, a /64 of IPv6."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4 or parsed.ipv4_mapped:
        return address
    return str(ipaddress.ip_network((int(parsed), 64), strict=False))


def _digest(password: str) -> bytes:
    return hashlib.sha256(password.encode("utf-8", "surrogateescape")).digest()


def _password(authorization: bytes | None) -> str | None:
    """Return the password of Basic credentials (RFC 7617), with any user name; None if absent."""
    if not authorization:
        return None
    scheme, _, credentials = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        decoded = base64.b64decode(credentials.strip(), validate=True)
    except binascii.Error:
        return ""
    return decoded.decode("utf-8", "surrogateescape").partition(":")[2]


def _as_json(state: AdminState) -> str:
    view = {
        "tunnels": [asdict(tunnel) for tunnel in state.tunnels()],
        "targets": [asdict(target) for target in state.targets()],
        "failures": [asdict(failure) for failure in state.failures()],
    }
    return json.dumps(view, indent=1) + "\n"


def _as_html(state: AdminState, now: float) -> str:
    tunnels, targets, failures = state.tunnels(), state.targets(), state.failures()
    streams = sum(tunnel.streams for tunnel in tunnels)
    return _PAGE.format(
        style=_STYLE,
        refresh=_REFRESH,
        time=_time(now),
        tunnel_count=len(tunnels),
        stream_count=streams,
        target_count=len(targets),
        tunnels=_table(
            "Identifier|State|Address|Key|Since|#Streams|#Received|#Sent|#Resumed|#Sent again|"
            "#Round trip",
            (
                (
                    tunnel.identifier,
                    "\n".join(
                        (
                            "suspended" if tunnel.suspended else "connected",
                            *(f"passed over for {target}" for target in tunnel.passed_over),
                        )
                    ),
                    tunnel.address,
                    tunnel.fingerprint,
                    f"{_time(tunnel.since)}\n{_age(now - tunnel.since)}",
                    str(tunnel.streams),
                    _size(tunnel.bytes_in),
                    _size(tunnel.bytes_out),
                    f"{tunnel.resumes}\n{tunnel.takeovers} taken over"
                    if tunnel.takeovers
                    else str(tunnel.resumes),
                    _size(tunnel.resent),
                    "" if tunnel.round_trip is None else f"{tunnel.round_trip * 1000:.1f} ms",
                )
                for tunnel in tunnels
            ),
            len(tunnels),
            "No inner layer is connected.",
        ),
        targets=_table(
            "Target|Destination|Policy|Inner layers",
            (
                (
                    target.name,
                    target.destination,
                    "\n".join(target.policy),
                    "\n".join(target.identifiers),
                )
                for target in targets
            ),
            len(targets),
            "The targets file is empty.",
        ),
        failures=_table(
            "Time|Target|Inner layer|#Status|Reason|Request",
            (
                (
                    _time(failure.time),
                    failure.target,
                    failure.identifier,
                    str(failure.status),
                    failure.reason,
                    failure.request_id,
                )
                for failure in failures
            ),
            len(failures),
            "None lately.",
        ),
    )


def _table(titles: str, rows: Iterable[Sequence[str]], count: int, empty: str) -> str:
    """Return a table of text, all of it escaped; numeric columns have a ``#`` before the title."""
    if not count:
        return f'<p class="empty">{empty}</p>'
    columns = [
        (title.lstrip("#"), ' class="n"' if title.startswith("#") else "")
        for title in titles.split("|")
    ]
    head = "".join(f"<th{kind}>{title}</th>" for title, kind in columns)
    parts = [f"<table><thead><tr>{head}</tr></thead><tbody>"]
    for row, _ in zip(rows, range(_MAX_ROWS), strict=False):
        cells = (
            f'<td{kind} data-title="{title}">{escape(text) or "&ndash;"}</td>'
            for (title, kind), text in zip(columns, row, strict=True)
        )
        parts.append(f"<tr>{''.join(cells)}</tr>")
    parts.append("</tbody></table>")
    if count > _MAX_ROWS:
        parts.append(f'<p class="empty">and {count - _MAX_ROWS} more</p>')
    return "".join(parts)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _age(seconds: float) -> str:
    """Return a duration in its two largest units."""
    left = max(0, int(seconds))
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number} {unit}")
    return " ".join(parts[:2]) or "0 s"


_UNITS = ("KiB", "MiB", "GiB", "TiB")


def _size(number: int) -> str:
    if number < 1024:
        return f"{number} B"
    power = min((number.bit_length() - 1) // 10, len(_UNITS))
    return f"{number / 1024**power:.1f} {_UNITS[power - 1]}"


_STYLE = """
:root{color-scheme:light dark;--back:#f6f7f9;--card:#fff;--text:#1b1f27;--dim:#667085;
--line:#e4e7ec;--accent:#0b6e6e}
@media(prefers-color-scheme:dark){:root{--back:#12151a;--card:#1a1f26;--text:#e6e9ee;--dim:#8f9bab;
--line:#2b323c;--accent:#5cc8c2}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1.5rem 1rem 3rem;background:var(--back);
color:var(--text);font:15px/1.45 system-ui,sans-serif}
header{display:flex;flex-wrap:wrap;align-items:baseline;gap:.25rem 1.5rem}
h1{margin:0;font-size:1.5rem;letter-spacing:-.02em}
h1::before{content:"";display:inline-block;width:.6em;height:.6em;margin-right:.45em;
border-radius:50%;background:var(--accent)}
header b{font-variant-numeric:tabular-nums}
time{margin-left:auto;color:var(--dim)}
h2{margin:2rem 0 .5rem;font-size:.8rem;font-weight:600;letter-spacing:.06em;
text-transform:uppercase;color:var(--dim)}
.empty{margin:0;padding:.8rem 1rem;color:var(--dim)}
section{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:.6rem}
table{width:100%;border-collapse:collapse}
th,td{padding:.55rem 1rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
tr:last-child td{border-bottom:0}
th{font-weight:500;font-size:.85rem;color:var(--dim);white-space:nowrap}
td{white-space:pre-line;overflow-wrap:break-word;font-variant-numeric:tabular-nums}
td:first-child{font-weight:600}
.n{text-align:right;white-space:nowrap}
@media(max-width:44rem){time{margin-left:0}thead{display:none}table,tbody,tr,td{display:block}
tr{padding:.4rem 0;border-bottom:1px solid var(--line)}tr:last-child{border:0}
td,td.n{display:flex;gap:1rem;padding:.2rem 1rem;border:0;text-align:left;white-space:pre-line}
td::before{content:attr(data-title);flex:0 0 6.5rem;font-weight:400;color:var(--dim)}}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="refresh" content="{refresh}">
<title>sockgw</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>sockgw</h1>
<span>inner layers <b>{tunnel_count}</b></span>
<span>streams <b>{stream_count}</b></span>
<span>targets <b>{target_count}</b></span>
<time>{time} UTC</time>
</header>
<h2>Inner layers</h2>
<section>{tunnels}</section>
<h2>Targets</h2>
<section>{targets}</section>
<h2>Recent failures</h2>
<section>{failures}</section>
</body>
</html>
"""

_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest())

_SECURITY_HEADERS = {
    b"Content-Security-Policy": b"default-src 'none'; style-src 'sha256-%b'; base-uri 'none';"
    b" form-action 'none'; frame-ancestors 'none'" % _STYLE_HASH,
    b"X-Frame-Options": b"DENY",
    b"Referrer-Policy": b"no-referrer",
}

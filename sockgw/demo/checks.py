"""What the demonstration sends through the tunnel, and what it expects to come back."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.client import HTTPConnection, HTTPException, HTTPResponse
from itertools import pairwise

from sockgw.demo.origin import blocks

__all__ = ["CHECKS", "Client", "run_checks"]

_TIMEOUT = 10.0  # seconds without a byte
_SIZE = 8 * 1024 * 1024  # bytes of an upload and a download
_NOTICE = 0.2  # seconds from when a cut is asked for until it has come
_DRIP = "/drip?lines=4&every=200"


class _Wrong(Exception):
    """The answer is not what it should be."""


class Client:
    """Sends requests to a port of this machine, one connection each."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.host = f"localhost:{port}"

    @contextmanager
    def open(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        host: str | None = None,
    ) -> Iterator[HTTPResponse]:
        """Send a request; a body that is an iterable goes out chunked."""
        # By address: a name might lead elsewhere first.
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT)
        try:
            connection.request(method, path, body, {"Host": host or self.host})
            yield connection.getresponse()
        finally:
            connection.close()

    def status(self, path: str) -> int:
        """Return the status of a GET, 0 if there is none."""
        try:
            with self.open("GET", path) as response:
                return response.status
        except (OSError, HTTPException):
            return 0


def _page(client: Client) -> str:
    with client.open("GET", "/") as response:
        body = response.read()
    _expect(response.status == 200 and b"</html>" in body, f"status {response.status}")
    return f"{len(body):,} bytes of HTML"


def _echo(client: Client) -> str:
    text = "grüße through the tunnel".encode()
    with client.open("POST", "/echo", text) as response:
        head, _, body = response.read().partition(b"\n\n")
    _expect(response.status == 200 and body == text + b"\n", "the body came back changed")
    forwarded = [line for line in head.decode().split("\n") if line.startswith("Forwarded: ")]
    _expect(len(forwarded) == 1, "no Forwarded header reached the origin")
    return f"the origin got {forwarded[0]}"


def _upload(client: Client) -> str:
    started = time.monotonic()
    with client.open("POST", "/upload", blocks(_SIZE)) as response:
        answer = json.loads(response.read())
    _expect(answer["bytes"] == _SIZE, f"{answer['bytes']:,} bytes arrived")
    _expect(answer["sha256"] == _digest(blocks(_SIZE)), "other bytes arrived than were sent")
    return f"arrived with the same SHA-256, {_rate(started)}"


def _download(client: Client) -> str:
    started = time.monotonic()
    digest = sha256()
    with client.open("GET", f"/download?size={_SIZE}") as response:
        while piece := response.read(65536):
            digest.update(piece)
    _expect(digest.hexdigest() == _digest(blocks(_SIZE)), "other bytes arrived than were sent")
    return f"arrived with the same SHA-256, {_rate(started)}"


def _drip(client: Client) -> str:
    with client.open("GET", _DRIP) as response:
        times = [time.monotonic() for _ in response]
    _expect(len(times) == 4, f"{len(times)} lines arrived")
    shortest = min(after - before for before, after in pairwise(times))
    _expect(shortest > 0.1, "lines arrived together")
    return f"each line at once, the first {times[-1] - times[0]:.1f} s before the last"


def _cut(client: Client) -> str:
    started = time.monotonic()

    def halves() -> Iterator[bytes]:
        pieces = list(blocks(_SIZE))
        yield from pieces[: len(pieces) // 2]
        with client.open("POST", "/cut?seconds=1") as response:
            _expect(response.status == 200, f"status {response.status}: {response.read()!r}")
        time.sleep(_NOTICE)
        yield from pieces[len(pieces) // 2 :]

    with client.open("POST", "/upload", halves()) as response:
        answer = json.loads(response.read())
    _expect(answer["sha256"] == _digest(blocks(_SIZE)), "other bytes arrived than were sent")
    took = time.monotonic() - started
    _expect(took > 1, "it did not wait for the line")
    return f"arrived with the same SHA-256, {took:.1f} s"


def _forbidden(client: Client) -> str:
    with client.open("GET", "/secret") as response:
        reason = response.read().decode().strip()
    _expect(response.status == 403 and "policy" in reason, f"status {response.status}: {reason}")
    return f"403, {reason}"


def _unknown(client: Client) -> str:
    with client.open("GET", "/", host="unknown.example") as response:
        reason = response.read().decode().strip()
    _expect(response.status == 404, f"status {response.status}")
    return f"404, {reason}"


CHECKS: tuple[tuple[str, Callable[[Client], str]], ...] = (
    ("GET /", _page),
    ("POST /echo", _echo),
    ("POST /upload, 8 MiB in chunks", _upload),
    ("GET /download, 8 MiB", _download),
    (f"GET {_DRIP}", _drip),
    ("POST /upload, the line cut amid", _cut),
    ("GET /secret", _forbidden),
    ("GET / of unknown.example", _unknown),
)


def run_checks(client: Client, interrupted: Callable[[], None] = lambda: None) -> bool:
    """Print a line for each check; return whether all went well.

    ``interrupted`` is called before each, and may raise.
    """
    passed = True
    for title, check in CHECKS:
        interrupted()
        try:
            verdict, note = "ok", check(client)
        except (_Wrong, OSError, HTTPException, ValueError, KeyError) as error:
            verdict, note = "FAILED", str(error) or type(error).__name__
            passed = False
        print(f"  {verdict:<6}  {title:<31}  {note}", flush=True)
    return passed


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise _Wrong(otherwise)


def _digest(pieces: Iterable[bytes]) -> str:
    digest = sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _rate(started: float) -> str:
    return f"{_SIZE / (time.monotonic() - started) / 1e6:,.0f} MB/s"

"""Inner layers come and go, and fail: requests wait, or go to another one; none is done twice."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from clients import Client, fetch
from harness import RESUME_SOON, Inner, Keys, Outer, closed_port, wait_until
from origins import Connection, Origin, Request, answering

QUICK = ("--reconnect-delay", "50", "--max-reconnect-delay", "200")


def entries(outer: Outer, since: int = 0) -> list[dict[str, str]]:
    """Return the requests in the access log, each as its fields."""
    return [
        dict(word.split("=", 1) for word in line.split(" target=")[1].split() if "=" in word)
        for line in outer.access.lines(since)
    ]


@pytest.fixture
def origin() -> Iterator[Origin]:
    """Answers with what it was asked."""

    def echo(connection: Connection, request: Request) -> None:
        body = connection.body(request)
        connection.answer(f"{request.method} {request.target} {len(body)}".encode())

    with Origin(answering(echo)) as server:
        yield server


class Gate:
    """An origin whose answers wait until they are let go; counts what it was asked to do."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.bodies: list[bytes] = []
        self.taken = 0  # bytes of bodies
        self.origin = Origin(answering(self._serve))

    def _serve(self, connection: Connection, request: Request) -> None:
        pieces = []
        for piece in connection.pieces(request):
            pieces.append(piece)
            self.taken += len(piece)
        self.bodies.append(b"".join(pieces))
        assert self.opened.wait(30)
        connection.answer(request.method.encode())

    @property
    def count(self) -> int:
        return len(self.bodies)


@contextmanager
def gate() -> Iterator[Gate]:
    made = Gate()
    with made.origin:
        try:
            yield made
        finally:
            made.opened.set()


@contextmanager
def in_background(ask: Callable[[int], int], number: int) -> Iterator[Callable[[], list[int]]]:
    """Run so many requests at once; gives a function that waits for their statuses."""
    with ThreadPoolExecutor(number) as pool:
        futures = [pool.submit(ask, index) for index in range(number)]
        yield lambda: [future.result(30) for future in futures]


def held(outer: Outer) -> float:
    return outer.metric("sockgw_held_requests")


# ---------------------------------------------------------------------- hold


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_the_inner_layer_is_restarted_under_load(
    tmp_path: Path, keys: Keys, origin: Origin, end: str
) -> None:
    """Requests go on arriving all the time, and each is answered."""
    with (
        Outer(tmp_path, keys.certificate, *RESUME_SOON, "--hold", "20000") as outer,
        Inner(tmp_path, keys.private, outer.socket_port, *QUICK) as inner,
    ):
        outer.wait_for_tunnels(1)
        host = outer.route(origin)
        stop = threading.Event()
        done: list[int] = []

        def ask(index: int) -> int:
            with Client(outer.app_port) as client:
                while not stop.is_set():
                    done.append(client.request(host, f"/{index}").status)
            return 0

        with in_background(ask, 8) as finished, ExitStack() as stack:
            stack.callback(stop.set)  # or a failure would wait for those in the background for ever
            wait_until(lambda: len(done) > 100, "all are busy")
            getattr(inner, end)()
            wait_until(lambda: held(outer) == 8, "all wait")
            with Inner(tmp_path, keys.private, outer.socket_port, *QUICK):
                before = len(done)
                wait_until(lambda: len(done) > before + 100, "all go on")
                stop.set()
                finished()
        assert set(done) == {200}
        assert len(origin.requests) >= len(done)
        wait_until(lambda: len(entries(outer)) == len(done), "all are in the log")
        waited = [entry for entry in entries(outer) if entry["held"] != "0"]
        assert len(waited) == 8
        assert outer.metric("sockgw_hold_expired_total") == 0


def test_a_hold_expires(tmp_path: Path, keys: Keys, origin: Origin) -> None:
    with Outer(tmp_path, keys.certificate, *RESUME_SOON, "--hold", "20000") as outer:
        host = outer.route(origin, hold=800)
        never = outer.route(origin, hold=0)
        with Inner(tmp_path, keys.private, outer.socket_port):
            outer.wait_for_tunnels(1)
            assert fetch(outer.app_port, host).status == 200
        outer.wait_for_tunnels(0)
        assert fetch(outer.app_port, never).status == 502
        begun = time.monotonic()
        answer = fetch(outer.app_port, host)
        took = time.monotonic() - begun
        assert answer.status == 502
        assert answer.header("Proxy-Status") == "sockgw; error=destination_unavailable"
        assert 0.8 <= took < 2
        assert outer.metric("sockgw_hold_expired_total") == 1
        wait_until(lambda: len(entries(outer)) == 3, "all are in the log")
        entry = entries(outer)[-1]
        assert 0.8 <= float(entry["held"]) < 2
        assert entry["tries"] == "0"


def test_no_more_are_held_than_may_and_clients_may_leave(
    tmp_path: Path, keys: Keys, origin: Origin
) -> None:
    options = ("--hold", "20000", "--max-held", "2")
    with Outer(tmp_path, keys.certificate, *RESUME_SOON, *options) as outer:
        host = outer.route(origin)
        with Inner(tmp_path, keys.private, outer.socket_port):
            outer.wait_for_tunnels(1)
        outer.wait_for_tunnels(0)
        with Client(outer.app_port) as first, Client(outer.app_port) as second:
            first.ask(host, "/first")
            wait_until(lambda: held(outer) == 1, "the first waits")
            second.ask(host, "/second", "POST", Content_Length="3")
            second.send(b"abc")
            wait_until(lambda: held(outer) == 2, "the second waits")
            refused = fetch(outer.app_port, host)
            assert refused.status == 503
            assert refused.header("Retry-After") == "1"
            first.reset()
            wait_until(lambda: held(outer) == 1, "the first has left")
            outer.access.wait('"GET /first HTTP/1.1" 499 .* outcome="client left"')
            with Inner(tmp_path, keys.private, outer.socket_port):
                assert second.answer().text == "POST /second 3"
        assert [request.target for request in origin.requests] == ["/second"]


def test_a_large_upload_waits_in_the_clients_kernel(
    tmp_path: Path, keys: Keys, origin: Origin
) -> None:
    size = 64 * 1024 * 1024
    with Outer(tmp_path, keys.certificate, *RESUME_SOON, "--hold", "20000") as outer:
        host = outer.route(origin)
        with Inner(tmp_path, keys.private, outer.socket_port):
            outer.wait_for_tunnels(1)
        outer.wait_for_tunnels(0)
        with Client(outer.app_port) as client:
            client.ask(host, "/", "POST", Content_Length=str(size))
            sent = 0
            client.socket.settimeout(0.5)
            block = bytes(65_536)
            with suppress(TimeoutError):
                while sent < size:
                    sent += client.socket.send(block[: size - sent])
            assert sent < size, "it is read on"
            assert held(outer) == 1
            client.socket.settimeout(20)
            with Inner(tmp_path, keys.private, outer.socket_port):
                while sent < size:
                    sent += client.socket.send(block[: size - sent])
                assert client.answer().text == f"POST / {size}"


# ---------------------------------------------------------------------- another inner layer


@contextmanager
def two(
    directory: Path, keys: Keys, outer: Outer, one: tuple[str, ...], other: tuple[str, ...]
) -> Iterator[tuple[Inner, Inner]]:
    """Two inner layers of one name."""
    with ExitStack() as stack:
        inners = [
            stack.enter_context(
                Inner(directory, keys.private, outer.socket_port, *QUICK, *options, name=name)
            )
            for name, options in (("one", one), ("other", other))
        ]
        outer.wait_for_tunnels(2)
        yield inners[0], inners[1]


def test_who_may_not_reach_the_target_is_asked_in_vain_and_then_not_at_all(
    tmp_path: Path, keys: Keys, origin: Origin
) -> None:
    with (
        Outer(tmp_path, keys.certificate, *RESUME_SOON) as outer,
        two(tmp_path, keys, outer, ("--allow", "192.0.2.1"), ()),
    ):
        host = outer.route(origin)
        for number in range(20):
            with Client(outer.app_port) as client:
                client.ask(host, f"/{number}", "POST", Content_Length="3")
                client.send(b"abc")
                assert client.answer().text == f"POST /{number} 3"
        assert len(origin.requests) == 20, "none was done twice"
        wait_until(lambda: len(entries(outer)) == 20, "all are in the log")
        tries = Counter(entry["tries"] for entry in entries(outer))
        assert tries == {"1": 17, "2": 3}
        assert outer.metric("sockgw_retries_total") == 3
        assert outer.metric("sockgw_ejections_total") == 1
        outer.log.wait(rf"is passed over for {host} for 10 s: not allowed, 3 times in a row")


def test_an_ejection_ends(tmp_path: Path, keys: Keys, origin: Origin) -> None:
    """Two inner layers with a service of their own each; that of one is down for a while."""
    options = ("--eject-time", "300", "--eject-after", "2")
    with ExitStack() as stack:
        port = stack.enter_context(closed_port())
        outer = stack.enter_context(Outer(tmp_path, keys.certificate, *RESUME_SOON, *options))
        stack.enter_context(
            two(
                tmp_path,
                keys,
                outer,
                ("--service", f"shop=http://127.0.0.1:{port}"),
                ("--service", f"shop=http://127.0.0.1:{origin.port}"),
            )
        )
        outer.replace_targets(json.dumps({"targets": {"shop.test": {"service": "shop"}}}))
        outer.reload()

        def ejections() -> bool:
            assert fetch(outer.app_port, "shop.test").status == 200
            return outer.metric("sockgw_ejections_total") >= 2

        wait_until(ejections, "it was passed over, asked again, and passed over again")
        outer.log.wait(r"is passed over for shop.test for 0.3 s: connection refused, 2 times")
        outer.log.wait(r"is passed over for shop.test for 0.6 s: connection refused, \d+ times")


def test_who_is_full_refuses_and_another_one_serves(tmp_path: Path, keys: Keys) -> None:
    """The inner layer's own limit, of which the outer layer knows nothing."""
    with (
        gate() as slow,
        Outer(tmp_path, keys.certificate, *RESUME_SOON) as outer,
        two(tmp_path, keys, outer, ("--max-streams", "1"), ()),
    ):
        host = outer.route(slow.origin)

        def ask(index: int) -> int:
            with Client(outer.app_port) as client:
                client.ask(host, f"/{index}", "POST", Content_Length="0")
                return client.answer().status

        with in_background(ask, 10) as finished:
            wait_until(lambda: slow.count == 10, "all are at the origin")
            slow.opened.set()
            assert finished() == [200] * 10
        assert slow.count == 10
        assert outer.metric("sockgw_retries_total") > 0


def test_one_of_two_is_killed_with_requests_under_way(tmp_path: Path, keys: Keys) -> None:
    """GETs are done by the other one. POSTs are not: they may have been done, and were."""
    with (
        gate() as slow,
        Outer(tmp_path, keys.certificate, *RESUME_SOON) as outer,
        two(tmp_path, keys, outer, (), ()) as (one, _),
    ):
        host = outer.route(slow.origin)

        def ask(method: str) -> Callable[[int], int]:
            def perform(index: int) -> int:
                with Client(outer.app_port) as client:
                    client.ask(host, f"/{method}/{index}", method, Content_Length="7")
                    client.send(b"%7d" % index)
                    return client.answer().status

            return perform

        with in_background(ask("PUT"), 10) as puts, in_background(ask("POST"), 10) as posts:
            wait_until(lambda: slow.count == 20, "all are at the origin")
            one.kill()
            # Half of them were there: the PUTs among these are done again.
            wait_until(lambda: outer.metric("sockgw_retries_total") > 0, "the others go on")
            wait_until(
                lambda: slow.count == 20 + outer.metric("sockgw_retries_total"), "all are there"
            )
            slow.opened.set()
            assert puts() == [200] * 10
            statuses = Counter(posts())
        targets = Counter(request.target for request in slow.origin.requests)
        lost = statuses.pop(502)
        assert lost > 0, "some were with the one that was killed"
        assert statuses == {200: 10 - lost}
        assert all(targets[f"/POST/{index}"] == 1 for index in range(10))
        assert sum(targets.values()) == 20 + outer.metric("sockgw_retries_total")
        wait_until(lambda: len(entries(outer)) == 20, "all are in the log")
        assert {entry["tries"] for entry in entries(outer)} == {"1", "2"}


def test_the_only_one_is_killed_and_comes_back(tmp_path: Path, keys: Keys) -> None:
    with (
        gate() as slow,
        Outer(tmp_path, keys.certificate, *RESUME_SOON, "--hold", "20000") as outer,
        Inner(tmp_path, keys.private, outer.socket_port) as inner,
    ):
        outer.wait_for_tunnels(1)
        host = outer.route(slow.origin)
        with Client(outer.app_port) as get, Client(outer.app_port) as post:
            get.ask(host)
            post.ask(host, "/", "POST", Content_Length="0")
            wait_until(lambda: slow.count == 2, "both are at the origin")
            inner.kill()
            answer = post.answer()
            assert answer.status == 502
            assert answer.header("Proxy-Status") == "sockgw; error=connection_terminated"
            wait_until(lambda: held(outer) == 1, "the GET waits")
            slow.opened.set()
            with Inner(tmp_path, keys.private, outer.socket_port):
                assert get.answer().text == "GET"
        assert Counter(request.method for request in slow.origin.requests) == {"GET": 2, "POST": 1}


@pytest.mark.parametrize(("before", "status"), [(30_000, 200), (200_000, 502)])
def test_a_body_goes_on_with_another_one_only_while_it_is_kept(
    tmp_path: Path, keys: Keys, before: int, status: int
) -> None:
    body = random.Random(before).randbytes(300_000)
    with (
        gate() as slow,
        Outer(tmp_path, keys.certificate, *RESUME_SOON, "--hold", "20000") as outer,
        Inner(tmp_path, keys.private, outer.socket_port) as inner,
    ):
        slow.opened.set()
        outer.wait_for_tunnels(1)
        host = outer.route(slow.origin)
        with Client(outer.app_port) as client:
            client.ask(host, "/", "PUT", Content_Length=str(len(body)))
            client.send(body[:before])
            wait_until(lambda: slow.taken >= before, "so much is at the origin")
            inner.kill()
            if status == 200:
                wait_until(lambda: held(outer) == 1, "the request waits")
                with Inner(tmp_path, keys.private, outer.socket_port):
                    client.send(body[before:])
                    assert client.answer().status == 200
                assert slow.bodies == [body]
            else:
                assert client.answer().status == 502
                assert slow.bodies == []

"""While it runs: targets change, inner layers come and go, and nobody has to restart anything."""

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from cable import Cable
from clients import Client, fetch
from harness import RESUME_SOON, Gateway, Inner, Keys, Outer, wait_until
from origins import Connection, Origin, Request, answering

QUICK = ("--reconnect-delay", "50", "--max-reconnect-delay", "200")


def saying(text: str) -> Origin:
    """Return an origin that answers every request with that text."""
    return Origin(answering(lambda connection, request: connection.answer(text.encode())))


# ---------------------------------------------------------------------- the targets file


@pytest.fixture
def reloading(gateway: Gateway) -> Iterator[tuple[Gateway, str, str]]:
    """The shared gateway with two origins, "one" and "two", and a target that leads to "one"."""
    with saying("one") as one, saying("two") as two:
        host = gateway.route(one)
        entries = dict(gateway.outer.entries)
        entries[host] = {**entries[host], "port": two.port}
        yield gateway, host, json.dumps({"targets": entries})
        gateway.outer.replace_targets(json.dumps({"targets": gateway.outer.entries}))
        gateway.outer.reload()


def test_changed_targets(reloading: tuple[Gateway, str, str]) -> None:
    """Without a signal, within two seconds; a client's connection goes on."""
    gateway, host, changed = reloading
    with Client(gateway.port) as client:
        assert client.request(host).text == "one"
        gateway.outer.replace_targets(changed)
        wait_until(lambda: client.request(host).text == "two", "the change is seen", 2)


def test_changed_targets_at_a_signal(reloading: tuple[Gateway, str, str]) -> None:
    gateway, host, changed = reloading
    gateway.outer.replace_targets(changed)
    gateway.outer.reload()
    assert fetch(gateway.port, host).text == "two"


BROKEN = {
    "no YAML": ("targets:\n  a.test: [\n", r":3:1: "),
    "unknown key": ("targets:\n  a.test:\n    hostnam: b\n", r":3:5: .*hostname"),
    "bad port": ("targets:\n  a.test: {hostname: b, port: abc}\n", r":2:\d+: .*'abc'"),
    "bad expression": (
        "targets:\n  a.test:\n    hostname: b\n    policy:\n      '^(': ['*']\n",
        r":5:7: ",
    ),
    "twice": ("targets:\n  a.test: {hostname: b}\n  a.test: {hostname: c}\n", r":3:3: "),
    "nothing": ("", r":1:1: "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_targets(reloading: tuple[Gateway, str, str], name: str) -> None:
    """The old ones stay in force, and the log says where the new ones are wrong."""
    gateway, host, _ = reloading
    text, place = BROKEN[name]
    gateway.outer.replace_targets(text)
    mark = gateway.outer.reload()
    line = gateway.outer.log.wait("targets stay as they were", mark)
    wait_until(lambda: gateway.outer.log.matching(place, mark), f"{place} in {line}", 0.1)
    assert fetch(gateway.port, host).text == "one"
    assert fetch(gateway.port, "a.test").status == 404


def test_missing_targets(reloading: tuple[Gateway, str, str]) -> None:
    gateway, host, _ = reloading
    mark = gateway.outer.log.mark()
    gateway.outer.targets.unlink()
    gateway.outer.log.wait("targets stay as they were: .*No such file", mark)
    assert fetch(gateway.port, host).text == "one"


def test_most_specific_target(gateway: Gateway) -> None:
    with saying("exact") as exact, saying("wildcard") as wildcard:
        gateway.outer.route(exact, host="a.example.test")
        gateway.outer.route(wildcard, host="*.example.test")
        port = gateway.port
        assert fetch(port, "a.example.test").text == "exact"
        assert fetch(port, "A.Example.Test:1234").text == "exact"
        assert fetch(port, "b.example.test").text == "wildcard"
        assert fetch(port, "a.b.example.test").text == "wildcard"
        assert fetch(port, "example.test").status == 404
        # Two hosts in one request (RFC 9112, section 3.2.2) are one too many.
        assert fetch(port, "a.example.test", "http://a.example.test/").text == "exact"
        assert fetch(port, "a.example.test", "http://b.example.test/").status == 400


# ---------------------------------------------------------------------- several inner layers


Twins = tuple[Outer, dict[str, Inner]]


@pytest.fixture
def twins(tmp_path: Path, keys: Keys) -> Iterator[Twins]:
    """An outer layer and two inner layers of one name; "who" is a service of either's own."""
    with ExitStack() as stack:
        outer = stack.enter_context(Outer(tmp_path, keys.certificate, *RESUME_SOON))
        one, two = stack.enter_context(saying("one")), stack.enter_context(saying("two"))
        inners = {}
        for name, origin in (("one", one), ("two", two)):
            service = ("--service", f"who=http://127.0.0.1:{origin.port}")
            inners[name] = stack.enter_context(
                Inner(tmp_path, keys.private, outer.socket_port, *service, *QUICK, name=name)
            )
        outer.wait_for_tunnels(2)
        outer.replace_targets(json.dumps({"targets": {"who.test": {"service": "who"}}}))
        outer.reload()
        yield outer, inners


def test_connections_stay_and_new_ones_take_turns(twins: Twins) -> None:
    outer, _ = twins
    firsts = []
    for _ in range(6):
        with Client(outer.app_port) as client:
            answers = {client.request("who.test").text for _ in range(5)}
            assert len(answers) == 1, "a client's connection has changed inner layers"
            firsts += answers
    assert Counter(firsts) == {"one": 3, "two": 3}


def test_one_of_two_is_killed(twins: Twins) -> None:
    """Who uses the other notices nothing; who used this one goes on with the other."""
    outer, inners = twins
    stop = threading.Event()
    results: list[list[str]] = [[] for _ in range(8)]
    errors: list[BaseException] = []

    def ask_again_and_again(answers: list[str]) -> None:
        try:
            with Client(outer.app_port) as client:
                while not stop.is_set():
                    answer = client.request("who.test")
                    answers.append(answer.text if answer.status == 200 else str(answer.status))
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=ask_again_and_again, args=(each,)) for each in results]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(len(each) > 20 for each in results), "all are busy")
    inners["one"].kill()
    outer.wait_for_tunnels(1)
    marks = [len(each) for each in results]
    wait_until(
        lambda: all(len(each) > mark + 20 for each, mark in zip(results, marks, strict=True)),
        "all go on",
    )
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    users = {name: [each for each in results if each[0] == name] for name in ("one", "two")}
    assert all(users.values()), "both were at work"
    assert all(set(each) == {"two"} for each in users["two"])
    for each in users["one"]:
        assert set(each) == {"one", "two"}, "what was under way goes to the other"
        assert each[-1] == "two"


def test_requests_under_way_when_the_only_one_is_killed(tmp_path: Path, keys: Keys) -> None:
    def begin(connection: Connection, request: Request) -> None:
        if request.target == "/begun":
            connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n")
        connection.wait_gone()

    gateway = Gateway(tmp_path, keys, (*RESUME_SOON, "--hold", "500"))
    with Origin(answering(begin)) as origin, gateway.outer as outer, gateway.inner as inner:
        outer.wait_for_tunnels(1)
        host = outer.route(origin)
        with Client(outer.app_port) as begun, Client(outer.app_port) as waiting:
            begun.ask(host, "/begun")
            assert begun.head()[0] == 200
            assert begun.file.read(9) == b"4\r\npart\r\n"
            waiting.ask(host, "/waiting")
            wait_until(lambda: len(origin.requests) == 2, "both requests are there")
            inner.kill()
            assert begun.file.read() == b"", "that was no end of the chunks"
            answer = waiting.answer()
            assert answer.status == 502
            assert answer.header("Proxy-Status") == "sockgw; error=connection_terminated"


# ---------------------------------------------------------------------- the link


def test_outer_layer_is_restarted(tmp_path: Path, keys: Keys) -> None:
    with saying("hello") as origin, Cable(None) as cable:
        with Inner(tmp_path, keys.private, cable.port, *QUICK) as inner:
            inner.log.wait("no connection to the outer layer")
            for name in ("first", "second"):
                with Outer(tmp_path, keys.certificate, name=name) as outer:
                    cable.target = outer.socket_port
                    outer.wait_for_tunnels(1)
                    assert fetch(outer.app_port, outer.route(origin)).text == "hello"
                cable.target = None
        assert len(inner.log.matching("connected to the outer layer ws")) == 2


def test_link_is_cut(tmp_path: Path, keys: Keys) -> None:
    with (
        saying("hello") as origin,
        Outer(tmp_path, keys.certificate) as outer,
        Cable(outer.socket_port) as cable,
        Inner(tmp_path, keys.private, cable.port, *QUICK),
    ):
        outer.wait_for_tunnels(1)
        host = outer.route(origin)
        for number in range(3):
            assert fetch(outer.app_port, host).text == "hello"
            mark = outer.log.mark()
            cable.cut()
            outer.log.wait("inner layer innerLayer has lost its connection", mark)
            outer.log.wait("inner layer innerLayer is back", mark)
            assert len(cable.recordings) == number + 2
            assert outer.metric("sockgw_resumes_total") == number + 1
            assert outer.metric('sockgw_tunnels{identifier="innerLayer"}') == 1


def test_peer_that_has_fallen_silent(tmp_path: Path, keys: Keys) -> None:
    """A stopped process keeps its connection, and answers nothing: each side notices."""
    pings = ("--ping-interval", "200", "--ping-timeout", "200")
    with (
        Outer(tmp_path, keys.certificate, *pings) as outer,
        Inner(tmp_path, keys.private, outer.socket_port, *pings, *QUICK) as inner,
    ):
        outer.wait_for_tunnels(1)
        mark = outer.log.mark()
        inner.signal(signal.SIGSTOP)
        outer.log.wait("has lost its connection: no sign of life", mark, 3)
        inner.signal(signal.SIGCONT)
        outer.log.wait("inner layer innerLayer is back", mark)
        mark = inner.log.mark()
        outer.signal(signal.SIGSTOP)
        inner.log.wait("no connection to the outer layer .*no sign of life", mark, 3)
        outer.signal(signal.SIGCONT)
        inner.log.wait("the tunnel goes on", mark)
        outer.wait_for_tunnels(1)


def test_busy_link_is_no_dead_one(tmp_path: Path, keys: Keys, nginx_port: int) -> None:
    """A client that reads slowly does not keep the tunnel from its signs of life."""
    pings = ("--ping-interval", "100", "--ping-timeout", "100")
    with Gateway(tmp_path, keys, pings, pings) as gateway:
        host = gateway.route(nginx_port)
        with Client(gateway.port) as slow:
            slow.ask(host, "/large")
            deadline = time.monotonic() + 1.5
            while time.monotonic() < deadline:
                slow.file.read(10_000)
                assert fetch(gateway.port, host, "/hello").status == 200
        assert not gateway.outer.log.matching("disconnected|lost its connection")


def test_reconnecting_becomes_rarer(tmp_path: Path, keys: Keys) -> None:
    with (
        Cable(None) as cable,
        Inner(
            tmp_path,
            keys.private,
            cable.port,
            *("--reconnect-delay", "40", "--max-reconnect-delay", "320"),
        ) as inner,
    ):
        wait_until(lambda: len(cable.accepted) >= 10, "ten attempts")
        # The same reason again and again is no news.
        assert len(inner.log.matching("Trying again")) == 1
    pauses = [later - earlier for earlier, later in pairwise(cable.accepted[:10])]
    for number, pause in enumerate(pauses):
        longest = min(0.04 * 2**number, 0.32)
        assert 0.1 * longest <= pause <= longest + 0.3, pauses
    assert sum(pauses[4:]) > sum(pauses[:3]), pauses


# ---------------------------------------------------------------------- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_end_with_requests_under_way(
    tmp_path: Path, keys: Keys, nginx_port: int, number: signal.Signals
) -> None:
    """They end too, whoever does not read or answer."""

    def never(connection: Connection, request: Request) -> None:
        connection.wait_gone()

    gateway = Gateway(tmp_path, keys, ("--drain-timeout", "200"))
    with Origin(answering(never)) as origin, gateway.outer as outer, gateway.inner as inner:
        outer.wait_for_tunnels(1)
        hosts = outer.route(origin), outer.route(nginx_port)
        with Client(outer.app_port) as waiting, Client(outer.app_port) as not_reading:
            waiting.ask(hosts[0])
            not_reading.ask(hosts[1], "/large")
            wait_until(lambda: outer.metric("sockgw_streams") == 2, "both are under way")
            begun = time.monotonic()
            for process in (outer, inner):
                process.signal(number)
                process.wait()
            assert time.monotonic() - begun < 3


def test_inner_layer_leaves(tmp_path: Path, keys: Keys) -> None:
    with Outer(tmp_path, keys.certificate) as outer:
        for _ in range(2):
            with Inner(tmp_path, keys.private, outer.socket_port):
                outer.wait_for_tunnels(1)
                assert fetch(outer.app_port, "any", "/readyz").status == 200
            outer.wait_for_tunnels(0)
            assert fetch(outer.app_port, "any", "/readyz").status == 503

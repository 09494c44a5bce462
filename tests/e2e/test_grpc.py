"""gRPC through the gateway, with grpcio's own client and server.

Once all in clear text with prior knowledge, and once with TLS and ALPN at both ends.
"""

from __future__ import annotations

import hashlib
import os
import queue
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cable import Cable
from clients import curl
from harness import Inner, Keys, Outer, Process, wait_until
from origins import Connection, Origin, Request, answering
from test_tls import Authority, make_authority

MANY = ("--max-streams", "3000")
MEBIBYTE = 1024 * 1024


class Server(Process):
    """grpcio's server; see grpc_server.py."""

    def __init__(self, directory: Path, *arguments: str | Path, name: str = "grpc") -> None:
        script = Path(__file__).with_name("grpc_server.py")
        super().__init__(name, [sys.executable, script, *arguments], directory)
        self.port = int(re.search(r"\d+", self.log.wait(r"^port \d+"))[0])  # type: ignore[index]


class Stand:
    """A gateway with a cable as its carrier, and what is at both ends."""

    def __init__(self, directory: Path, keys: Keys, authority: Authority) -> None:
        self.plain = Server(directory)
        self.secure = Server(directory, authority.certificate, authority.key, name="grpcs")
        endpoint = ("--app-port", authority.endpoint())
        many = (*MANY, "--max-h2-streams", "1000")
        self.outer = Outer(directory, keys.certificate, *many, *endpoint)
        self.outer.admin_port = self.outer.socket_port
        self.ports = {
            found[1]: int(found[2])
            for line in self.outer.log.matching("listening on ")
            if (found := re.search(r"listening on (https?)://\S*:(\d+)", line))
        }
        self.root = authority.ca.read_bytes()
        self.cable = Cable(self.outer.socket_port)
        quick = ("--reconnect-delay", "50", "--max-reconnect-delay", "200")
        options = (*quick, *MANY, "--target-ca", authority.ca)
        self.inner = Inner(directory, keys.private, self.cable.port, *options)

    def __enter__(self) -> Stand:
        self.cable.__enter__()
        self.inner.wait_connected()
        self.outer.wait_for_tunnels(1)
        self.hosts = {
            "plain": self.outer.route(self.plain, http2=True),
            "secure": self.outer.route(
                self.secure, protocol="https", hostname="localhost", http2=True
            ),
        }
        return self

    def __exit__(self, *reason: Any) -> None:
        parts = (self.inner, self.cable, self.outer, self.plain, self.secure)
        for part in parts:
            part.__exit__(*reason)

    def cut(self) -> None:
        """Cut the carrier, and wait for the tunnel to be there again."""
        before = self.outer.metric("sockgw_resumes_total")
        self.cable.cut()
        wait_until(lambda: self.outer.metric("sockgw_resumes_total") > before, "it is resumed")

    def channel(self, origin: str) -> grpc.Channel:
        """Return a client's channel to an origin."""
        options = [
            ("grpc.default_authority", self.hosts[origin]),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if origin == "plain":
            return grpc.insecure_channel(f"127.0.0.1:{self.ports['http']}", options)
        credentials = grpc.ssl_channel_credentials(self.root)
        options.append(("grpc.ssl_target_name_override", "localhost"))
        return grpc.secure_channel(f"127.0.0.1:{self.ports['https']}", credentials, options)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Stand]:
    directory = tmp_path_factory.mktemp("grpc")
    with Stand(directory, keys, make_authority(directory)) as stand:
        yield stand


class Calls:
    """The methods of the server, as the client calls them."""

    def __init__(self, stand: Stand, channel: grpc.Channel, server: Server) -> None:
        self.stand = stand
        self.server = server
        self.channel = channel
        self.echo = channel.unary_unary("/test.Test/Echo")
        self.metadata = channel.unary_unary("/test.Test/Metadata")
        self.fail = channel.unary_unary("/test.Test/Fail")
        self.collect = channel.stream_unary("/test.Test/Collect")
        self.first = channel.stream_unary("/test.Test/First")
        self.expand = channel.unary_stream("/test.Test/Expand")
        self.fail_late = channel.unary_stream("/test.Test/FailLate")
        self.hang = channel.unary_stream("/test.Test/Hang")
        self.chat = channel.stream_stream("/test.Test/Chat")
        self.hang_chat = channel.stream_stream("/test.Test/HangChat")


@pytest.fixture(params=["plain", "secure"])
def calls(stand: Stand, request: pytest.FixtureRequest) -> Iterator[Calls]:
    server = stand.plain if request.param == "plain" else stand.secure
    with stand.channel(request.param) as channel:
        yield Calls(stand, channel, server)
    wait_until(lambda: stand.outer.metric("sockgw_streams") == 0, "all streams are closed")


@pytest.fixture
def plain(stand: Stand) -> Iterator[Calls]:
    with stand.channel("plain") as channel:
        yield Calls(stand, channel, stand.plain)
    wait_until(lambda: stand.outer.metric("sockgw_streams") == 0, "all streams are closed")


class Messages:
    """The messages of a client, as they are put in."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes | None] = queue.Queue()

    def put(self, message: bytes | None) -> None:
        """Send a message; None ends them."""
        self._queue.put(message)

    def __iter__(self) -> Iterator[bytes]:
        while (message := self._queue.get()) is not None:
            yield message


def status(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    """Return how a call fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()  # type: ignore[attr-defined]


def test_unary(calls: Calls) -> None:
    for message in (b"", b"hello", os.urandom(100_000)):
        assert calls.echo(message, timeout=10) == message


def test_client_streaming(calls: Calls) -> None:
    messages = [os.urandom(size) for size in (0, 1, 1_000, 100_000)] * 5
    digest = hashlib.sha256(b"".join(messages)).hexdigest().encode()
    assert calls.collect(iter(messages), timeout=10) == b"20 " + digest


def test_server_streaming(calls: Calls) -> None:
    messages = list(calls.expand(b"50 40000", timeout=10))
    assert messages == [number.to_bytes(4, "big") * 10_000 for number in range(50)]


def test_both_streaming_and_each_message_at_once(calls: Calls) -> None:
    messages = Messages()
    answers = calls.chat(iter(messages), timeout=10)
    for message in (b"one", b"", b"x" * 70_000, b"four"):
        messages.put(message)
        assert next(answers) == message
    messages.put(None)
    assert list(answers) == []
    assert answers.code() is grpc.StatusCode.OK


def test_an_answer_before_the_last_message(calls: Calls) -> None:
    messages = Messages()
    messages.put(b"one")
    assert calls.first(iter(messages), timeout=10) == b"one"
    messages.put(None)


def test_metadata_in_all_directions(calls: Calls) -> None:
    answer, call = calls.metadata.with_call(
        b"x-asked-bin", metadata=[("x-asked-bin", b"\1\0\xff"), ("x-text", "y")], timeout=10
    )
    assert answer == repr(b"\1\0\xff").encode()
    initial, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
    assert (initial["x-initial"], initial["x-some-bin"]) == ("1", b"\0\xff")
    assert (trailing["x-trailing"], trailing["x-other-bin"]) == ("2", b"\xfe\1")


def test_a_status_and_nothing_else(calls: Calls) -> None:
    message = "no such thing: 100% ünknown"
    assert status(lambda: calls.fail(message.encode(), timeout=10)) == (
        grpc.StatusCode.NOT_FOUND,
        message,
    )


def test_a_status_after_a_message(calls: Calls) -> None:
    answers = calls.fail_late(b"one", timeout=10)
    assert next(answers) == b"one"
    assert status(lambda: next(answers)) == (grpc.StatusCode.DATA_LOSS, "no more")


def test_an_unknown_method(calls: Calls) -> None:
    unknown = calls.channel.unary_unary("/test.Test/Unknown")
    assert status(lambda: unknown(b"", timeout=10))[0] is grpc.StatusCode.UNIMPLEMENTED


def test_a_deadline_reaches_the_server(calls: Calls) -> None:
    mark = calls.server.log.mark()
    answers = calls.hang(b"deadline", timeout=0.5)
    assert next(answers) == b"begun"
    assert status(lambda: next(answers))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    calls.server.log.wait("cancelled deadline", mark)


def test_a_cancellation_reaches_the_server(calls: Calls) -> None:
    mark = calls.server.log.mark()
    answers = calls.hang(b"client", timeout=10)
    assert next(answers) == b"begun"
    answers.cancel()
    calls.server.log.wait("cancelled client", mark)
    messages = Messages()
    answers = calls.hang_chat(iter(messages), timeout=10)
    messages.put(b"both")
    assert next(answers) == b"both"
    answers.cancel()
    messages.put(None)
    calls.server.log.wait("cancelled both", mark)


def test_large_messages(calls: Calls) -> None:
    message = os.urandom(20 * MEBIBYTE)
    assert calls.echo(message, timeout=60) == message


def test_a_slow_reader_holds_nobody_up(calls: Calls) -> None:
    slow = calls.expand(b"100 1000000", timeout=60)
    assert len(next(slow)) == 1_000_000
    for _ in range(20):
        assert calls.echo(b"hello", timeout=5) == b"hello"
    assert sum(1 for _ in slow) == 99


def test_a_thousand_calls_at_a_time(plain: Calls) -> None:
    everybody = [Messages() for _ in range(1_000)]
    answers = [plain.chat(iter(messages), timeout=60) for messages in everybody]
    for number, messages in enumerate(everybody):
        messages.put(b"%d" % number)
    for number, answer in enumerate(answers):
        assert next(answer) == b"%d" % number
    assert plain.stand.outer.metric("sockgw_streams") == 1_000  # all are there at once
    for messages in everybody:
        messages.put(None)
    assert all(list(answer) == [] for answer in answers)


# Each again with the carrier cut in the middle


def test_a_cut_within_all_kinds_of_calls(calls: Calls) -> None:
    message = os.urandom(4 * MEBIBYTE)
    futures = [calls.echo.future(message, timeout=30) for _ in range(4)]
    collected, chatting = Messages(), Messages()
    collecting = calls.collect.future(iter(collected), timeout=30)
    answers = calls.chat(iter(chatting), timeout=30)
    expanding = calls.expand(b"2000 4000", timeout=30)
    for number in range(6):
        collected.put(b"%d" % number)
        chatting.put(b"%d" % number)
        assert next(answers) == b"%d" % number
        assert next(expanding) == number.to_bytes(4, "big") * 1_000
        calls.stand.cut()
    collected.put(None)
    chatting.put(None)
    assert list(answers) == []
    assert collecting.result() == b"6 " + hashlib.sha256(b"012345").hexdigest().encode()
    assert sum(1 for _ in expanding) == 1_994
    assert all(future.result() == message for future in futures)


def test_statuses_and_cancellations_across_a_cut(calls: Calls) -> None:
    server = calls.server
    mark = server.log.mark()
    left, late = calls.hang(b"left", timeout=30), calls.hang(b"late", timeout=1.5)
    assert next(left) == next(late) == b"begun"
    failing = calls.fail.future(b"x", timeout=10)
    left.cancel()
    calls.stand.cut()
    server.log.wait("cancelled left", mark)
    assert status(lambda: next(late))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    server.log.wait("cancelled late", mark)
    assert status(failing.result) == (grpc.StatusCode.NOT_FOUND, "x")


def test_a_cut_within_a_thousand_calls(plain: Calls) -> None:
    futures = [plain.echo.future(b"%d" % number, timeout=60) for number in range(1_000)]
    plain.stand.cut()
    assert [future.result() for future in futures] == [b"%d" % number for number in range(1_000)]


# Not only gRPC


def test_other_requests_to_the_same_server(stand: Stand) -> None:
    """HTTP/1.1 at one end, HTTP/2 at the other."""
    body = b"\0\0\0\0\5hello"
    fields = ("--header", "Content-Type: application/grpc")
    url = f"http://{stand.hosts['plain']}/test.Test/Echo"
    got = curl(stand.ports["http"], *fields, "--data-binary", "@-", url, input=body)
    assert (got.returncode, got.stdout) == (0, body)


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
def test_grpc_web(stand: Stand, version: str) -> None:
    """Ordinary HTTP: its trailers are a frame within the body."""
    message, trailers = b"\0\0\0\0\5hello", b"\x80\0\0\0\x0fgrpc-status:0\r\n"
    kind = "application/grpc-web+proto"

    def respond(connection: Connection, request: Request) -> None:
        assert request.header("Content-Type") == kind
        assert connection.body(request) == message
        fields = f"Content-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.send(b"HTTP/1.1 200 OK\r\n" + fields.encode())
        for piece in (message, trailers, b""):
            connection.chunk(piece)

    with Origin(answering(respond)) as origin:
        url = f"http://{stand.outer.route(origin)}/test.Test/Echo"
        fields = ("--header", f"Content-Type: {kind}", "-w", "%{content_type}")
        got = curl(stand.ports["http"], version, *fields, "--data-binary", "@-", url, input=message)
    assert (got.returncode, got.stdout) == (0, message + trailers + kind.encode()), got.stderr

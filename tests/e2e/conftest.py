"""The gateway that most tests share, what it stands between, and logs for failures."""

import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Gateway, Keys, Process
from origins import Nginx

_MAX_LINES = 60  # of each log, in the report of a failure

# The logs' ends when the test began, and how many processes there had been.
_marks = pytest.StashKey[tuple[dict[Process, int], int]]()


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """The key pair of the inner layer "innerLayer"."""
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def _shared(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("gateway"), keys) as gateway:
        yield gateway


@pytest.fixture
def gateway(_shared: Gateway) -> Iterator[Gateway]:
    """A gateway with default settings; whatever a test did, no stream may stay behind."""
    yield _shared
    _shared.assert_idle()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What nginx serves: ``hello`` (6 bytes), ``large`` (64 MiB; 1 GiB with SOCKGW_FULL=1)."""
    directory = tmp_path_factory.mktemp("files")
    (directory / "hello").write_bytes(b"hello\n")
    block = os.urandom(1024 * 1024)
    with open(directory / "large", "wb") as file:
        for number in range(1024 if os.environ.get("SOCKGW_FULL") == "1" else 64):
            # No two blocks are equal: one that is lost, or comes twice, must change the sum.
            file.write(number.to_bytes(8, "big") + block[8:])
    yield directory
    (directory / "large").unlink()  # pytest keeps directories for a while


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Iterator[Nginx]:
    """nginx with ``files``."""
    with Nginx(tmp_path_factory.mktemp("nginx"), files) as server:
        yield server


@pytest.fixture(scope="session")
def nginx_port(nginx: Nginx) -> int:
    return nginx.port


@pytest.fixture(scope="session")
def nginx_host(_shared: Gateway, nginx: Nginx) -> str:
    """The host name under which the shared gateway has nginx."""
    return _shared.route(nginx, host="nginx.test")


@pytest.fixture(scope="session", autouse=True)
def _no_process_left() -> Iterator[None]:
    """Let SIGTERM end the tests as Ctrl-C does; at the end, see that no process is left."""

    def terminated(number: int, frame: object) -> None:
        pytest.exit("terminated", 143)

    previous = signal.signal(signal.SIGTERM, terminated)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's job in the background ignores it, and so would all that it starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, previous)
    left = [process.name for process in Process.running]
    for process in list(Process.running):
        process.kill()
    assert not left, f"still running: {left}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    marks = {process: process.log.mark() for process in Process.running}
    item.stash[_marks] = marks, len(Process.seen)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    """Add to a failure what the processes logged meanwhile, also those that have ended."""
    report = yield
    if report.failed:
        marks, seen = item.stash.get(_marks, ({}, 0))
        for process in [*marks, *Process.seen[seen:]]:
            lines = process.log.lines(marks.get(process, 0))[-_MAX_LINES:]
            if lines:
                report.sections.append((f"log of {process.name}", "\n".join(lines)))
    return report

"""What tests with real processes share: keys, logs for failures, and that no process is left."""

import signal
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from harness import Keys, Process

__all__ = [
    "inner_layer_keys",
    "no_process_left",
    "pytest_runtest_makereport",
    "pytest_runtest_setup",
]

_MAX_LINES = 60  # of each log, in the report of a failure

# The logs' ends when the test began, and how many processes there had been.
_marks = pytest.StashKey[tuple[dict[Process, int], int]]()


_watchers = 0


@pytest.fixture(scope="session", name="keys")
def inner_layer_keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """The key pair of the inner layer "innerLayer"."""
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """Let SIGTERM end the tests as Ctrl-C does; at the end, see that no process is left."""

    def terminated(number: int, frame: object) -> None:
        pytest.exit("terminated", 143)

    previous = signal.signal(signal.SIGTERM, terminated)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's job in the background ignores it, and so would all that it starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    global _watchers
    _watchers += 1
    yield
    _watchers -= 1
    signal.signal(signal.SIGTERM, previous)
    if _watchers:
        return  # of several directories' fixtures the last one looks, when all others have ended
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

"""Watching: what counts as a change, for files, directories and links."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from sockgw.files import POLL_INTERVAL, Watched, signature


class Calls:
    """A callback that counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("one")
    return path


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def events() -> Iterator[list[dict[str, object]]]:
    seen: list[dict[str, object]] = []
    observer = seen.append
    globalLogPublisher.addObserver(observer)
    yield seen
    globalLogPublisher.removeObserver(observer)


def watch(calls: Calls, *paths: Path) -> Watched:
    return Watched(Clock(), map(str, paths), calls)


def test_nothing_changes(file: Path, calls: Calls) -> None:
    watched = watch(calls, file)
    assert not watched.check()
    assert calls.count == 0


def test_each_change_is_told_once(file: Path, calls: Calls) -> None:
    watched = watch(calls, file)
    for expected in (1, 2):
        file.write_text("one" * (expected + 1))
        assert watched.check()
        assert not watched.check()
        assert calls.count == expected


def test_same_size_and_time_but_another_file(file: Path, calls: Calls) -> None:
    watched = watch(calls, file)
    before = os.stat(file)
    other = file.with_name("other")
    other.write_text("two")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, file)
    assert os.stat(file).st_mtime_ns == before.st_mtime_ns
    assert watched.check()


@pytest.mark.parametrize("what", ["st_mtime_ns", "st_ctime_ns", "st_size", "st_ino", "st_dev"])
def test_each_of_these_alone_is_a_change(
    file: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    status = os.stat(file)
    names = ("st_mode", "st_mtime_ns", "st_ctime_ns", "st_size", "st_ino", "st_dev")
    fields = {name: getattr(status, name) for name in names}
    before = signature(str(file))
    with monkeypatch.context() as patch:
        patch.setattr("sockgw.files.os.stat", lambda path: SimpleNamespace(**fields))
        assert signature(str(file)) == before
        fields[what] += 1
        assert signature(str(file)) != before


def test_becoming_readable_is_a_change(file: Path, calls: Calls) -> None:
    file.chmod(0o000)
    os.utime(file, ns=(0, 0))
    watched = watch(calls, file)
    before = os.stat(file)
    while os.stat(file).st_ctime_ns == before.st_ctime_ns:  # the kernel's clock is coarse
        file.chmod(0o600)
    assert os.stat(file).st_mtime_ns == before.st_mtime_ns
    assert watched.check()


def test_vanishing_and_appearing(file: Path, calls: Calls) -> None:
    watched = watch(calls, file)
    file.unlink()
    assert watched.check()
    assert not watched.check()
    file.write_text("one")
    assert watched.check()


def test_missing_from_the_start(tmp_path: Path, calls: Calls) -> None:
    watched = watch(calls, tmp_path / "no" / "such")
    assert not watched.check()
    (tmp_path / "no").mkdir()
    assert not watched.check()
    (tmp_path / "no" / "such").write_text("")
    assert watched.check()


def test_no_path_at_all_is_no_crash(file: Path) -> None:
    assert signature(str(file / "below a file")) is None
    assert signature("") is None
    assert signature("x" * 5000) is None


def test_directory(tmp_path: Path, calls: Calls) -> None:
    watched = watch(calls, tmp_path)
    assert not watched.check()
    (tmp_path / "a").write_text("one")
    assert watched.check()
    (tmp_path / "a").write_text("another")
    assert watched.check()
    (tmp_path / "a").rename(tmp_path / "b")
    assert watched.check()
    (tmp_path / "b").unlink()
    assert watched.check()
    assert not watched.check()
    assert calls.count == 4


def test_directory_with_a_link_to_nowhere(tmp_path: Path, calls: Calls) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    (directory / "link").symlink_to(tmp_path / "target")
    watched = watch(calls, directory)
    assert not watched.check()
    (tmp_path / "target").write_text("one")
    assert watched.check()


def test_swap_as_kubernetes_does(tmp_path: Path, calls: Calls) -> None:
    """``file`` → ``..data/file``, ``..data`` → a directory: only ``..data`` is replaced."""
    volume = tmp_path / "volume"
    for version in ("..one", "..two"):
        (volume / version).mkdir(parents=True)
        (volume / version / "file").write_text("same size")
        os.utime(volume / version / "file", ns=(0, 0))
    (volume / "..data").symlink_to("..one")
    (volume / "file").symlink_to("..data/file")
    by_file, by_directory = watch(calls, volume / "file"), watch(calls, volume)
    assert not by_file.check()
    assert not by_directory.check()
    (volume / "..new").symlink_to("..two")
    os.replace(volume / "..new", volume / "..data")
    assert by_file.check()
    assert by_directory.check()


def test_several_paths_one_call(tmp_path: Path, file: Path, calls: Calls) -> None:
    other = tmp_path / "other"
    watched = watch(calls, file, other)
    file.write_text("three")
    other.write_text("new")
    assert watched.check()
    assert calls.count == 1


def test_polling(file: Path, calls: Calls) -> None:
    clock = Clock()
    watched = Watched(clock, [str(file)], calls)
    file.write_text("three")
    watched.start()
    watched.start()
    assert calls.count == 0
    clock.advance(POLL_INTERVAL)
    assert calls.count == 1
    clock.pump([POLL_INTERVAL] * 3)
    assert calls.count == 1
    file.unlink()
    clock.advance(POLL_INTERVAL)
    assert calls.count == 2
    assert len(clock.getDelayedCalls()) == 1
    watched.stop()
    watched.stop()
    assert not clock.getDelayedCalls()
    file.write_text("three")
    clock.advance(POLL_INTERVAL)
    assert calls.count == 2


def test_a_failing_callback_is_logged_and_watching_goes_on(
    file: Path, events: list[dict[str, object]]
) -> None:
    clock = Clock()
    seen: list[str] = []

    def changed() -> None:
        seen.append(file.read_text())
        raise RuntimeError("oops")

    watched = Watched(clock, [str(file)], changed)
    watched.start()
    for text in ("three", "four five"):
        file.write_text(text)
        clock.advance(POLL_INTERVAL)
    assert seen == ["three", "four five"]
    assert len([event for event in events if "log_failure" in event]) == 2
    watched.stop()


def test_a_change_while_reading_is_seen_next_time(file: Path) -> None:
    texts: list[str] = []

    def changed() -> None:
        texts.append(file.read_text())
        if len(texts) == 1:
            file.write_text("later still")

    watched = Watched(Clock(), [str(file)], changed)
    file.write_text("later")
    assert watched.check()
    assert watched.check()
    assert texts == ["later", "later still"]

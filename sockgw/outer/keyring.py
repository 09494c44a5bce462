"""Whose key is accepted, and under which identifiers: the ``--public-key`` entries, re-read live.

An entry is a file, a directory of files, or ``NAME[,NAME...]=FILE``. It fails closed: a key is
accepted as long as its file stands there, whole and in date, and no longer. Only at the start is a
bad file an error of the configuration; later it is a line in the log.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from sockgw.files import POLL_INTERVAL, Watched
from sockgw.keys import (
    PublicKey,
    UnusableKey,
    check_identifier,
    decoy,
    fingerprint_text,
    load_public_key,
)
from sockgw.yamlfile import ConfigError

__all__ = ["Entry", "Keyring"]

_log = Logger()
_callbacks_guarded = _log.failureHandler("after the accepted keys changed:")

_OPTION = "public-key"

# What counts in a directory. A private key has no business there, and is looked at to say so.
_SUFFIXES = (".crt", ".pem", ".pub", ".key")


@dataclass(frozen=True, slots=True)
class Entry:
    """An accepted key. ``identifiers`` has at least one, the first being the key's default."""

    public_key: PublicKey
    identifiers: tuple[str, ...]
    source: str  #: the file, or the files, in which it stands

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Return whether the signature is this key's for the message."""
        return self.public_key.verify(message, signature)


@dataclass(frozen=True, slots=True)
class _Source:
    """A ``--public-key`` entry; ``names`` is empty where the file itself says the identifier."""

    path: str
    names: tuple[str, ...]


def _now() -> datetime:
    return datetime.now(UTC)


class Keyring:
    """The accepted keys by fingerprint.

    Reads everything when constructed, and raises ConfigError where an entry makes no sense or names
    a file that is no public key. From :meth:`start` on it looks for changes every second. Then,
    after the keyring itself has changed, it calls

    - ``on_removed(fingerprints)`` with the keys that are accepted no longer;
    - ``on_change()`` after any change, also of a key's identifiers: ask :meth:`permits` about each
      tunnel.

    Assign both before :meth:`start`. ``now`` returns the time of day, for certificates' dates.
    """

    def __init__(
        self,
        entries: Iterable[str],
        clock: IReactorTime,
        *,
        now: Callable[[], datetime] = _now,
    ) -> None:
        self.on_removed: Callable[[set[bytes]], object] = lambda fingerprints: None
        self.on_change: Callable[[], object] = lambda: None
        #: What to verify against where :meth:`find` returns None (see OuterHandshake).
        self.decoy = Entry(decoy(), (), "")
        self._now = now
        self._sources = [_parse(text) for text in entries]
        self._entries: dict[bytes, Entry] = {}
        self._loaded: list[Entry] = []  # what stands in the files, in date or not
        self._unusable: dict[str, str] = {}  # by file: what is wrong with it
        self._reported: dict[str, str] = {}  # by file: what the log has been told
        self._files = Watched(clock, (source.path for source in self._sources), self._read)
        self._loop = LoopingCall(self.check)
        self._loop.clock = clock
        self._load(strict=True)
        self._enforce()
        self._warn_if_empty()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def find(self, fingerprint: bytes) -> Entry | None:
        """Return the entry of an accepted key."""
        return self._entries.get(fingerprint)

    def permits(self, fingerprint: bytes, identifier: str) -> bool:
        """Return whether the key is accepted and may use the identifier."""
        entry = self._entries.get(fingerprint)
        return entry is not None and identifier in entry.identifiers

    def start(self) -> None:
        """Look for changes every second from now on."""
        if not self._loop.running:
            self._loop.start(POLL_INTERVAL, now=False)

    def stop(self) -> None:
        """Look no more; leaves no timer behind."""
        if self._loop.running:
            self._loop.stop()

    def check(self) -> None:
        """Look for changed files and for certificates that have come into, or out of, date."""
        self._files.check()
        self._enforce()

    def _read(self) -> None:
        self._load(strict=False)

    def _load(self, strict: bool) -> None:
        """Read all files. ``strict``: raise ConfigError for a bad one that an entry names."""
        loaded: list[Entry] = []
        unusable: dict[str, str] = {}
        for source in self._sources:
            for path, named in _files_of(source):
                try:
                    loaded.append(_entry(path, source.names))
                except UnusableKey as error:
                    if strict and named:
                        raise ConfigError(
                            str(error),
                            option=_OPTION,
                            value=path,
                            expected="a PEM public key or certificate",
                        ) from None
                    unusable[path] = str(error)
        self._loaded, self._unusable = loaded, unusable

    def _enforce(self) -> None:
        """Put in force what is loaded and in date, and tell what that changed."""
        now = self._now()
        entries: dict[bytes, Entry] = {}
        problems = dict(self._unusable)
        for entry in self._loaded:
            problem = entry.public_key.problem_at(now)
            if problem is not None:
                problems[entry.source] = problem
                continue
            fingerprint = entry.public_key.fingerprint
            known = entries.get(fingerprint)
            entries[fingerprint] = entry if known is None else _merged(known, entry)
        for path, problem in problems.items():
            if self._reported.get(path) != problem:
                _log.warn("no key is taken from {path}: it {problem}", path=path, problem=problem)
        self._reported = problems
        old, self._entries = self._entries, entries
        if _identifiers(old) == _identifiers(entries):
            return
        _log_changes(old, entries)
        self._warn_if_empty()
        with _callbacks_guarded:
            removed = old.keys() - entries.keys()
            if removed:
                self.on_removed(removed)
        with _callbacks_guarded:
            self.on_change()

    def _warn_if_empty(self) -> None:
        if not self._entries:
            _log.warn("no public key is accepted: no inner layer can connect")


def _parse(text: str) -> _Source:
    """Understand an entry. A path that exists wins over NAME=FILE; raises ConfigError."""
    if "=" not in text or os.path.exists(text):
        return _Source(text, ())
    names, _, path = text.partition("=")
    try:
        identifiers = tuple(check_identifier(name.strip()) for name in names.split(","))
    except ValueError as error:
        raise ConfigError(f"names no identifier: {error}", option=_OPTION, value=text) from None
    if os.path.isdir(path):
        raise ConfigError(
            "names a directory", option=_OPTION, value=text, expected="a file after '='"
        )
    return _Source(path, tuple(dict.fromkeys(identifiers)))


def _files_of(source: _Source) -> Iterator[tuple[str, bool]]:
    """Yield the files of an entry, and whether it names them itself."""
    if source.names:
        yield source.path, True
        return
    try:
        names = sorted(os.listdir(source.path))
    except OSError:  # a file, or nothing: reading it will tell
        yield source.path, True
        return
    for name in names:
        if not name.startswith(".") and name.lower().endswith(_SUFFIXES):
            yield os.path.join(source.path, name), False


def _entry(path: str, names: tuple[str, ...]) -> Entry:
    public_key = load_public_key(path)
    if names:
        return Entry(public_key, names, path)
    own = public_key.common_name or os.path.splitext(os.path.basename(path))[0]
    try:
        check_identifier(own)
    except ValueError as error:
        raise UnusableKey(f"says {own!r}, but {error}; name one: NAME=FILE") from None
    return Entry(public_key, (own,), path)


def _merged(first: Entry, second: Entry) -> Entry:
    """The same key stands in two files."""
    identifiers = tuple(dict.fromkeys(first.identifiers + second.identifiers))
    return Entry(first.public_key, identifiers, f"{first.source}, {second.source}")


def _identifiers(entries: dict[bytes, Entry]) -> dict[bytes, tuple[str, ...]]:
    return {fingerprint: entry.identifiers for fingerprint, entry in entries.items()}


def _log_changes(old: dict[bytes, Entry], new: dict[bytes, Entry]) -> None:
    for fingerprint in old.keys() - new.keys():
        _log.info(
            "key {key} is accepted no longer: {identifiers}",
            key=fingerprint_text(fingerprint),
            identifiers=", ".join(old[fingerprint].identifiers),
        )
    for fingerprint, entry in new.items():
        if fingerprint not in old or old[fingerprint].identifiers != entry.identifiers:
            _log.info(
                "key {key} is accepted: {identifiers}, from {source}",
                key=fingerprint_text(fingerprint),
                identifiers=", ".join(entry.identifiers),
                source=entry.source,
            )

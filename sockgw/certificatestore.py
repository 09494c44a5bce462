"""The certificates that listeners show: read, chosen by name, and read again when they change.

A change concerns new handshakes only. What cannot be read, or does not fit together, as while
somebody writes it, leaves in force what was there before, and is said once. So is a certificate
that nears its end.

Several certificates for one name: those that are valid now come first, then the one that lasts
longest, then EC before RSA. All clients of these suites can do with either.
"""

# Twisted leaves much of this without types:
# mypy: allow-untyped-calls

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from OpenSSL import SSL
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from sockgw.certificatefiles import Source, find, tree_signature
from sockgw.certificates import Pair, read_certificates, read_pair
from sockgw.files import Signature, Watched, signature

__all__ = ["CertificateStore", "Settings"]

_log = Logger()

_INTERVAL = 2.0
"""Seconds between two looks at the files: one stat() for each."""

_REVIEW_INTERVAL = 3600.0
"""Seconds between two looks at the clock."""

_DAY = 86400.0
_AHEAD = 14 * _DAY
"""Seconds before its end at which a certificate is overdue: ACME clients renew 30 days before; and
those of a few days count by a quarter of their life."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an endpoint says about its certificates: one pair of files, or a directory."""

    key_file: str = ""
    certificate_files: Sequence[str] = ()
    directory: str = ""
    #: The name whose certificate is shown to who asks for none that is here; "" leaves the choice.
    default: str = ""
    #: Who asks for none that is here gets none.
    strict: bool = False
    client_ca: str = ""

    @property
    def paths(self) -> list[str]:
        """What to watch."""
        paths = [self.key_file, *self.certificate_files, self.directory, self.client_ca]
        return [path for path in paths if path]


@dataclass(slots=True, eq=False)
class _Loaded:
    """A certificate in force."""

    name: str
    signature: Signature
    pair: Pair
    context: SSL.Context
    said: str = ""  # about its end


ContextMaker = Callable[[Pair | None, Sequence[x509.Certificate]], SSL.Context]
"""Makes the TLS settings that show a certificate, or none; with authorities, to their clients."""


class CertificateStore:
    """The certificates of one or more listeners with the same settings."""

    def __init__(
        self,
        clock: Any,
        settings: Settings,
        make_context: ContextMaker,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises ValueError with a sentence for an operator where there is nothing to show."""
        self._settings = settings
        self._make_context = make_context
        self._wall_clock = wall_clock
        self._watched = Watched(clock, settings.paths, self._changed, _INTERVAL, tree_signature)
        self._review = LoopingCall(self._look_at_the_clock)
        self._review.clock = clock
        self._users = 0
        self._started = False
        self._told: dict[str, str] = {}  # problems, by what has them
        self._loaded: dict[str, _Loaded] = {}
        self._authorities: Sequence[x509.Certificate] = ()
        self._authorities_signature: Signature = None
        self._by_name: dict[str, _Loaded] = {}
        self._default: _Loaded | None = None
        problems = self._read()
        if not self._loaded:
            raise ValueError(next(iter(problems.values())))
        if settings.client_ca in problems:
            raise ValueError(problems[settings.client_ca])
        if settings.default and self._choose(settings.default) is None:
            raise ValueError(f"no certificate in {settings.directory} is for '{settings.default}'")
        self._problems = problems

    # ------------------------------------------------------------------ for listeners

    @property
    def several(self) -> bool:
        """Whether the client's wish decides."""
        return bool(self._settings.directory)

    @property
    def only(self) -> SSL.Context:
        """The context where the client's wish does not matter."""
        return next(iter(self._loaded.values())).context

    def nobody(self) -> SSL.Context:
        """Return a context without a certificate, for who is to choose or to be refused."""
        return self._make_context(None, self._authorities)

    def choose(self, server_name: str, local_address: str) -> SSL.Context | None:
        """Return the context for a client, None for one that is to be refused.

        ``server_name`` is what it asks for (SNI), "" if nothing; then the address to which it has
        connected is looked for.
        """
        found = self._choose(server_name or _plain(local_address)) or self._default
        return None if found is None else found.context

    def start(self) -> None:
        """A listener begins: look at the files from now on."""
        self._users += 1
        if self._users > 1:
            return
        self._watched.start()
        self._review.start(_REVIEW_INTERVAL, now=False)
        if not self._started:
            self._started = True
            self._tell(self._problems)
            self._look_at_the_clock()

    def stop(self) -> None:
        """A listener ends; with the last one the timers do."""
        self._users -= 1
        if not self._users:
            self._watched.stop()
            self._review.stop()

    def check(self) -> None:
        """Look at the files now."""
        if self._users:
            self._watched.check()

    def expiries(self) -> dict[str, float]:
        """Return when the certificates end, in seconds since 1970, by file."""
        return {loaded.name: loaded.pair.not_after for loaded in self._loaded.values()}

    # ------------------------------------------------------------------ reading

    def _changed(self) -> None:
        before = dict(self._loaded)
        self._tell(self._read())
        for name, loaded in self._loaded.items():
            if name not in before:
                _log.info("certificate {name} is there", name=name)
            elif before[name].pair is not loaded.pair:
                _log.info("certificate {name} has been replaced", name=name)
        for name in before.keys() - self._loaded.keys():
            _log.info("certificate {name} is gone", name=name)
        self._look_at_the_clock()

    def _read(self) -> dict[str, str]:
        """Read what has changed; return what is wrong, by the file that has it."""
        problems: dict[str, str] = {}
        self._read_authorities(problems)
        try:
            sources = self._sources()
        except ValueError as error:
            problems[self._settings.directory] = str(error)
            return problems
        loaded: dict[str, _Loaded] = {}
        for source in sources:
            known = self._loaded.get(source.name)
            try:
                loaded[source.name] = self._load(source, known)
            except ValueError as error:
                if known is not None:
                    loaded[source.name] = known
                elif self.several and not os.path.exists(source.name):
                    continue  # a key that waits for its first certificate
                problems[source.name] = str(error)
        if loaded:
            self._loaded = loaded
        elif not problems:
            problems[self._settings.directory] = f"no certificate is in {self._settings.directory}"
        self._index(problems)
        return problems

    def _sources(self) -> list[Source]:
        settings = self._settings
        if settings.directory:
            return find(settings.directory)
        files = settings.certificate_files
        return [Source(files[0], settings.key_file, files)]

    def _read_authorities(self, problems: dict[str, str]) -> None:
        path = self._settings.client_ca
        if not path:
            return
        seen = signature(path)
        if self._authorities and seen == self._authorities_signature:
            return
        try:
            self._authorities = read_certificates(path)
        except ValueError as error:
            problems[path] = str(error)
        else:
            self._authorities_signature = seen
            for loaded in self._loaded.values():
                loaded.context = self._make_context(loaded.pair, self._authorities)

    def _load(self, source: Source, known: _Loaded | None) -> _Loaded:
        seen = tuple(map(signature, (source.key_file, *source.certificate_files)))
        if known is not None and known.signature == seen:
            return known
        pair = read_pair(source.key_file, source.certificate_files)
        return _Loaded(source.name, seen, pair, self._make_context(pair, self._authorities))

    # ------------------------------------------------------------------ choosing

    def _index(self, problems: dict[str, str] | None = None) -> None:
        """Settle which certificate is shown for which name, as things are now."""
        now = self._wall_clock()
        by_name: dict[str, _Loaded] = {}
        # The best one comes last, and stays.
        for loaded in sorted(self._loaded.values(), key=lambda loaded: _rank(loaded.pair, now)):
            for name in loaded.pair.names:
                by_name[name] = loaded
        self._by_name = by_name
        settings = self._settings
        if settings.strict:
            return
        if not settings.default:
            named = (each for each in self._loaded.values() if _is_default(each.name, settings))
            self._default = next(named, None) or next(iter(self._loaded.values()), None)
            return
        default = self._choose(settings.default)
        if default is not None:
            self._default = default
        elif problems is not None:
            problems[settings.default] = f"no certificate is for '{settings.default}', the default"

    def _choose(self, name: str) -> _Loaded | None:
        name = name.lower().removesuffix(".")
        found = self._by_name.get(name)
        if found is None:
            # RFC 9525, section 6.3: the whole leftmost label, and no more than that.
            label, dot, parent = name.partition(".")
            found = self._by_name.get(f"*.{parent}") if label and dot else None
        return found

    # ------------------------------------------------------------------ telling

    def _tell(self, problems: dict[str, str]) -> None:
        """Log what is wrong, unless it has been told already."""
        for name, problem in problems.items():
            if self._told.get(name) != problem:
                kept = "; what was read before stays" if self._loaded.get(name) else ""
                _log.warn("certificate: {problem}{kept}", problem=problem, kept=kept)
        self._told = problems

    def _look_at_the_clock(self) -> None:
        self._index()
        now = self._wall_clock()
        for loaded in self._loaded.values():
            pair = loaded.pair
            left = pair.not_after - now
            if left <= 0:
                state = "has expired"
            elif left <= min(_AHEAD, (pair.not_after - pair.not_before) / 4):
                state = "expires soon"
            elif now < pair.not_before:
                state = "is not valid yet"
            else:
                state = ""
            if state and state != loaded.said:
                _log.warn(
                    "certificate {name} {state} (days left: {days:.1f})",
                    name=loaded.name,
                    state=state,
                    days=left / _DAY,
                )
            loaded.said = state


def _plain(address: str) -> str:
    """Return an address as certificates name it: IPv4 without IPv6 around it, no zone."""
    return address.removeprefix("::ffff:").partition("%")[0]


def _rank(pair: Pair, now: float) -> tuple[bool, float, bool]:
    valid = pair.not_before <= now < pair.not_after
    return valid, pair.not_after, isinstance(pair.key, EllipticCurvePrivateKey)


def _is_default(path: str, settings: Settings) -> bool:
    first, *_ = os.path.relpath(path, settings.directory or ".").split(os.sep)
    return os.path.splitext(first)[0] == "default"

"""Passive ejection: an inner layer that cannot reach a target which others reach is passed over.

Nothing is probed; what requests meet is counted, for each pair of an inner layer and a target. One
that fails ``after`` times in a row, while another one for the same target does not fail, is passed
over for ``pause`` seconds. Then it gets requests again; if it fails again the pause doubles, and
when it reaches the target all is forgotten. So a target that is down for everybody ejects nobody,
and nothing is kept while nothing fails.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from twisted.logger import Logger

from sockgw.outer.registry import Member
from sockgw.outer.targets import Target
from sockgw.protocol.errors import StreamCode

__all__ = ["NOT_REACHED", "Health"]

_log = Logger()

#: No byte reached an origin.
NOT_REACHED = frozenset(
    (
        StreamCode.DNS_ERROR,
        StreamCode.CONNECTION_REFUSED,
        StreamCode.CONNECTION_TIMEOUT,
        StreamCode.UNREACHABLE,
        StreamCode.TLS_ERROR,
        StreamCode.NOT_ALLOWED,
        StreamCode.UNKNOWN_SERVICE,
    )
)

_MAX_FAILING = 10_000  # pairs of a target and an inner layer; further ones are not looked after


class _Record:
    """How one inner layer does with one target."""

    __slots__ = ("failures", "pause", "until")

    def __init__(self) -> None:
        self.failures = 0  # in a row
        self.pause = 0.0  # seconds of the last ejection; 0 before the first
        self.until = 0.0  # when it is over


class Health:
    """Knows who fails, and who is passed over for it."""

    def __init__(
        self,
        seconds: Callable[[], float],
        candidates: Callable[[frozenset[str] | None], Iterable[Member]],
        ejected: Callable[[], None],
        *,
        after: int,
        pause: float,
        max_pause: float,
    ) -> None:
        """``candidates`` gives the inner layers that may serve a target; ``ejected`` counts.

        With ``after`` 0 nobody is ever passed over.
        """
        self._seconds = seconds
        self._candidates = candidates
        self._on_ejected = ejected
        self._after = after
        self._pause = pause
        self._max_pause = max_pause
        self._size = 0
        #: Who fails, by the name of the target; empty while all is well.
        self.failing: dict[str, dict[Member, _Record]] = {}

    def passed_over(self, target: str) -> Collection[Member]:
        """Return who is not to be asked for a target now, if anybody else can be."""
        records = self.failing.get(target)
        if records is None:
            return ()
        now = self._seconds()
        return [member for member, record in records.items() if now < record.until]

    def targets_without(self, member: Member) -> list[str]:
        """Return the targets for which an inner layer is passed over now."""
        now = self._seconds()
        return [
            target
            for target, records in self.failing.items()
            if member in records and now < records[member].until
        ]

    def unreached(self, target: Target, member: Member, code: StreamCode) -> None:
        """A stream of this inner layer has not reached the origin."""
        if not self._after:
            return
        records = self.failing.get(target.name, {})
        record = records.get(member)
        if record is None:
            if self._size >= _MAX_FAILING:
                return
            self._size += 1
            record = records[member] = _Record()
            self.failing[target.name] = records
        record.failures += 1
        now = self._seconds()
        if record.failures < self._after or now < record.until:
            return
        if not any(
            rival not in records and rival.tunnel.available
            for rival in self._candidates(target.identifiers)
        ):
            return
        record.pause = min(record.pause * 2 or self._pause, self._max_pause)
        record.until = now + record.pause
        self._on_ejected()
        _log.warn(
            "inner layer {identifier} is passed over for {target} for {pause:g} s:"
            " {reason}, {failures} times in a row address={address}",
            identifier=member.identifier,
            target=target.name,
            pause=record.pause,
            reason=code.name.lower().replace("_", " "),
            failures=record.failures,
            address=member.address,
        )

    def reached(self, target: str, member: Member) -> None:
        """An origin has answered through this inner layer. Cheap to leave out if none fails."""
        records = self.failing.get(target)
        if records is None or member not in records:
            return
        record = records[member]
        self._drop(target, member)
        if record.pause:
            _log.info(
                "inner layer {identifier} reaches {target} again address={address}",
                identifier=member.identifier,
                target=target,
                address=member.address,
            )

    def forget(self, member: Member) -> None:
        """An inner layer has gone."""
        for target in [name for name, records in self.failing.items() if member in records]:
            self._drop(target, member)

    def clear(self) -> None:
        """The targets have changed: all begin anew."""
        self.failing.clear()
        self._size = 0

    def _drop(self, target: str, member: Member) -> None:
        records = self.failing[target]
        del records[member]
        self._size -= 1
        if not records:
            del self.failing[target]

"""``bench compare``: each work through each contestant in turn, round by round.

All contestants run from the beginning to the end, so that a peak of memory is that of all works;
those whose turn it is not are idle. The order is A B C A B C, so that the machine's drift hits all
alike.
"""

from __future__ import annotations

import contextlib
import http.client
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.baselines import NginxHop, OriginAlone
from bench.contestants import Contestant, Programs
from bench.load import Load
from bench.origins import LARGE, SMALL, SMALL_BODY, start_origins
from bench.ours import VARIANTS, Sockgw
from bench.peers import PEERS
from bench.processes import Failed
from bench.results import Measurement, Results
from bench.room import Address, Room, Route
from bench.works import COLD, CPU, MEMORY, Work

__all__ = ["Settings", "all_contestants", "compare"]

_QUIET = 0.01  # seconds of CPU in _GLANCE, below which a contestant counts as settled
_GLANCE = 0.1  # seconds
_SETTLING = 5.0  # seconds after which it is not waited for any more

_TROUBLE = (Failed, OSError, subprocess.SubprocessError)
"""What a contestant may get into, which must not end the run of the others."""


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    rounds: int
    seconds: float  #: of each work with a duration
    size: int  #: bytes of a transfer
    warm_up: bool  #: a second of requests before anything is measured
    directory: Path | None  #: where temporary files go; the system's place if None


def all_contestants(
    programs: Programs, builds: Sequence[tuple[str, Path]] = ()
) -> list[Contestant]:
    """Return all that there are, in the order of their turns.

    ``builds`` are further installations of sockgw, each by a name and its directory of commands.
    """
    return [
        *(Sockgw(programs, variant) for variant in VARIANTS),
        *(Sockgw(programs, variant, build) for build in builds for variant in VARIANTS[:2]),
        OriginAlone(programs),
        NginxHop(programs),
        *(peer(programs) for peer in PEERS),
    ]


@dataclass
class Stand:
    """A contestant that runs."""

    contestant: Contestant
    room: Room
    routes: Mapping[str, Route]
    idle: dict[str, int] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.contestant.name

    def note_peak(self) -> None:
        for role, usage in self.room.usage().items():
            self.peak[role] = max(self.peak.get(role, 0), usage.peak)


def compare(
    contestants: Sequence[Contestant],
    programs: Programs,
    settings: Settings,
    results: Results,
) -> None:
    """Measure; everything goes into ``results`` as it comes, so that it is there on any end."""
    with contextlib.ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="sockgw-bench-", dir=settings.directory))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        origins_room = stack.enter_context(Room(directory / "origins", "the origins"))
        origins = start_origins(origins_room, programs, settings.size)
        load = Load(
            wrk=_required(programs, "wrk"),
            curl=_required(programs, "curl"),
            file=origins_room.directory / "files" / LARGE[1:],
            seconds=settings.seconds,
        )
        stands = []
        for number, contestant in enumerate(contestants):
            room = Room(directory / str(number), contestant.name)
            if stand := _begin(contestant, room, origins, stack, results):
                stands.append(stand)
        for stand in stands:
            _settle([stand.room])
            stand.idle = {role: usage.resident for role, usage in stand.room.usage().items()}
        try:
            if settings.warm_up:
                _warm_up(stands, load)
            for work in results.works:
                for turn in range(settings.rounds):
                    for stand in stands:
                        if work is COLD and not stand.room.processes:
                            continue  # nothing to start
                        fresh = directory / "fresh"
                        measured = _measure(work, turn, stand, load, origins_room, origins, fresh)
                        _tell(work, measured)
                        results.measurements.append(measured)
        finally:
            for stand in stands:
                stand.note_peak()
                results.measurements.append(_memory(stand))


def _required(programs: Programs, name: str) -> str:
    path = programs.find(name)
    if path is None:
        raise Failed(programs.why_missing(name))
    return path


def _begin(
    contestant: Contestant,
    room: Room,
    origins: Mapping[str, Address],
    stack: contextlib.ExitStack,
    results: Results,
) -> Stand | None:
    """Start a contestant, or note why it is missing."""
    reason = contestant.missing()
    if reason is None:
        with contextlib.ExitStack() as own:
            try:
                own.enter_context(room)
                routes = contestant.launch(room, origins)
                for name, route in routes.items():
                    _wait_for_answer(room, name, route)
            except _TROUBLE as error:
                reason = f"did not start: {error}"
            else:
                results.described[contestant.name] = {
                    "versions": contestant.versions(),
                    "encrypts": contestant.encrypts,
                    "carries": contestant.carries,
                    "processes": list(room.processes),
                }
                stack.push(own.pop_all())
                return Stand(contestant, room, routes)
    results.missing[contestant.name] = reason
    _say(f"{contestant.name}: {reason}")
    return None


def _wait_for_answer(room: Room, origin: str, route: Route) -> None:
    """Wait until an origin answers through a contestant as it should."""
    last: list[str] = ["no answer"]

    def answers() -> bool:
        problem = _ask(origin, route)
        last[0] = problem or ""
        return problem is None

    try:
        room.wait_until(answers, f"the origin {origin!r} answers")
    except Failed as error:
        raise Failed(f"{error}; {last[0]}") from None


def _ask(origin: str, route: Route) -> str | None:
    """Ask an origin once, on a connection of its own; say what is wrong with its answer."""
    method, path, sent, expected = {
        "web": ("GET", SMALL, None, SMALL_BODY),
        "sink": ("PUT", "/sink", b"x", b"1\n"),
        "echo": ("GET", "/echo", None, b"echo\n"),
    }[origin]
    client = http.client.HTTPConnection(route.address.host, route.address.port, timeout=5)
    try:
        client.request(method, path, body=sent, headers={"Host": route.host})
        answer = client.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        return repr(error)
    finally:
        client.close()
    if answer.status != 200 or body != expected:
        return f"status {answer.status}, {body[:80]!r}"
    return None


def _warm_up(stands: Sequence[Stand], load: Load) -> None:
    """Load each for a moment: programs that compile themselves as they run shall have done so."""
    short = Load(load.wrk, load.curl, load.file, seconds=1)
    for stand in stands:
        with contextlib.suppress(Failed, KeyError):
            short.get(stand.routes["web"], 10)


def _measure(
    work: Work,
    turn: int,
    stand: Stand,
    load: Load,
    origins_room: Room,
    origins: Mapping[str, Address],
    fresh: Path,
) -> Measurement:
    """Do a work once."""
    try:
        if work is COLD:
            figures = {"first": _cold_start(stand.contestant, fresh, origins)}
            return Measurement(work.name, turn, stand.name, figures)
        if work.origin not in stand.routes:
            raise Failed(f"offers no way to the origin {work.origin!r}")
        for process in stand.room.processes.values():
            process.assert_running()
        rooms = (stand.room, origins_room)
        _settle(rooms)
        before = [room.usage() for room in rooms]
        with stand.contestant.attended(stand.room):
            outcome = work.run(load, stand.routes[work.origin])
        _settle(rooms)  # what is done afterwards, such as closing connections, belongs to it
        after = [room.usage() for room in rooms]
        cpu = {
            role: (usage.cpu - then[role].cpu) / outcome.amount
            for then, now in zip(before, after, strict=True)
            for role, usage in now.items()
        }
        own = sum(cpu[role] for role in stand.room.processes)
        stand.note_peak()
        for process in stand.room.processes.values():
            process.assert_running()
        return Measurement(work.name, turn, stand.name, {**outcome.figures, CPU: own}, cpu)
    except _TROUBLE as error:
        return Measurement(work.name, turn, stand.name, failed=str(error))


def _cold_start(contestant: Contestant, fresh: Path, origins: Mapping[str, Address]) -> float:
    """Return the seconds from the first process's start to the first answer."""
    with Room(fresh, contestant.name) as room:
        routes = contestant.launch(room, origins)
        _wait_for_answer(room, "web", routes["web"])
        now = time.monotonic()
        assert room.began is not None
        return now - room.began


def _settle(rooms: Sequence[Room]) -> None:
    """Wait until processes rest."""
    deadline = time.monotonic() + _SETTLING
    last = _cpu(rooms)
    while time.monotonic() < deadline:
        time.sleep(_GLANCE)
        now = _cpu(rooms)
        if now - last <= _QUIET:
            return
        last = now


def _cpu(rooms: Sequence[Room]) -> float:
    return sum(usage.cpu for room in rooms for usage in room.usage().values())


def _memory(stand: Stand) -> Measurement:
    """Return what a contestant held idle, and at its highest in all works."""
    figures = {
        "idle": float(sum(stand.idle.values())),
        "peak": float(sum(stand.peak.values())),
    }
    detail = {"idle": stand.idle, "peak": stand.peak}
    return Measurement(MEMORY.name, 0, stand.name, figures, detail=detail)


def _tell(work: Work, measured: Measurement) -> None:
    told = ", ".join(_figures(work, measured)) if measured.failed is None else measured.failed
    _say(f"{work.name} {measured.round + 1}: {measured.contestant}: {told}")


def _figures(work: Work, measured: Measurement) -> Iterator[str]:
    for figure in work.all_figures:
        if figure.name in measured.figures:
            yield f"{measured.figures[figure.name] * figure.scale:,.4g} {figure.unit}"


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

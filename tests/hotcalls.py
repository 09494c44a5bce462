"""Counts the hot path's work, and compares it with what was recorded.

Counted are calls of our own Python functions, calls of C functions out of them, and instructions of
bytecode: where times differ from run to run, these are the same to the last one. Calls are the same
on each version of Python, too; instructions are not, and are compared on the version only that
recorded them. Beside them what a profile does not show: writes to transports, timers, turns of the
reactors, matches of regular expressions, objects held while a request is under way, objects that
only the garbage collector frees, and what nobody frees.

::

    python tests/hotcalls.py             prints the table, by function
    python tests/hotcalls.py --record    the same, and records the figures in hotpath.json
    python tests/hotcalls.py --compare   says what has grown; its status is 1 if something has
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from types import CodeType
from typing import Any

from hotpath import WORKS, Gateway, Work

import sockgw

__all__ = ["RECORD", "Table", "compare", "measure"]

RECORD = Path(__file__).with_name("hotpath.json")

_OURS = str(Path(sockgw.__file__).parent) + os.sep
_TESTS = str(Path(__file__).parent) + os.sep
_LIBRARIES = "site-packages" + os.sep
_INLINED = ("<listcomp>", "<dictcomp>", "<setcomp>")  # since Python 3.12 (PEP 709)
_MATCHES = ("Pattern.", "_Regexp.")  # of re and re2

# What may be added to a figure unnoticed: less than one call for each request. Libraries change
# without our doing.
_SLACK = 0.5
_LIBRARIES_SLACK = 5.0
_INSTRUCTIONS_SLACK = 20.0  # half a function's
_EVENTS_SLACK = 0.05  # of what takes more than a call: writes, timers, matches

_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_LEAKED = "objects left for ever"
_GARBAGE = ("objects left to the garbage collector", _LEAKED, "memory blocks left for ever")

_CLOCK = "ContextVar.get"  # see memorynet.Reactor
_ROUNDS = 3  # of which the least counts: the others may have met a ping or another second

Row = dict[str, float]


class Table:
    """What was counted: for each work, by layer, per unit.

    ``figures`` has sums, ``functions`` the calls that they consist of: ``outer: http/headers.py
    lower`` is a function of ours, with ``-> dict.get`` behind it a C function that it calls.
    ``instructions`` has those executed in each, by this version of Python.
    """

    def __init__(
        self,
        figures: dict[str, Row],
        functions: dict[str, Row],
        instructions: dict[str, Row],
        python: str = _PYTHON,
    ) -> None:
        self.figures = figures
        self.functions = functions
        self.instructions = instructions
        self.python = python

    @classmethod
    def load(cls) -> Table:
        """Read what was recorded."""
        record = json.loads(RECORD.read_text())
        works = record["works"]

        def rows(kind: str) -> dict[str, Row]:
            return {name: dict(zip(works, row, strict=True)) for name, row in record[kind].items()}

        return cls(
            rows("figures"), rows("functions"), rows("instructions"), python=record["python"]
        )

    def save(self) -> None:
        """Record it."""
        parts = [f'"python": "{self.python}"', f'"works": {json.dumps(list(WORKS))}']
        for kind in ("figures", "functions", "instructions"):
            rows: dict[str, Row] = getattr(self, kind)
            lines = [
                f"  {json.dumps(name)}: {json.dumps([row.get(work, 0) for work in WORKS])}"
                for name, row in sorted(rows.items())
            ]
            parts.append("\n".join((f'"{kind}": {{', ",\n".join(lines), "}")))
        RECORD.write_text("\n".join(("{", ",\n".join(parts), "}", "")))


class _Calls:
    """Counts the calls in one layer."""

    def __init__(self) -> None:
        self.python: Counter[tuple[CodeType, CodeType | None]] = Counter()
        self.c: Counter[tuple[CodeType, str]] = Counter()

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call":
            # What dataclasses and named tuples generate belongs to its caller.
            caller = frame.f_back.f_code if code.co_filename.startswith("<") else None
            self.python[code, caller] += 1
        elif event == "c_call":
            name = getattr(argument, "__qualname__", str(argument))
            self.c[code, "monotonic" if name == _CLOCK else name] += 1


class _Instructions:
    """Counts what is executed of our functions in one layer."""

    def __init__(self) -> None:
        self.counts: Counter[CodeType] = Counter()

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        if not _is_ours(frame.f_code):
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: Any, event: str, argument: Any) -> Any:
        if event == "opcode":
            self.counts[frame.f_code] += 1
        return self._step


def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(_OURS)


def _name(code: CodeType) -> str:
    name = code.co_qualname
    for inlined in _INLINED:
        name = name.removesuffix(f".<locals>.{inlined}")
    return f"{code.co_filename.removeprefix(_OURS)} {name}"


def _figures(calls: _Calls) -> tuple[Counter[str], Counter[str]]:
    """Return the sums and the functions that they are of."""
    sums: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for (code, caller), count in calls.python.items():
        if caller is not None:
            if _is_ours(caller):
                sums["Python calls"] += count
                functions[f"{_name(caller)} -> {code.co_name} (generated)"] += count
        elif _is_ours(code):
            if code.co_name not in _INLINED:
                sums["Python calls"] += count
                functions[_name(code)] += count
        elif not code.co_filename.startswith(_TESTS):
            sums["calls within libraries"] += count
            path = code.co_filename.rpartition(_LIBRARIES)[2]
            library = path.partition(os.sep)[0] if path != code.co_filename else "python"
            functions[f"({library}) {code.co_qualname}"] += count
            if code.co_qualname.startswith(_MATCHES):
                sums["matches"] += code.co_name in ("search", "match", "fullmatch") and count
    for (code, name), count in calls.c.items():
        if _is_ours(code):
            sums["C calls"] += count
            functions[f"{_name(code)} -> {name}"] += count
            sums["matches"] += name.startswith(_MATCHES) and count
    return sums, functions


def _count(gateway: Gateway, work: Work, clients: list[Any]) -> tuple[Counter[str], Counter[str]]:
    """Return sums and functions of one round."""
    calls = {reactor: _Calls() for reactor in gateway.reactors}
    for reactor in gateway.reactors:
        reactor.counts.clear()
        reactor.profile = calls[reactor]
    turns = gateway.turns
    work.run(gateway, clients)
    sums = Counter({"both: turns of the reactors": gateway.turns - turns})
    functions: Counter[str] = Counter()
    for reactor in gateway.reactors:
        reactor.profile = None
        layer_sums, layer_functions = _figures(calls[reactor])
        for counts in (layer_sums, reactor.counts):
            sums.update({f"{reactor.name}: {name}": count for name, count in counts.items()})
        functions.update({f"{reactor.name}: {name}": n for name, n in layer_functions.items()})
    return sums, functions


def _trace(gateway: Gateway, work: Work, clients: list[Any]) -> Counter[str]:
    """Return the instructions of one round, by function."""
    counters = {reactor: _Instructions() for reactor in gateway.reactors}
    for reactor in gateway.reactors:
        reactor.trace = counters[reactor]
    work.run(gateway, clients)
    result: Counter[str] = Counter()
    for reactor in gateway.reactors:
        reactor.trace = None
        for code, count in counters[reactor].counts.items():
            result[f"{reactor.name}: {_name(code)}"] += count
    return result


def _garbage(gateway: Gateway, work: Work, clients: list[Any]) -> tuple[int, int, int]:
    """Return how many objects a round leaves to the collector, and objects and blocks for ever."""
    gc.collect()
    blocks = sys.getallocatedblocks()
    objects = len(gc.get_objects())
    work.run(gateway, clients)
    unreachable = gc.collect()
    return unreachable, len(gc.get_objects()) - objects, sys.getallocatedblocks() - blocks


def _held(gateway: Gateway, work: Work, clients: list[Any]) -> int:
    """Return how many objects there are more, while a request of each client is under way."""
    gc.collect()
    before = len(gc.get_objects())
    during = []
    gateway.under_way(
        clients, work.request, work.size, lambda: during.append(len(gc.get_objects()))
    )
    gateway.rest()
    return during[0] - before


def measure() -> Table:
    """Count everything. To be called in a process of its own: caches are as they were at start."""
    gc.disable()
    figures: dict[str, Row] = defaultdict(dict)
    functions: dict[str, Row] = defaultdict(dict)
    instructions: dict[str, Row] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as directory:
        gateways = {}
        for secure in (False, True):
            place = Path(directory, str(secure))
            place.mkdir()
            gateways[secure] = Gateway(place, secure)
        for name, work in WORKS.items():
            gateway = gateways[work.secure]
            clients = work.begin(gateway)
            for _ in range(3):  # fills caches, grows windows
                work.run(gateway, clients)
            rounds = [_count(gateway, work, clients) for _ in range(_ROUNDS)]
            sums, calls = min(rounds, key=lambda counted: counted[0].total())
            rounds.clear()
            steps = _trace(gateway, work, clients)
            for reactor in gateway.reactors:
                sums[f"{reactor.name}: instructions"] = sum(
                    count for row, count in steps.items() if row.startswith(reactor.name)
                )
            garbage = [_garbage(gateway, work, clients) for _ in range(_ROUNDS)]
            for figure, counted in zip(_GARBAGE, zip(*garbage, strict=True), strict=True):
                sums[f"both: {figure}"] = max(min(counted), 0)
            if type(work) is Work and work.unit == "request":
                held = _held(gateway, work, clients) / work.clients
                figures["both: objects held by a request under way"][name] = held
            for rows, counts in ((figures, sums), (functions, calls), (instructions, steps)):
                # Timers come now and then: a second digit of a function's would be never the same.
                digits = 2 if rows is figures else 1
                for row, count in counts.items():
                    rows[row][name] = round(count / work.count, digits)
            for client in clients:
                client.close()
            gateway.rest()
    for rows in (functions, instructions):
        for row in [row for row, counts in rows.items() if not any(counts.values())]:
            del rows[row]
    return Table(figures, functions, instructions)


# ------------------------------------------------------------------ comparing


def _slack(figure: str) -> float:
    if figure.endswith("instructions"):
        return _INSTRUCTIONS_SLACK
    if figure.endswith("calls within libraries"):
        return _LIBRARIES_SLACK
    if figure.endswith(_LEAKED):
        return 0.0
    return _SLACK if re.search("calls|objects|blocks", figure) else _EVENTS_SLACK


def compare(recorded: Table, measured: Table) -> list[str]:
    """Return what has grown, in lines: the figures, and below them the functions that it lies in.

    What has shrunk is fine, and is recorded when somebody likes to.
    """
    lines = []
    for figure, row in sorted(measured.figures.items()):
        for work, now in row.items():
            if figure.endswith("instructions") and recorded.python != measured.python:
                continue
            before = recorded.figures.get(figure, {}).get(work, 0.0)
            if now <= before + _slack(figure):
                continue
            unit = WORKS[work].unit
            lines.append(f"{work}: {figure}: {before:g} recorded, now {now:g} for each {unit}")
            layer = figure.partition(":")[0]
            if figure.endswith("instructions"):
                lines += _grown(recorded.instructions, measured.instructions, layer, work)
            elif "calls" in figure:
                lines += _grown(recorded.functions, measured.functions, layer, work)
    return lines


def _grown(recorded: dict[str, Row], measured: dict[str, Row], layer: str, work: str) -> list[str]:
    grown = {}
    for name, row in measured.items():
        growth = row.get(work, 0.0) - recorded.get(name, {}).get(work, 0.0)
        if name.startswith(layer) and growth > _EVENTS_SLACK:
            grown[name] = growth
    return [f"    {growth:+.2f} {name}" for name, growth in _sorted(grown.items())]


def _sorted(rows: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    return sorted(rows, key=lambda row: (-row[1], row[0]))


# ------------------------------------------------------------------ the table


def _lines(table: Table) -> list[str]:
    """Return the table as text: sums, then packages and functions."""
    width = 72
    works = list(WORKS)
    lines = [f"{number}: {work}, for each {WORKS[work].unit}" for number, work in enumerate(works)]
    heading = "".join(f"{number:>12}" for number in range(len(works)))
    lines += ["", f"{'':{width}}{heading}"]
    for name, row in sorted(table.figures.items()):
        lines.append(f"{name:{width}}" + "".join(f"{row.get(work, 0):12g}" for work in works))
    for layer in ("outer", "inner"):
        functions, parts = _by_function(table, layer)
        for title, rows in (("parts", parts), ("functions", functions)):
            lines += ["", f"{f'{layer} layer, {title}: calls/instructions':{width}}{heading}"]
            totals = {
                name: row[works[0]][1] * 1e3 + sum(map(sum, row.values()))
                for name, row in rows.items()
            }
            for name, _ in _sorted(totals.items()):
                cells = [rows[name][work] for work in works]
                shown = [
                    f"{calls:.4g}/{steps:.4g}" if calls or steps else "" for calls, steps in cells
                ]
                lines.append(f"{name:{width}}" + "".join(f"{cell:>12}" for cell in shown))
    return lines


_Rows = dict[str, dict[str, list[float]]]


def _by_function(table: Table, layer: str) -> tuple[_Rows, _Rows]:
    """Return calls, to it and from it to C, and instructions, by function and by package."""
    functions: _Rows = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    parts: _Rows = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    for column, rows in enumerate((table.functions, table.instructions)):
        for row_name, row in rows.items():
            whose, _, name = row_name.partition(": ")
            if whose != layer:
                continue
            name = name.partition(" -> ")[0]
            part = name.partition(" ")[0].partition("/")[0]
            for work, count in row.items():
                functions[name][work][column] += count
                parts[part][work][column] += count
    return functions, parts


def main(option: str = "") -> int:
    table = measure()
    if option == "--compare":
        grown = compare(Table.load(), table)
        print("\n".join(grown))
        return bool(grown)
    print("\n".join(_lines(table)))
    if option == "--record":
        table.save()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

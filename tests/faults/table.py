"""The table of docs/reliability.rst, written by ``make faults``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from load import percentile

__all__ = ["Row", "Table"]

_COLUMNS = (
    "what",
    "times",
    "work meanwhile",
    "errors that clients saw",
    "recovery: p50, p95, most",
    "sent again",
    "peak memory: outer, inner layer",
)
_HEAD = """\
.. Written by "make faults"; do not edit. "make faults ARGS='{names}'" with SOCKGW_SEED={seed}
   draws the same faults.

.. list-table::
   :header-rows: 1

"""
MIB = 1 << 20


class Row:
    """A line of the table."""

    def __init__(
        self,
        what: str,
        times: int,
        work: str,
        requests: int,
        errors: Mapping[str, int],
        recoveries: Iterable[float],
        resent: int,
        peaks: tuple[int, int],
    ) -> None:
        """``recoveries`` are in seconds; ``resent`` and ``peaks`` are bytes."""
        found = ", ".join(f"{count} × {saw}" for saw, count in sorted(errors.items()))
        seconds = list(recoveries)
        self.cells = (
            what,
            str(times),
            work,
            f"{found} of {requests}" if found else f"0 of {requests}",
            ", ".join(f"{_in_time(seconds, part)}" for part in (0.5, 0.95, 1.0))
            if seconds
            else "–",
            f"{resent / MIB:.1f} MiB",
            ", ".join(f"{peak / MIB:.0f} MiB" for peak in peaks),
        )


def _in_time(seconds: list[float], part: float) -> str:
    return f"{percentile(seconds, part):.2f} s"


class Table:
    """Rows in the order in which they came, each printed at once."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        self._rows.append(row)
        print("\n" + "; ".join(f"{n}: {c}" for n, c in zip(_COLUMNS, row.cells, strict=True)))

    def write(self, path: Path) -> None:
        """Write it as reStructuredText, if there is anything in it."""
        if self._rows:
            lines = [_line(_COLUMNS), *(_line(row.cells) for row in self._rows)]
            head = _HEAD.format(seed=self._seed, names="-k full")
            path.write_text(head + "".join(lines), encoding="utf-8")


def _line(cells: Iterable[str]) -> str:
    return "".join(
        f"   {'* -' if number == 0 else '  -'} {cell}\n" for number, cell in enumerate(cells)
    )

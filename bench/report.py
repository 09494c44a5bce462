"""Results as text: a table for each work, ratios as reStructuredText, and what was reached."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from bench.results import NOT_MEASURED, Results
from bench.targets import ALL_ON_PLAIN, Requirement, verdicts
from bench.works import Figure, Work

__all__ = ["as_rst", "as_text"]


def as_text(results: Results) -> str:
    """Return all tables for a terminal."""
    parts = [_heading(results)]
    parts.extend(_work_table(results, work) for work in results.all_works())
    parts.append(_targets_text(results))
    if results.described:
        rows = [["", "between its halves", "versions"], *_described(results)]
        parts.append("\n".join(["Who ran", *_columns(rows, range(3))]))
    if results.missing:
        told = (f"  {name}: {reason}" for name, reason in results.missing.items())
        parts.append("Did not run:\n" + "\n".join(told))
    return "\n\n".join(parts)


def _heading(results: Results) -> str:
    machine = ", ".join(
        f"{key} {value}" for key, value in results.machine.items() if isinstance(value, str | int)
    )
    how = ", ".join(f"{key} {value}" for key, value in results.settings.items())
    note = "\nINTERRUPTED: rounds are missing." if results.interrupted else ""
    return (
        f"Medians. A ratio (×) is the figure of {results.base!r} divided by this one.\n"
        f"Machine: {machine}.\nSettings: {how}.{note}"
    )


def _described(results: Results) -> Iterator[tuple[str, str, str]]:
    """Yield who ran: the name, what goes between its halves, the versions of its programs."""
    for name, described in results.described.items():
        versions = (
            version if program in version.lower() else f"{program} {version}"
            for program, version in described.get("versions", {}).items()
        )
        yield name, described.get("carries") or "–", ", ".join(versions) or "–"


def _work_table(results: Results, work: Work) -> str:
    """Return a table of one work: a line for each contestant."""
    header = ["", *(word for figure in work.all_figures for word in (figure.unit_line, "×"))]
    if work.per:
        header.append("of each process")
    rows = []
    notes = []
    for name in results.contestants:
        failure = results.failure(work.name, name)
        if failure is None:
            rows.append([name, *_cells(results, work, name)])
        elif name in results.missing:
            rows.append([name, "did not run"])
        elif failure == NOT_MEASURED:
            rows.append([name, "–"])
        else:
            rows.append([name, "failed"])
            notes.append(f"  {name}: {failure}")
    left = {0, len(header) - 1} if work.per else {0}
    return "\n".join([work.title, *_columns([header, *rows], left), *notes])


def _cells(results: Results, work: Work, name: str) -> Iterator[str]:
    for figure in work.all_figures:
        value = results.median(work.name, name, figure.name)
        yield "" if value is None else number(value * figure.scale)
        yield times(results.ratio(work.name, name, figure.name))
    own = results.described.get(name, {}).get("processes", ())
    cpu = results.cpu(work.name, name)
    yield ", ".join(f"{role} {number(cpu[role])}" for role in own if role in cpu)


def _columns(rows: Sequence[Sequence[str]], left: Collection[int]) -> Iterator[str]:
    """Yield lines with the cells below each other, those of some columns to the left."""
    count = max(map(len, rows))
    widths = [max((len(row[i]) for row in rows if i < len(row)), default=0) for i in range(count)]
    for row in rows:
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        yield "  " + "  ".join(cells).rstrip()


def _targets_text(results: Results) -> str:
    rows = [["work", "figure", "against", "required", "ratio", "without TLS", "verdict"]]
    for verdict in verdicts(results):
        wanted = verdict.requirement
        rows.append(
            [
                *(wanted.work, wanted.figure, wanted.peer),
                f"{wanted.relation} {wanted.bound:g}{_without_tls(wanted)}",
                *(times(verdict.ratio), times(verdict.plain)),
                verdict.word + (f": {verdict.reason}" if verdict.reason else ""),
            ]
        )
    return "\n".join(["What is to be reached", *_columns(rows, range(7))])


def _without_tls(wanted: Requirement) -> str:
    return " without TLS" if wanted.ours == ALL_ON_PLAIN else ""


# ------------------------------------------------------------------ reStructuredText


def as_rst(results: Results) -> str:
    """Return tables of ratios, for a document."""
    groups: dict[str, list[tuple[Work, Figure]]] = {}
    for work in results.all_works():
        for figure in work.all_figures:
            groups.setdefault(_group(figure), []).append((work, figure))
    parts = [
        f"Figures of *{results.base}* divided by those of each line; medians of "
        f"{results.settings.get('rounds', '?')} rounds."
    ]
    for title, columns in groups.items():
        header = [title, *(f"{work.name}: {figure.short}" for work, figure in columns)]
        rows = [
            [
                name,
                *(
                    times(results.ratio(work.name, name, figure.name)) or "–"
                    for work, figure in columns
                ),
            ]
            for name in results.contestants
            if name not in results.missing
        ]
        parts.append(_list_table([header, *rows]))
    parts.append(_targets_rst(results))
    if results.described:
        header = ["Contestant", "Between its halves", "Versions"]
        parts.append(_list_table([header, *_described(results)]))
    notes = [f"- *{name}* did not run: {why}." for name, why in results.missing.items()]
    for work in results.all_works():
        for name in results.contestants:
            failure = results.failure(work.name, name)
            if failure not in (None, NOT_MEASURED) and name not in results.missing:
                notes.append(f"- *{name}*, {work.name}: {failure}.")
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(parts) + "\n"


def _group(figure: Figure) -> str:
    if figure.more_is_better:
        return "Throughput (more than 1: the base is faster)"
    if figure.unit in ("µs", "ms"):
        return "Time (less than 1: the base is faster)"
    return "Cost (less than 1: the base is cheaper)"


def _targets_rst(results: Results) -> str:
    rows = [["Work", "Against", "Required", "Reached", "Without TLS", ""]]
    for verdict in verdicts(results):
        wanted = verdict.requirement
        rows.append(
            [
                f"{wanted.work}: {wanted.figure}",
                wanted.peer,
                f"{wanted.relation} {wanted.bound:g}{_without_tls(wanted)}",
                times(verdict.ratio) or "–",
                times(verdict.plain) or "–",
                verdict.word,
            ]
        )
    return _list_table(rows)


def _list_table(rows: Iterable[Sequence[str]]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        first, *others = row
        lines.append(f"   * - {first}")
        lines.extend(f"     - {cell}".rstrip() for cell in others)
    return "\n".join(lines)


# ------------------------------------------------------------------ numbers


def number(value: float) -> str:
    """Return a figure with three or more digits that count."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def times(ratio: float | None) -> str:
    """Return a ratio; nothing if there is none."""
    if ratio is None:
        return ""
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.3f}"

"""Results as pictures: for each figure, each contestant relative to one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.results import Results
from bench.works import Figure, Work

__all__ = ["draw"]

_COLUMNS = 3
_OURS, _BASELINE, _PEER = "#1f6f8b", "#9a9a9a", "#d98032"


def draw(results: Results, directory: Path) -> list[Path]:
    """Write ``throughput.png``, ``latency.png`` and ``cost.png``; return their paths.

    Raises ImportError without matplotlib.
    """
    import matplotlib as mpl  # type: ignore[import-not-found,unused-ignore]

    mpl.use("Agg")
    groups: dict[str, list[tuple[Work, Figure]]] = {}
    for work in results.all_works():
        for figure in work.all_figures:
            groups.setdefault(_file(figure), []).append((work, figure))
    directory.mkdir(parents=True, exist_ok=True)
    return [
        path
        for name, panels in groups.items()
        if (path := _picture(results, panels, directory / name))
    ]


def _file(figure: Figure) -> str:
    if figure.more_is_better:
        return "throughput.png"
    return "latency.png" if figure.unit in ("µs", "ms") else "cost.png"


def _picture(results: Results, panels: list[tuple[Work, Figure]], path: Path) -> Path | None:
    import matplotlib.pyplot as plt  # type: ignore[import-not-found,unused-ignore]

    panels = [each for each in panels if _bars(results, *each)]
    if not panels:
        return None
    rows = -(-len(panels) // _COLUMNS)
    height = 0.8 + 0.24 * len(results.contestants)
    figure, axes = plt.subplots(
        rows, _COLUMNS, figsize=(13, rows * height), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (work, shown) in zip(axes.flat, panels, strict=False):
        _panel(axis, results, work, shown)
    better = "longer is better" if panels[0][1].more_is_better else "shorter is better"
    figure.suptitle(f"{results.base} = 1; {better}", fontsize=10)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def _bars(results: Results, work: Work, figure: Figure) -> dict[str, float]:
    """Return each contestant's figure divided by the base's."""
    base = results.median(work.name, results.base, figure.name)
    values = {name: results.median(work.name, name, figure.name) for name in results.contestants}
    return {name: value / base for name, value in values.items() if value and base}


def _panel(axis: Any, results: Results, work: Work, figure: Figure) -> None:
    bars = _bars(results, work, figure)
    names = list(reversed(bars))
    encrypted = {name for name in names if results.described.get(name, {}).get("encrypts")}
    colours = [_colour(name) for name in names]
    drawn = axis.barh(names, [bars[name] for name in names], color=colours)
    for bar, name in zip(drawn, names, strict=True):
        bar.set_hatch("//" if name in encrypted else "")
        bar.set_edgecolor("white")
    axis.bar_label(drawn, [f"{bars[name]:.2g}" for name in names], padding=2, fontsize=6)
    axis.axvline(1, color="black", linewidth=0.6)
    spread = max(bars.values()) / min(bars.values())
    if spread > 20:
        axis.set_xscale("log")
    axis.margins(x=0.15)
    axis.set_title(f"{work.name}: {figure.short}", fontsize=8)
    axis.tick_params(labelsize=7)


def _colour(name: str) -> str:
    if name.startswith("sockgw"):
        return _OURS
    return _BASELINE if name in ("origin alone", "nginx one hop") else _PEER

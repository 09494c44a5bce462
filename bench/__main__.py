"""The command line: ``python -m bench [compare|idle|growth] [OPTIONS]``; without a command, all."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from bench.compare import Settings, all_contestants, compare
from bench.contestants import Programs
from bench.machine import describe
from bench.processes import Failed
from bench.report import as_rst, as_text
from bench.results import NOT_MEASURED, Results
from bench.targets import ALL_ON
from bench.works import WORKS

OUTPUT = Path("build/bench")

# Each is a module with main(arguments) -> exit status, that knows --quick; one that is absent is
# left out of a whole run.
_OTHERS = {"idle": "bench.idle", "growth": "bench.growth"}

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def main(arguments: Sequence[str]) -> int:
    """Run a command; return the exit status."""
    for number in _ENDINGS:
        signal.signal(number, _end)
    _raise_file_limit()
    name, *options = arguments or [""]
    if name == "compare":
        return compare_main(options)
    if name in _OTHERS:
        return _other(name, options)
    if name in ("-h", "--help"):
        print(__doc__, "\n\nEach command has a --help of its own.", sep="")
        return 0
    if not set(arguments) <= {"--quick"}:
        return compare_main(arguments)
    status = compare_main(arguments)
    for other, module in _OTHERS.items():
        if importlib.util.find_spec(module) is not None:
            status = max(status, _other(other, arguments))
    return status


def _other(name: str, options: Sequence[str]) -> int:
    status: int = importlib.import_module(_OTHERS[name]).main(options)
    return status


def compare_main(arguments: Sequence[str]) -> int:
    """``bench compare``: 1 if a figure of sockgw is invalid, else 0, whatever was reached."""
    options = compare_parser().parse_args(arguments)
    programs = Programs(dict(options.program))
    contestants = all_contestants(programs, options.build)
    known = [contestant.name for contestant in contestants]
    unknown = sorted({*options.only, *options.without} - set(known))
    works = [work for work in WORKS if not options.works or work.name in options.works]
    unknown += sorted(set(options.works) - {work.name for work in WORKS})
    if unknown:
        told = f"contestants: {', '.join(known)}; works: {', '.join(w.name for w in WORKS)}"
        print(f"bench: not known: {', '.join(unknown)}. There are {told}", file=sys.stderr)
        return 2
    chosen = [
        contestant
        for contestant in contestants
        if (not options.only or contestant.name in options.only)
        and contestant.name not in options.without
    ]
    settings = Settings(
        rounds=options.rounds or (1 if options.quick else 3),
        seconds=options.seconds or (1.0 if options.quick else 5.0),
        size=options.size or (64 << 20 if options.quick else 1 << 30),
        warm_up=not options.quick,
        directory=options.directory,
    )
    results = Results(
        base=options.base,
        works=works,
        contestants=[contestant.name for contestant in chosen],
        machine=describe(programs),
        settings={
            "rounds": settings.rounds,
            "seconds": settings.seconds,
            "size": settings.size,
        },
    )
    try:
        compare(chosen, programs, settings, results)
    except Failed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except SystemExit:
        results.interrupted = True
        _write(results, options)
        raise
    _write(results, options)
    invalid = [
        name
        for name in results.contestants
        if name.startswith("sockgw")
        and any(
            results.failure(work.name, name) not in (None, NOT_MEASURED)
            for work in results.all_works()
        )
    ]
    return 1 if invalid else 0


def _write(results: Results, options: argparse.Namespace) -> None:
    """Print the tables and write the files."""
    print(as_text(results))
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results.as_json(), indent=1, ensure_ascii=False)
    (output / "compare.json").write_text(text + "\n")
    (output / "compare.rst").write_text(as_rst(results))
    if options.plots:
        try:
            from bench.plots import draw

            draw(results, output)
        except ImportError as error:
            print(f"bench: no pictures: {error}", file=sys.stderr)
    print(f"\nWritten to {output}/", file=sys.stderr)


def compare_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "bench compare",
        description="Each work through each contestant, in turn; medians and ratios.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="one round, works of a second, 64 MiB")
    add("--rounds", type=int, metavar="N", help="rounds of each work (3)")
    add("--seconds", type=float, metavar="S", help="length of a work that has one (5)")
    add("--size", type=_size, metavar="BYTES", help="of a transfer; 64M, 1G (1G)")
    add("--only", action="append", default=[], metavar="NAME", help="this contestant; repeatable")
    add("--without", action="append", default=[], metavar="NAME", help="not this one; repeatable")
    add("--works", type=_words, default=[], metavar="A,B", help="these works alone")
    add("--base", default=ALL_ON, metavar="NAME", help=f"whose ratios are told ({ALL_ON})")
    add(
        "--program",
        action="append",
        default=[],
        type=_program,
        metavar="NAME=PATH",
        help="where a program is, if not on PATH; repeatable",
    )
    add(
        "--build",
        action="append",
        default=[],
        type=_build,
        metavar="NAME=BIN",
        help="another installation of sockgw, by the directory of its commands; repeatable",
    )
    add("--output", type=Path, default=OUTPUT, metavar="DIR", help=f"for JSON, PNG ({OUTPUT})")
    add("--no-plots", dest="plots", action="store_false", help="write no PNG")
    add("--directory", type=Path, metavar="DIR", help="for temporary files, up to 2 GiB")
    return parser


def _size(text: str) -> int:
    digits = text.rstrip("KMG")
    return int(digits) * _UNITS[text[len(digits) :]]


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _program(text: str) -> tuple[str, str]:
    name, mark, path = text.partition("=")
    if not mark:
        raise argparse.ArgumentTypeError("expected NAME=PATH")
    return name, path


def _build(text: str) -> tuple[str, Path]:
    name, path = _program(text)
    return name, Path(path)


def _raise_file_limit() -> None:
    """Allow as many open files as may be allowed; processes that are started inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _end(number: int, frame: FrameType | None) -> None:
    """End in good order; what is under way ends every process, and is not to be disturbed."""
    for each in _ENDINGS:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

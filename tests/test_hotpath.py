"""The hot path costs no more than was recorded, and what costs more is noticed and named."""

import subprocess
import sys
from pathlib import Path

import hotcalls
import pytest
from hotcalls import Table, compare

GET = "a GET alone"


def table(*, python="3.11", functions=(), instructions=(), **figures):
    """Return what was counted of a GET; ``figures`` by names such as ``outer__C_calls``."""

    def rows(counts):
        return {name: {GET: count} for name, count in dict(counts).items()}

    named = {name.replace("__", ": ").replace("_", " "): count for name, count in figures.items()}
    return Table(rows(named), rows(functions), rows(instructions), python)


def test_the_work_of_the_hot_path_has_not_grown():
    # In a process of its own: caches that other tests have filled would change what is counted.
    counting = subprocess.run(
        [sys.executable, Path(hotcalls.__file__), "--compare"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert counting.returncode == 0, (
        f"{counting.stdout}{counting.stderr}\nIf it must be so: make hotpath records it anew."
    )


def test_a_call_more_for_each_request_is_noticed_and_named():
    recorded = table(
        outer__Python_calls=200.2,
        functions={"outer: a.py one": 3.0, "outer: a.py two": 3.0, "inner: a.py one": 1.0},
    )
    measured = table(
        outer__Python_calls=201.2,
        functions={
            "outer: a.py one": 2.0,
            "outer: a.py two": 4.0,
            "outer: a.py three": 2.0,
            "inner: a.py one": 2.0,
        },
    )
    assert compare(recorded, measured) == [
        "a GET alone: outer: Python calls: 200.2 recorded, now 201.2 for each request",
        "    +2.00 outer: a.py three",
        "    +1.00 outer: a.py two",
    ]


def test_instructions_are_compared_on_one_version_of_python():
    recorded = table(inner__instructions=5_000.0, instructions={"inner: a.py one": 10.0})
    measured = {"inner__instructions": 5_050.0, "instructions": {"inner: a.py one": 60.0}}
    assert compare(recorded, table(**measured)) == [
        "a GET alone: inner: instructions: 5000 recorded, now 5050 for each request",
        "    +50.00 inner: a.py one",
    ]
    assert compare(recorded, table(**measured, python="3.12")) == []


@pytest.mark.parametrize(
    ("figure", "little", "much"),
    [
        ("outer__C_calls", 0.4, 0.6),
        ("outer__instructions", 15.0, 25.0),
        ("outer__calls_within_libraries", 4.0, 6.0),
        ("outer__callLater", 0.04, 0.1),
        ("outer__matches", 0.04, 1.0),
        ("outer__writes_to_the_client", 0.04, 1.0),
        ("both__turns_of_the_reactors", 0.04, 1.0),
        ("both__objects_left_to_the_garbage_collector", 0.4, 1.0),
        ("both__memory_blocks_left_for_ever", 0.4, 1.0),
        ("both__objects_left_for_ever", 0.0, 0.01),
    ],
)
def test_what_is_tolerated(figure, little, much):
    recorded = table(**{figure: 10.0})
    assert compare(recorded, table(**{figure: 10.0 + little})) == []
    assert len(compare(recorded, table(**{figure: 10.0 + much}))) == 1
    assert compare(recorded, table(**{figure: 1.0})) == []


def test_a_record_is_read_as_it_was_written(tmp_path, monkeypatch):
    recorded = Table.load()
    monkeypatch.setattr(hotcalls, "RECORD", tmp_path / "hotpath.json")
    recorded.save()
    again = Table.load()
    assert vars(again) == vars(recorded)
    assert set(again.figures["outer: Python calls"]) == set(hotcalls.WORKS)

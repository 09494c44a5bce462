"""The hot path costs no more calls than were recorded, and what costs more is noticed and named."""

import copy
import subprocess
import sys
from pathlib import Path

import hotcalls
from hotcalls import Table, compare


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


def test_a_call_more_for_each_request_is_noticed():
    recorded = Table.load()
    measured = copy.deepcopy(recorded)
    measured.figures["outer: Python calls"]["a GET alone"] += 1
    measured.functions["outer: http/headers.py lower"]["a GET alone"] += 2
    measured.functions["outer: http/headers.py get"]["a GET alone"] -= 1
    measured.functions["inner: http/headers.py lower"]["a GET alone"] += 3
    before = recorded.figures["outer: Python calls"]["a GET alone"]
    assert compare(recorded, measured) == [
        f"a GET alone: outer: Python calls: {before:g} recorded, now {before + 1:g} "
        "for each request",
        "    +2.00 outer: http/headers.py lower",
    ]


def test_less_work_is_no_failure():
    recorded = Table.load()
    measured = copy.deepcopy(recorded)
    for row in measured.figures.values():
        for work in row:
            row[work] /= 2
    assert compare(recorded, measured) == []


def test_a_single_object_that_is_left_for_ever_is_noticed():
    recorded = Table.load()
    measured = copy.deepcopy(recorded)
    measured.figures["both: objects left for ever"]["50 GETs of one turn"] += 0.01
    assert len(compare(recorded, measured)) == 1

"""The bench, without a load: what follows from figures, and who is named when he cannot run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.compare import all_contestants
from bench.contestants import Address, Contestant, Programs, Route
from bench.peers import PEERS
from bench.processes import Failed, Process, end, family, usage_of
from bench.report import as_rst, as_text, number, times
from bench.results import Measurement, Results
from bench.room import Room
from bench.targets import ALL_ON, ALL_ON_PLAIN, REQUIREMENTS, verdicts
from bench.works import COLD, MEMORY, WORKS

ROOT = Path(__file__).parent.parent
GET = next(work for work in WORKS if work.name == "get-50")
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def measured(contestant, *rates, work=GET.name, figure="rate", failed=None):
    return [
        Measurement(work, turn, contestant, {figure: rate}, {"outer": rate / 1000}, failed=failed)
        for turn, rate in enumerate(rates)
    ]


def results(*measurements, contestants=(ALL_ON, "ssh -R"), missing=None, works=WORKS):
    return Results(
        base=ALL_ON,
        works=works,
        contestants=list(contestants),
        missing=missing or {},
        settings={"rounds": 3},
        measurements=[each for some in measurements for each in some],
    )


# ------------------------------------------------------------------ medians and ratios


def test_medians_and_ratios():
    got = results(measured(ALL_ON, 900, 3000, 1000), measured("ssh -R", 500, 2000, 400))
    assert got.median(GET.name, ALL_ON, "rate") == 1000
    assert got.median(GET.name, "ssh -R", "rate") == 500
    assert got.ratio(GET.name, "ssh -R", "rate") == 2
    assert got.ratio(GET.name, ALL_ON, "rate") == 1
    assert got.ratio(GET.name, ALL_ON, "rate", base="ssh -R") == 0.5
    assert got.cpu(GET.name, ALL_ON) == {"outer": 1.0}


def test_a_round_that_failed_makes_the_figure_invalid():
    got = results(
        measured(ALL_ON, 1000, 1000),
        measured("ssh -R", 500, 500),
        measured("ssh -R", 0, failed="errors of wrk: 3 status"),
    )
    assert got.failure(GET.name, "ssh -R") == "1 of 3 failed: errors of wrk: 3 status"
    assert got.median(GET.name, "ssh -R", "rate") is None
    assert got.ratio(GET.name, "ssh -R", "rate") is None
    assert got.cpu(GET.name, "ssh -R") == {}
    for text in (as_text(got), as_rst(got)):
        assert "3 status" in text
    told = json.loads(json.dumps(got.as_json()))["results"][GET.name]["ssh -R"]
    assert told["median"]["rate"] is None
    assert told["failed"] == "1 of 3 failed: errors of wrk: 3 status"


def test_a_figure_of_zero_has_no_ratio():
    got = results(measured(ALL_ON, 1000), measured("ssh -R", 0))
    assert got.ratio(GET.name, "ssh -R", "rate") is None


def test_who_cannot_run_is_named_everywhere():
    missing = {"socket-gateway": "socket-gateway is not on PATH"}
    contestants = (ALL_ON, "socket-gateway")
    got = results(measured(ALL_ON, 1000), contestants=contestants, missing=missing)
    assert "  socket-gateway  did not run" in as_text(got)
    for text in (as_text(got), as_rst(got)):
        assert "socket-gateway is not on PATH" in text
    whole = got.as_json()
    assert whole["contestants"]["socket-gateway"]["missing"] == "socket-gateway is not on PATH"
    assert whole["results"][GET.name]["socket-gateway"]["failed"] == "socket-gateway is not on PATH"


def test_everything_raw_is_in_the_json():
    got = results(measured(ALL_ON, 900, 3000, 1000))
    raw = json.loads(json.dumps(got.as_json()))["measurements"]
    assert [each["figures"]["rate"] for each in raw] == [900, 3000, 1000]


def test_what_has_nothing_to_start_is_no_failure():
    got = results(measured(ALL_ON, 0.8, work=COLD.name, figure="first"), works=[COLD])
    lines = as_text(got).splitlines()
    assert any(line.split() == ["sockgw", "all", "on", "800", "1.00"] for line in lines)
    assert any(line.split() == ["ssh", "-R", "–"] for line in lines)


def test_ratios_as_restructuredtext():
    core = pytest.importorskip("docutils.core", reason="docutils")
    got = results(
        measured(ALL_ON, 1000),
        measured("ssh -R", 400),
        contestants=(ALL_ON, "ssh -R", "frp"),
        missing={"frp": "frps is not on PATH"},
    )
    strict = {"report_level": 1, "halt_level": 1}
    text = core.publish_doctree(as_rst(got), settings_overrides=strict).astext()
    assert "2.50" in text
    assert "frps is not on PATH" in text


def test_numbers():
    assert [number(each) for each in (12345.6, 123.4, 12.34, 1.234, 0.01234)] == [
        *("12,346", "123", "12.3", "1.23", "0.0123")
    ]
    assert [times(each) for each in (None, 12.345, 0.5, 0.0456)] == ["", "12.35", "0.50", "0.046"]


# ------------------------------------------------------------------ what is to be reached


def required(work, figure, peer, ours=ALL_ON):
    (found,) = (
        each
        for each in REQUIREMENTS
        if (each.work, each.figure, each.peer, each.ours) == (work, figure, peer, ours)
    )
    return found


def test_requirements_name_what_there_is():
    works = {work.name: {figure.name for figure in work.all_figures} for work in (*WORKS, MEMORY)}
    for each in REQUIREMENTS:
        assert each.figure in works[each.work]
    names = {contestant.name for contestant in all_contestants(Programs())}
    assert {each.ours for each in REQUIREMENTS} <= names
    assert {each.peer for each in REQUIREMENTS} <= names


@pytest.mark.parametrize(("theirs", "word"), [(769, "met"), (770, "missed")])
def test_met_and_missed(theirs, word):
    got = results(measured(ALL_ON, 1000), measured("ssh -R", theirs))
    (verdict,) = (v for v in verdicts(got) if v.requirement == required("get-50", "rate", "ssh -R"))
    assert verdict.word == word
    assert verdict.requirement.bound == 1.3


def test_latency_is_to_be_low():
    requirement = required("get-1", "p99", "ssh -R")
    assert requirement.holds(0.05)
    assert not requirement.holds(0.06)


def test_met_without_tls():
    got = results(
        measured(ALL_ON, 1000),
        measured(ALL_ON_PLAIN, 2000),
        measured("ssh -R", 1000),
        contestants=(ALL_ON, ALL_ON_PLAIN, "ssh -R"),
    )
    (verdict,) = (v for v in verdicts(got) if v.requirement == required("get-50", "rate", "ssh -R"))
    assert (verdict.ratio, verdict.plain) == (1, 2)
    assert verdict.word == "missed; met without TLS"


def test_what_was_not_measured_says_why():
    got = results(measured(ALL_ON, 1000), missing={"ssh -R": "no ssh"})
    reasons = {v.requirement.peer: (v.word, v.reason) for v in verdicts(got) if v.ratio is None}
    assert reasons["ssh -R"] == ("not measured", "ssh -R did not run")
    assert reasons["socket-gateway"] == ("not measured", "socket-gateway was not asked for")


# ------------------------------------------------------------------ contestants


@pytest.mark.parametrize("peer", [p for p in PEERS if p.needs], ids=lambda peer: peer.name)
def test_a_peer_without_its_programs_says_so(peer):
    contestant = peer(Programs(dict.fromkeys(peer.needs, "/nowhere")))
    reason = contestant.missing()
    for name in peer.needs:
        assert f"{name}: /nowhere does not exist" in reason
    with pytest.raises(Failed, match="does not exist"):
        contestant.program(peer.needs[0])


def test_names_are_unique():
    names = [contestant.name for contestant in all_contestants(Programs())]
    assert len(names) == len(set(names))


def test_another_installation_takes_part(tmp_path):
    own = Path(sys.executable).parent
    both = [("this", own), ("none", tmp_path)]
    contestants = {each.name: each for each in all_contestants(Programs(), both)}
    this = contestants["sockgw all on plain, this"]
    assert this.missing() is None
    assert this.versions()["sockgw"].startswith("sockgw ")
    reason = contestants["sockgw all on, none"].missing()
    assert reason == f"there is no sockgw and no twistd in {tmp_path}"


def test_programs_are_found(tmp_path):
    program = tmp_path / "thing"
    program.write_text("#!/bin/sh\necho thing 1.0\n")
    program.chmod(0o755)

    class Thing(Contestant):
        name = "thing"
        needs = ("thing",)

        def launch(self, room, origins):
            return {name: Route(address) for name, address in origins.items()}

    assert (
        Thing(Programs()).missing() == "thing is not on PATH, and no --program thing=PATH was given"
    )
    there = Thing(Programs({"thing": str(program)}))
    assert there.missing() is None
    assert there.versions() == {"thing": "thing 1.0"}
    assert Route(Address(80), "a.test").url("/x") == "http://127.0.0.1:80/x"


def test_not_known_is_refused():
    done = subprocess.run(
        [sys.executable, "-m", "bench", "compare", "--only", "nobody", "--works", "nothing"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "not known: nobody, nothing. There are contestants: sockgw all on" in done.stderr


# ------------------------------------------------------------------ processes


def test_a_room_ends_all_that_was_started(tmp_path):
    script = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " start_new_session=True)\n"
        "print('up', child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with pytest.MonkeyPatch.context() as patch, Room(tmp_path / "room", "some") as room:
        patch.setattr("bench.processes.GRACE", 0.1)
        process = room.start("stubborn", [sys.executable, "-c", script])
        room.wait_logged("stubborn", "up")
        pids = family(process.pid)
        assert len(pids) == 2
        usage = room.usage()["stubborn"]
        assert usage.peak >= usage.resident > 1_000_000
        room.__exit__()
    assert not any(os.path.exists(f"/proc/{pid}/fd/0") for pid in pids)
    assert not room.directory.exists()
    assert usage_of(process.pid).resident == 0


def test_a_room_tells_what_a_process_said_that_ended(tmp_path):
    with Room(tmp_path / "room", "some") as room:
        room.start("weak", [sys.executable, "-c", "raise SystemExit('no such option')"])
        with pytest.raises(Failed, match=r"some, weak ended with status 1: no such option"):
            room.wait_until(lambda: False, "never")


def test_what_is_waited_for_in_vain(tmp_path):
    with Room(tmp_path / "room", "some") as room:
        process = room.start("server", SLEEP)
        room.wait_logged("server", "up")
        with pytest.raises(Failed, match=r"not within 0 s: a port \(server: up\)"):
            room.wait_until(lambda: False, "a port", patience=0)
        process.assert_running()


def test_a_child_that_has_ended_counts(tmp_path):
    script = (
        "import subprocess, sys, time\n"
        "subprocess.run([sys.executable, '-c',"
        " 'import time\\nwhile time.process_time() < 0.3: pass'])\n"
        "print('done', flush=True)\ntime.sleep(60)\n"
    )
    log = tmp_path / "log"
    process = Process("some", [sys.executable, "-c", script], log)
    try:
        deadline = time.monotonic() + 10
        while "done" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.005)
        assert usage_of(process.pid).cpu >= 0.29
    finally:
        end([process])
    assert process.status is not None

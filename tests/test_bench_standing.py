"""The bench's words on what stands: met, missed, flat."""

from bench import growth, idle
from bench.growth import Point
from bench.idle import Row


def test_what_stands_is_judged_by_its_limit():
    text = idle.as_text(
        [
            Row("a client", "outer", 29.9, "KiB", 30),
            Row("a tunnel", "outer", 60.5, "KiB", 60),
            Row("nothing", "inner", 1.0, "MiB"),
        ]
    )
    met, missed, plain = text.splitlines()[-3:]
    assert met.endswith("at most 30: met")
    assert missed.endswith("at most 60: MISSED")
    assert plain.endswith("1.00 MiB")


def test_growth_is_told_by_the_least_of_each_thing():
    points = [
        Point("targets", 10, [50.0, 40.0, 60.0], [1.0]),
        Point("targets", 10_000, [55.0], [1.0]),
        Point("tunnels", 1, [100.0], [1.0]),
        Point("tunnels", 2_000, [111.0], [1.0]),
    ]
    lines = growth.as_text(points).splitlines()[-4:]
    assert [line.split("×")[1].split()[0] for line in lines] == ["1.00", "1.10", "1.00", "1.11"]
    assert lines[1].endswith("   flat")
    assert lines[3].endswith("   NOT FLAT")

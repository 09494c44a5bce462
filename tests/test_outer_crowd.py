"""A set that tells when it is empty."""

from twisted.internet.defer import CancelledError

from sockgw.outer.crowd import Crowd


def test_it_tells_when_the_last_one_has_gone():
    crowd = Crowd()
    crowd.add("a")
    crowd.add("b")
    crowd.add("b")
    assert sorted(crowd) == ["a", "b"]
    told = []
    for name in ("one", "two"):
        crowd.emptied().addCallback(lambda _, name=name: told.append(name))
    crowd.discard("a")
    crowd.discard("nobody")
    assert told == []
    crowd.discard("b")
    assert told == ["one", "two"]
    crowd.add("c")
    crowd.discard("c")
    assert told == ["one", "two"], "once"
    assert len(crowd) == 0


def test_an_empty_one_tells_at_once():
    assert Crowd().emptied().called


def test_members_may_go_while_one_looks_at_them():
    crowd = Crowd()
    for number in range(5):
        crowd.add(number)
    for number in crowd:
        crowd.discard(number)
    assert len(crowd) == 0


def test_who_waits_may_give_up():
    crowd = Crowd()
    crowd.add("a")
    waiting = crowd.emptied()
    errors = []
    waiting.addErrback(lambda failure: errors.append(failure.check(CancelledError)))
    waiting.cancel()
    crowd.discard("a")
    assert errors == [CancelledError]

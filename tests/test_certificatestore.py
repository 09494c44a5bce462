"""Certificates: found as ACME clients write them, chosen by name, read again when they change."""

import os
import time
from types import SimpleNamespace

import pytest
from certmaker import Maker
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from sockgw.certificatefiles import find
from sockgw.certificates import Pair
from sockgw.certificatestore import CertificateStore, Settings, _rank

DAY = 86400


@pytest.fixture(scope="module")
def maker():
    return Maker()


class Store(CertificateStore):
    """A store whose contexts tell whose certificate they show, with a clock of its own."""

    def __init__(self, directory="", wall_clock=time.time, **settings):
        self.clock = Clock()
        settings = {"directory": str(directory), **settings} if directory else settings
        super().__init__(self.clock, Settings(**settings), self._make, wall_clock)
        self.start()

    def _make(self, pair, authorities):
        names = sorted(pair.names) if pair else []
        return SimpleNamespace(names=names, pair=pair, authorities=list(authorities))

    def shown(self, name, address="192.0.2.1"):
        context = self.choose(name, address)
        return context.names[0] if context else None

    def look(self):
        self.clock.advance(2)


@pytest.fixture
def logged():
    lines = []

    def observer(event):
        if event.get("log_namespace", "").startswith("sockgw"):
            lines.append(event["log_format"].format(**event))

    globalLogPublisher.addObserver(observer)
    yield lines
    globalLogPublisher.removeObserver(observer)


# ---------------------------------------------------------------------- what is found


def test_certbot(maker, tmp_path):
    maker.certbot(tmp_path, "a.test", "a.test", "www.a.test")
    maker.certbot(tmp_path, "b.test")
    store = Store(tmp_path / "live")
    assert store.shown("www.a.test") == "a.test"
    assert store.shown("b.test") == "b.test"
    assert len(store.expiries()) == 2
    assert Store(tmp_path / "live" / "b.test").shown("b.test") == "b.test"


def test_lego(maker, tmp_path):
    maker.lego(tmp_path, "a.test")
    maker.lego(tmp_path, "*.b.test")
    store = Store(tmp_path)
    assert store.shown("a.test") == "a.test"
    assert store.shown("x.b.test") == "*.b.test"
    assert len(store.expiries()) == 2
    assert store._told == {}


@pytest.mark.parametrize("ending", ["_ecc", ""])
def test_acme_sh(maker, tmp_path, ending):
    maker.acme_sh(tmp_path, "a.test", ending=ending)
    store = Store(tmp_path)
    assert store.shown("a.test") == "a.test"
    assert len(store.choose("a.test", "").pair.chain) == 2
    assert len(store.expiries()) == 1
    assert store._told == {}


def test_single_files_and_directories_of_secrets(maker, tmp_path):
    key, chain = maker.issue("one.test")
    (tmp_path / "one.pem").write_bytes(key + chain)
    key, chain = maker.issue("two.test")
    (tmp_path / "two.pem").write_bytes(chain)
    (tmp_path / "two.key").write_bytes(key)
    key, chain = maker.issue("three.test")
    # Kubernetes: files are links into a directory that is swapped.
    real = tmp_path / "three" / "..2026"
    real.mkdir(parents=True)
    (real / "tls.crt").write_bytes(chain)
    (real / "tls.key").write_bytes(key)
    (tmp_path / "three" / "..data").symlink_to("..2026")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / "three" / name).symlink_to(f"..data/{name}")
    key, chain = maker.issue("four.test")  # lego --pem
    for ending, data in ((".crt", chain), (".key", key), (".pem", chain + key)):
        (tmp_path / f"four{ending}").write_bytes(data)
    store = Store(tmp_path)
    for name in ("one", "two", "three", "four"):
        assert store.shown(f"{name}.test") == f"{name}.test"
    assert len(store.expiries()) == 4
    assert store._told == {}


def test_nothing_is_there(maker, tmp_path):
    with pytest.raises(ValueError, match="no certificate is in"):
        Store(tmp_path)
    with pytest.raises(ValueError, match="No such file"):
        Store(tmp_path / "none")
    (tmp_path / "a.key").write_bytes(maker.issue("a.test")[0])
    with pytest.raises(ValueError, match="no certificate is in"):
        Store(tmp_path)
    (tmp_path / "a.crt").write_bytes(maker.issue("a.test")[1])
    with pytest.raises(ValueError, match="does not belong to the key"):
        Store(tmp_path)


def test_too_many(monkeypatch, tmp_path):
    monkeypatch.setattr("sockgw.certificatefiles.MAX_SOURCES", 3)
    for number in range(4):
        (tmp_path / f"{number}.pem").write_text("x")
    with pytest.raises(ValueError, match="more than 3 certificates"):
        find(str(tmp_path))


def test_a_pipe_is_no_certificate(maker, tmp_path):
    maker.lego(tmp_path, "a.test")
    os.mkfifo(tmp_path / "b.pem")
    assert "is not a file" in str(Store(tmp_path)._told)


# ---------------------------------------------------------------------- what is chosen


def test_names(maker, tmp_path):
    maker.lego(tmp_path, "exact.a.test")
    maker.lego(tmp_path, "wild", "*.a.test")
    maker.lego(tmp_path, "deep", "*.deep.a.test")
    maker.lego(tmp_path, "address", "192.0.2.7", "2001:db8::7")
    maker.lego(tmp_path, "default", "fallback.test")
    store = Store(tmp_path)
    assert store.shown("exact.a.test") == "exact.a.test"
    assert store.shown("EXACT.A.test.") == "exact.a.test"
    assert store.shown("other.a.test") == "*.a.test"
    assert store.shown("x.deep.a.test") == "*.deep.a.test"
    for unknown in ("x.y.a.test", "a.test", ".a.test", "test", "*.test", "", "evil.test", "\ufffd"):
        assert store.shown(unknown) == "fallback.test"
    assert store.shown("", "192.0.2.7") == "192.0.2.7"
    assert store.shown("", "::ffff:192.0.2.7") == "192.0.2.7"
    assert store.shown("", "2001:db8::7") == "192.0.2.7"
    assert store.shown("192.0.2.7") == "192.0.2.7"
    assert store.shown("evil.test", "192.0.2.7") == "fallback.test"


def test_the_default(maker, tmp_path):
    maker.lego(tmp_path, "b.test")
    maker.lego(tmp_path, "a.test")
    assert Store(tmp_path).shown("other.test") == "a.test"  # the first
    assert Store(tmp_path, default="b.test").shown("other.test") == "b.test"
    maker.lego(tmp_path, "default", "c.test")
    assert Store(tmp_path).shown("other.test") == "c.test"  # called so
    with pytest.raises(ValueError, match=r"no certificate in .* is for 'd.test'"):
        Store(tmp_path, default="d.test")
    strict = Store(tmp_path, strict=True)
    assert strict.shown("other.test") is None
    assert strict.shown("") is None
    assert strict.shown("b.test") == "b.test"


def test_the_default_stays_when_its_certificate_goes(maker, tmp_path, logged):
    maker.lego(tmp_path, "b.test")
    maker.lego(tmp_path, "a.test")
    store = Store(tmp_path, default="b.test")
    for ending in ("crt", "key"):
        (tmp_path / f"b.test.{ending}").unlink()
    store.look()
    assert store.shown("other.test") == "b.test"
    assert [line for line in logged if "'b.test', the default" in line]


def test_several_for_one_name(maker, tmp_path):
    def put(stem, **how):
        maker.lego(tmp_path, stem, issued=maker.issue("a.test", **how))
        return Store(tmp_path).choose("a.test", "").pair

    first = put("first", days=60)
    longer = put("longer", days=90)
    assert longer.not_after > first.not_after
    assert put("expired", days=800, age=801).not_after == longer.not_after
    assert put("future", days=400, age=-1).not_after == longer.not_after
    assert put("shorter", days=30).not_after == longer.not_after
    later = Store(tmp_path, wall_clock=lambda: time.time() + 2 * DAY)
    assert later.choose("a.test", "").pair.not_after > longer.not_after + 300 * DAY  # "future"


def test_of_two_alike_ec_is_shown():
    keys = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())
    pairs = [Pair(key, (), frozenset(), 0.0, 9.0) for key in keys]
    assert _rank(pairs[0], 1.0) < _rank(pairs[1], 1.0)
    assert _rank(pairs[1], 9.0) < _rank(pairs[0], 8.9)


# ---------------------------------------------------------------------- what changes


def test_a_new_pair_takes_over(maker, tmp_path, logged):
    maker.certbot(tmp_path, "a.test")
    store = Store(tmp_path / "live")
    before = store.choose("a.test", "")
    store.look()
    assert store.choose("a.test", "") is before
    maker.certbot(tmp_path, "a.test", number=2)
    store.look()
    assert store.choose("a.test", "") is not before
    assert [line for line in logged if "has been replaced" in line]
    maker.certbot(tmp_path, "b.test")
    assert store.shown("b.test") == "a.test"
    store.check()
    assert store.shown("b.test") == "b.test"


def test_files_below_are_written_in_place(maker, tmp_path):
    maker.acme_sh(tmp_path, "a.test")
    store = Store(tmp_path)
    before = store.choose("a.test", "")
    key, chain = maker.issue("a.test")
    (tmp_path / "a.test_ecc" / "a.test.key").write_bytes(key)
    (tmp_path / "a.test_ecc" / "fullchain.cer").write_bytes(chain)
    store.look()
    assert store.choose("a.test", "") is not before


@pytest.mark.parametrize("half", ["key", "certificate", "cut", "no key", "no certificate"])
def test_half_of_a_change(maker, tmp_path, logged, half):
    maker.lego(tmp_path, "a.test")
    maker.lego(tmp_path, "b.test")
    store = Store(tmp_path)
    before = store.choose("a.test", "")
    key, chain = maker.issue("a.test")
    if half == "key":
        (tmp_path / "a.test.key").write_bytes(key)
    elif half == "certificate":
        (tmp_path / "a.test.crt").write_bytes(chain)
    elif half == "cut":
        (tmp_path / "a.test.crt").write_bytes(chain[:500])
    elif half == "no key":
        (tmp_path / "a.test.key").unlink()
    else:
        (tmp_path / "a.test.crt").unlink()
    store.look()
    assert store.choose("a.test", "") is before
    assert store.shown("b.test") == "b.test"
    (tmp_path / "unrelated").touch()
    store.look()
    told = [line for line in logged if "what was read before stays" in line]
    assert len(told) == 1
    assert str(tmp_path / "a.test") in told[0]
    (tmp_path / "a.test.key").write_bytes(key)
    (tmp_path / "a.test.crt").write_bytes(chain)
    store.look()
    assert store.choose("a.test", "") is not before
    assert store._told == {}


def test_one_goes_and_the_last_one_stays(maker, tmp_path, logged):
    maker.certbot(tmp_path, "a.test")
    live = maker.certbot(tmp_path, "b.test")
    store = Store(tmp_path / "live")
    live.rename(tmp_path / "b.test")
    store.look()
    assert store.shown("b.test") == "a.test"
    assert [line for line in logged if line.endswith("b.test/fullchain.pem is gone")]
    (tmp_path / "live").rename(tmp_path / "elsewhere")
    store.look()
    assert store.shown("a.test") == "a.test"
    assert "No such file" in logged[-1]
    (tmp_path / "live").mkdir()
    store.look()
    assert store.shown("a.test") == "a.test"
    assert "no certificate is in" in logged[-1]


def test_a_pair_given_by_its_files(maker, tmp_path, logged):
    maker.lego(tmp_path, "a.test")
    files = {
        "key_file": str(tmp_path / "a.test.key"),
        "certificate_files": (str(tmp_path / "a.test.crt"),),
    }
    store = Store(**files)
    before = store.only
    assert not store.several
    maker.lego(tmp_path, "a.test")
    store.look()
    assert store.only is not before
    before = store.only
    (tmp_path / "a.test.key").write_text("junk")
    store.look()
    assert store.only is before
    assert "holds no private key in PEM form; what was read before stays" in logged[-1]


def test_authorities_are_read_again(maker, tmp_path, logged):
    maker.lego(tmp_path / "own", "a.test")
    file = tmp_path / "ca.pem"
    file.write_bytes(maker.issue("x")[1])
    store = Store(tmp_path / "own", client_ca=str(file))
    assert len(store.choose("a.test", "").authorities) == 2
    file.write_text("junk")
    store.look()
    assert len(store.choose("a.test", "").authorities) == 2
    assert "holds no certificate" in logged[-1]
    file.write_bytes(maker.issue("x")[1] * 2)
    store.look()
    assert len(store.choose("a.test", "").authorities) == 4
    file.write_text("junk")
    with pytest.raises(ValueError, match="holds no certificate"):
        Store(tmp_path / "own", client_ca=str(file))


def test_what_is_wrong_at_the_start_is_told_once(maker, tmp_path, logged):
    maker.lego(tmp_path, "a.test")
    (tmp_path / "b.pem").write_text("junk")
    store = Store(tmp_path)
    store.start()
    store.look()
    assert len([line for line in logged if "b.pem" in line]) == 1


def test_expiry_is_told_ahead_and_once(maker, tmp_path, logged):
    now = [time.time()]
    maker.lego(tmp_path, "a.test", issued=maker.issue("a.test", days=90, age=0))
    maker.lego(tmp_path, "short", issued=maker.issue("short.test", days=400, age=-200))
    store = Store(tmp_path, wall_clock=lambda: now[0])
    (end,) = (end for name, end in store.expiries().items() if "a.test" in name)
    assert end == pytest.approx(now[0] + 90 * DAY, abs=60)

    def told(days):
        logged.clear()
        now[0] = end - days * DAY
        store.clock.pump([1800.0] * 4)
        return [line for line in logged if "a.test" in line]

    assert told(15) == []
    assert told(13)[0].endswith("a.test.crt expires soon (days left: 13.0)")
    assert told(12) == []
    assert told(-1)[0].endswith("a.test.crt has expired (days left: -1.0)")
    assert told(-2) == []
    maker.lego(tmp_path, "a.test", issued=maker.issue("a.test", days=300))
    assert "has been replaced" in told(-3)[0]


def test_short_lived_certificates_are_not_always_about_to_end(maker, tmp_path, logged):
    maker.lego(tmp_path, "a.test", issued=maker.issue("a.test", days=6, age=2))
    Store(tmp_path)
    assert logged == []
    maker.lego(tmp_path, "a.test", issued=maker.issue("a.test", days=6, age=5))
    Store(tmp_path)
    assert "expires soon" in logged[0]


def test_the_last_listener_stops_the_timers(maker, tmp_path):
    maker.lego(tmp_path, "a.test")
    store = Store(tmp_path)
    store.start()
    store.stop()
    assert store.clock.getDelayedCalls()
    store.stop()
    assert store.clock.getDelayedCalls() == []
    store.check()

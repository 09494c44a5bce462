"""The targets file: its format, its errors, finding a host, and living with changes on disk."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import TestCase

from sockgw.outer.targets import Target, Targets
from sockgw.outer.targetsfile import TargetsFile, parse_targets
from sockgw.yamlfile import ConfigError

SEED = """\
targets:
  "socket.gateway": # DNS name of the outer layer
    protocol: "https" # optional, target protocol, defaults to "https"
    hostname: "my.private.api" # required, target hostname
    port: 443 # optional, target port, defaults to 443
    policy: # optional, defaults to *
      # /helloworld gets compiled to ^/helloworld$
      # specify paths with a leading ^ if you want to use more advanced regexes
      "/helloworld": # allowed path(s), may be *
        - "GET"
        - "POST" # allowed method(s), may be or include *
    identifier: "inner-layer" # optional, identifier or list of identifiers to route to. If not specified, requests will get routed to any connected inner layer
"""  # noqa: E501 - verbatim


def named(*names: str) -> Targets:
    lines = [f"  {name!r}: {{hostname: h}}" for name in names]
    return parse_targets("\n".join(["targets:", *lines]), "t.yaml")


def found(targets: Targets, host: str) -> str | None:
    target = targets.match(host)
    return None if target is None else target.name


def one(text: str) -> Target:
    (target,) = parse_targets(f"targets: {{a: {text}}}", "t.yaml")
    return target


def test_the_seeds_example() -> None:
    (target,) = parse_targets(SEED, "targets.yaml")
    assert target.name == "socket.gateway"
    assert (target.protocol, target.hostname, target.port) == ("https", "my.private.api", 443)
    assert target.service is None
    assert target.identifiers == {"inner-layer"}
    assert not target.preserve_host
    assert target.policy.allows("POST", "/helloworld")
    assert not target.policy.allows("GET", "/")


@pytest.mark.parametrize(
    "text",
    [
        '{"targets":{"localhost":{"hostname":"jsonplaceholder.typicode.com"}}}',
        '{"targets": {"localhost": {"protocol": "http", "hostname": "localhost", "port": 8000}}}',
    ],
)
def test_the_examples_in_json(text: str) -> None:
    assert found(parse_targets(text, "t"), "localhost:3000") == "localhost"


def test_the_commented_example_in_conf() -> None:
    path = Path(__file__).parent.parent / "conf" / "targets.yaml"
    targets = parse_targets(path.read_text(encoding="utf-8"), str(path))
    limited = targets.match("limited.example.org")
    assert limited is not None
    assert limited.policy.allows("DELETE", "/files/a.txt")
    assert not limited.policy.allows("DELETE", "/files/atxt")


def test_defaults() -> None:
    target = one("{hostname: My.Private.API}")
    assert (target.protocol, target.hostname, target.port) == ("https", "my.private.api", 443)
    assert target.policy.unrestricted
    assert target.identifiers is None
    assert target.service is None
    assert target.preserve_host is False
    assert target.hold is None
    assert one("{hostname: h, protocol: http}").port == 80


@pytest.mark.parametrize("hostname", ['"::1"', '"[::1]"', '"0:0:0:0:0:0:0:1"'])
def test_ipv6_origin(hostname: str) -> None:
    assert one(f"{{hostname: {hostname}}}").hostname == "::1"


def test_everything_else() -> None:
    target = one("{hostname: 10.0.0.1, port: 8443, identifier: [x, y], preserve-host: true}")
    assert (target.hostname, target.port) == ("10.0.0.1", 8443)
    assert target.identifiers == {"x", "y"}
    assert target.preserve_host is True
    assert one("{hostname: x, hold: 1500}").hold == 1.5
    assert one("{hostname: x, hold: 0}").hold == 0


def test_service() -> None:
    target = one("{service: wiki, identifier: office, policy: {/a: GET}}")
    assert (target.service, target.hostname, target.port) == ("wiki", "", 0)
    assert target.identifiers == {"office"}
    assert not target.policy.unrestricted


def test_targets_are_values() -> None:
    text = "{hostname: h, policy: {'^/a': [GET, PUT]}, identifier: [x, y]}"
    assert one(text) == one("{identifier: [y, x], policy: {'^/a': [PUT, GET]}, hostname: H}")
    assert one(text) != one(text.replace("PUT", "POST"))
    with pytest.raises(AttributeError):
        one(text).port = 1  # type: ignore[misc]


def test_what_is_reached_by_a_port() -> None:
    text = """\
targets:
  ssh: {protocol: tcp, listen: "tcp:2222", hostname: h, port: 22, clients: [10.0.0.0/8, "::1"]}
  dns: {protocol: udp, listen: "udp:53", service: resolver}
  "*": {hostname: h}
"""
    targets = parse_targets(text, "t.yaml")
    ssh, dns = targets.ports
    assert (ssh.protocol, ssh.listen, ssh.port, ssh.proxy_protocol) == ("tcp", "tcp:2222", 22, 0)
    assert ssh.clients is not None
    assert ssh.clients.contains("10.1.2.3")
    assert not ssh.clients.contains("11.1.2.3")
    assert (dns.protocol, dns.listen, dns.service) == ("udp", "udp:53", "resolver")
    assert found(targets, "ssh") == "*"  # its name is no host
    assert [target.name for target in targets] == ["*", "ssh", "dns"]


def test_what_is_passed_through() -> None:
    target = one("{protocol: tls, hostname: h, proxy-protocol: 2}")
    assert (target.protocol, target.port, target.proxy_protocol) == ("tls", 443, 2)


def test_unix_sockets() -> None:
    target = one("{socket: /run/app.sock}")
    assert (target.protocol, target.socket) == ("http", "/run/app.sock")
    assert (target.hostname, target.port) == ("localhost", 80)
    assert one("{socket: /run/app.sock, hostname: app.test}").hostname == "app.test"
    assert one("{socket: /run/app.sock, protocol: tls}").port == 80


def test_http2() -> None:
    assert one("{hostname: h, http2: true}").http2
    assert not one("{hostname: h}").http2


def test_two_targets_on_one_listener() -> None:
    tcp = "{{protocol: tcp, hostname: h, port: 1, listen: {}}}"
    text = f"targets:\n  a: {tcp.format('2222')}\n  b: {tcp.format('tcp:2222')}\n"
    with pytest.raises(ConfigError, match="tcp:2222 is taken by target 'a'") as caught:
        parse_targets(text, "t.yaml")
    assert caught.value.line == 3


def test_targets_that_cannot_be_used_leave_the_old_ones_in_force(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("targets: {a: {hostname: h}}")

    def refuse(targets: Targets) -> None:
        raise ConfigError("no such port here")

    file = TargetsFile(str(path), Clock(), refuse)
    path.write_text("targets: {b: {hostname: h}}")
    file.check()
    assert [target.name for target in file.current] == ["a"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{hostname: h, protocol: ftp}", "'ftp' is no protocol; expected one of https, http, tcp"),
        ("{hostname: h, protocol: tcp, listen: '1'}", "port is missing"),
        ("{hostname: h, protocol: tcp, port: 1}", "listen is missing"),
        ("{hostname: h, protocol: udp, port: 1, listen: '1'}", "it has the form udp:PORT"),
        ("{hostname: h, protocol: tcp, port: 1, listen: 'x:1'}", "cannot be listened on"),
        ("{hostname: h, protocol: tcp, port: 1, listen: '1', policy: '*'}", "policy is not poss"),
        ("{hostname: h, protocol: tls, listen: '1'}", "listen is not possible with protocol tls"),
        ("{hostname: h, clients: loopback}", "clients is not possible with protocol https"),
        ("{hostname: h, protocol: tls, http2: true}", "http2 is not possible"),
        ("{hostname: h, protocol: tls, clients: nobody}", "'nobody' is neither an address"),
        ("{hostname: h, protocol: tls, clients: []}", "no network is given"),
        ("{hostname: h, protocol: tls, proxy-protocol: 3}", "3 is no version of the PROXY"),
        ("{hostname: h, protocol: udp, port: 1, listen: 'udp:1', proxy-protocol: 1}", "possible"),
        ("{socket: run/app.sock}", "'run/app.sock' is no path of a socket"),
        ("{socket: /run/app.sock, protocol: https}", "protocol https is not possible over a Unix"),
        ("{socket: /run/app.sock, service: s}", "socket is not possible beside service"),
        ("{service: s, protocol: https}", "protocol https is not possible beside service"),
    ],
)
def test_what_does_not_go_together(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        one(text)


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("", 1, 1, "no mapping"),
        ("[]", 1, 1, "no mapping"),
        ("target: {}", 1, 1, "'target' is unknown; expected targets (did you mean that?)"),
        ("{}", 1, 1, "targets is missing"),
        ("targets:", 1, 1, "targets: this is no mapping"),
        ("targets: [a]", 1, 10, "no mapping"),
        ("targets:\n  a:", 2, 3, "targets.a: this is no target"),
        ("targets:\n  a: {}", 2, 3, "hostname is missing"),
        ("targets:\n  a:\n    port: 80", 2, 3, "hostname is missing"),
        (
            "targets:\n  a:\n    hostname: h\n    port: abc",
            4,
            11,
            "targets.a.port: 'abc' is not a port number; expected a whole number from 1 to 65535",
        ),
        ("targets:\n  a: {hostname: h, port: 0}", 2, 26, "0 is not a port number"),
        ("targets:\n  a: {hostname: h, port: 65536}", 2, 26, "65536 is not"),
        ("targets:\n  a: {hostname: h, port: true}", 2, 26, "True is not"),
        ("targets:\n  a: {hostname: h, port: 80.0}", 2, 26, "80.0 is not"),
        ("targets:\n  a: {hostname: h, port: [80]}", 2, 26, "a list is not a port number"),
        ("targets:\n  a: {hostnam: h}", 2, 7, "'hostnam' is unknown; expected hostname (did you"),
        ("targets:\n  a: {hostname: h, zzz: 1}", 2, 20, "'zzz' is unknown; expected one of prot"),
        ("targets:\n  a: {hostname: h, protocol: ftp}", 2, 30, "'ftp' is no protocol"),
        ("targets:\n  a: {hostname: h, protocol: {}}", 2, 30, "a mapping is no protocol"),
        ("targets:\n  a: {hostname: 'http://h/'}", 2, 17, "'http://h/' is no host name"),
        ("targets:\n  a: {hostname: 'h:80'}", 2, 17, "without protocol or port"),
        ("targets:\n  a: {hostname: h/x}", 2, 17, "no host name"),
        ("targets:\n  a: {hostname: ''}", 2, 17, "no host name"),
        ("targets:\n  a: {hostname: 'h x'}", 2, 17, "no host name"),
        ("targets:\n  a: {hostname: 7}", 2, 17, "7 is no host name"),
        ("targets:\n  a: {hostname: bücher.example}", 2, 17, "no host name"),
        ("targets:\n  a: {service: ''}", 2, 16, "'' is no name"),
        ("targets:\n  a: {service: 5}", 2, 16, "5 is no name"),
        ("targets:\n  a: {service: s, hostname: h}", 2, 19, "hostname is not possible beside serv"),
        ("targets:\n  a: {service: s, port: 1}", 2, 19, "port is not possible beside service"),
        ("targets:\n  a: {protocol: http, service: s}", 2, 7, "protocol http is not possible b"),
        ("targets:\n  a: {hostname: h, identifier: []}", 2, 32, "no identifier is given"),
        ("targets:\n  a: {hostname: h, identifier: 5}", 2, 32, "5 is no name"),
        ("targets:\n  a: {hostname: h, identifier: [x, 'y z']}", 2, 36, "'y z' is no name"),
        ("targets:\n  a: {hostname: h, identifier: null}", 2, 32, "None is no name"),
        ("targets:\n  a: {hostname: h, hold: -1}", 2, 26, "-1 is not a whole number of milli"),
        ("targets:\n  a: {hostname: h, hold: 1.5}", 2, 26, "1.5 is not a whole number of"),
        ("targets:\n  a: {hostname: h, hold: '5'}", 2, 26, "'5' is not a whole number of"),
        ("targets:\n  a: {hostname: h, hold: true}", 2, 26, "True is not a whole number of"),
        ("targets:\n  a: {hostname: h, hold: 2147483648}", 2, 26, "a number from 0 to 21474836"),
        ("targets:\n  a: {hostname: h, preserve-host: 1}", 2, 35, "1 is neither true nor false"),
        ("targets:\n  a: {hostname: h, preserve-host: 'true'}", 2, 35, "'true' is neither"),
        ("targets:\n  a: {hostname: h, policy: null}", 2, 28, "targets.a.policy: this is no pol"),
        ("targets:\n  a: {hostname: h, policy: {/a: 5}}", 2, 33, "5 is no method"),
        ("targets:\n  A.b: {hostname: h}\n  a.B.: {hostname: h}", 3, 3, "twice, first as 'A.b'"),
        ("targets:\n  '*.a': {hostname: h}\n  '*.A': {hostname: h}", 3, 3, "twice"),
        ("targets:\n  '[::1]': {hostname: h}\n  '[0::1]': {hostname: h}", 3, 3, "twice"),
        ("targets:\n  a: {hostname: h}\n  a: {hostname: h}", 3, 3, "twice"),
        ("targets:\n  a:80: {hostname: h}", 2, 3, "'a:80' is no host name; expected a name in"),
        ("targets:\n  '::1': {hostname: h}", 2, 3, "IPv6 in brackets"),
        ("targets:\n  '[::1': {hostname: h}", 2, 3, "no host name"),
        ("targets:\n  '[::g]': {hostname: h}", 2, 3, "no host name"),
        ("targets:\n  '': {hostname: h}", 2, 3, "no host name"),
        ("targets:\n  'a..b': {hostname: h}", 2, 3, "no host name"),
        ("targets:\n  '*.': {hostname: h}", 2, 3, "no host name"),
        ("targets:\n  '*a.b': {hostname: h}", 2, 3, "no host name"),
        ("targets:\n  'a.*.b': {hostname: h}", 2, 3, "no host name"),
        ("targets:\n  '*.*.b': {hostname: h}", 2, 3, "no host name"),
        ("targets:\n  http://a/: {hostname: h}", 2, 3, "no host name"),
        ("targets:\n  bücher.example: {hostname: h}", 2, 3, "no host name"),
    ],
)
def test_errors_say_where_and_what(text: str, line: int, column: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_targets(text, "t.yaml")
    assert (caught.value.line, caught.value.column) == (line, column)
    assert str(caught.value).startswith(f"t.yaml:{line}:{column}: ")
    assert words in str(caught.value)


def test_a_long_value_is_not_shown_whole() -> None:
    with pytest.raises(ConfigError) as caught:
        one(f"{{hostname: h, port: {'x' * 100_000}}}")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("example.org", "Example.ORG"),
        ("EXAMPLE.org", "Example.ORG"),
        ("example.org:3000", "Example.ORG"),
        ("example.org:", "Example.ORG"),
        ("example.org.", "Example.ORG"),
        ("Example.Org.:443", "Example.ORG"),
        ("a.example.org", "*.example.org"),
        ("b.a.example.org:80", "*.example.org"),
        ("x.deep.example.org", "*.deep.example.org"),
        ("deep.example.org", "*.example.org"),
        ("exact.deep.example.org", "exact.deep.example.org"),
        ("aexample.org", None),
        ("example.org.evil", None),
        (".example.org", None),
        (".a.example.org", None),
        ("org", None),
        ("", None),
        (":80", None),
        ("[::1]", "[::1]"),
        ("[::1]:8080", "[::1]"),
        ("[0:0:0:0:0:0:0:1]", "[::1]"),
        ("[::2]", None),
        ("::1", None),
        ("[1.2]", None),
        ("[::1]x", None),
        ("10.0.0.1:80", "10.0.0.1"),
        ("*.example.org", None),
        ("*", None),
        ("example.org:80:80", None),
        ("example.org:http", None),
        ("user@example.org", None),
        ("example.org/x", None),
        ("example.org..", None),
        ("example.org\n", None),
        ("éxample.org", None),
        ("example.org:٣", None),
        ("a." * 128 + "example.org", None),
    ],
)
def test_match(host: str, expected: str | None) -> None:
    targets = named(
        "Example.ORG",
        "*.example.org",
        "*.deep.example.org",
        "exact.deep.example.org",
        "[::1]",
        "10.0.0.1",
    )
    assert found(targets, host) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("other", "*"),
        ("", "*"),
        ("[::2]:80", "*"),
        ("a.org", "a.org"),
        ("x.a.org", "*.a.org"),
        ("x.org", "*"),
        ("bad host", None),
        ("[::g]", None),
        ("[1.2]", None),
        ("x" * 300, None),
    ],
)
def test_match_with_a_catch_all(host: str, expected: str | None) -> None:
    # Before the others in the file: what is most specific wins, not what comes first.
    assert found(named("*", "*.a.org", "a.org"), host) == expected


def test_a_name_with_a_final_dot_is_the_same_name() -> None:
    assert found(named("a.org."), "a.org") == "a.org."


LABELS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4).map(".".join)


@settings(deadline=None)
@given(st.sets(st.builds("{}{}".format, st.sampled_from(["", "*."]), LABELS)), LABELS)
def test_match_is_what_a_search_through_all_would_find(names: set[str], host: str) -> None:
    fitting = [
        name for name in names if name == host or (name[0] == "*" and host.endswith(name[1:]))
    ]
    best = max(fitting, key=lambda name: (name[0] != "*", len(name)), default=None)
    assert found(named(*names) if names else Targets(), host) == best


def test_finding_takes_no_longer_among_many() -> None:
    class Counted(str):
        """A host that notices how often it is compared."""

        comparisons = 0

        def __hash__(self) -> int:
            return str.__hash__(self)

        def __eq__(self, other: object) -> bool:
            Counted.comparisons += 1
            return str.__eq__(self, other)

        def lower(self) -> "Counted":
            return self

    template = one("{hostname: h}")
    targets = Targets({f"host{i}.example.org": template for i in range(10_000)})
    assert targets.match(Counted("host9999.example.org")) is template
    assert 1 <= Counted.comparisons < 5


def test_iteration_and_length() -> None:
    targets = named("b", "*", "a", "*.c")
    assert [target.name for target in targets] == ["b", "*", "a", "*.c"]
    assert len(targets) == 4
    assert len(Targets()) == 0
    assert Targets().match("a") is None
    assert len(parse_targets("targets: {}", "t")) == 0


class TargetsFileTests(TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "targets.yaml"
        self.clock = Clock()
        self.changes: list[Targets] = []
        self.events: list[LogEvent] = []
        self.edits = 0
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def write(self, text: str | bytes) -> None:
        self.path.write_bytes(text.encode() if isinstance(text, str) else text)
        # Edits within one tick of the file system's clock must differ, too.
        self.edits += 1
        os.utime(self.path, ns=(self.edits, self.edits))

    def open(self) -> TargetsFile:
        file = TargetsFile(str(self.path), self.clock, self.changes.append)
        file.start()
        self.addCleanup(file.stop)
        return file

    def logged(self) -> list[str]:
        """Return what was logged since the last call, formatted."""
        lines = [event["log_format"].format(**event) for event in self.events]
        self.events.clear()
        return lines

    def test_reads_at_start(self) -> None:
        self.write(SEED)
        file = self.open()
        assert file.current.match("socket.gateway") is not None
        assert self.changes == []

    def test_broken_missing_or_no_text_at_start(self) -> None:
        for text in ("targets:\n  a: {port: 1}", b"targets: \xff"):
            self.write(text)
            with pytest.raises(ConfigError):
                self.open()
        self.path.unlink()
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            self.open()
        assert str(self.path) in str(caught.value)
        assert self.clock.getDelayedCalls() == []

    def test_a_change_is_taken_over_and_told(self) -> None:
        self.write("targets: {a: {hostname: h}, b: {hostname: h}, c: {hostname: h}}")
        file = self.open()
        self.write("targets: {d: {hostname: h}, b: {hostname: x}, c: {hostname: h}}")
        self.clock.advance(1)
        assert [target.name for target in file.current] == ["d", "b", "c"]
        assert self.changes == [file.current]
        assert self.logged() == [f"3 targets in {self.path}; added: d; removed: a; changed: b"]
        self.clock.pump([1] * 5)
        assert (len(self.changes), self.logged()) == (1, [])

    def test_a_broken_file_leaves_the_old_targets_in_force(self) -> None:
        self.write("targets: {a: {hostname: h}}")
        file = self.open()
        before = file.current
        for bad in ("targets:\n  a: {port: 1}", "targets: {", "", b"\xff"):
            self.write(bad)
            self.clock.pump([1] * 5)
            assert file.current is before
            (line,) = self.logged()  # once, however often it was looked at
            assert "targets stay as they were" in line
            assert str(self.path) in line
        self.path.unlink()
        self.clock.pump([1] * 5)
        assert file.current is before
        assert "cannot be read" in "".join(self.logged())
        assert self.changes == []
        self.write("targets: {b: {hostname: h}}")
        self.clock.advance(1)
        assert len(self.changes) == 1
        assert file.current.match("b") is not None

    def test_the_place_of_the_error_is_logged(self) -> None:
        self.write(SEED)
        self.open()
        self.logged()
        self.write(SEED.replace("443 #", "abc #"))
        self.clock.advance(1)
        (line,) = self.logged()
        assert f"{self.path}:5:11: targets.socket.gateway.port: 'abc' is not a port" in line

    def test_the_same_targets_written_anew_are_no_change(self) -> None:
        self.write(SEED)
        file = self.open()
        self.write("# a comment\n" + SEED)
        self.clock.advance(1)
        assert self.changes == []
        assert len(file.current) == 1
        assert "added: none; removed: none; changed: none" in self.logged()[0]

    def test_another_policy_for_the_same_name_is_a_change(self) -> None:
        self.write(SEED)
        file = self.open()
        self.write(SEED.replace("POST", "PUT"))
        self.clock.advance(1)
        assert self.changes == [file.current]
        (target,) = file.current
        assert target.policy.allows("PUT", "/helloworld")
        assert not target.policy.allows("POST", "/helloworld")

    def test_check_reads_at_once(self) -> None:
        self.write("targets: {a: {hostname: h}}")
        file = self.open()
        self.write("targets: {b: {hostname: h}}")
        file.check()
        assert len(self.changes) == 1
        assert len(self.logged()) == 1
        file.check()  # unchanged: who sends SIGHUP wants to see that it was heard
        assert len(self.changes) == 1
        assert len(self.logged()) == 1

    def test_many_names_make_no_endless_line(self) -> None:
        self.write("targets: {}")
        self.open()
        self.write("\n".join(["targets:"] + [f"  h{i}: {{hostname: h}}" for i in range(300)]))
        self.clock.advance(1)
        (line,) = self.logged()
        assert "added: h0, h1," in line
        assert "h9 and 290 more;" in line

    def test_stop_leaves_no_timer(self) -> None:
        self.write(SEED)
        file = self.open()
        file.stop()
        assert self.clock.getDelayedCalls() == []

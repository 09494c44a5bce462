"""The documents: they parse, their links lead somewhere, and what they name is there."""

import re
import shlex
from pathlib import Path

import pytest

from bench.__main__ import compare_parser
from sockgw import __version__, keys
from sockgw.cli import main
from sockgw.config import settings_of
from sockgw.http import forwarded, originexchange
from sockgw.inner.allow import AllowList
from sockgw.inner.config import InnerConfig, InnerOptions
from sockgw.outer import admission, gateway, paths
from sockgw.outer.config import OuterConfig, OuterOptions
from sockgw.outer.metrics import Metrics
from sockgw.outer.paths import PathRefused, resolve
from sockgw.outer.refusals import Refusal, for_reset
from sockgw.outer.targetsfile import parse_targets
from sockgw.protocol import frames, handshake, payloads, session, windows
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.handshake import Refused
from sockgw.tunnel import carrier
from sockgw.yamlfile import MAX_DEPTH, MAX_SIZE

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
DOCUMENTS = sorted((*ROOT.glob("*.rst"), *DOCS.glob("*.rst")))
README = (ROOT / "README.rst").read_text()
CONFIGURATION = (DOCS / "configuration.rst").read_text()
OPERATIONS = (DOCS / "operations.rst").read_text()

QUICK_START = """\
sockgw certificates                               # innerLayer.key, innerLayer.crt
echo '{"targets": {"localhost": {"protocol": "http", "hostname": "localhost", "port": 8000}}}' \
> targets.yaml
twistd -n --pidfile= sockgw-outer --public-key innerLayer.crt --targets targets.yaml \
--app-port 3000 --socket-port 3001
twistd -n --pidfile= sockgw-inner --private-key innerLayer.key --outer-layer ws://localhost:3001
curl http://localhost:3000
"""


def flat(text):
    """Return a text with its lines joined, so that a phrase is found wherever it is broken."""
    return " ".join(text.split())


def name_of(document):
    return str(document.relative_to(ROOT))


@pytest.fixture(scope="module")
def published():
    """Return each document as docutils reads it, by path."""
    core = pytest.importorskip("docutils.core", reason="docutils")
    strict = {"report_level": 1, "halt_level": 1, "file_insertion_enabled": False}
    return {
        document: core.publish_doctree(
            document.read_text(), source_path=str(document), settings_overrides=strict
        )
        for document in DOCUMENTS
    }


# ------------------------------------------------------------------ as documents


def test_there_are_the_documents_that_there_should_be():
    assert {name_of(document) for document in DOCUMENTS} == {
        "CHANGELOG.rst",
        "README.rst",
        "docs/configuration.rst",
        "docs/index.rst",
        "docs/operations.rst",
        "docs/performance.rst",
        "docs/protocol.rst",
        "docs/reliability-table.rst",
        "docs/reliability.rst",
        "docs/security.rst",
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(published, document):
    from docutils import nodes

    for reference in published[document].findall(nodes.reference):
        uri = reference.get("refuri", "")
        if not uri or re.match(r"[a-z]+:", uri):
            continue
        path, _, anchor = uri.partition("#")
        file = (document.parent / path).resolve()
        assert file.is_file(), uri
        if anchor:
            ids = {name for node in published[file].findall() for name in _ids(node)}
            assert anchor in ids, uri


def _ids(node):
    return node.get("ids", ()) if hasattr(node, "get") else ()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_files_that_are_named_exist(document):
    for name in re.findall(r"``((?:docs|conf|tests)/[\w./-]+)``", document.read_text()):
        assert (ROOT / name).exists(), name


def test_every_document_is_reachable_from_the_readme_and_from_the_index(published):
    from docutils import nodes

    for start in (ROOT / "README.rst", DOCS / "index.rst"):
        links = {
            (start.parent / reference["refuri"]).resolve()
            for reference in published[start].findall(nodes.reference)
            if "refuri" in reference
        }
        assert set(DOCUMENTS) - links <= {start, DOCS / "index.rst"}


# ------------------------------------------------------------------ commands


def test_the_quick_start_is_the_one_that_was_promised():
    indented = "".join(f"    {line}\n" for line in QUICK_START.splitlines())
    assert f"::\n\n{indented}\n" in README


def test_the_quick_start_is_accepted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line, comments=True) for line in QUICK_START.splitlines()]
    certificates, echo, outer, inner, curl = commands
    assert main(certificates[1:]) == 0
    assert echo[2:] == [">", "targets.yaml"]
    Path("targets.yaml").write_text(echo[1] + "\n")
    outer_options, inner_options = OuterOptions(), InnerOptions()
    assert outer[:4] == ["twistd", "-n", "--pidfile=", "sockgw-outer"]
    outer_options.parseOptions(outer[4:])
    assert inner[:4] == ["twistd", "-n", "--pidfile=", "sockgw-inner"]
    inner_options.parseOptions(inner[4:])
    assert curl[1] == f"http://localhost:{outer_options.config.app_port[0]}"
    assert main(["check", "targets.yaml"]) == 0


def test_the_two_commands_are_targets_of_the_makefile():
    commands = re.findall(r"^    make (\w+)", README, re.M)
    assert commands == ["demo", "test"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(commands) <= set(targets)


# Of other programs: twistd, pip, systemctl.
_FOREIGN = {"logfile", "logger", "now", "pidfile", "syslog", "upgrade"} | {
    "editable",
    "no-build-isolation",
    "no-deps",
    "reactor",
}
# Of sockgw's own commands.
_COMMANDS = {"common-name", "config", "help", "once", "role", "type", "version"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_options_that_are_named_exist(document):
    known = {*settings_of(OuterConfig), *settings_of(InnerConfig), *_FOREIGN, *_COMMANDS}
    known |= {alias for item in settings_of(OuterConfig).values() for alias in item.aliases}
    known |= {alias for item in settings_of(InnerConfig).values() for alias in item.aliases}
    if document.name == "performance.rst":
        known |= set(re.findall(r"--([a-z-]+)", compare_parser().format_help()))
    for name in re.findall(r"``[^`]*?--([a-z][a-z0-9-]*)", document.read_text()):
        assert name in known, name


def test_commands_that_are_named_exist(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    known = set(re.findall(r"^    ([a-z0-9-]+) ", capsys.readouterr().out, re.M))
    assert "certificates" in known
    for document in DOCUMENTS:
        for name in re.findall(r"(?:^ +|``|bin/)sockgw ([a-z][a-z0-9-]*)", document.read_text()):
            assert name in known, (document, name)


def test_the_changes_begin_with_this_version():
    first = re.search(r"^(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.rst").read_text(), re.M)
    assert first[1] == __version__


# ------------------------------------------------------------------ facts


def test_the_example_of_a_targets_file_is_one():
    text = re.search(r"(?m)^    targets:\n      \"socket.*\n(?:        .*\n)+", CONFIGURATION)
    (target,) = parse_targets(re.sub("(?m)^    ", "", text[0]), "example")
    assert (target.name, target.hostname, target.port) == ("socket.gateway", "my.private.api", 443)


def test_the_example_of_a_policy_is_one():
    text = re.search(r"(?m)^    policy:\n((?:      .*\n)+)", CONFIGURATION)
    example = "targets:\n  a:\n    hostname: b\n    policy:\n" + text[1]
    (target,) = parse_targets(example, "example")
    assert target.policy.allows("PUT", "/files/a.txt")
    assert not target.policy.allows("PUT", "/files/a.txt/b")
    assert not target.policy.allows("HEAD", "/helloworld")


@pytest.mark.parametrize(
    ("spelled", "normal"),
    [("/%62", "/b"), ("//b", "/b"), ("/a/../b", "/b"), ("/a/%2e%2e/b", "/b")],
)
def test_paths_have_the_normal_form_that_is_documented(spelled, normal):
    assert f"``{spelled}``" in CONFIGURATION
    assert resolve(spelled.encode()).path == normal


@pytest.mark.parametrize(
    "spelled", ["%2f", "%5c", "%00", "%zz", "%252e", "%c0%ae", "/..;x/", "/;x/"]
)
def test_paths_are_refused_as_documented(spelled):
    assert f"``{spelled}``" in CONFIGURATION
    with pytest.raises(PathRefused):
        resolve(f"/a{spelled}b".encode())


def test_addresses_are_guarded_as_documented():
    start = CONFIGURATION.index("- link-local, with the metadata services")
    listed = CONFIGURATION[start : CONFIGURATION.index("IPv6 addresses that a translator", start)]
    addresses = re.findall(r"``([0-9a-f]*[:.][0-9a-f:.]*)(?:/\d+)?``", listed)
    assert len(addresses) == 13
    for address in addresses:
        assert not AllowList().permits("name", address, 80), address
        assert not AllowList.parse(["*", "0.0.0.0/0", "::/0"]).permits("name", address, 80)
        shown = f"[{address}]" if ":" in address else address
        assert AllowList.parse([shown]).permits("name", address, 80)


@pytest.mark.parametrize(
    ("limit", "number"),
    [
        ("a path where a policy stands", paths.MAX_PATH),
        ("a message before the handshake is complete", carrier.MAX_GREETING),
        ("a message before the handshake is complete", frames.MAX_HANDSHAKE),
        ("a message before the handshake is complete", handshake.MAX_PAYLOAD),
        ("a message", frames.MAX_MESSAGE),
        ("a frame of DATA", frames.MAX_DATA),
        ("a head in the tunnel", frames.MAX_HEAD),
        ("a head in the tunnel", payloads.MAX_FIELDS),
        ("credit of a stream, each way", windows.WINDOW),
        ("frames without content", session.FLOOD_BUDGET),
        ("frames without content", session.FLOOD_WORTH),
        ("frames other than data that wait to be sent", session.MAX_CONTROL),
        (
            "bytes of a request held to send it again on a new connection",
            originexchange.MAX_HELD,
        ),
        ("a configuration or targets file", MAX_SIZE),
        ("a configuration or targets file", MAX_DEPTH),
        ("an identifier", keys.MAX_IDENTIFIER),
    ],
)
def test_fixed_limits_are_as_documented(limit, number):
    row = re.search(rf"^   \* - {re.escape(limit)}\n     - (.*)$", CONFIGURATION, re.M)
    assert re.search(rf"(?<![\d,]){number:,}(?!,?\d)", row[1]), row[1]


def test_the_number_of_hops_is_as_documented():
    assert f"At most {forwarded.MAX_HOPS} entries" in flat(CONFIGURATION)


def test_every_metric_is_documented():
    metrics = Metrics()
    found = set()
    for family in metrics.collect():
        found.add(family.name + {"counter": "_total", "info": "_info"}.get(family.type, ""))
    documented = set(re.findall(r"   \* - ``(sockgw_\w+)``", OPERATIONS))
    assert documented == found


def test_every_reason_of_a_refused_handshake_is_documented():
    row = OPERATIONS[OPERATIONS.index("* - ``sockgw_handshake_failures_total``") :].split("* - ")[1]
    names = re.findall(r"``([a-z]+)``", row.partition("turned away:")[2])
    assert names == [kind.value for kind in Refused]


def test_every_refusal_is_documented():
    text = flat(OPERATIONS)
    refusals = {for_reset(code) for code in StreamCode}
    refusals |= {item for item in vars(gateway).values() if isinstance(item, Refusal)}
    assert len(refusals) > 15
    for refusal in refusals:
        if refusal.status == 400:
            continue  # documented as a kind
        assert re.search(rf"{refusal.status} [^*]*``{re.escape(refusal.reason)}``", text), refusal


def test_log_lines_that_are_quoted_are_those_of_the_code():
    source = flat(Path(admission.__file__).read_text())
    assert "inner layer refused: {reason} address={address} key={key}" in source
    assert "``inner layer refused: REASON address=… key=…``" in flat(OPERATIONS)
    code = "".join(
        file.read_text()
        for file in (ROOT / "sockgw").rglob("*.py")
        if "demo" not in file.relative_to(ROOT).parts
    )
    code = re.sub(r"\"\s*\"", "", code)  # strings that go on in the next line
    for quoted in (
        "unknown key",
        "wrong signature",
        "which is not our name",
        "is not of its key",
        "speaks versions ",
        "no HELLO in time",
        "challenge expired",
        "the peer went away during the handshake",
        "refuses this inner layer (its key {key}, identifier or version): the outer layer's log",
        "no connection to the outer layer ",
        "certificate is self-signed and not trusted",
        "certificate's authority is not trusted",
        "certificate is not for ",
        "the proxy answered ",
        "no sign of life ",
        "no address for ",
        "targets stay as they were: ",
        "no key is taken from ",
    ):
        assert quoted in code, quoted
        assert quoted.replace("{key}", "…").rstrip() in flat(OPERATIONS), quoted

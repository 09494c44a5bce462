"""The command: every subcommand's output, exit status and errors."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from twisted.scripts import twistd

from sockgw import __version__
from sockgw.build import BUILD
from sockgw.cli import main
from sockgw.inner.config import InnerOptions
from sockgw.outer.config import OuterOptions

TARGETS = '{"targets": {"localhost": {"protocol": "http", "hostname": "localhost", "port": 8000}}}'


@pytest.fixture(autouse=True)
def _empty_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("SOCKGW_"):
            monkeypatch.delenv(name)


@pytest.fixture
def run(capsys):
    def run(*arguments):
        try:
            status = main(arguments)
        except SystemExit as exit:
            status = exit.code or 0
        out, err = capsys.readouterr()
        return status, out, err

    return run


def write(name, text):
    Path(name).write_text(text)


# --- by itself


def test_help_lists_the_commands(run):
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    for command in ("outer-layer", "inner-layer", "certificates", "check", "demo", "version"):
        assert command in out


def test_without_a_command_it_says_what_there_is(run):
    status, out, _err = run()
    assert status == 2
    assert "certificates" in out


@pytest.mark.parametrize("arguments", [["version"], ["--version"], ["check", "--version"]])
def test_version(run, arguments):
    assert run(*arguments) == (0, f"sockgw {__version__} ({BUILD})\n", "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nope"], "sockgw: Unknown command: nope"),
        (["--nope"], "sockgw: option --nope not recognized"),
        (["version", "now"], "sockgw version: unexpected argument 'now'"),
        (["check"], "sockgw check: name a file to check"),
        (["check", "--role", "x", "f"], "sockgw check: --role: 'x' is not known; expected outer"),
        (["certificates", "--validity", "0"], "sockgw certificates: --validity: '0' is not"),
        (["certificates", "--type", "dsa"], "sockgw certificates: --type: 'dsa' is not known"),
        (["demo", "--app-port", "65536"], "sockgw demo: '65536' is not a port number"),
        (["outer-layer"], "sockgw outer-layer: --public-key: is missing"),
        (["inner-layer", "--wrong"], "sockgw inner-layer: option --wrong not recognized"),
    ],
)
def test_wrong_usage(run, arguments, line):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["certificates", "check", "demo", "outer-layer", "inner-layer"])
def test_help_of_a_command(run, command):
    status, out, err = run(command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: sockgw {command} [options]")


def test_help_needs_none_of_the_heavy_modules():
    heavy = "{'autobahn', 'cryptography', 'ruamel.yaml', 'twisted.internet.reactor', 'OpenSSL'}"
    code = f"import sys, sockgw.cli; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "sockgw", "nope"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "sockgw: Unknown command: nope\n")


# --- certificates


def test_certificates_by_default(run):
    status, out, err = run("certificates")
    assert (status, err) == (0, "")
    assert "SHA256:" in out
    assert sorted(os.listdir()) == ["innerLayer.crt", "innerLayer.key"]
    assert os.stat("innerLayer.key").st_mode & 0o777 == 0o600


def test_certificates_never_overwrite(run):
    run("certificates")
    before = {file: file.read_bytes() for file in Path().iterdir()}
    status, out, err = run("certificates")
    assert (status, out) == (1, "")
    assert "exists already, and is not overwritten" in err
    assert {file: file.read_bytes() for file in Path().iterdir()} == before


def test_certificates_pass_the_options_on(run, monkeypatch):
    from sockgw import keys

    calls = []

    def generate(*paths, **settings):
        calls.append((paths, settings))
        return "SHA256:abc"

    monkeypatch.setattr(keys, "generate", generate)
    status, out, _err = run(
        *("certificates", "--common-name", "office", "--validity", "30", "--type", "rsa"),
        *("--private-key", "a.key", "--certificate", "a.crt"),
    )
    assert status == 0
    assert out.endswith("SHA256:abc\n")
    settings = {"common_name": "office", "validity_days": 30, "key_type": "rsa"}
    assert calls == [(("a.key", "a.crt"), settings)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--private-key", "none/a.key"], "cannot write none/a.key: No such file or directory"),
        (["--common-name", "a b"], "an identifier has no space"),
    ],
)
def test_certificates_that_cannot_be_made(run, arguments, words):
    status, _out, err = run("certificates", *arguments)
    assert status == 1
    assert words in err
    assert os.listdir() == []


# --- check


@pytest.fixture
def good(run):
    run("certificates")
    write("targets.yaml", TARGETS)
    write("outer.yaml", "targets: targets.yaml\npublic-key: innerLayer.crt\n")
    write("inner.yaml", "private-key: innerLayer.key\nouter-layer: ws://localhost:3001\n")


@pytest.mark.usefixtures("good")
def test_check_tells_files_apart(run):
    assert run("check", "outer.yaml", "inner.yaml", "targets.yaml") == (
        0,
        "outer.yaml: fine (outer layer's configuration)\n"
        "inner.yaml: fine (inner layer's configuration)\n"
        "targets.yaml: fine (targets)\n",
        "",
    )


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("app-port: abc", "f.yaml:1:11: app-port: 'abc' cannot be used"),
        ("app-port: 80\ntimout: 3", "f.yaml:2:1: timout: there is no such setting; did you mean"),
        ("targets: [", "f.yaml:1:11: no valid YAML"),
        ("targets: {a: {port: x, hostname: b}}", "f.yaml:1:21: targets.a.port: "),
        ("targets: no.yaml\npublic-key: innerLayer.crt", "f.yaml: targets: 'no.yaml' cannot be"),
        ("targets: bad.yaml\npublic-key: innerLayer.crt", "bad.yaml:1:11: targets"),
        ("targets: targets.yaml\npublic-key: innerLayer.key", "f.yaml: public-key: 'innerLayer."),
        ("private-key: innerLayer.crt\nouter-layer: wss://x", "f.yaml: private-key: 'innerLayer."),
        (
            "private-key: innerLayer.key\nouter-layer: wss://x\ntarget-ca: targets.yaml",
            "f.yaml: target-ca: targets.yaml: ",
        ),
        (
            "private-key: innerLayer.key\nouter-layer: wss://x\ncertificate: none.crt",
            "f.yaml: certificate: none.crt: ",
        ),
        ("ping-interval: 15000", "f.yaml:1:1: cannot tell what this file is"),
        ("- a", "f.yaml:1:1: cannot tell what this file is"),
    ],
)
def test_check_finds(run, text, line):
    write("bad.yaml", "{targets: []}")
    write("f.yaml", text)
    status, out, err = run("check", "targets.yaml", "f.yaml", "inner.yaml")
    assert (status, err) == (1, "")
    lines = out.splitlines()
    assert lines[0] == "targets.yaml: fine (targets)"
    assert lines[1].startswith(line)
    assert lines[2] == "inner.yaml: fine (inner layer's configuration)"


def test_check_lets_required_settings_come_from_elsewhere(run):
    write("outer.yaml", "app-port: 80\n")
    assert run("check", "outer.yaml") == (
        0,
        "outer.yaml: fine (outer layer's configuration; still to be given: "
        "--public-key, --targets)\n",
        "",
    )


def test_check_judges_the_file_alone(run, monkeypatch):
    monkeypatch.setenv("SOCKGW_TIMEOUT", "1000")
    write("outer.yaml", "app-port: 80\ntimeout: x\n")
    assert run("check", "outer.yaml")[0] == 1


def test_check_takes_the_role_it_is_told(run):
    write("f.yaml", "ping-interval: 15000\n")
    assert run("check", "--role", "inner", "f.yaml")[1].startswith("f.yaml: fine (inner layer's")
    assert run("check", "--role", "outer", "f.yaml")[1].startswith("f.yaml: fine (outer layer's")
    status, out, _err = run("check", "--role", "targets", "f.yaml")
    assert (status, out.partition(" ")[0]) == (1, "f.yaml:1:1:")


def test_check_of_a_file_that_is_not_there(run):
    status, out, _err = run("check", "none.yaml")
    assert (status, out) == (1, "'none.yaml' cannot be read: No such file or directory\n")


# --- what runs something


@pytest.mark.parametrize(
    ("command", "plugin", "options", "arguments"),
    [
        ("outer-layer", "sockgw-outer", OuterOptions, ["--targets=t", "--public-key=k"]),
        ("inner-layer", "sockgw-inner", InnerOptions, ["--private-key=k", "--outer-layer=wss://x"]),
    ],
)
def test_layers_run_as_twistd_runs_them(run, monkeypatch, command, plugin, options, arguments):
    makers = [SimpleNamespace(tapname=plugin, options=options, description="")]
    monkeypatch.setattr(twistd.ServerOptions, "_getPlugins", staticmethod(lambda _: makers))
    ran = []
    monkeypatch.setattr(twistd, "runApp", ran.append)
    assert run(command, *arguments) == (0, "", "")
    (config,) = ran
    assert (config["nodaemon"], config["pidfile"], config.subCommand) == (1, "", plugin)
    assert isinstance(config.subOptions.config, options.config_class)


def test_twistd_prints_an_error_as_one_line_and_no_pages(monkeypatch, capsys):
    makers = [SimpleNamespace(tapname="sockgw-outer", options=OuterOptions, description="")]
    monkeypatch.setattr(twistd.ServerOptions, "_getPlugins", staticmethod(lambda _: makers))
    monkeypatch.setattr(sys, "argv", ["twistd", "-n", "sockgw-outer", "--timeout", "abc"])
    with pytest.raises(SystemExit) as caught:
        twistd.run()
    assert caught.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("twistd -n: --timeout: 'abc' is not a whole number")
    assert len(lines) <= 3


@pytest.mark.parametrize("status", [0, 1])
def test_demo(run, monkeypatch, status):
    calls = []
    module = ModuleType("sockgw.demo.run")
    module.main = lambda options: calls.append(dict(options)) or status
    monkeypatch.setitem(sys.modules, "sockgw.demo.run", module)
    assert run("demo", "--once", "--app-port", "0")[0] == status
    assert calls == [{"once": 1, "app-port": 0, "socket-port": None, "origin-port": None}]


def test_the_types_of_keys_are_those_that_there_are():
    from sockgw import cli, keys

    assert set(cli._KEY_TYPES) == set(keys.KEY_TYPES)


def test_help_to_a_reader_that_leaves_early():
    command = [sys.executable, "-m", "sockgw", "outer-layer", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 1


def test_usage_line(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.startswith("Usage: sockgw COMMAND [options]\n")

"""Options, environment and files; what is wrong is said in one sentence; where it can listen."""

import json
import re
import signal
import socket
import sys
from pathlib import Path

import pytest
from clients import Client, curl, fetch
from harness import (
    LOOPBACK,
    Inner,
    Keys,
    Outer,
    Process,
    command,
    listening_socket,
    run,
)
from origins import Connection, Origin, Request, answering

from sockgw.build import BUILD

TWISTD = (command("twistd"), "-n", "--pidfile=")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory as the quick start leaves it: keys and targets."""
    assert run(command("sockgw"), "certificates", cwd=tmp_path).returncode == 0
    (tmp_path / "targets.yaml").write_text('{"targets": {"localhost": {"hostname": "a.test"}}}')
    return tmp_path


def outer_fails(project: Path, *arguments: str, env: dict[str, str] | None = None) -> list[str]:
    """Start an outer layer in both ways, which must fail alike; return the sentences."""
    sentences = []
    for start in ([*TWISTD, "sockgw-outer"], [command("sockgw"), "outer-layer"]):
        given = [] if "--config" in arguments else ["--public-key", "innerLayer.crt"]
        got = run(*start, *given, *arguments, cwd=project, env=env)
        assert got.returncode not in (0, -signal.SIGTERM), got
        output = got.stdout + got.stderr
        assert "Traceback" not in output
        sentences.append(output.strip().splitlines()[-1])
    return sentences


# ---------------------------------------------------------------------- settings

WRONG = [
    (("--timeout", "abc"), "--timeout: 'abc' is not a whole number of milliseconds; expected"),
    (("--app-port", "70000"), "--app-port: '70000' cannot be used: .*; expected a port number"),
    (("--app-port", "tls:443:privateKey=none"), "--app-port: .*cannot read none: No such file"),
    (("--trust-proxy", "nobody"), "--trust-proxy: 'nobody' is not known; expected loopback"),
    (("--log-format", "xml"), "--log-format: 'xml' .*text.*json"),
    (("--max-streams", "0"), "--max-streams: '0' "),
    (("--timeuot", "1"), "--timeuot not recognized; did you mean --timeout"),
    (("surplus",), "unexpected argument 'surplus'"),
    (("--config", "nowhere.yaml"), "--config: 'nowhere.yaml' cannot be read"),
]


@pytest.mark.parametrize(("arguments", "expected"), WRONG)
def test_wrong_option(project: Path, arguments: tuple[str, ...], expected: str) -> None:
    targets = ("--targets", "targets.yaml") if arguments[0] != "surplus" else ()
    for sentence in outer_fails(project, *targets, *arguments):
        assert re.search(expected, sentence), sentence


def test_wrong_variable(project: Path) -> None:
    env = {"SOCKGW_TARGETS": "targets.yaml", "SOCKGW_TIMEOUT": "1.5"}
    for sentence in outer_fails(project, env=env):
        assert "SOCKGW_TIMEOUT: '1.5' is not a whole number of milliseconds; " in sentence


def test_wrong_file(project: Path) -> None:
    (project / "outer.yaml").write_text(
        "public-key: innerLayer.crt\ntargets: targets.yaml\ntimeout: soon\n"
    )
    for sentence in outer_fails(project, "--config", "outer.yaml"):
        assert "outer.yaml:3:10: timeout: 'soon' is not a whole number" in sentence
    (project / "outer.yaml").write_text("public_key: innerLayer.crt\n")
    for sentence in outer_fails(project, "--config", "outer.yaml"):
        assert "outer.yaml:1:1: " in sentence
        assert "did you mean 'public-key'" in sentence


def test_wrong_targets_at_start(project: Path) -> None:
    (project / "targets.yaml").write_text("targets:\n  a.test: {hostname: b, port: 0}\n")
    for sentence in outer_fails(project, "--targets", "targets.yaml"):
        assert re.search(r"targets\.yaml:2:\d+: targets\.a\.test\.port: ", sentence)


def test_missing_option(project: Path) -> None:
    for sentence in outer_fails(project):
        assert "--targets is missing" in sentence or "--targets: is missing" in sentence


def test_precedence(project: Path) -> None:
    """Options win over the environment, that over the file, that over the defaults."""
    given = ("--public-key", "innerLayer.crt", "--targets", "targets.yaml")
    (project / "outer.yaml").write_text("app-port: 1file\nsocket-port: 2file\nadmin-port: 3file\n")
    env = {"SOCKGW_APP_PORT": "1env", "SOCKGW_SOCKET_PORT": "2env"}
    # A value is read where it counts, and nowhere else: each wrong one tells whose turn it was.
    twistd = (*TWISTD, "sockgw-outer", *given, "--config", "outer.yaml")
    seen = []
    for options in (
        ("--app-port", "1option"),
        ("--app-port", "0"),
        ("--app-port", "0", "--socket-port", "0"),
    ):
        got = run(*twistd, *options, cwd=project, env=env)
        assert got.returncode == 1
        seen.append((got.stdout + got.stderr).strip().splitlines()[-1])
    assert "--app-port: '1option'" in seen[0]
    assert "SOCKGW_SOCKET_PORT: '2env'" in seen[1]
    assert re.search(r"outer\.yaml:3:\d+: admin-port: '3file'", seen[2])


def test_all_from_files(project: Path) -> None:
    """The services run with nothing on their command lines but the file."""
    (project / "outer.yaml").write_text(
        "public-key: [innerLayer.crt]\ntargets: targets.yaml\n"
        "app-port: tcp:0:interface=127.0.0.1\nsocket-port: tcp:0:interface=127.0.0.1\n"
    )
    with Process("outer", [*TWISTD, "sockgw-outer", "--config", "outer.yaml"], project) as outer:
        line = outer.log.wait("listening on")
        port = re.search(r":(\d+)$", line)
        assert port
        (project / "inner.yaml").write_text(
            f"private-key: innerLayer.key\nouter-layer: ws://127.0.0.1:{port[1]}\n"
        )
        config = {"SOCKGW_CONFIG": "inner.yaml"}
        with Process("inner", [*TWISTD, "sockgw-inner"], project, config):
            outer.log.wait("inner layer innerLayer connected")


def test_foreground_commands(project: Path, nginx_port: int) -> None:
    """``sockgw outer-layer`` and ``sockgw inner-layer`` run the same services."""
    targets = {"localhost": {"protocol": "http", "hostname": "127.0.0.1", "port": nginx_port}}
    (project / "targets.yaml").write_text(json.dumps({"targets": targets}))
    ports = (
        "--app-port",
        "tcp:0:interface=127.0.0.1",
        "--socket-port",
        "tcp:0:interface=127.0.0.1",
    )
    arguments = ("--public-key", "innerLayer.crt", "--targets", "targets.yaml", *ports)
    with Process("outer", [command("sockgw"), "outer-layer", *arguments], project) as outer:
        outer.log.wait(rf"outer layer started \({BUILD}\): targets=1 keys=1")
        socket_port, app_port = (
            int(line.rpartition(":")[2]) for line in outer.log.matching("listening on")
        )
        dial = ("--private-key", "innerLayer.key", "--outer-layer", f"ws://127.0.0.1:{socket_port}")
        with Process("inner", [command("sockgw"), "inner-layer", *dial], project) as inner:
            inner.log.wait("connected to the outer layer")
            got = curl(app_port, "--fail", "http://localhost/hello")
            assert got.stdout == b"hello\n"
            # Without --access-log the lines are among the events, on standard output.
            outer.log.wait('"GET /hello HTTP/1.1" 200 6 ')


@pytest.mark.parametrize("name", ["outer", "inner"])
def test_help_tells_every_setting(tmp_path: Path, name: str) -> None:
    if name == "outer":
        from sockgw.outer.config import OuterConfig as config
    else:
        from sockgw.inner.config import InnerConfig as config
    from sockgw.config import settings_of, variable

    for start in ([*TWISTD, f"sockgw-{name}"], [command("sockgw"), f"{name}-layer"]):
        got = run(*start, "--help", cwd=tmp_path)
        assert got.returncode == 0
        for setting in settings_of(config):
            assert f"--{setting}" in got.stdout
            assert variable(setting) in got.stdout


def test_check(project: Path) -> None:
    (project / "good.yaml").write_text("public-key: innerLayer.crt\ntargets: targets.yaml\n")
    (project / "bad.yaml").write_text("private-key: innerLayer.key\nouter-layer: http://a\n")
    sockgw = command("sockgw")
    got = run(sockgw, "check", "good.yaml", "targets.yaml", cwd=project)
    assert got.returncode == 0, got
    assert len(got.stdout.splitlines()) == 2
    got = run(sockgw, "check", "good.yaml", "bad.yaml", cwd=project)
    assert got.returncode == 1
    assert "bad.yaml:2:14: outer-layer: 'http://a'" in got.stdout + got.stderr
    (project / "targets.yaml").write_text("targets:\n  a.test: {port: 1}\n")
    got = run(sockgw, "check", "good.yaml", cwd=project)
    assert got.returncode == 1
    assert "targets.yaml:2:" in got.stdout + got.stderr


def test_certificates_are_not_overwritten(project: Path) -> None:
    key = project / "innerLayer.key"
    before = key.read_bytes()
    assert key.stat().st_mode & 0o777 == 0o600
    got = run(command("sockgw"), "certificates", cwd=project)
    assert got.returncode == 1
    assert "exists already, and is not overwritten" in got.stderr
    assert key.read_bytes() == before


# ---------------------------------------------------------------------- listening


@pytest.mark.parametrize("option", ["--app-port", "--socket-port", "--admin-port"])
def test_taken_port(project: Path, option: str) -> None:
    with listening_socket() as held:
        port = held.getsockname()[1]
        ports = {"--app-port": "0", "--socket-port": "0"}
        ports[option] = f"tcp:{port}:interface=127.0.0.1"
        arguments = [word for pair in ports.items() for word in pair]
        for sentence in outer_fails(project, "--targets", "targets.yaml", *arguments):
            assert re.search(rf"sockgw-outer: {option} tcp:{port}:\S+: the port is taken", sentence)


def test_taken_port_by_number(project: Path) -> None:
    with socket.create_server(("", 0)) as held:
        port = held.getsockname()[1]
        options = ("--targets", "targets.yaml", "--app-port", str(port), "--socket-port", "0")
        for sentence in outer_fails(project, *options):
            assert f"sockgw-outer: --app-port {port}: the port is taken" in sentence


def test_unix_socket(tmp_path: Path, keys: Keys, nginx_port: int) -> None:
    path = tmp_path / "app.sock"
    with (
        Outer(tmp_path, keys.certificate, app=f"unix:{path}") as outer,
        Inner(tmp_path, keys.private, outer.socket_port),
    ):
        outer.wait_for_tunnels(1)
        host = outer.route(nginx_port)
        got = curl(1, "--fail", "--unix-socket", path, f"http://{host}/hello")
        assert (got.returncode, got.stdout) == (0, b"hello\n"), got.stderr
        outer.access.wait('"GET /hello HTTP/1.1" 200 6 ')
    assert not path.exists()


def test_number_means_all_addresses(tmp_path: Path, keys: Keys) -> None:
    with Outer(tmp_path, keys.certificate, app="0", socket="0") as outer:
        assert fetch(outer.app_port, "any", "/healthz").status == 200
        if socket.has_ipv6:
            with Client(outer.app_port, "::1") as client:
                assert client.request("any", "/healthz").status == 200


def test_several_ports(tmp_path: Path, keys: Keys) -> None:
    with Outer(tmp_path, keys.certificate, "--app-port", "tcp:0:interface=127.0.0.1") as outer:
        lines = outer.log.matching("listening on")
        assert len(lines) == 3
        for line in lines[1:]:
            assert fetch(int(line.rpartition(":")[2]), "any", "/healthz").status == 200


def test_behind_haproxy(tmp_path: Path, keys: Keys) -> None:
    """The PROXY header tells the client's address."""

    def tell(connection: Connection, request: Request) -> None:
        connection.answer((request.header("X-Forwarded-For") or "").encode())

    with (
        Origin(answering(tell)) as origin,
        Outer(tmp_path, keys.certificate, app="haproxy:tcp:0:interface=127.0.0.1") as outer,
        Inner(tmp_path, keys.private, outer.socket_port),
    ):
        outer.wait_for_tunnels(1)
        host = outer.route(origin)
        with Client(outer.app_port) as client:
            client.send(b"PROXY TCP4 192.0.2.7 127.0.0.1 40000 80\r\n")
            assert client.request(host).text == "192.0.2.7"
        assert outer.access.wait("GET /").startswith("192.0.2.7 - - [")
        got = curl(outer.app_port, "--fail", "--haproxy-protocol", f"http://{host}/")
        assert got.stdout == b"127.0.0.1", got.stderr


def test_socket_activation(tmp_path: Path, keys: Keys, nginx_port: int) -> None:
    """systemd has opened the app port, and hands it over as the first descriptor after stderr."""
    target = {"protocol": "http", "hostname": "127.0.0.1", "port": nginx_port}
    (tmp_path / "targets.yaml").write_text(json.dumps({"targets": {"a.test": target}}))
    with listening_socket() as listener:
        number = listener.fileno()
        as_systemd_does = (
            f"import os, sys; os.dup2({number}, 3);"
            "os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.argv[1], sys.argv[1:])"
        )
        arguments = [
            *(sys.executable, "-c", as_systemd_does),
            *(*TWISTD, "sockgw-outer", "--public-key", keys.certificate),
            *("--targets", "targets.yaml", "--app-port", "systemd:domain=INET:name=app"),
            *("--socket-port", LOOPBACK),
        ]
        env = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "app"}
        with Process("outer", arguments, tmp_path, env, pass_fds=(number,)) as outer:
            outer.log.wait("outer layer started")
            socket_port = int(outer.log.matching("listening on")[0].rpartition(":")[2])
            with Inner(tmp_path, keys.private, socket_port) as inner:
                inner.wait_connected()
                port = listener.getsockname()[1]
                assert fetch(port, "a.test", "/hello").body == b"hello\n"

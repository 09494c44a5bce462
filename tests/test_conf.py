"""conf/: what stands there is accepted by whoever reads it, also with every comment taken away.

And docs/configuration.rst: every option, with the names and the default that it really has.
"""

import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from sockgw import keys
from sockgw.cli import main
from sockgw.config import load, settings_of, variable
from sockgw.inner.allow import AllowList
from sockgw.inner.config import InnerConfig
from sockgw.outer.config import OuterConfig
from sockgw.outer.targetsfile import parse_targets

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
MANUAL = (ROOT / "docs" / "configuration.rst").read_text()

ROLES = {"outer": OuterConfig, "inner": InnerConfig}
UNITS = ("outer", "inner")

# A line that starts with # and a setting, or goes on with the list or mapping of one.
_COMMENTED = re.compile(r"^#(?=[a-z][a-z0-9-]*:|  - |  [a-z0-9-]+: )", re.MULTILINE)


def tool(name):
    """Return the path of a program, or skip the test and say which one is missing."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(name)
    return found


def uncommented(text):
    return _COMMENTED.sub("", text)


@pytest.fixture
def etc(tmp_path, monkeypatch):
    """Return a directory in the place of /etc/sockgw, with the files that conf/ names."""
    for name in ROLES:
        for option in settings_of(ROLES[name]):
            monkeypatch.delenv(variable(option), raising=False)
    (tmp_path / "keys").mkdir()
    certificate = tmp_path / "inner.crt"
    keys.generate(tmp_path / "inner.key", certificate, common_name="office")
    for copy in ("keys/office.crt", "outer-ca.crt", "private-ca.crt"):
        shutil.copy(certificate, tmp_path / copy)
    shutil.copy(CONF / "targets.yaml", tmp_path)
    (tmp_path / "admin.password").write_text("correct horse\n")
    return tmp_path


def placed(etc, name, change=lambda text: text):
    file = etc / name
    file.write_text(change((CONF / name).read_text()).replace("/etc/sockgw", str(etc)))
    return file


# ------------------------------------------------------------------ outer.yaml, inner.yaml


def test_the_files_pass_the_check(etc, capsys):
    files = [placed(etc, name) for name in ("outer.yaml", "inner.yaml", "targets.yaml")]
    assert main(["check", *map(str, files)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{files[0]}: fine (outer layer's configuration)",
        # The systemd unit gives it as a credential.
        f"{files[1]}: fine (inner layer's configuration; still to be given: --private-key)",
        f"{files[2]}: fine (targets)",
    ]


@pytest.mark.parametrize("role", ROLES)
def test_the_files_pass_the_check_with_everything_in_them(etc, capsys, role):
    file = placed(etc, f"{role}.yaml", uncommented)
    assert main(["check", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: fine ({role} layer's configuration)\n"


@pytest.mark.parametrize("role", ROLES)
def test_the_files_name_every_setting_once(role):
    found = re.findall(r"^([a-z0-9-]+):", uncommented((CONF / f"{role}.yaml").read_text()), re.M)
    # Beside its file, which is the better choice, it would be an error.
    expected = set(settings_of(ROLES[role])) - {"admin-password"}
    if role == "inner":  # its alias reads better above a mapping
        expected = (expected - {"service"}) | {"services"}
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("role", ROLES)
def test_commented_settings_with_a_default_show_it(etc, role):
    text = (CONF / f"{role}.yaml").read_text()
    shown = re.findall(r"^#([a-z0-9-]+):", text, re.M)
    config = load(ROLES[role], {"config": [str(placed(etc, f"{role}.yaml", uncommented))]}, {})
    settings = settings_of(ROLES[role])
    compared = 0
    for name in shown:
        default = settings[name].default
        if default:
            compared += 1
            expected = (
                tuple(map(settings[name].parse, default))
                if settings[name].repeatable
                else settings[name].parse(default)
            )
            assert getattr(config, name.replace("-", "_")) == expected, name
    assert compared > 10


def test_the_inner_layer_of_the_example_serves_the_targets_of_the_example(etc):
    targets = parse_targets((CONF / "targets.yaml").read_text(), "targets.yaml")
    options = {"config": [str(placed(etc, "inner.yaml"))], "private-key": ["inner.key"]}
    # As it stands: what is commented allows a network, and so any name to be resolved.
    allow = AllowList.parse(load(InnerConfig, options, {}).allow)
    options["config"] = [str(placed(etc, "inner.yaml", uncommented))]
    services = load(InnerConfig, options, {}).service
    for target in targets:
        if target.service is not None:
            assert target.service in services
        elif target.socket:
            assert allow.permits_socket(target.socket)
        else:
            assert allow.permits_name(target.hostname, target.port), target.name


# ------------------------------------------------------------------ systemd


def directives(unit):
    """Return the directives of a unit as pairs, with continued lines joined."""
    text = (CONF / f"sockgw-{unit}.service").read_text().replace("\\\n", " ")
    return re.findall(r"^([A-Za-z]+)=(.*)$", text, re.M)


def test_systemd_accepts_the_units(tmp_path):
    analyze = tool("systemd-analyze")
    program = tmp_path / "bin" / "sockgw"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units = []
    for name in UNITS:
        unit = tmp_path / f"sockgw-{name}.service"
        text = (CONF / unit.name).read_text()
        assert "/opt/sockgw/bin/" in text
        # What is commented must be accepted, too.
        text = re.sub(r"^#(?=[A-Z][A-Za-z]+=)", "", text, flags=re.M)
        unit.write_text(text.replace("/opt/sockgw/bin/", f"{program.parent}/"))
        units.append(str(unit))
    done = subprocess.run(
        [analyze, "verify", *units],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    # An unknown directive is a warning, and the status 0.
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("unit", UNITS)
def test_units_give_options_that_exist_and_credentials_that_are_loaded(unit):
    found = directives(unit)
    (command,) = [value for name, value in found if name == "ExecStart"]
    program, layer, *arguments = command.split()
    assert (program, layer) == ("/opt/sockgw/bin/sockgw", f"{unit}-layer")
    options = {argument[2:] for argument in arguments if argument.startswith("--")}
    assert options <= {"config", *settings_of(ROLES[unit])}
    loaded = {value.partition(":")[0] for name, value in found if name == "LoadCredential"}
    assert set(re.findall(r"%d/(\S+)", command)) == loaded


@pytest.mark.parametrize("unit", UNITS)
def test_units_say_what_the_services_do(unit):
    found = dict(directives(unit))
    assert found["Type"] == "notify"
    assert int(found["WatchdogSec"]) > 0
    assert found["DynamicUser"] == found["NoNewPrivileges"] == "yes"
    assert found["CapabilityBoundingSet"] == ""
    # Certificates are verified through a callback that pyOpenSSL makes at run time.
    assert "MemoryDenyWriteExecute" not in found
    assert ("ExecReload" in found) == (unit == "outer")


# ------------------------------------------------------------------ nginx

_NGINX = """\
pid {directory}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/site.conf;
}}
"""


def server_certificate(directory):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "example.org")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "privkey.pem").write_bytes(pem)
    (directory / "fullchain.pem").write_bytes(certificate.public_bytes(Encoding.PEM))


@pytest.mark.parametrize("everything", [False, True])
def test_nginx_accepts_the_site(tmp_path, everything):
    nginx = tool("nginx")
    server_certificate(tmp_path)
    site = (CONF / "nginx.conf").read_text()
    if everything:
        site, count = re.subn(r"^( +)#(?=[a-z_]+ .*;$)", r"\1", site, flags=re.M)
        assert count == 3
    site = site.replace("/etc/letsencrypt/live/example.org", str(tmp_path))
    # nginx -t opens the sockets: files here, in the place of ports that others may hold.
    site = re.sub(r"listen \[::\]:(\d+)", rf"listen unix:{tmp_path}/v6-\1.sock", site)
    site = re.sub(r"listen (\d+)", rf"listen unix:{tmp_path}/v4-\1.sock", site)
    (tmp_path / "site.conf").write_text(site)
    (tmp_path / "nginx.conf").write_text(_NGINX.format(directory=tmp_path))
    done = subprocess.run(
        [nginx, "-t", "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    complaints = [line for line in done.stderr.splitlines() if "[warn]" in line or "[e" in line]
    # From 1.25 on it prefers `http2 on;`, which older ones do not know.
    assert [line for line in complaints if "http2" not in line] == []


def test_nginx_is_in_front_of_the_outer_layer_of_the_example(etc):
    outer = load(OuterConfig, {"config": [str(placed(etc, "outer.yaml", uncommented))]}, {})
    site = (CONF / "nginx.conf").read_text()
    assert [
        f"tcp:{port}:interface=127.0.0.1" for port in re.findall(r"127.0.0.1:(\d+);", site)
    ] == [
        *outer.app_port,
        *outer.socket_port,
    ]
    assert outer.trust_proxy == ("loopback",)
    assert f"server_name {outer.socket_host[0]};" in site
    # Who closes an idle connection first loses no request; who waits longer hears the reason.
    assert int(re.search(r"keepalive_timeout (\d+)s", site)[1]) < outer.keep_alive_timeout
    assert int(re.search(r"proxy_read_timeout (\d+)s", site)[1]) > outer.idle_timeout


# ------------------------------------------------------------------ docs/configuration.rst


def section(title, underline="-"):
    """Return the text of a section of the manual, with its subsections."""
    start = MANUAL.index(f"\n{title}\n{underline * len(title)}\n")
    following = re.compile(r"\n[^\n]+\n-{3,}\n").search(MANUAL, start + len(title) + 2)
    return MANUAL[start : following.start() if following else len(MANUAL)]


def documented(role):
    """Return what the manual says of each option: its first line, and the facts below it."""
    text = section(f"Options of the {role} layer")
    found = re.findall(r"^(``--([a-z0-9-]+).*)\n  (.*)\.\n\n  \S", text, re.M)
    assert len(found) == len(re.findall(r"^``--", text, re.M))
    assert len(found) == len({name for _, name, _ in found})
    return {name: (first, facts.split("; ")) for first, name, facts in found}


@pytest.mark.parametrize("role", ROLES)
def test_the_manual_has_every_option_and_no_other(role):
    assert sorted(documented(role)) == sorted(settings_of(ROLES[role]))


@pytest.mark.parametrize(
    ("role", "name"), [(role, name) for role in ROLES for name in settings_of(ROLES[role])]
)
def test_the_manual_is_right_about(role, name):
    described = settings_of(ROLES[role])[name]
    first, facts = documented(role)[name]
    value = "" if described.flag else f" {described.metavar}"
    assert first == f"``--{name}{value}``" + "".join(f", ``--{a}``" for a in described.aliases)
    expected = [f"``{variable(name)}``", f"``{name}:``"]
    if described.default is None:
        expected.append("required")
    elif described.default:
        texts = described.default
        texts = " ".join(texts) if isinstance(texts, tuple) else texts
        unit = {"MS": " ms", "BYTES": " bytes"}.get(described.metavar, "")
        expected.append(f"default ``{texts}``{unit}")
    else:
        expected.append("not set by default")
    if described.repeatable or described.pairs:
        expected.append("repeatable" + ", or separated by commas" * described.commas)
    if described.flag:
        expected.append("takes no value on the command line")
    assert facts == expected


def test_the_manual_names_every_limit_with_its_default():
    limits = section("Limits")
    rows = dict(re.findall(r"^   \* - ``--([^\n]*)\n     - ([^\n]*)$", limits, re.M))
    expected = {}
    settings = {role: settings_of(ROLES[role]) for role in ROLES}
    for role, own in settings.items():
        other = settings["inner" if role == "outer" else "outer"]
        for name, described in own.items():
            if described.metavar not in ("MS", "BYTES", "NUMBER"):
                continue
            shared = name in other and name not in ("ping-interval", "ping-timeout")
            expected[f"{name}``" + f", {role} layer" * shared] = described
    assert sorted(rows) == sorted(expected)
    for name, described in expected.items():
        number = rows[name].split()[0].rstrip(",")
        assert number == described.default, name
        if described.metavar == "MS":
            assert rows[name].split()[1].rstrip(",") == "ms", name

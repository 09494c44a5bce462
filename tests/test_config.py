"""Settings: four places and their order, errors with their place, and both roles' own rules."""

import dataclasses
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.python import usage

from sockgw import values
from sockgw.config import Config, ConfigError, Missing, load, setting, settings_of
from sockgw.inner.config import InnerConfig, InnerOptions
from sockgw.options import make_options
from sockgw.outer.config import OuterConfig, OuterOptions
from sockgw.protocol.memory import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Config):
    file_name: str = setting("A file.", values.path, metavar="FILE")
    wait: float = setting("A time.", values.milliseconds, metavar="MS", default="1500")
    number: tuple[int, ...] = setting(
        "Numbers.", values.count, default=("1", "2"), repeatable=True, aliases=("digit",)
    )
    word: tuple[str, ...] = setting("W.", values.text, default=(), repeatable=True, commas=True)
    loud: bool = setting("Louder.", values.yes_no, default="no", flag=True)
    place: dict[str, str] = setting(  # noqa: RUF009
        "P.",
        values.pair(values.url("http")),
        metavar="NAME=URL",
        default=(),
        pairs=True,
        aliases=("places",),
    )
    token: str = setting(
        "A secret.", values.one_of("sesame", "open"), default="", secret=True, metavar="TOKEN"
    )


GIVEN = {"file-name": ["f"]}


def write(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    return str(file)


def error_of(config_class, options, environ=None):
    with pytest.raises(ConfigError) as caught:
        load(config_class, options, environ or {})
    return str(caught.value)


# --- places and their order


def test_defaults_are_read_as_texts_are():
    sample = load(Sample, GIVEN, {})
    assert (sample.wait, sample.number, sample.word) == (1.5, (1, 2), ())
    assert (sample.loud, sample.place, sample.token) == (False, {}, "")
    assert sample == Sample(file_name="f")


def test_flags_win_over_environment_over_file_over_defaults(tmp_path):
    options = {**GIVEN, "config": [write(tmp_path, "wait: 3000\nnumber: [7, 8]\nloud: true\n")]}
    environ = {"SOCKGW_WAIT": "2000", "SOCKGW_NUMBER": "5 6"}
    assert load(Sample, GIVEN, {}).wait == 1.5
    assert load(Sample, options, {}).wait == 3.0
    assert load(Sample, options, environ).wait == 2.0
    assert load(Sample, {**options, "wait": ["1000"]}, environ).wait == 1.0
    # Several values replace those of the weaker place; they do not add up.
    assert load(Sample, options, {}).number == (7, 8)
    assert load(Sample, options, environ).number == (5, 6)
    assert load(Sample, {**options, "number": ["4"]}, environ).number == (4,)
    assert load(Sample, options, environ).loud is True
    assert load(Sample, options, {"SOCKGW_LOUD": "no"}).loud is False


def test_the_last_of_a_single_option_counts():
    assert load(Sample, {**GIVEN, "wait": ["1000", "2000"]}, {}).wait == 2.0


def test_an_empty_variable_and_an_empty_key_are_not_set(tmp_path):
    options = {**GIVEN, "config": [write(tmp_path, "wait:\nnumber: []\nword:\n")]}
    assert load(Sample, options, {"SOCKGW_WAIT": ""}) == Sample(file_name="f")


def test_the_environment_may_name_the_file_and_use_an_alias(tmp_path):
    environ = {"SOCKGW_CONFIG": write(tmp_path, "wait: 3000"), "SOCKGW_DIGIT": "9"}
    sample = load(Sample, GIVEN, environ)
    assert (sample.wait, sample.number) == (3.0, (9,))


def test_commas_separate_where_the_setting_says_so(tmp_path):
    words = ("a", "b", "c", "d")
    assert load(Sample, {**GIVEN, "word": ["a, b", "c,d"]}, {}).word == words
    assert load(Sample, GIVEN, {"SOCKGW_WORD": "a,b c\nd"}).word == words
    file = write(tmp_path, "word: [a, 'b,c', d]")
    assert load(Sample, {**GIVEN, "config": [file]}, {}).word == words
    assert "'1,2' is not" in error_of(Sample, {**GIVEN, "number": ["1,2"]})


@pytest.mark.parametrize(
    "text",
    ["place: {a: 'http://x', b: 'http://y'}", "places: ['a=http://x', 'b=http://y/']"],
)
def test_pairs_in_a_file(tmp_path, text):
    sample = load(Sample, {**GIVEN, "config": [write(tmp_path, text)]}, {})
    assert sample.place == {"a": "http://x", "b": "http://y"}


def test_pairs_elsewhere():
    pairs = {"a": "http://x", "b": "http://y"}
    assert load(Sample, {**GIVEN, "place": ["a=http://x", "b=http://y"]}, {}).place == pairs
    assert load(Sample, GIVEN, {"SOCKGW_PLACE": "a=http://x b=http://y"}).place == pairs
    assert "names what another one names" in error_of(
        Sample, {**GIVEN, "place": ["a=http://x", "a=http://y"]}
    )


def test_a_spelling_in_the_file_is_kept(tmp_path):
    sample = load(Sample, {"config": [write(tmp_path, "file-name: 007")]}, {})
    assert sample.file_name == "007"


# --- errors and their place


def test_errors_name_the_place():
    bad = "'x' is not a whole number of milliseconds; expected a number from 1 to 2147483647"
    assert error_of(Sample, {**GIVEN, "wait": ["x"]}) == f"--wait: {bad}"
    assert error_of(Sample, GIVEN, {"SOCKGW_WAIT": "x"}) == f"SOCKGW_WAIT: {bad}"


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("# c\nwait: x", ":2:7: wait: 'x' is not a whole number of milliseconds"),
        ("number:\n- 1\n- y", ":3:3: number: 'y' is not a whole number"),
        ("number:\n- 1\n- [2]", ":3:3: number[1]: not a single value"),
        ("wait: [1]", ":1:7: wait: not a single value; expected MS"),
        ("loud: 1\nwiat: 3", ":2:1: wiat: there is no such setting; did you mean 'wait'?"),
        ("file_name: x", ":1:1: file_name: there is no such setting; did you mean 'file-name'?"),
        ("zzzzz: x", ":1:1: zzzzz: there is no such setting; see --help"),
        ("number: 1\ndigit: 2", ":2:1: digit: stands twice, also as 'number'"),
        ("place:\n  a: ftp://x", ":2:6: place: 'a=ftp://x' is not a URL"),
        ("place:\n  a/b: http://x", ":2:8: place: 'a/b=http://x' does not start with NAME="),
        ("- wait", ":1:1: not a configuration"),
        ("wait: [", ":1:8: no valid YAML"),
    ],
)
def test_errors_in_a_file(tmp_path, text, rest):
    file = write(tmp_path, text)
    assert error_of(Sample, {**GIVEN, "config": [file]}).startswith(file + rest)


def test_an_unreadable_file(tmp_path):
    missing = str(tmp_path / "none.yaml")
    assert error_of(Sample, {**GIVEN, "config": [missing]}) == (
        f"--config: {missing!r} cannot be read: No such file or directory"
    )
    assert error_of(Sample, GIVEN, {"SOCKGW_CONFIG": "\0"}).startswith("SOCKGW_CONFIG: ")
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x80")
    assert "is not UTF-8 text" in error_of(Sample, {**GIVEN, "config": [str(binary)]})


def test_a_required_setting_is_missed_only_when_all_else_is_right():
    with pytest.raises(Missing) as caught:
        load(Sample, {}, {})
    assert caught.value.names == ("file-name",)
    assert str(caught.value).startswith("--file-name: is missing, also as SOCKGW_FILE_NAME")
    assert error_of(Sample, {"wait": ["x"]}).startswith("--wait")


def test_a_secret_is_never_shown(tmp_path):
    for options, environ in (
        ({**GIVEN, "token": ["hunter2"]}, {}),
        (GIVEN, {"SOCKGW_TOKEN": "hunter2"}),
        ({**GIVEN, "config": [write(tmp_path, "token: hunter2")]}, {}),
    ):
        message = error_of(Sample, options, environ)
        assert "the value is not known" in message
        assert "hunter2" not in message
    assert "sesame" not in repr(Sample(file_name="f", token="sesame"))


@settings(max_examples=20, deadline=None)
@given(st.text())
def test_whatever_the_text_only_config_errors_come(text):
    for config_class in (Sample, InnerConfig, OuterConfig):
        for name in settings_of(config_class):
            try:
                value = load(config_class, {**_required(config_class), name: [text]}, {})
            except ConfigError:
                continue
            assert isinstance(value, config_class)


def _required(config_class):
    return {
        name: ["ws://localhost" if name == "outer-layer" else "x"]
        for name, item in settings_of(config_class).items()
        if item.default is None
    }


# --- readers


@pytest.mark.parametrize("text", ["0", "-1", "+1", "1.0", "1e3", "", " 1", "²", "٣", "2147483648"])
def test_not_a_count(text):
    with pytest.raises(ConfigError):
        values.count(text)


def test_numbers():
    assert values.count("2147483647") == 2147483647
    assert values.count_or_zero("0") == 0
    assert values.milliseconds("1") == 0.001
    assert values.milliseconds_or_zero("0") == 0
    assert values.milliseconds_or_zero("1500") == 1.5


@pytest.mark.parametrize("text", ["yes", "True", "ON", "1"])
def test_yes(text):
    assert values.yes_no(text) is True


@pytest.mark.parametrize("text", ["no", "FALSE", "off", "0"])
def test_no(text):
    assert values.yes_no(text) is False


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "http://",
        "http://a:0",
        "http://a:65536",
        "http://a:b",
        "http://[::1",
        "http://a b",
        "http://a\n",
        "http://u:p@a",
        "http://a/path",
        "http://a?q",
        "http://a#f",
        "http://é",
        "http://a%00",
        "HTTPS://a",
    ],
)
def test_not_an_origin(text):
    with pytest.raises(ConfigError):
        values.url("http")(text)


def test_urls():
    assert values.url("http")("http://a:80/") == "http://a:80"
    assert values.url("http")("http://[::1]:80") == "http://[::1]:80"
    assert values.url("ws", with_path=True)("ws://a/b/") == "ws://a/b/"
    assert values.url("http", with_password=True)("http://u:p@a:1") == "http://u:p@a:1"


# --- the command line


def parse(options_class, *arguments):
    options = options_class()
    options.parseOptions(arguments)
    return options.config


SampleOptions = make_options(Sample, "A sample.")


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch):
    for name in ("CONFIG", "WAIT", "FILE_NAME", "TARGETS", "PUBLIC_KEY"):
        monkeypatch.delenv(f"SOCKGW_{name}", raising=False)


def test_options_of_every_kind(monkeypatch):
    monkeypatch.setenv("SOCKGW_WAIT", "7000")
    sample = parse(
        SampleOptions,
        *("--file-name", "f", "--number", "3", "--digit=4", "--loud", "--place", "a=http://x"),
    )
    assert sample == Sample(
        file_name="f", number=(3, 4), loud=True, place={"a": "http://x"}, wait=7.0
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--wait", "x"], "--wait: 'x' is not a whole number"),
        (["--wiat", "3"], "did you mean --wait?"),
        (["--wait"], "--wait requires argument"),
        (["--loud=yes"], "--loud must not have an argument"),
        (["--file-name", "f", "rest"], "unexpected argument 'rest'"),
        ([], "--file-name: is missing"),
        (["--config", "/nonexistent/c.yaml"], "--config: '/nonexistent/c.yaml' cannot be read"),
    ],
)
def test_wrong_usage_is_one_line(arguments, words):
    options = SampleOptions()
    with pytest.raises(usage.UsageError) as caught:
        options.parseOptions(arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    # twistd prints the options before the error.
    assert len(str(options).splitlines()) <= 2


@pytest.mark.parametrize("options_class", [OuterOptions, InnerOptions, SampleOptions])
def test_help_tells_every_option_with_variable_and_default(options_class, capsys):
    with pytest.raises(SystemExit) as caught:
        options_class().parseOptions(["--help"])
    assert not caught.value.code
    text = capsys.readouterr().out
    words = text.split()
    for name, item in settings_of(options_class.config_class).items():
        assert f"--{name}" in words
        assert all(f"--{alias}" in words for alias in item.aliases)
        assert "SOCKGW_" + name.upper().replace("-", "_") in text
        if item.default and not item.flag:
            first = item.default if isinstance(item.default, str) else item.default[0]
            assert first in text
    assert "--config FILE" in text
    assert max(map(len, text.splitlines())) <= 80


def test_version(capsys):
    with pytest.raises(SystemExit):
        OuterOptions().parseOptions(["--version"])
    assert capsys.readouterr().out.startswith("sockgw ")


# --- the outer layer's own


OUTER = {"targets": ["t.yaml"], "public-key": ["office=office.crt"]}


def test_outer_defaults_are_the_documented_ones():
    outer = load(OuterConfig, OUTER, {})
    assert (outer.app_port, outer.socket_port, outer.admin_port) == (("3000",), ("3001",), ())
    assert (outer.timeout, outer.idle_timeout, outer.head_timeout) == (60, 300, 10)
    assert (outer.keep_alive_timeout, outer.half_close_timeout) == (75, 0.75)
    assert (outer.handshake_timeout, outer.validity) == (10, 10)
    assert (outer.ping_interval, outer.ping_timeout, outer.resume_window) == (15, 10, 30)
    assert outer.limits() == Limits()
    memory = outer.memory()
    assert (memory.resend.limit, memory.buffered.limit) == (256 << 20, 512 << 20)
    assert memory.promised.limit == 256 << 20
    assert (outer.max_header_size, outer.max_header_count, outer.max_body_size) == (32768, 100, 0)
    assert (outer.max_streams, outer.max_tunnels, outer.max_connections) == (1000, 1000, 10000)
    assert (outer.access_log, outer.log_format, outer.channel_binding) == ("-", "text", True)
    assert outer.admin_password == ""
    with pytest.raises(dataclasses.FrozenInstanceError):
        outer.timeout = 1.0


def test_outer_takes_the_alias_of_the_first_seed():
    outer = parse(OuterOptions, "--targets", "t", "--inner-layer-certificate", "a.crt")
    assert outer.public_key == ("a.crt",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("app-port", "65536"),
        ("app-port", "127.0.0.1:3000"),
        ("admin-port", "tls:443"),
        ("trust-proxy", "loopbach"),
        ("trust-proxy", "10.0.0.0/33"),
        ("public-key", "office="),
        ("public-key", ",=file"),
        ("log-format", "xml"),
        ("channel-binding", "maybe"),
        ("max-body-size", "-1"),
    ],
)
def test_outer_refuses(name, value):
    message = error_of(OuterConfig, {**OUTER, name: [value]})
    assert message.startswith(f"--{name}: {value!r} ")
    assert "; expected " in message


def test_outer_admin_password_from_a_file(tmp_path):
    file = tmp_path / "password"
    for content in ("sesame", "sesame\n", "sesame\r\n"):
        file.write_bytes(content.encode())
        outer = load(OuterConfig, {**OUTER, "admin-password-file": [str(file)]}, {})
        assert outer.admin_password == "sesame"
        assert "sesame" not in repr(outer)


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines\n", b"\xff", b"x" * 1025])
def test_outer_admin_password_file_without_a_password(tmp_path, content):
    file = tmp_path / "password"
    file.write_bytes(content)
    config = write(tmp_path, f"log-format: text\nadmin-password-file: {file}")
    message = error_of(OuterConfig, {**OUTER, "config": [config]})
    assert message.startswith(f"{config}:2:22: admin-password-file: ")


def test_outer_has_one_password_only():
    message = error_of(
        OuterConfig, {**OUTER, "admin-password": ["sesame"], "admin-password-file": ["f"]}
    )
    assert message.startswith("--admin-password-file: 'f' stands beside --admin-password")
    assert "sesame" not in message


# --- the inner layer's own


INNER = {"private-key": ["k"], "outer-layer": ["wss://gateway.example.org"]}


def test_inner_defaults_are_the_documented_ones():
    inner = load(InnerConfig, INNER, {})
    assert (inner.connect_timeout, inner.idle_timeout, inner.origin_keep_alive) == (10, 300, 15)
    assert (inner.max_idle_connections, inner.max_streams) == (64, 1000)
    assert (inner.max_header_size, inner.max_header_count) == (65536, 200)
    assert (inner.reconnect_delay, inner.max_reconnect_delay, inner.refused_delay) == (
        1.25,
        1.75,
        120,
    )
    assert (inner.handshake_timeout, inner.ping_interval, inner.ping_timeout) == (10, 15, 10)
    assert inner.drain_timeout == 60
    assert inner.limits() == Limits()
    assert (inner.allow, inner.service, inner.proxy, inner.insecure) == ((), {}, "", False)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "[::1]"])
def test_clear_text_to_this_machine(host):
    load(InnerConfig, {**INNER, "outer-layer": [f"ws://{host}:3001"]}, {})


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1.example", "10.0.0.1", "localhost.x"])
def test_clear_text_to_another_machine_needs_insecure(host, tmp_path):
    url = f"ws://{host}:3001"
    assert error_of(InnerConfig, {**INNER, "outer-layer": [url]}).startswith(
        f"--outer-layer: {url!r} would send everything in clear text"
    )
    file = write(tmp_path, f"private-key: k\nouter-layer: {url}")
    assert error_of(InnerConfig, {"config": [file]}).startswith(f"{file}:2:14: outer-layer: ")
    load(InnerConfig, {**INNER, "outer-layer": [url], "insecure": ["yes"]}, {})


@pytest.mark.parametrize(
    ("outer_layer", "environ", "proxy"),
    [
        ("wss://a.example", {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ("wss://a.example", {"https_proxy": "p:1"}, "http://p:1"),
        ("wss://a.example", {"HTTP_PROXY": "http://p:1"}, ""),
        ("ws://a.example", {"HTTP_PROXY": "http://p:1"}, "http://p:1"),
        ("wss://a.example", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a.example"}, ""),
        ("wss://a.example", {"HTTPS_PROXY": "http://p:1", "no_proxy": ".example"}, ""),
        ("wss://a.example:8", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "b, *"}, ""),
        ("wss://a.example", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, ""),
        ("wss://a.example", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "b.example"}, "http://p:1"),
        ("ws://127.0.0.1:3001", {"HTTP_PROXY": "http://p:1"}, ""),
    ],
)
def test_proxy_of_the_environment(outer_layer, environ, proxy):
    options = {**INNER, "outer-layer": [outer_layer], "insecure": ["yes"]}
    assert load(InnerConfig, options, environ).proxy == proxy


def test_proxy_of_ones_own():
    environ = {"HTTPS_PROXY": "http://p:1"}
    assert load(InnerConfig, {**INNER, "proxy": ["http://q:2"]}, environ).proxy == "http://q:2"
    assert load(InnerConfig, {**INNER, "proxy": ["off"]}, environ).proxy == ""


def test_a_proxys_password_is_not_shown():
    secret = "http://user:sesame@p:1"
    assert "sesame" not in repr(load(InnerConfig, {**INNER, "proxy": [secret]}, {}))
    message = error_of(InnerConfig, INNER, {"HTTPS_PROXY": "socks5://user:sesame@p:1"})
    assert message.startswith("HTTPS_PROXY: ")
    assert "sesame" not in message
    # Through a proxy not even loopback is this machine.
    clear = {**INNER, "outer-layer": ["ws://localhost"], "proxy": [secret]}
    assert error_of(InnerConfig, clear).startswith("--proxy: the value would see everything")
    assert "sesame" not in error_of(InnerConfig, clear)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allow", "a..b"),
        ("allow", "10.0.0.0/33"),
        ("identifier", "a b"),
        ("service", "http://x"),
        ("service", "a=http://x/path"),
        ("service", "a=ftp://x"),
        ("service", "a=tcp://x"),
        ("service", "a=udp://x"),
        ("service", "a=tcp://x:0"),
        ("service", "a=tcp://x:1/path"),
        ("service", "a=unix:"),
        ("service", "a=unix:run/app.sock"),
        ("service", "a=unix:/" + "x" * 107),
        ("service", "a=unix:/run/\n"),
        ("service", "a=unix+udp:/run/app.sock"),
        ("allow", "unix:app.sock"),
        ("allow", "unix:/run/a*"),
        ("outer-layer", "https://x"),
        ("outer-layer", "wss://u:p@x"),
        ("reconnect-delay", "60000"),
    ],
)
def test_inner_refuses(name, value):
    assert error_of(InnerConfig, {**INNER, name: [value]}).startswith(f"--{name}: ")


@pytest.mark.parametrize(
    "value",
    [
        "http://x",
        "https://x:8443",
        "tcp://x:22",
        "tcp://[::1]:22",
        "udp://10.0.0.1:53",
        "unix:/run/app.sock",
        "unix+tcp:/run/postgresql/.s.PGSQL.5432",
    ],
)
def test_services(value):
    config = load(InnerConfig, {**INNER, "service": [f"a={value}"]}, {})
    assert config.service == {"a": value}


@pytest.mark.parametrize("option", ["outer-layer", "service"])
def test_a_password_in_any_url_is_not_shown(option):
    value = "wss://user:sesame@host" if option == "outer-layer" else "crm=http://user:sesame@host"
    assert "sesame" not in error_of(InnerConfig, {**INNER, option: [value]})

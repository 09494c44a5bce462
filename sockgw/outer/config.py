"""Every setting of the outer layer."""

import re
from dataclasses import dataclass

from sockgw.config import ConfigError, setting
from sockgw.http.networks import Networks
from sockgw.options import make_options
from sockgw.tunnelconfig import TunnelConfig
from sockgw.values import (
    count,
    count_or_zero,
    listening,
    milliseconds,
    milliseconds_or_zero,
    one_of,
    path,
    text,
    yes_no,
)

__all__ = ["OuterConfig", "OuterOptions"]

# RFC 6797, section 6.1, as far as anybody writes it.
_HSTS = re.compile(r"max-age=[0-9]{1,10}(; ?includeSubDomains)?(; ?preload)?", re.ASCII)

_MAX_PASSWORD = 1024  # characters in a password file


def _trusted(value: str) -> str:
    try:
        Networks.parse([value])
    except ValueError:
        raise ConfigError(
            "is not known",
            expected="loopback, linklocal, uniquelocal, an address or a network such as 10.0.0.0/8",
        ) from None
    return value


def _redirect(value: str) -> int:
    if value.isascii() and value.isdecimal() and len(value) <= 5 and 0 < int(value) <= 65535:
        return int(value)
    try:
        return 443 if yes_no(value) else 0
    except ConfigError:
        raise ConfigError("is no port", expected="no, yes or a port number") from None


def _hsts(value: str) -> str:
    if not _HSTS.fullmatch(value):
        raise ConfigError(
            "is no Strict-Transport-Security",
            expected="max-age=SECONDS, then perhaps '; includeSubDomains' and '; preload'",
        )
    return value


def _public_key(value: str) -> str:
    names, equals, file = value.rpartition("=")
    if not file or (equals and not all(name.strip() for name in names.split(","))):
        raise ConfigError("names no file", expected="FILE, DIRECTORY, NAME=FILE or NAME,NAME=FILE")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterConfig(TunnelConfig):
    """The outer layer's configuration. Durations are in seconds, sizes in bytes."""

    app_port: tuple[str, ...] = setting(
        "Where clients connect: a port number, or a Twisted endpoint such as "
        "tcp:3000:interface=127.0.0.1, tls:443:privateKey=FILE:certKey=FILE, unix:FILE, "
        "systemd:domain=INET6:name=NAME or haproxy:tcp:3000.",
        listening,
        metavar="PORT|ENDPOINT",
        default=("3000",),
        repeatable=True,
    )
    socket_port: tuple[str, ...] = setting(
        "Where inner layers connect; as --app-port. clientCA=FILE in a tls: endpoint asks them for "
        "a certificate.",
        listening,
        metavar="PORT|ENDPOINT",
        default=("3001",),
        repeatable=True,
    )
    admin_port: tuple[str, ...] = setting(
        "Where /metrics and /admin are; as --app-port. Without it they are on the socket port.",
        listening,
        metavar="PORT|ENDPOINT",
        default=(),
        repeatable=True,
    )
    reuse_port: bool = setting(
        "Let another process of the same user listen on the same ports (SO_REUSEPORT), so that a "
        "successor can start before this one ends.",
        yes_no,
        default="no",
        flag=True,
    )
    public_key: tuple[str, ...] = setting(
        "The public key or certificate of an inner layer, or a directory of them. Its identifier "
        "is NAME (or several), else the certificate's common name, else the file's stem. Changes "
        "take effect at once.",
        _public_key,
        metavar="FILE|DIRECTORY|NAME[,NAME]=FILE",
        repeatable=True,
        aliases=("inner-layer-certificate",),
    )
    targets: str = setting(
        "The targets file (YAML): which public host names lead where. Re-read when it changes.",
        path,
        metavar="FILE",
    )

    timeout: float = setting(
        "Longest time to the first byte of an origin's answer.",
        milliseconds,
        metavar="MS",
        default="60000",
    )
    idle_timeout: float = setting(
        "Longest time without a byte either way within an exchange.",
        milliseconds,
        metavar="MS",
        default="300000",
    )
    tcp_idle_timeout: float = setting(
        "Longest time without a byte either way on connections of TCP and on upgraded ones; 0 for "
        "no limit.",
        milliseconds_or_zero,
        metavar="MS",
        default="0",
    )
    udp_idle_timeout: float = setting(
        "How long a UDP client and its target may both be silent before they are forgotten.",
        milliseconds,
        metavar="MS",
        default="60000",
    )
    head_timeout: float = setting(
        "Longest time in which a client may send the head of a request.",
        milliseconds,
        metavar="MS",
        default="10000",
    )
    keep_alive_timeout: float = setting(
        "Longest time that a client's connection stays open between requests.",
        milliseconds,
        metavar="MS",
        default="75000",
    )
    half_close_timeout: float = setting(
        "How long a client that has closed its sending half may be silent and unwritable before "
        "it counts as gone.",
        milliseconds,
        metavar="MS",
        default="750",
    )
    handshake_timeout: float = setting(
        "Longest time in which an inner layer must have authenticated.",
        milliseconds,
        metavar="MS",
        default="10000",
    )
    validity: float = setting(
        "Longest time in which an inner layer may answer a challenge.",
        milliseconds,
        metavar="MS",
        default="10000",
    )
    drain_timeout: float = setting(
        "Longest time that requests under way have to finish, once SIGTERM has come.",
        milliseconds,
        metavar="MS",
        default="60000",
    )
    resume_window: float = setting(
        "How long a tunnel whose connection broke is kept for the inner layer to come back, while "
        "its exchanges pause; 0: not at all.",
        milliseconds_or_zero,
        metavar="MS",
        default="30000",
    )
    hold: float = setting(
        "How long a request waits for an inner layer that was connected within the same time before"
        " it; 0 for not at all. A target may have its own.",
        milliseconds_or_zero,
        metavar="MS",
        default="5000",
    )
    eject_time: float = setting(
        "How long an inner layer is passed over at first that cannot reach a target.",
        milliseconds,
        metavar="MS",
        default="10000",
    )
    max_eject_time: float = setting(
        "Longest time that it is passed over, after doubling at each new failure.",
        milliseconds,
        metavar="MS",
        default="300000",
    )

    trust_proxy: tuple[str, ...] = setting(
        "Proxies whose X-Forwarded-* and X-Request-ID are believed: loopback, linklocal, "
        "uniquelocal, addresses, networks.",
        _trusted,
        metavar="NAME|ADDRESS|CIDR",
        default=(),
        repeatable=True,
        commas=True,
    )
    trust_proxy_protocol: tuple[str, ...] = setting(
        "Load balancers whose PROXY headers are believed, on haproxy: endpoints: as --trust-proxy. "
        "Connections from elsewhere are closed. Unix sockets are trusted.",
        _trusted,
        metavar="NAME|ADDRESS|CIDR",
        default=("loopback",),
        repeatable=True,
        commas=True,
    )
    redirect_https: int = setting(
        "Answer plain http requests for hosts of targets by sending the client to https, on port "
        "443 or another one.",
        _redirect,
        metavar="no|yes|PORT",
        default="no",
    )
    hsts: str = setting(
        "The Strict-Transport-Security of answers over https, unless the origin sends one.",
        _hsts,
        metavar="TEXT",
        default="",
    )
    acme_challenges: str = setting(
        "The webroot of an ACME client: requests for /.well-known/acme-challenge/ are answered "
        "from there, for every host.",
        path,
        metavar="DIRECTORY",
        default="",
    )
    remove_csps: bool = setting(
        "Remove Content-Security-Policy headers from answers.", yes_no, default="no", flag=True
    )
    admin_password: str = setting(
        "The password of /admin, which is not there without one. Others on the machine can see "
        "what stands on a command line: prefer --admin-password-file.",
        text,
        metavar="PASSWORD",
        default="",
        secret=True,
    )
    admin_password_file: str = setting(
        "A file with the password of /admin.", path, metavar="FILE", default=""
    )
    socket_host: tuple[str, ...] = setting(
        "A host name under which inner layers reach the socket port; they sign it. Without it the "
        "Host header of their connection is taken.",
        text,
        metavar="HOST",
        default=(),
        repeatable=True,
        commas=True,
    )
    channel_binding: bool = setting(
        "Whether inner layers bind their signature to the TLS connection, where the socket port "
        "is TLS itself. Say no where something between decrypts and encrypts again.",
        yes_no,
        metavar="yes|no",
        default="yes",
    )

    max_header_size: int = setting(
        "Largest head of a request.", count, metavar="BYTES", default="32768"
    )
    max_header_count: int = setting(
        "Most header fields in a request.", count, metavar="NUMBER", default="100"
    )
    max_body_size: int = setting(
        "Largest body of a request; 0 for any size.", count_or_zero, metavar="BYTES", default="0"
    )
    max_client_hello: int = setting(
        "Largest ClientHello, where some target has its TLS passed through.",
        count,
        metavar="BYTES",
        default="65536",
    )
    max_tunnels: int = setting("Most tunnels.", count, metavar="NUMBER", default="1000")
    max_tunnels_per_key: int = setting(
        "Most tunnels of one key, so that none takes the places of all others.",
        count,
        metavar="NUMBER",
        default="100",
    )
    max_connections: int = setting(
        "Most connections of clients.", count, metavar="NUMBER", default="10000"
    )
    max_udp_clients: int = setting(
        "Most clients of one UDP target at a time.", count, metavar="NUMBER", default="256"
    )
    udp_queue: int = setting(
        "Most datagrams that wait in one direction of a UDP stream; then the oldest is dropped.",
        count,
        metavar="NUMBER",
        default="64",
    )
    max_h2_streams: int = setting(
        "Most requests at a time on one HTTP/2 connection.", count, metavar="NUMBER", default="100"
    )
    max_h2_resets: int = setting(
        "How often an HTTP/2 connection may break requests off at once; a thirtieth of it comes "
        "back each second.",
        count,
        metavar="NUMBER",
        default="1000",
    )
    max_held: int = setting(
        "Most requests that wait for an inner layer.", count, metavar="NUMBER", default="1000"
    )
    max_tries: int = setting(
        "Most inner layers that are asked for one request.", count, metavar="NUMBER", default="3"
    )
    kept_body: int = setting(
        "Most bytes of a request's body that are kept to ask another inner layer.",
        count_or_zero,
        metavar="BYTES",
        default="65536",
    )
    max_kept_bodies: int = setting(
        "Most bytes that are kept so of all requests together.",
        count_or_zero,
        metavar="BYTES",
        default="67108864",
    )
    eject_after: int = setting(
        "How often in a row an inner layer must fail to reach a target that others reach to be "
        "passed over; 0 for never.",
        count_or_zero,
        metavar="NUMBER",
        default="3",
    )

    access_log: str = setting(
        "Where each request is logged: a file, - for standard output, or off.",
        path,
        metavar="FILE|-|off",
        default="-",
    )
    log_format: str = setting(
        "How events and requests are logged.",
        one_of("text", "json"),
        metavar="text|json",
        default="text",
    )

    def __post_init__(self) -> None:
        if not self.admin_password_file:
            return
        if self.admin_password:
            raise ConfigError(
                "stands beside --admin-password",
                option="admin-password-file",
                value=self.admin_password_file,
                expected="one of the two",
            )
        object.__setattr__(self, "admin_password", _password(self.admin_password_file))


def _password(file_path: str) -> str:
    """Return the first line of the file, which must be the only one."""
    try:
        with open(file_path, encoding="utf-8", newline="") as file:
            password = file.read(_MAX_PASSWORD + 1)
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}"
    else:
        password = password.removesuffix("\n").removesuffix("\r")
        if password and password.isprintable() and len(password) <= _MAX_PASSWORD:
            return password
        problem = "does not hold a password"
    raise ConfigError(
        problem,
        option="admin-password-file",
        value=file_path,
        expected=f"a file of one line, of 1 to {_MAX_PASSWORD} characters",
    )


OuterOptions = make_options(
    OuterConfig,
    "The outer layer of sockgw: takes clients' requests on the app port, and has an inner layer "
    "that dialled in on the socket port perform them in its own network.",
)

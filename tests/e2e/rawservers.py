"""Servers that do not speak HTTP, as others run them: OpenSSH, rsync, Redis, a DNS server."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
from pathlib import Path

from harness import PATIENCE, Endpoint, Process, own_address, require, run, wait_until

__all__ = ["Dnsmasq", "ProxiedNginx", "Redis", "RsyncDaemon", "Sshd"]


class _Server(Process):
    """A process that listens on an address of its own."""

    host: str
    port: int

    def wait_for(self, greeting: bytes = b"") -> None:
        """Wait until it lets somebody connect."""

        def there() -> bool:
            assert self.status is None, self.log.lines()
            try:
                with socket.create_connection((self.host, self.port), PATIENCE) as wire:
                    return wire.recv(len(greeting)) == greeting if greeting else True
            except ConnectionRefusedError:
                return False

        wait_until(there, f"{self.name} listens")


_SSHD = """
ListenAddress {host}:{port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/client_key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
Subsystem sftp internal-sftp
LogLevel ERROR
"""


class Sshd(_Server):
    """OpenSSH's server for whoever runs the tests, with keys of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.host, self.port = own_address()
        for name in ("host_key", "client_key"):
            made = run(
                *(require("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", name),
                *("-f", directory / name),
            )
            assert made.returncode == 0, made.stderr
        configuration = directory / "sshd_config"
        configuration.write_text(_SSHD.format(host=self.host, port=self.port, directory=directory))
        kind, key, _ = (directory / "host_key.pub").read_text().split()
        (directory / "known_hosts").write_text(f"the-server {kind} {key}\n")
        if os.geteuid() == 0:
            # Where it separates privileges; the system's own service would have made it.
            with contextlib.suppress(FileExistsError):
                os.mkdir("/run/sshd", 0o755)
        super().__init__(
            "sshd",
            [_sbin("sshd"), "-D", "-e", "-f", configuration],  # by its whole path: it runs itself
            directory,
        )
        self.wait_for(b"SSH-2.0-")

    def client(self, where: Endpoint, *, port: str = "-p") -> list[str]:
        """Return the options by which ssh, or scp with ``port`` ``-P``, connects there."""
        return [
            *("-F", "none", "-i", str(self._directory / "client_key")),
            *("-o", f"UserKnownHostsFile={self._directory / 'known_hosts'}"),
            *("-o", "HostKeyAlias=the-server", "-o", "StrictHostKeyChecking=yes"),
            *("-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR"),
            *(port, str(where.port)),
        ]

    @staticmethod
    def login(where: Endpoint) -> str:
        """Return who logs in, and where."""
        return f"{pwd.getpwuid(os.getuid()).pw_name}@{where.host}"


class RsyncDaemon(_Server):
    """rsync as a daemon, with one module "files" that may be written to."""

    def __init__(self, directory: Path, root: Path) -> None:
        self.host, self.port = own_address()
        configuration = directory / "rsyncd.conf"
        whom = "uid = root\ngid = root\n" if os.geteuid() == 0 else ""
        configuration.write_text(
            f"use chroot = no\n{whom}[files]\npath = {root}\nread only = no\n"
            f"log file = {directory / 'rsyncd.log'}\n"
        )
        super().__init__(
            "rsyncd",
            [
                *(require("rsync"), "--daemon", "--no-detach", f"--config={configuration}"),
                *(f"--address={self.host}", f"--port={self.port}"),
            ],
            directory,
        )
        self.wait_for(b"@RSYNCD: ")


class Redis(_Server):
    """Redis without a disk."""

    def __init__(self, directory: Path) -> None:
        self.host, self.port = own_address()
        super().__init__(
            "redis",
            [
                *(require("redis-server"), "--bind", self.host, "--port", str(self.port)),
                *("--save", "", "--appendonly", "no", "--dir", directory),
            ],
            directory,
        )
        self.wait_for()


_DNSMASQ = """
keep-in-foreground
log-facility=-
pid-file=
no-resolv
no-hosts
bind-interfaces
listen-address={host}
port={port}
edns-packet-max=4096
host-record=www.example.test,192.0.2.80,2001:db8::80
cname=alias.example.test,www.example.test
{large}
{more}
"""


class Dnsmasq(_Server):
    """A DNS server by UDP and TCP, for ``example.test``.

    ``large`` has eight times 250 bytes of text; ``host0`` to ``host255`` have the addresses from
    192.0.2.0 to 192.0.2.255.
    """

    def __init__(self, directory: Path) -> None:
        self.host, self.port = own_address()
        configuration = directory / "dnsmasq.conf"
        configuration.write_text(
            _DNSMASQ.format(
                host=self.host,
                port=self.port,
                large="\n".join(
                    f"txt-record=large.example.test,{str(number) * 250}" for number in range(8)
                ),
                more="\n".join(
                    f"host-record=host{number}.example.test,192.0.2.{number}"
                    for number in range(256)
                ),
            )
        )
        user = ["--user=root"] if os.geteuid() == 0 else []
        super().__init__("dnsmasq", [_sbin("dnsmasq"), "-C", configuration, *user], directory)
        self.wait_for()


_NGINX = """
%s
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr crit;
events { worker_connections 64; }
http {
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {
        listen %s:%d proxy_protocol;
        default_type text/plain;
        location / {
            return 200 "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr \
$proxy_protocol_server_port";
        }
    }
}
"""


class ProxiedNginx(_Server):
    """nginx that demands a PROXY header, and answers each request with what that said."""

    def __init__(self, directory: Path) -> None:
        self.host, self.port = own_address()
        user = "user root;" if os.geteuid() == 0 else ""
        configuration = directory / "nginx.conf"
        configuration.write_text(_NGINX % (user, self.host, self.port))
        super().__init__(
            "nginx",
            [require("nginx"), "-e", "stderr", "-p", directory, "-c", configuration],
            directory,
        )
        self.wait_for()


def _sbin(tool: str) -> str:
    """Return the path of a program that may not be in everybody's PATH."""
    for directory in ("/usr/sbin", "/usr/local/sbin"):
        path = Path(directory, tool)
        if path.exists():
            return str(path)
    return require(tool)

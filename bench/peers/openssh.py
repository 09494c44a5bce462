"""``ssh -R``: OpenSSH's client dials a server of our own, which listens for the clients."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Mapping

from bench.contestants import Address, Contestant, Room, Route, version_of

__all__ = ["OpenSsh"]

_SSHD = """
ListenAddress 127.0.0.1:{port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/client_key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
LogLevel ERROR
"""


class OpenSsh(Contestant):
    """Ciphers and all else as OpenSSH chooses them; no compression, which is its default."""

    name = "ssh -R"
    encrypts = True
    carries = "SSH"
    needs = ("ssh", "sshd", "ssh-keygen")

    def versions(self) -> dict[str, str]:
        return {"ssh": version_of(self.program("ssh"), "-V")}

    def launch(self, room: Room, origins: Mapping[str, Address]) -> Mapping[str, Route]:
        for name in ("host_key", "client_key"):
            room.call(
                *(self.program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", name),
                *("-f", room.directory / name),
            )
        kind, key, _ = (room.directory / "host_key.pub").read_text().split()
        known_hosts = room.write("known_hosts", f"the-server {kind} {key}\n")
        port = room.port()
        configuration = room.write("sshd_config", _SSHD.format(port=port, directory=room.directory))
        if os.geteuid() == 0:
            # Where it separates privileges; the system's own service would have made it.
            with contextlib.suppress(FileExistsError):
                os.mkdir("/run/sshd", 0o755)
        # By its whole path: it runs itself.
        room.start("server", [self.program("sshd"), "-D", "-e", "-f", configuration])
        room.wait_listening(port)
        routes = {name: Route(Address(room.port())) for name in origins}
        forwards = [
            word
            for name, origin in origins.items()
            for word in ("-R", f"{routes[name].address}:{origin}")
        ]
        room.start(
            "client",
            [
                *(self.program("ssh"), "-N", "-F", "none", "-i", room.directory / "client_key"),
                *("-o", f"UserKnownHostsFile={known_hosts}", "-o", "HostKeyAlias=the-server"),
                *("-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes"),
                *("-o", "IdentitiesOnly=yes", "-o", "ExitOnForwardFailure=yes"),
                *("-o", "LogLevel=ERROR", "-p", str(port), *forwards),
                f"{pwd.getpwuid(os.getuid()).pw_name}@127.0.0.1",
            ],
        )
        return routes

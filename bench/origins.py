"""The origins, which all contestants share: nginx, a sink for uploads, an echo for WebSockets."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from bench.contestants import Programs
from bench.processes import Failed
from bench.room import Address, Room

__all__ = ["LARGE", "POST", "SMALL", "SMALL_BODY", "nginx_settings", "start_origins"]

SMALL = "/small"
SMALL_BODY = b"hello world\n"
LARGE = "/large"
POST = "/post"
"""Takes a body of up to 64 KiB in memory, and answers once it is there."""

PROGRAMS = Path(__file__).parent / "programs"

_NGINX = """\
{settings}
    sendfile on;
    tcp_nopush on;
    open_file_cache max=16;
    upstream taken {{ server unix:taken.sock; keepalive 64; }}
    server {{ listen unix:taken.sock; location / {{ return 200 "taken\\n"; }} }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root files;
        # Bodies are read to their end, and thrown away: what goes upstream is the head alone.
        location = /post {{
            client_body_buffer_size 64k;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_set_header Connection "";
            proxy_http_version 1.1;
            proxy_pass http://taken;
        }}
    }}
}}
"""


def nginx_settings() -> str:
    """Return the head of a configuration of nginx, up to within ``http {``.

    One worker, as each layer is one process. No access log; connections are kept for any number of
    requests.
    """
    # As root it would give its worker to somebody who cannot read our files.
    user = "user root;\n" if os.geteuid() == 0 else ""
    temporary = " ".join(
        f"{name}_temp_path {name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"{user}daemon off;\nworker_processes 1;\nworker_rlimit_nofile 16384;\npid nginx.pid;\n"
        "error_log stderr crit;\nevents { worker_connections 8192; }\nhttp {\n"
        f"    access_log off;\n    {temporary}\n    client_max_body_size 0;\n"
        "    keepalive_requests 1000000000;\n    keepalive_timeout 1h;"
    )


def start_origins(room: Room, programs: Programs, size: int) -> Mapping[str, Address]:
    """Start all in a room; ``size`` is that of the large file, in bytes. Return their addresses."""
    addresses = {name: Address(room.port()) for name in ("web", "sink", "echo")}
    files = room.directory / "files"
    files.mkdir()
    (files / SMALL[1:]).write_bytes(SMALL_BODY)
    write_large(files / LARGE[1:], size)
    nginx = programs.find("nginx")
    if nginx is None:
        raise Failed(f"no origin: {programs.why_missing('nginx')}")
    text = _NGINX.format(settings=nginx_settings(), port=addresses["web"].port)
    configuration = room.write("nginx.conf", text)
    room.start("web", [nginx, "-e", "stderr", "-p", room.directory, "-c", configuration])
    for name in ("sink", "echo"):
        script = PROGRAMS / f"{name}.py"
        room.start(name, [sys.executable, "-P", script, str(addresses[name].port)])
    for address in addresses.values():
        room.wait_listening(address.port)
    return addresses


def write_large(path: Path, size: int) -> None:
    """Write a file that no program can make smaller, of which no two blocks are equal."""
    block = os.urandom(1 << 20)
    with open(path, "wb") as file:
        for number in range((size + len(block) - 1) // len(block)):
            file.write((number.to_bytes(8) + block[8:])[: size - number * len(block)])

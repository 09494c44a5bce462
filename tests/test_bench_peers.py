"""The peers of the bench without their programs: what they say, and how they would be started."""

import json
import tomllib

import pytest

from bench.contestants import Address, Programs
from bench.peers import PEERS
from bench.peers.frp import Frp
from bench.peers.piko import Piko
from bench.peers.rathole import Rathole, RatholeNoise
from bench.processes import Failed, environment
from bench.report import as_rst, as_text
from bench.results import Results
from bench.targets import ALL_ON
from bench.works import WORKS

ORIGINS = {"web": Address(8001), "sink": Address(8002), "echo": Address(8003)}

NEEDS = {
    "socket-gateway": "socket-gateway",
    "ssh -R": "ssh sshd ssh-keygen",
    "chisel": "chisel",
    "frp": "frps frpc",
    "rathole": "rathole",
    "rathole noise": "rathole",
    "wstunnel": "wstunnel",
    "piko": "piko",
    "bore": "bore",
}


class Ports:
    """In the place of a room: notes what would be written, called and started."""

    def __init__(self, directory):
        self.directory = directory
        self.written = {}
        self.started = {}
        self.called = []
        self.waited = []
        self.given = 20000

    def port(self):
        self.given += 1
        return self.given

    def write(self, name, text, mode=0o600):
        self.written[name] = text
        return self.directory / name

    def call(self, *arguments, env=None):
        self.called.append([str(each) for each in arguments])
        if "-t" in arguments:  # ssh-keygen
            (self.directory / f"{arguments[-1].name}.pub").write_text("ssh-ed25519 AAAA x\n")
        return "Private Key:\nsecret=\n\nPublic Key:\npublic=\n"

    def start(self, role, arguments, env=None, cwd=None):
        self.started[role] = ([str(each) for each in arguments], dict(env or {}))

    def wait_listening(self, port, host="127.0.0.1"):
        self.waited.append((host, port))


def made(peer):
    return peer(Programs(dict.fromkeys(peer.needs, "/bin/sh")))


# ------------------------------------------------------------------ who cannot run


def test_all_are_here():
    assert {peer.name: " ".join(peer.needs) for peer in PEERS if peer.needs} == NEEDS
    assert [peer.name for peer in PEERS if not peer.needs] == ["cloudflared"]


@pytest.mark.parametrize("peer", [p for p in PEERS if p.needs], ids=lambda peer: peer.name)
def test_who_is_missing_says_what_to_do(peer, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("bench.contestants.shutil.which", lambda name, path=None: None)
    assert peer(Programs()).missing() == "; ".join(
        f"{name} is not on PATH, and no --program {name}=PATH was given" for name in peer.needs
    )
    assert made(peer).missing() is None


def test_who_has_no_other_half_is_named_even_if_installed():
    (cloudflared,) = (peer for peer in PEERS if peer.name == "cloudflared")
    contestant = cloudflared(Programs({"cloudflared": "/bin/sh"}))
    assert "Cloudflare's edge on the Internet" in contestant.missing()
    with pytest.raises(Failed, match="none to run on this machine"):
        contestant.launch(None, ORIGINS)


# ------------------------------------------------------------------ how they are started


@pytest.mark.parametrize("peer", [p for p in PEERS if p.needs], ids=lambda peer: peer.name)
def test_every_origin_is_reached_on_loopback(peer, tmp_path):
    room = Ports(tmp_path)
    contestant = made(peer)
    routes = contestant.launch(room, ORIGINS)
    # socket-gateway takes Upgrade away.
    assert set(routes) == set(ORIGINS) - ({"echo"} if peer.name == "socket-gateway" else set())
    assert all(route.address.host == "127.0.0.1" for route in routes.values())
    ways = [(route.address, route.host) for route in routes.values()]
    assert len(set(ways)) == len(ways)
    everything = json.dumps([room.written, room.started])
    for name in routes:
        assert str(ORIGINS[name].port) in everything
    assert "0.0.0.0" not in everything
    assert room.waited
    assert contestant.carries
    assert contestant.encrypts == ("plain" not in contestant.carries)


def test_configurations_are_such(tmp_path):
    room = Ports(tmp_path)
    for peer in (Frp, Rathole, Piko):
        made(peer).launch(room, ORIGINS)
    frps, frpc = (json.loads(room.written[name]) for name in ("frps.json", "frpc.json"))
    assert frps["bindPort"] == frpc["serverPort"]
    assert frps["auth"] == frpc["auth"]
    server, client = (tomllib.loads(room.written[name]) for name in ("server.toml", "client.toml"))
    assert server["server"]["bind_addr"] == client["client"]["remote_addr"]
    assert client["client"]["services"]["sink"] == {"local_addr": "127.0.0.1:8002"}
    assert server["server"]["transport"] == {"type": "tcp"}
    agent = json.loads(room.written["agent.yaml"])
    assert [each["addr"] for each in agent["listeners"]] == [str(each) for each in ORIGINS.values()]


def test_the_keys_of_noise_are_on_the_right_sides(tmp_path):
    room = Ports(tmp_path)
    made(RatholeNoise).launch(room, ORIGINS)
    assert room.called == [["/bin/sh", "--genkey"]]
    server, client = (tomllib.loads(room.written[name]) for name in ("server.toml", "client.toml"))
    assert server["server"]["transport"]["noise"] == {"local_private_key": "secret="}
    assert client["client"]["transport"]["noise"] == {"remote_public_key": "public="}


def test_a_version_in_the_middle_of_others(tmp_path):
    program = tmp_path / "rathole"
    program.write_text(
        "#!/bin/sh\nprintf 'rathole \\nBuild Date: now\\nBuild Version:    0.5\\n\\n'\n"
    )
    program.chmod(0o755)
    assert Rathole(Programs({"rathole": str(program)})).versions() == {"rathole": "0.5"}


def test_options_of_peers_in_the_environment_do_not_count(monkeypatch):
    for name in ("SG_TIMEOUT", "CHISEL_KEY", "BORE_SECRET", "NODE_OPTIONS", "GOGC", "https_proxy"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("GOPHER", "1")
    got = environment({"BORE_SECRET": "2"})
    assert got["BORE_SECRET"] == "2"
    assert "GOPHER" in got
    assert not {"SG_TIMEOUT", "CHISEL_KEY", "NODE_OPTIONS", "GOGC", "https_proxy"} & set(got)


# ------------------------------------------------------------------ what the report says of them


def test_what_each_carries_is_told():
    described = {
        ALL_ON: {"carries": "a WebSocket over TLS", "versions": {"sockgw": "sockgw 0.1"}},
        "chisel": {"carries": "SSH over a WebSocket", "versions": {"chisel": "1.11"}},
        "origin alone": {"carries": "", "versions": {}},
    }
    got = Results(base=ALL_ON, works=WORKS, contestants=list(described), described=described)
    lines = [line.split("  ") for line in as_text(got).splitlines()]
    cells = [[cell.strip() for cell in line if cell] for line in lines]
    assert ["chisel", "SSH over a WebSocket", "chisel 1.11"] in cells
    assert [ALL_ON, "a WebSocket over TLS", "sockgw 0.1"] in cells
    assert ["origin alone", "–", "–"] in cells
    assert "   * - chisel\n     - SSH over a WebSocket\n     - chisel 1.11\n" in as_rst(got)

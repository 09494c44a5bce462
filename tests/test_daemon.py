"""What both services have in common as daemons, and that they start and stop without a trace."""

import json
import os
import signal
import socket
import time

import pytest
from twisted.application import service
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, Logger, LogLevel, globalLogPublisher

from sockgw.config import load
from sockgw.daemon import Daemon
from sockgw.inner.config import InnerConfig
from sockgw.inner.service import InnerService
from sockgw.keys import generate
from sockgw.outer.config import OuterConfig
from sockgw.outer.service import OuterService


class Reactor(MemoryReactorClock):
    """Keeps what is to run once it runs, and what comes from signals."""

    def __init__(self):
        super().__init__()
        self.from_thread = []

    def callFromThread(self, function, *args, **kwargs):
        self.from_thread.append(lambda: function(*args, **kwargs))

    def turn(self):
        calls, self.from_thread = self.from_thread, []
        for call in calls:
            call()


class Example(Daemon):
    def __init__(self, reactor, twistd=None, log_format="text"):
        super().__init__("sockgw-example", reactor, twistd, log_format)
        self.reloads = 0
        self.error = None

    def reload(self):
        self.reloads += 1
        if self.error is not None:
            raise self.error


class Manager:
    """systemd's end of the notifications."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def take(self):
        states = []
        while True:
            try:
                states.append(self.socket.recv(1_000).split(b"\n")[0].decode())
            except BlockingIOError:
                return states


@pytest.fixture
def manager(tmp_path, monkeypatch):
    manager = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


@pytest.fixture
def reactor():
    return Reactor()


@pytest.fixture(autouse=True)
def hangup():
    """The handler that stood before, which must stand again at the end."""
    received = []

    def handler(number, frame):
        received.append(number)

    previous = signal.signal(signal.SIGHUP, handler)
    yield received
    assert signal.getsignal(signal.SIGHUP) is handler
    signal.signal(signal.SIGHUP, previous)


@pytest.fixture
def daemon(reactor, manager):
    daemon = Example(reactor)
    daemon.startService()
    reactor.run()
    yield daemon
    if daemon.running:
        daemon.stopService()


# ---------------------------------------------------------------------- signals


def test_ready_is_told_once_the_reactor_runs(reactor, manager):
    daemon = Example(reactor)
    daemon.startService()
    assert manager.take() == []
    reactor.run()
    assert manager.take() == ["READY=1"]
    daemon.stopService()
    assert manager.take() == ["STOPPING=1"]


def test_hangup_reloads_in_the_reactor_and_is_told(daemon, reactor, manager, hangup):
    manager.take()
    os.kill(os.getpid(), signal.SIGHUP)
    assert daemon.reloads == 0, "not within the signal's handler"
    reactor.turn()
    assert daemon.reloads == 1
    assert manager.take() == ["RELOADING=1", "READY=1"]
    os.kill(os.getpid(), signal.SIGHUP)
    reactor.turn()
    assert daemon.reloads == 2
    assert hangup == []


def test_a_reload_that_fails_is_over_as_well(daemon, reactor, manager):
    manager.take()
    daemon.error = ValueError("a bug")
    os.kill(os.getpid(), signal.SIGHUP)
    with pytest.raises(ValueError, match="a bug"):
        reactor.turn()
    assert manager.take() == ["RELOADING=1", "READY=1"]
    assert daemon.running


def test_after_the_stop_hangup_is_what_it_was(daemon, hangup):
    daemon.stopService()
    os.kill(os.getpid(), signal.SIGHUP)
    assert hangup == [signal.SIGHUP]
    assert daemon.reloads == 0


def test_the_watchdog_is_fed_until_the_stop(reactor, manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    daemon = Example(reactor)
    daemon.startService()
    reactor.run()
    reactor.advance(5)
    assert manager.take() == ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]
    daemon.stopService()
    assert reactor.getDelayedCalls() == []


# ---------------------------------------------------------------------- ending


class Stopping(Reactor):
    """Its end stops the service, as twistd has it."""

    def __init__(self):
        super().__init__()
        self.daemon = None
        self.stops = 0

    def stop(self):
        self.stops += 1
        if self.stops > 1:
            raise ReactorNotRunning
        self.daemon.stopService()


class Leaving(Example):
    """Drains until it is told to have finished."""

    def __init__(self, reactor):
        super().__init__(reactor)
        self.finished = Deferred()
        self.drains = 0

    def drain(self):
        self.drains += 1
        return self.finished


@pytest.fixture
def handlers():
    """What the reactor has installed, and what must stand again at the end."""
    received = []

    def handler(number, frame):
        received.append(number)

    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, handler) for number in numbers}
    yield handler
    for number in numbers:
        signal.signal(number, previous[number])
    assert received == []


def running(kind, reactor):
    daemon = reactor.daemon = kind(reactor)
    daemon.startService()
    for function, arguments, options in reactor.whenRunningHooks:  # run() would stop it, too
        function(*arguments, **options)
    return daemon


BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@BOTH
def test_a_signal_drains_and_then_stops_the_reactor(handlers, manager, number):
    reactor = Stopping()
    daemon = running(Leaving, reactor)
    manager.take()
    os.kill(os.getpid(), number)
    assert daemon.drains == 0, "not within the signal's handler"
    # From here on a second one ends the process, stuck or not.
    for each in (signal.SIGTERM, signal.SIGINT):
        assert signal.getsignal(each) == signal.SIG_DFL
    reactor.turn()
    assert daemon.drains == 1
    assert daemon.draining
    assert manager.take() == ["STOPPING=1"]
    assert reactor.stops == 0
    assert daemon.running
    daemon.finished.callback(None)
    assert reactor.stops == 1
    assert not daemon.running
    assert manager.take() == [], "it has been told"
    assert signal.getsignal(number) == signal.SIG_DFL, "also while all is being stopped"


def test_a_daemon_without_anything_to_drain_stops_at_once(handlers, manager):
    reactor = Stopping()
    running(Example, reactor)
    os.kill(os.getpid(), signal.SIGTERM)
    reactor.turn()
    assert reactor.stops == 1


def test_draining_that_fails_is_over_as_well(handlers, manager):
    reactor = Stopping()
    daemon = running(Leaving, reactor)
    os.kill(os.getpid(), signal.SIGTERM)
    reactor.turn()
    seen = []
    globalLogPublisher.addObserver(seen.append)
    daemon.finished.errback(ValueError("a bug"))
    globalLogPublisher.removeObserver(seen.append)
    assert reactor.stops == 1
    assert [event["log_failure"].getErrorMessage() for event in seen if "log_failure" in event] == [
        "a bug"
    ]


def test_stopped_by_others_it_drains_no_more(handlers, manager):
    reactor = Stopping()
    daemon = running(Leaving, reactor)
    os.kill(os.getpid(), signal.SIGTERM)
    reactor.turn()
    reactor.stop()
    assert daemon.finished.called, "it was cancelled"
    assert not daemon.running
    assert reactor.stops == 2, "our own came too late, and that is no error"


def test_stopped_without_a_signal_it_leaves_the_handlers_as_they_were(handlers, manager):
    reactor = Stopping()
    daemon = running(Example, reactor)
    assert signal.getsignal(signal.SIGTERM) != handlers
    daemon.stopService()
    assert signal.getsignal(signal.SIGTERM) is handlers
    assert signal.getsignal(signal.SIGINT) is handlers


def test_a_signal_that_is_ignored_stays_ignored(handlers, manager):
    """A shell has its jobs in the background ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reactor = Stopping()
    daemon = running(Leaving, reactor)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    reactor.turn()
    daemon.finished.callback(None)


def test_hangup_while_draining_does_not_tell_that_all_is_well(handlers, manager):
    reactor = Stopping()
    daemon = running(Leaving, reactor)
    os.kill(os.getpid(), signal.SIGTERM)
    reactor.turn()
    manager.take()
    os.kill(os.getpid(), signal.SIGHUP)
    reactor.turn()
    assert daemon.reloads == 1, "logs may be rotated meanwhile"
    assert manager.take() == []
    daemon.finished.callback(None)


def test_the_clock_is_the_one_that_nobody_sets(reactor):
    from twisted.internet.epollreactor import EPollReactor

    real = EPollReactor()
    Example(real)
    assert real.seconds is time.monotonic
    Example(reactor)
    reactor.advance(3)
    assert reactor.seconds() == 3


# ---------------------------------------------------------------------- listening


@pytest.fixture
def taken():
    """A port that somebody else holds."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield holder.getsockname()[1]


def listen(*descriptions):
    """Listen for real; return the ports."""
    opened = []
    try:
        Example(real_reactor).listen("app-port", descriptions, Factory(), opened.append)
    finally:
        for port in opened:
            port.stopListening()
    return opened


def test_each_endpoint_is_listened_on():
    ports = listen("tcp:0:interface=127.0.0.1", "tcp:0:interface=127.0.0.1")
    numbers = {port.getHost().port for port in ports}
    assert len(numbers) == 2
    assert 0 not in numbers


def test_a_taken_port_is_a_sentence(taken):
    description = f"tcp:{taken}:interface=127.0.0.1"
    with pytest.raises(SystemExit) as caught:
        listen("tcp:0:interface=127.0.0.1", description)
    assert caught.value.code == (
        f"sockgw-example: --app-port {description}: the port is taken (Address already in use)"
    )


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("nonsense", "--app-port nonsense"),
        ("70000", "--app-port 70000"),
        ("tls:0:privateKey=/nowhere/key:certKey=/nowhere/crt", "/nowhere/"),
        ("tcp:0:interface=192.0.2.1", "this machine has no such address"),
        ("unix:/nowhere/at/all", "--app-port unix:/nowhere/at/all"),
    ],
)
def test_what_cannot_be_listened_on_is_a_sentence(description, words):
    with pytest.raises(SystemExit) as caught:
        listen(description)
    sentence = caught.value.code
    assert sentence.startswith("sockgw-example: ")
    assert words in sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence


def test_what_fails_only_later_is_told(monkeypatch, reactor):
    """An endpoint of a plugin may take its time."""
    later = Deferred()

    class Endpoint:
        def listen(self, factory):
            return later

    monkeypatch.setattr("sockgw.daemon.server_endpoint", lambda *what, **how: Endpoint())
    seen = []
    globalLogPublisher.addObserver(seen.append)
    opened = []
    Example(reactor).listen("app-port", ("late",), Factory(), opened.append)
    later.errback(OSError("no"))
    globalLogPublisher.removeObserver(seen.append)
    assert opened == []
    assert [event for event in seen if event["log_level"] >= LogLevel.error]


# ---------------------------------------------------------------------- the log


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_events_are_logged_our_way(reactor, log_format, capsys):
    application = service.Application("example")
    Example(reactor, {"nodaemon": True}, log_format).setServiceParent(application)
    observer = application.getComponent(ILogObserver)
    Logger(namespace="here", observer=observer).info("{what} happened", what="something")
    (line,) = capsys.readouterr().out.splitlines()
    if log_format == "json":
        assert json.loads(line)["text"] == "something happened"
    else:
        assert line.endswith("info  something happened")


@pytest.mark.parametrize("twistd", [None, {"nodaemon": True, "logfile": "x"}, {"nodaemon": False}])
def test_the_log_is_twistds_where_the_user_says_so(reactor, twistd):
    application = service.Application("example")
    Example(reactor, twistd).setServiceParent(application)
    assert application.getComponent(ILogObserver) is None


# ---------------------------------------------------------------------- both services


@pytest.fixture
def files(tmp_path):
    generate(tmp_path / "office.key", tmp_path / "office.crt", common_name="office")
    (tmp_path / "targets.yaml").write_text("targets: {a.example: {hostname: b}}")
    return tmp_path


def outer_service(files, reactor):
    settings = {
        "public-key": [str(files / "office.crt")],
        "targets": [str(files / "targets.yaml")],
        "app-port": ["tcp:3000"],
        "socket-port": ["tcp:3001"],
        "admin-port": ["tcp:3002"],
        "access-log": [str(files / "access.log")],
    }
    return OuterService(load(OuterConfig, settings, {}), reactor)


def inner_service(files, reactor):
    settings = {
        "private-key": [str(files / "office.key")],
        "outer-layer": ["ws://127.0.0.1:3001"],
    }
    return InnerService(load(InnerConfig, settings, {}), reactor)


@pytest.mark.parametrize("make", [outer_service, inner_service])
def test_a_service_starts_and_stops_without_a_trace(files, reactor, manager, make):
    daemon = make(files, reactor)
    daemon.privilegedStartService()
    daemon.startService()
    reactor.run()
    assert manager.take() == ["READY=1"]
    reactor.advance(3)
    stopped = daemon.stopService()
    reactor.advance(0)
    assert stopped is None or stopped.called
    assert manager.take() == ["STOPPING=1"]
    assert reactor.getDelayedCalls() == []
    assert not daemon.running


def test_the_outer_layers_ports_close_at_the_stop(files, reactor):
    daemon = outer_service(files, reactor)
    daemon.privilegedStartService()
    # Who is let in finds somebody to ask: clients come last.
    assert [port for port, *_ in reactor.tcpServers] == [3001, 3002, 3000]
    daemon.startService()
    daemon.stopService()


def test_hangup_re_reads_the_outer_layers_files(files, reactor, manager):
    daemon = outer_service(files, reactor)
    daemon.privilegedStartService()
    daemon.startService()
    reactor.run()
    manager.take()
    (files / "targets.yaml").write_text("targets: {c.example: {hostname: d}}")
    (files / "access.log").rename(files / "access.log.1")
    (files / "office.crt").unlink()
    os.kill(os.getpid(), signal.SIGHUP)
    reactor.turn()
    assert manager.take() == ["RELOADING=1", "READY=1"]
    assert [target.name for target in daemon.targets()] == ["c.example"]
    assert (files / "access.log").exists()
    assert len(daemon._keyring) == 0
    daemon.stopService()


def test_a_broken_file_at_hangup_changes_nothing(files, reactor, manager):
    daemon = outer_service(files, reactor)
    daemon.privilegedStartService()
    daemon.startService()
    reactor.run()
    (files / "targets.yaml").write_text("targets: [")
    os.kill(os.getpid(), signal.SIGHUP)
    reactor.turn()
    assert [target.name for target in daemon.targets()] == ["a.example"]
    assert manager.take()[-1] == "READY=1"
    daemon.stopService()

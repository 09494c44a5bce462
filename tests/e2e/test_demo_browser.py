"""The demonstration's page in a real browser, through both layers: chat, events, up and down.

Over HTTP/1.1 and over TLS with HTTP/2, where the chat's WebSocket is a stream of that (RFC 8441);
and each again with the carrier cut amid all of it, of which the pages notice no more than a pause.
"""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import pytest
from browser import Browser, Page
from certmaker import Maker
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from harness import LOOPBACK, Inner, Keys, Outer, Process, require, wait_until

from sockgw.demo.run import TARGETS

SCHEMES = {"http": ("http/1.1", "HTTP/1.1"), "https": ("h2", "HTTP/2.0")}


class Stage:
    """The origin with its line, both layers and a browser. ``urls`` lead to the page."""

    def __init__(self, directory: Path, keys: Keys, stack: ExitStack) -> None:
        key, chain = Maker().issue("localhost")
        (directory / "edge.key").write_bytes(key)
        (directory / "edge.crt").write_bytes(chain)
        files = f"privateKey={directory / 'edge.key'}:certKey={directory / 'edge.crt'}"
        self.outer = stack.enter_context(
            Outer(
                directory,
                keys.certificate,
                *("--app-port", LOOPBACK),
                app=f"tls:0:interface=127.0.0.1:{files}",
            )
        )
        origin = stack.enter_context(
            Process(
                "origin",
                [
                    *(sys.executable, "-m", "sockgw.demo.origin"),
                    *("--line", f"{LOOPBACK}={self.outer.socket_port}", LOOPBACK),
                ],
                directory,
            )
        )
        listening = "listening on"
        wait_until(lambda: len(origin.log.matching(listening)) == 2, "the origin listens")
        line, port = (int(each.rpartition(":")[2]) for each in origin.log.matching(listening))
        self.outer.replace_targets(TARGETS.format(port=port).replace("identifier: demo", ""))
        self.outer.reload()
        self.inner = stack.enter_context(Inner(directory, keys.private, line))
        self.inner.wait_connected()
        self.outer.wait_for_tunnels(1)

        ports = [
            re.search(r"(https?)://\S*:(\d+)$", each)
            for each in self.outer.log.matching(listening)[-2:]
        ]
        self.urls = {each[1]: f"{each[1]}://localhost:{each[2]}/" for each in ports if each}
        # The name has two addresses, of which the layers here have one.
        options = [f"--ignore-certificate-errors-spki-list={pin(chain)}"]
        options.append("--host-resolver-rules=MAP localhost 127.0.0.1")
        self.browser = stack.enter_context(Browser(directory, *options))


def pin(chain: bytes) -> str:
    """Return how the browser knows a certificate whose authority it does not know."""
    public = x509.load_pem_x509_certificate(chain).public_key()
    form = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(sha256(form).digest()).decode()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Stage]:
    require("chromium")
    with ExitStack() as stack:
        yield Stage(tmp_path_factory.mktemp("stage"), keys, stack)


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pages(stage: Stage, scheme: str) -> Iterator[tuple[Page, Page]]:
    """Two pages in the chat, with events that tick; at the end neither has lost anything."""
    before = len(stage.browser.complaints)
    pages = stage.browser.open(stage.urls[scheme]), stage.browser.open(stage.urls[scheme])
    for page in pages:
        page.wait("at('here').textContent === '2 are here' && seen.ticks.length > 0")
        protocol = "performance.getEntriesByType('navigation')[0].nextHopProtocol"
        assert page.run(protocol) == SCHEMES[scheme][0]
    access = stage.outer.access
    mark = access.mark()
    yield pages
    for page in pages:
        assert page.run("[seen.chats, seen.streams, seen.lost]") == [1, 1, 0]
    assert stage.browser.complaints[before:] == []
    for page in pages:
        page.close()
    wait_until(lambda: stage.outer.metric("sockgw_streams") == 0, "all streams are closed")
    for path in ("/chat", "/events"):
        entry = f'"(GET|CONNECT) {path} {SCHEMES[scheme][1]}"'
        wait_until(lambda entry=entry: len(access.matching(entry, mark)) == 2, entry)  # type: ignore[misc]


def say(page: Page, text: str) -> None:
    page.run("at('text').focus()")
    page.type(text)


def heard(page: Page, text: str) -> None:
    page.wait(
        f"Array.from(at('log').querySelectorAll('span'), (e) => e.textContent).includes({text!r})"
    )


def start(page: Page, panel: str, mebibytes: int) -> None:
    page.run(f"at('{panel}-size').value = '{mebibytes}'")
    page.click(panel)
    page.wait(f"at('{panel}').textContent === 'Stop'")


def arrived(page: Page, panel: str, mebibytes: int) -> None:
    """Wait for the end; see that the digests at both ends are shown, and the same."""
    page.wait(f"at('{panel}').textContent !== 'Stop'", 60)
    text = page.text(f"{panel}-out")
    assert f"{mebibytes}.0 MiB in " in text
    digests = re.findall(r"^[0-9a-f]{64}$", text, re.M)
    assert "✓" in text
    assert len(digests) == 2
    assert digests[0] == digests[1]
    assert page.run(f"at('{panel}-bar').value") == 1


def test_two_pages(stage: Stage, pages: tuple[Page, Page]) -> None:
    one, other = pages
    say(one, "hello <b>there</b>")
    heard(other, "hello <b>there</b>")
    say(other, "grüße ✓")
    heard(one, "grüße ✓")

    start(one, "upload", 64)
    start(other, "download", 64)
    arrived(one, "upload", 64)
    arrived(other, "download", 64)
    assert one.run("seen.progress") > 1

    # Events are shown as they come: what was held back would come together.
    one.wait("seen.ticks.length >= 4")
    assert one.run("seen.ticks[3] - seen.ticks[0]") > 1.5

    children = (
        "Array.from(at('fields').children, (e) => Array.from(e.children, (f) => f.innerText))"
    )
    shown = dict(one.run(children))
    assert re.fullmatch(r"[0-9a-z]{10,}", shown["X-Request-ID"])
    assert shown["X-Forwarded-For"] == "127.0.0.1"
    one.click("secret")
    one.wait("at('secret-out').textContent.startsWith('403: ')")


def test_the_carrier_is_cut_amid_all_of_it(stage: Stage, pages: tuple[Page, Page]) -> None:
    one, other = pages
    mark = stage.outer.log.mark()
    start(one, "upload", 64)
    start(other, "download", 64)
    for page, panel in ((one, "upload"), (other, "download")):
        page.wait(f"at('{panel}-out').textContent.includes('MiB in')")
    cut = "fetch('/cut?seconds=2', { method: 'POST' })"
    assert one.run(f"{cut}.then((answer) => answer.status)") == 200
    stage.outer.log.wait("innerLayer has lost its connection", mark)
    for page in pages:
        page.wait("at('way').classList.contains('cut')")
    say(one, "said while nobody could hear it")
    assert one.run("at('upload').textContent") == "Stop"
    assert other.run("at('download').textContent") == "Stop"
    ticks = other.run("seen.ticks.length")

    stage.outer.log.wait("innerLayer is back", mark)
    heard(other, "said while nobody could hear it")
    arrived(one, "upload", 64)
    arrived(other, "download", 64)
    other.wait(f"seen.ticks.length >= {ticks + 4}")
    assert float(other.text("pause")) > 1.5
    for page in pages:
        page.wait("!at('cut').disabled")  # the line can be cut again

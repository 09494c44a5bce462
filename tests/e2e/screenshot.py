"""Makes the README's picture of the demonstration: ``python tests/e2e/screenshot.py FILE [dark]``.

It starts ``sockgw demo``, opens its page in a real browser, uses it, and takes the picture.
"""

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from browser import Browser, Page
from harness import Process, command
from smallpng import smaller

_TALK = (
    ("Ada", "Is this really behind the firewall?"),
    ("Grace", "It is. Nothing listens for the outside there: it dialled out."),
    ("Ada", "I just cut the line. You were gone for a moment, and nobody noticed."),
    ("Grace", "The upload went on where it was, too."),
)
_SIZE = (1200, 866)  # pixels


def say(page: Page, name: str, text: str) -> None:
    page.run(f"at('name').value = {name!r}; at('text').value = {text!r};")
    page.run("at('say').requestSubmit()")
    page.wait(f"at('log').textContent.includes({text!r})")


def main(file: str, dark: bool) -> None:
    with (
        TemporaryDirectory() as directory,
        Process(
            "demo",
            [command("sockgw"), "demo", "--app-port", "0", "--socket-port", "0"]
            + ["--origin-port", "0"],
            Path(directory),
        ) as demo,
        Browser(Path(directory)) as browser,
    ):
        demo.log.wait("Ctrl-C", patience=60)
        (url,) = re.findall(r"^  (http://localhost:\d+)/ ", demo.log.path.read_text(), re.M)
        page = browser.open(url, *_SIZE, dark=dark)
        other = browser.open(url, *_SIZE)
        page.wait("document.getElementById('here').textContent === '2 are here'")
        for name, text in _TALK[:2]:
            say({"Ada": page, "Grace": other}[name], name, text)
        page.wait("seen.ticks.length >= 23", 60)
        page.run("at('cut').click()")
        page.wait("seen.cuts === 1")
        page.run("at('upload').click(); at('download').click()")
        for panel in ("upload", "download"):
            page.wait(f"at('{panel}-out').textContent.includes('✓')", 60)
        page.wait("!at('way').classList.contains('cut')")
        for name, text in _TALK[2:]:
            say({"Ada": page, "Grace": other}[name], name, text)
        page.wait(f"seen.ticks.length >= {page.run('seen.ticks.length')} + 5", 60)
        page.wait("!at('cut').disabled")
        page.run("at('text').blur(); scrollTo(0, 0)")
        Path(file).write_bytes(smaller(page.screenshot()))


if __name__ == "__main__":
    main(sys.argv[1], "dark" in sys.argv[2:])

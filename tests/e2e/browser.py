"""A real browser without a screen: Debian's chromium, driven through its DevTools protocol.

The protocol comes and goes through a pair of pipes (``--remote-debugging-pipe``): JSON, each
message ended by a NUL. So there is no port, no library and no second program that has to fit the
browser's version, and a browser ends when its pipe does.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

from harness import PATIENCE, Process, require, wait_until

__all__ = ["Browser", "Page"]

_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # there is none for root; the pages are our own
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-breakpad",
    "--disable-crash-reporter",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-gpu",
    "--disable-sync",
    # A page in the background goes on as one in front.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--hide-scrollbars",
    "--lang=en",
)

# It reads commands from descriptor 3, and writes to 4.
_WITH_PIPES = """
import os, sys
numbers = [os.dup(int(number)) for number in sys.argv[1].split(",")]
high = [os.dup2(number, 100 + place) for place, number in enumerate(numbers)]
for place, number in enumerate(high):
    os.dup2(number, 3 + place)
    os.close(number)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Browser(Process):
    """chromium with a profile of its own; further options as its command line has them."""

    def __init__(self, directory: Path, *options: str) -> None:
        program = require("chromium")
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        try:
            super().__init__(
                "chromium",
                [
                    *(sys.executable, "-c", _WITH_PIPES, f"{commands},{answers}", program),
                    *_OPTIONS,
                    f"--user-data-dir={directory / 'profile'}",
                    *options,
                ],
                directory,
                env={"HOME": str(directory)},
                pass_fds=(commands, answers),
            )
        except BaseException:
            os.close(self._commands)
            os.close(self._answers)
            raise
        finally:
            os.close(commands)
            os.close(answers)
        self._received = bytearray()
        self._number = 0
        #: What the pages have reported since the start: exceptions, and what their policy forbids.
        self.complaints: list[str] = []

    def stop(self) -> None:
        """Close it as its user would."""
        if self.status is None:
            with contextlib.suppress(AssertionError):
                self.call("Browser.close")
        assert self.wait() == 0, f"chromium ended with status {self.status}"

    def kill(self) -> None:
        super().kill()
        for descriptor in (self._commands, self._answers):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def open(self, url: str, width: int = 1200, height: int = 800, dark: bool = False) -> Page:
        """Open a page in a window of its own, and wait until it is complete."""
        created = self.call("Target.createTarget", url="about:blank", newWindow=True)
        attached = self.call("Target.attachToTarget", targetId=created["targetId"], flatten=True)
        page = Page(self, attached["sessionId"], created["targetId"])
        page.call("Runtime.enable")
        page.call("Log.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        navigated = page.call("Page.navigate", url=url)
        assert "errorText" not in navigated, navigated
        page.wait("document.readyState === 'complete' && location.href !== 'about:blank'")
        return page

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Send a command; return its result."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if session:
            command["sessionId"] = session
        data = json.dumps(command).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        deadline = time.monotonic() + 3 * PATIENCE
        while True:
            message = self._receive(deadline, method)
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result
            self._noted(message)

    def _receive(self, deadline: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._received:
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self._answers], [], [], left)[0], f"no answer to {method}"
            data = os.read(self._answers, 65_536)
            assert data, f"chromium has ended: {self.log.lines()[-5:]}"
            self._received += data
        message, _, rest = bytes(self._received).partition(b"\0")
        self._received[:] = rest
        decoded: dict[str, Any] = json.loads(message)
        return decoded

    def _noted(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded":
            entry = parameters["entry"]
            if entry["level"] == "error" and entry["source"] != "network":  # any status above 399
                self.complaints.append(str(entry))


class Page:
    """A page of the browser."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser = browser
        self._session = session
        self._target = target

    def close(self) -> None:
        """Close its window."""
        self._browser.call("Target.closeTarget", targetId=self._target)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command for this page."""
        return self._browser.call(method, self._session, **parameters)

    def run(self, script: str) -> Any:
        """Return what a JavaScript expression gives, or a promise that it gives."""
        got = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in got, f"{script}: {got['exceptionDetails']}"
        return got["result"].get("value")

    def wait(self, script: str, patience: float = 2 * PATIENCE) -> Any:
        """Wait until the expression is true; return its value."""
        return wait_until(lambda: self.run(script), script, patience)

    def text(self, element: str) -> str:
        """Return an element's text, by its id."""
        return str(self.run(f"document.getElementById({json.dumps(element)}).innerText"))

    def click(self, element: str) -> None:
        """Click with the mouse in the middle of what has that id."""
        script = f"""(() => {{
            const element = document.getElementById({json.dumps(element)});
            element.scrollIntoView({{ block: "center", behavior: "instant" }});
            const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()"""
        x, y = self.run(script)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Type into what has the focus, and press Enter."""
        self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key="Enter",
                code="Enter",
                text="\r",
                windowsVirtualKeyCode=13,
            )

    def screenshot(self) -> bytes:
        """Return a picture of what is to be seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

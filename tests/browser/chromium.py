# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, spoken to over a pair of pipes (its DevTools protocol); no dependency.

with Browser(folder) as browser:
    page = browser.open(path)
    page.evaluate("document.title")
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--disable-extensions", "--force-color-profile=srgb",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
TIMEOUT_S = 60.0


def find() -> str | None:
    """The browser's path, or None where there is none."""
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One process with a profile of its own in ``folder``."""

    def __init__(self, folder: Path) -> None:
        program = find()
        assert program, "no chromium"
        down_read, self._down = os.pipe()
        self._up, up_write = os.pipe()
        # The browser reads commands from descriptor 3 and answers on 4.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (down_read, up_write)]
        command = [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=lambda: [os.dup2(end, i) for i, end in enumerate(ends, 3)] and None,
        )  # fmt: skip
        for end in ends:
            os.close(end)
        os.close(down_read)
        os.close(up_write)
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._down)
        os.close(self._up)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """One command and its answer."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._down, data) :]
        end = time.monotonic() + TIMEOUT_S
        while True:
            answer = self._next(end)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def wait(self, method: str, session: str) -> None:
        """Until an event has come (or had already)."""
        end = time.monotonic() + TIMEOUT_S
        while not any(e["method"] == method and e["sessionId"] == session for e in self.events):
            self.events.append(self._next(end))

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._up], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError("chromium does not answer")
            data = os.read(self._up, 1 << 20)
            if not data:
                raise RuntimeError("chromium has ended")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url: Path | str, *, width: int = 1280, **media: str) -> Page:
        """A new page, loaded; ``media`` as ``prefers_color_scheme="dark"``."""
        return Page(self, url, width, media)


class Page:
    """One tab."""

    def __init__(
        self, browser: Browser, url: Path | str, width: int, media: dict[str, str]
    ) -> None:
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility", "DOM"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1,
            mobile=width < 600,
        )  # fmt: skip
        features = [{"name": k.replace("_", "-"), "value": v} for k, v in media.items()]
        self.call("Emulation.setEmulatedMedia", features=features)
        address = url.resolve().as_uri() if isinstance(url, Path) else url
        self.call("Page.navigate", url=address)
        browser.wait("Page.loadEventFired", self._session)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def evaluate(self, expression: str) -> Any:
        """A JSON value; an exception there is one here."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """One key: ``Tab``, ``Enter``, ``Space``."""
        codes = {"Tab": (9, ""), "Enter": (13, "\r"), "Space": (32, " ")}
        code, text = codes[key]
        name = " " if key == "Space" else key
        values = {"key": name, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **values)
        self.call("Input.dispatchKeyEvent", type="keyUp", **values)

    def _events_named(self, method: str) -> list[dict[str, Any]]:
        self.evaluate("new Promise((done) => setTimeout(done, 50))")  # lets events arrive
        return [
            e["params"]
            for e in self._browser.events
            if e.get("sessionId") == self._session and e["method"] == method
        ]

    def requests(self) -> list[str]:
        """Every address that the page asked for, itself included."""
        return [e["request"]["url"] for e in self._events_named("Network.requestWillBeSent")]

    def complaints(self) -> list[str]:
        """Exceptions, console messages and log entries."""
        return [
            json.dumps(e)
            for method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
            for e in self._events_named(method)
        ]

    def accessible(self) -> list[tuple[str, str]]:
        """(role, name) of everything that a screen reader meets."""
        return [
            (n.get("role", {}).get("value", ""), n.get("name", {}).get("value", ""))
            for n in self.call("Accessibility.getFullAXTree")["nodes"]
            if not n.get("ignored")
        ]

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the page, or of what is in view."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self, path: Path) -> None:
        """As it would be printed."""
        data = self.call("Page.printToPDF", printBackground=False, preferCSSPageSize=True)["data"]
        path.write_bytes(base64.b64decode(data))

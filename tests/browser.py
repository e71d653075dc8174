"""A real browser without a window, for the pages that reports write; it is spoken to over a pair of pipes."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 60.0
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-extensions", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)  # fmt: skip
# The browser reads orders from descriptor 3 and answers on 4.
WIRE = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"

# What a reader would see: the least contrast of a text with what is behind it (WCAG wants 4.5 for small text), the
# smallest letters, how far something sticks out sideways, and texts of charts that are cut off.
LOOK = """(() => {
  const luminance = color => {
    const parts = color.match(/[\\d.]+/g).slice(0, 3).map(v => { const c = v / 255;
      return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const behind = node => { for (; node; node = node.parentElement) {
    const color = getComputedStyle(node).backgroundColor;
    if (!/, 0\\)$/.test(color)) return luminance(color);
  } return 1; };
  const seen = {contrast: 99, letters: 99, checked: 0, outside: [],
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth};
  const texts = "h1, h2, h3, p, li, dd, dt, figcaption, th, td, summary, .plot svg text";
  for (const node of document.querySelectorAll(texts)) {
    const box = node.getBoundingClientRect();
    if (!node.textContent.trim() || !box.width) continue;
    const style = getComputedStyle(node);
    const back = behind(node), front = luminance(node instanceof SVGElement ? style.fill : style.color);
    seen.contrast = Math.min(seen.contrast, (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05));
    seen.letters = Math.min(seen.letters, parseFloat(style.fontSize));
    seen.checked += 1;
    const place = node instanceof SVGElement && node.closest("svg").getBoundingClientRect();
    if (place && (box.left < place.left - 1 || box.right > place.right + 1 || box.top < place.top - 1 ||
      box.bottom > place.bottom + 1)) seen.outside.push(node.textContent);
  }
  return seen;
})()"""


def find_chromium() -> str | None:
    """The path of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


class Browser:
    """A Chromium with one empty tab. `console` has what the page that was opened last has complained of."""

    def __init__(self, program: str, folder: Path) -> None:
        """folder: for its profile, which is the browser's alone."""
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (orders, answers)]  # clear of 3 and 4
        command = [sys.executable, "-c", WIRE, *map(str, theirs), program, *OPTIONS, f"--user-data-dir={folder}"]
        self._process = subprocess.Popen(
            command,
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(folder)},
        )
        for end in (orders, answers, *theirs):
            os.close(end)
        self._rest = b""
        self._last = 0
        self.console: list[str] = []
        self._session = ""
        target = self.send("Target.createTarget", {"url": "about:blank"}, START_TIMEOUT_S)["targetId"]
        self._session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def open(self, page: Path, *, width: int = 1280, dark: bool = False, media: str = "screen") -> None:
        """Load a page and wait until its charts are drawn. media: "screen" or "print"."""
        self.console.clear()
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
        self.send("Page.navigate", {"url": page.as_uri()})
        self.wait_for(f"location.href == {json.dumps(page.as_uri())} && document.documentElement?.dataset.drawn")

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, f"{condition} did not become true; console: {self.console}"
            time.sleep(0.05)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression, as plain data."""
        answer = self.send("Runtime.evaluate", {"expression": script, "returnByValue": True, "awaitPromise": True})
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    @property
    def text(self) -> str:
        """All words of the page, charts included."""
        return str(self.evaluate("document.querySelector('main').textContent"))

    def send(
        self, method: str, values: Mapping[str, Any] | None = None, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> dict[str, Any]:
        """Send an order of the DevTools protocol and return its answer; what happens meanwhile is noted."""
        self._last += 1
        order = {"id": self._last, "method": method, "params": dict(values or {})}
        if self._session:
            order["sessionId"] = self._session
        os.write(self._orders, json.dumps(order).encode() + b"\0")
        deadline = time.monotonic() + timeout_s
        while True:
            message = self._read(deadline)
            self._note(message)
            if message.get("id") == self._last:
                assert "error" not in message, message["error"]
                return dict(message["result"])

    def close(self) -> None:
        """End it."""
        os.close(self._orders)  # it ends itself when nobody can give it orders any more
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            block = os.read(self._answers, 1 << 16)
            assert block, "the browser has ended"
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def _note(self, message: Mapping[str, Any]) -> None:
        values = message.get("params", {})
        if message.get("method") == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(part.get("value", part)) for part in values["args"]))
        elif message.get("method") == "Runtime.exceptionThrown":
            self.console.append(str(values["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded":
            self.console.append(values["entry"]["text"])


def look(browser: Browser) -> dict[str, Any]:
    """What LOOK has found on the page that is open."""
    return dict(browser.evaluate(LOOK))


def check_readable(browser: Browser, *, least_texts: int) -> None:
    """Nobody complained, and everything can be read."""
    assert browser.console == []
    seen = look(browser)
    assert seen["checked"] >= least_texts
    assert seen["contrast"] >= 4.5
    assert seen["letters"] >= 10
    assert seen["outside"] == []
    assert seen["wide"] <= 0

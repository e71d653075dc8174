"""A real browser without a window, for the pages that reports write."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_CONSOLE = re.compile(r'CONSOLE[:(]\d+\)?\] "(.*?)", source:')


@dataclass(frozen=True)
class Visit:
    """What a page became: its document after the scripts have run, and what they wrote to the console."""

    document: str
    console: tuple[str, ...]

    @property
    def texts(self) -> str:
        """All words of the document, charts included."""
        body = re.sub(r"<(script|style)\b.*?</\1>", " ", self.document, flags=re.DOTALL)
        return html.unescape(re.sub(r"<[^>]+>", " ", body))


def find_chromium() -> str | None:
    """The path of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


def visit(page: Path, profile_folder: Path, *, width: int = 1280, dark: bool = False, script: str = "") -> Visit:
    """Load `page` and wait until its scripts rest; `script` is run at the end of a copy of it."""
    browser = find_chromium()
    assert browser is not None
    if script:
        before, end, after = page.read_text(encoding="utf-8").rpartition("</body>")
        page = profile_folder.with_name(f"{page.stem}-probed.html")
        page.write_text(f"{before}<script>{script}</script>{end}{after}", encoding="utf-8")
    command = [
        browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-extensions", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={profile_folder}", f"--window-size={width},1600", "--virtual-time-budget=20000",
        "--enable-logging=stderr", f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom",
        page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return Visit(done.stdout, tuple(_CONSOLE.findall(done.stderr)))

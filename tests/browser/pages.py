"""A browser that a test drives: Debian's Chromium, by the npm package `playwright-core` in a process of Node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.serving import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NODE = shutil.which("node")
MODULES = Path(os.environ.get("MISTRALRS_CLIENTS", ROOT / ".clients")) / "npm" / "node_modules"
DRIVER = Path(__file__).parent / "driver.js"
PATIENCE_S = 60.0


def missing() -> str | None:
    """Returns what these tests lack here; None: nothing."""
    if CHROMIUM is None:
        return "chromium is not installed"
    if NODE is None:
        return "node is not installed"
    if not all((MODULES / name).is_dir() for name in ("playwright-core", "axe-core")):
        return "the npm packages playwright-core and axe-core are not installed; make browser installs them"
    return None


class Browser:
    """A browser without a window; a context manager."""

    def __enter__(self) -> Self:
        assert NODE is not None
        assert CHROMIUM is not None
        self._process = subprocess.Popen(
            [NODE, str(DRIVER), CHROMIUM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "NODE_PATH": str(MODULES)},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def order(self, page: int | None, method: str, *args: Any) -> Any:
        """Has the driver call a method. Raises ``AssertionError`` with the error that it met."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"page": page, "method": method, "args": args}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the driver has ended"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def open(self, address: str, **options: Any) -> Page:
        """Opens an address with storage of its own; ``options`` are those of Playwright's ``newContext``."""
        page = Page(self, self.order(None, "open", {"viewport": {"width": 1200, "height": 800}, **options}))
        page.go(address)
        return page


class Page:
    """One tab. Selectors are Playwright's."""

    def __init__(self, browser: Browser, number: int) -> None:
        self._browser = browser
        self._number = number

    def do(self, method: str, *args: Any) -> Any:
        return self._browser.order(self._number, method, *args)

    def go(self, address: str) -> None:
        self.do("goto", address)

    def click(self, selector: str) -> None:
        self.do("click", selector)

    def fill(self, selector: str, text: str) -> None:
        self.do("fill", selector, text)

    def press(self, key: str) -> None:
        self.do("press", key)

    def wait(self, selector: str, state: str = "visible") -> None:
        self.do("waitForSelector", selector, {"state": state})

    def text(self, selector: str) -> str:
        text: str = self.do("innerText", selector)
        return text.strip()

    def count(self, selector: str) -> int:
        number: int = self.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length")
        return number

    def evaluate(self, expression: str) -> Any:
        return self.do("evaluate", expression)

    def until(self, expression: str) -> None:
        """Waits until JavaScript is true on the page."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < deadline, (
                f"{expression} never came about: {self.evaluate('document.body.innerText')}"
            )
            time.sleep(0.02)

    def tab(self, address: str) -> Page:
        """Opens an address in another tab of the same browser."""
        page = Page(self._browser, self.do("tab"))
        page.go(address)
        return page

    def close(self) -> None:
        """Closes all tabs of this browser."""
        self.do("closeContext")

    # the page of the server

    def send(self, text: str) -> None:
        """Sends a message with the keyboard."""
        self.fill("#message", text)
        self.do("focus", "#message")
        self.press("Enter")

    def ask(self, text: str) -> str:
        """Sends a message and returns the text of the answer when that has ended."""
        before = self.count("#messages > li")
        self.send(text)
        self.until(f"document.querySelectorAll('#messages > li').length === {before + 2}")
        self.wait_until_still()
        return self.last_answer()

    def wait_until_still(self) -> None:
        """Waits until no answer is coming."""
        self.until("!document.querySelector('[aria-busy=true]') && document.querySelector('#stop').hidden")

    def last_answer(self) -> str:
        return self.text("#messages > li:last-child .assistant .body")

    def messages(self) -> list[str]:
        """Returns the texts of the path that is shown."""
        texts = self.evaluate(
            "[...document.querySelectorAll('#messages .single .body')].map(each => each.innerText.trim())"
        )
        assert isinstance(texts, list)
        return texts

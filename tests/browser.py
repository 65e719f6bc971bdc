"""Headless Chromium as a reader of our pages: widths, colours, what it shows and what it asked the network for."""

from __future__ import annotations

import base64
import io
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.request import urlopen

import pytest
from PIL import Image
from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt install chromium)")
WAIT_S = 60.0

# The largest distance between a text's colour and what is behind it would be 21; WCAG 2.1 asks for 4.5. Elements that
# are not shown do not count, nor do those on a see-through ground, whose own colour is not what is seen.
FAINT = """(() => {
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = at => { for (; at; at = at.parentElement) { const c = parts(getComputedStyle(at).backgroundColor);
    if (c.length < 4 || c[3] === 1) return c; if (c[3] > 0) return null; } return [255, 255, 255]; };
  const faint = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const at = walk.currentNode.parentElement, text = walk.currentNode.data.trim();
    if (!text || ["SCRIPT", "STYLE"].includes(at.tagName) || !at.checkVisibility()) continue;
    const behind = ground(at), style = getComputedStyle(at);
    if (behind === null) continue;
    const fill = at instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(parts(fill)), light(behind)].sort((x, y) => y - x), contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) faint.push(`${text.slice(0, 40)}: ${fill} on ${behind}, ${contrast.toFixed(2)}`);
  }
  return faint;
})()"""


class Browser:
    """One tab. Raises TimeoutError where the browser does not answer within WAIT_S."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self._events: list[dict[str, Any]] = []
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def show(self, url: str, width: int, scheme: Literal["light", "dark"], height: int = 844) -> None:
        """Load a page into a window of that width (CSS pixels) and wait until it has all it asks for."""
        self._events.clear()
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                   mobile=width < 600)  # fmt: skip
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._call("Page.navigate", url=url)
        self._until("Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression in the page, as JSON has it."""
        result = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Until a JavaScript expression is true. Raises TimeoutError."""
        deadline = time.monotonic() + WAIT_S
        while not self.value(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not so within {WAIT_S:g} s: {expression}")
            time.sleep(0.05)

    def picture(self) -> Image.Image:
        """What the window shows."""
        data = self._call("Page.captureScreenshot", format="png")["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")

    def asked_for(self) -> list[str]:
        """Addresses of all requests since the page was shown."""
        self.value("0")  # what came before the answer is read
        said = [one["params"] for one in self._events if one["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in said]

    def complaints(self) -> list[str]:
        """Errors of scripts, refused loads and the like."""
        self.value("0")
        logged = [one["params"]["entry"]["text"] for one in self._events if one["method"] == "Log.entryAdded"]
        thrown = [str(one["params"]) for one in self._events if one["method"] == "Runtime.exceptionThrown"]
        return logged + thrown

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (said := self._read()).get("id") != number:
            self._events.append(said)
        assert "error" not in said, said
        result: dict[str, Any] = said["result"]
        return result

    def _until(self, event: str) -> None:
        while not any(one["method"] == event for one in self._events):
            self._events.append(self._read())

    def _read(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self._socket.recv(WAIT_S))
        return said


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """folder: for the browser's own files."""
    process = subprocess.Popen(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--user-data-dir={folder}", "--remote-debugging-port=0", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with connect(_tab(folder / "DevToolsActivePort"), max_size=2**26, open_timeout=WAIT_S) as socket:
            yield Browser(socket)
    finally:
        process.terminate()
        process.wait(WAIT_S)


def _tab(port_file: Path) -> str:
    """Address of the tab that is open; the browser writes its port down once it listens."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if port_file.exists() and (lines := port_file.read_text().splitlines()):
            with urlopen(f"http://127.0.0.1:{lines[0]}/json/list", timeout=WAIT_S) as answer:
                tabs = [one for one in json.load(answer) if one["type"] == "page"]
            if tabs:
                return str(tabs[0]["webSocketDebuggerUrl"])
        time.sleep(0.1)
    raise TimeoutError(f"Chromium did not say its port within {WAIT_S:g} s")

"""Chromium without a window, driven by the Chrome DevTools Protocol: what a person does, and what the page did."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--remote-debugging-port=0", "--disable-gpu", "--no-first-run", "--mute-audio",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--disable-sync",
    "--disable-extensions", "--disable-default-apps", "--metrics-recording-only", "--hide-scrollbars",
    "--font-render-hinting=none",
)  # fmt: skip
WIDE, PHONE = (1280, 860), (390, 844)
KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), " ": (32, " ")}


class ProtocolError(Exception):
    """What the browser would not do."""


class Browser:
    """A browser that runs as long as the block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Browser:
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={self.folder}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = self.folder / "DevToolsActivePort"
        end = time.monotonic() + 30.0
        while not (port.exists() and len(port.read_text().splitlines()) == 2):
            assert self.process.poll() is None, "chromium has ended"
            assert time.monotonic() < end, "chromium did not start"
            time.sleep(0.02)
        number, path = port.read_text().splitlines()
        address = f"ws://127.0.0.1:{number}{path}"
        self.open = connect(address, max_size=1 << 26, compression=None)
        self.socket = self.open.__enter__()
        self._ids = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.open.__exit__(None, None, None)
        self.process.terminate()
        self.process.wait(20)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; note the events that come meanwhile."""
        number = next(self._ids)
        asked: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        self.socket.send(json.dumps(asked | ({"sessionId": session} if session else {})))
        while True:
            said = json.loads(self.socket.recv(timeout=30))
            if said.get("id") == number:
                if "error" in said:
                    raise ProtocolError(f"{method}: {said['error']['message']}")
                return said["result"]
            self.events.append(said)

    def page(self, size: tuple[int, int] = WIDE) -> Page:
        """Return a page of its own, with nothing kept from others."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, context, size)


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str, context: str, size: tuple[int, int]) -> None:
        self.browser, self.session, self.context = browser, session, context
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.call(f"{domain}.enable")
        self.resize(size)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def close(self) -> None:
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)

    def resize(self, size: tuple[int, int], scale: float = 1.0) -> None:
        width, height = size
        screen = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **screen)

    def prefer(self, scheme: str) -> None:
        """Let the system prefer light or dark, and no motion."""
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)

    def goto(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.ready()

    def reload(self) -> None:
        self.call("Runtime.evaluate", expression="document.documentElement.dataset.ready = 'old'")
        self.call("Page.reload")
        self.ready()

    def ready(self) -> None:
        self.wait("document.documentElement.dataset.ready === 'yes'")

    def js(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 15.0) -> Any:
        """Wait until an expression is true; return its value."""
        end = time.monotonic() + seconds
        while True:
            try:
                found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
            except ProtocolError:  # between two documents
                found = {"result": {}}
            if value := found["result"].get("value"):
                return value
            assert time.monotonic() < end, f"it never came: {expression}; the page: {self.text('body')[:2000]}"
            time.sleep(0.03)

    def text(self, selector: str) -> str:
        return self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def click(self, selector: str) -> None:
        """Click the middle of an element, as a mouse does."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.js(f"{element}.scrollIntoView({{block: 'center'}})")
        box = self.js(f"{element}.getBoundingClientRect().toJSON()")
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False) -> None:
        code, text = KEYS[key]
        more = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", **more)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option by its value, as a person does: the page hears of it."""
        self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
            " e.dispatchEvent(new Event('change', {bubbles: true})); if (e.value !== "
            f"{json.dumps(value)}) throw new Error('no such option'); }})()"
        )

    def names(self, role: str) -> list[str]:
        """Return the names that a screen reader says for all elements of a role."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        found = [n for n in nodes if not n["ignored"] and n.get("role", {}).get("value") == role]
        return [n.get("name", {}).get("value", "") for n in found]

    def picture(self, path: Path, full: bool = False) -> None:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)["data"]
        path.write_bytes(base64.b64decode(data))

    def happened(self, *methods: str) -> list[dict[str, Any]]:
        """Return the events of this page so far."""
        self.js("1")
        return [
            e["params"] for e in self.browser.events if e.get("sessionId") == self.session and e["method"] in methods
        ]

    def addresses(self) -> set[str]:
        """Return everything that the page has asked for."""
        return {e["request"]["url"] for e in self.happened("Network.requestWillBeSent")}

    def complaints(self) -> list[str]:
        """Return errors of scripts and what the page's policy refused; a server that is away is no error of its own."""
        logged = [e["entry"] for e in self.happened("Log.entryAdded")]
        out = [e["text"] for e in logged if e["level"] in ("error", "warning") and e["source"] != "network"]
        out += [str(e["exceptionDetails"]) for e in self.happened("Runtime.exceptionThrown")]
        out += [str(e["args"]) for e in self.happened("Runtime.consoleAPICalled") if e["type"] in ("error", "warning")]
        return out

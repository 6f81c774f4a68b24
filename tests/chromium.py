"""Debian's Chromium without a screen, driven over the DevTools protocol: what a page does in a real browser.

``with Chromium() as browser: browser.open(path); browser.evaluate("1 + 1")``. Drawing is in software (SwiftShader), so
that WebGL works without a graphics card. A test that needs it carries ``@needs_chromium``.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

PROGRAM = next((found for found in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if found), None)

needs_chromium = pytest.mark.skipif(
    PROGRAM is None or find_spec("websocket") is None,
    reason="no chromium here (on Debian: apt install chromium), or no websocket-client (pip install '.[test]')",
)

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-gpu-sandbox",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)

START_SECONDS, ANSWER_SECONDS = 60, 120
"""How long to wait for the program, and for one answer of it; software drawing on one core is slow."""

NAMED_KEYS = {
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "PageUp": 33,
    "PageDown": 34,
    "Home": 36,
    "End": 35,
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    " ": 32,
}
"""Virtual key codes of keys that are more than one letter, or none."""

TEXT_OF = {"Enter": "\r", " ": " "}
"""What such a key types."""


class PageError(RuntimeError):
    """JavaScript that was evaluated threw, or the browser refused a command."""


class Chromium:
    """One browser with one page.

    Attributes:
        complaints: console warnings and errors, log entries and uncaught exceptions, as text, since `open`.
        requests: the address of every request since `open`, the page itself included; of data: only the beginning.
        downloads: the folder into which the page's downloads are saved.
    """

    def __init__(self, width: int = 1280, height: int = 720) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._size = width, height
        self._id = 0
        self._fired: set[str] = set()

    def __enter__(self) -> "Chromium":
        self._folder = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        self.downloads = Path(self._folder.name) / "downloads"
        self.downloads.mkdir()
        profile = Path(self._folder.name) / "profile"
        with open(Path(self._folder.name) / "said", "wb") as said:
            self._process = subprocess.Popen(
                [str(PROGRAM), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        try:
            self._connect(profile / "DevToolsActivePort")
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.command(f"{domain}.enable")
            self.command(
                "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads), eventsEnabled=True
            )
            self.resize(*self._size)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):
            self._socket.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()

    def _connect(self, port_file: Path) -> None:
        from websocket import create_connection  # an import that fails only where chromium is wanted

        until = time.monotonic() + START_SECONDS
        while not (port_file.exists() and port_file.read_text().count("\n")):
            if self._process.poll() is not None or time.monotonic() > until:
                raise PageError((Path(self._folder.name) / "said").read_text(errors="replace")[-2000:])
            time.sleep(0.05)
        port, browser = port_file.read_text().split("\n")[:2]
        address = f"ws://127.0.0.1:{port}"
        self._socket = create_connection(address + browser, timeout=ANSWER_SECONDS, suppress_origin=True)
        self._session = None
        page = next(t for t in self.command("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.command("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one DevTools command and wait for its answer; what happens meanwhile is noted.

        Raises:
            PageError: the browser refused.
        """
        self._id += 1
        sent: dict[str, Any] = {"id": self._id, "method": method, "params": params}
        if self._session and not method.startswith(("Target.", "Browser.")):
            sent["sessionId"] = self._session
        self._socket.send(json.dumps(sent))
        while True:
            got = json.loads(self._socket.recv())
            if got.get("id") == self._id:
                if "error" in got:
                    raise PageError(f"{method}: {got['error']}")
                return dict(got["result"])
            self._note(got.get("method", ""), got.get("params", {}))

    def _note(self, method: str, params: dict[str, Any]) -> None:
        self._fired.add(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"][:200])
        elif method == "Network.webSocketCreated":
            self.requests.append(params["url"][:200])
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            words = (str(one.get("value", one.get("description", ""))) for one in params["args"])
            self.complaints.append(f"{params['type']}: {' '.join(words)}")
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['level']}: {params['entry']['text']}")

    def open(self, page: Path | str) -> None:
        """Open a file, or an address, and wait until it has loaded; what was noted before is forgotten."""
        self.complaints.clear()
        self.requests.clear()
        self._fired.clear()
        self.command("Page.navigate", url=Path(page).resolve().as_uri() if isinstance(page, Path) else page)
        self.wait_for_event("Page.loadEventFired")

    def wait_for_event(self, method: str) -> None:
        """Wait until the browser has told of an event since `open`."""
        until = time.monotonic() + ANSWER_SECONDS
        while method not in self._fired:
            assert time.monotonic() < until, f"no {method} within {ANSWER_SECONDS} s"
            self.command("Runtime.evaluate", expression="0")
            time.sleep(0.02)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, of what its promise becomes too; it must survive JSON.

        Raises:
            PageError: it threw.
        """
        got = self.command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in got:
            details = got["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description") or details["text"])
        return got["result"].get("value")

    def wait_until(self, expression: str, seconds: float = 60) -> Any:
        """The first true value of an expression."""
        return self.wait(lambda: self.evaluate(expression), seconds, expression)

    def wait(self, found: Callable[[], Any], seconds: float = 60, words: str = "") -> Any:
        """The first true answer of a function that looks at the page."""
        until = time.monotonic() + seconds
        while not (value := found()):
            assert time.monotonic() < until, f"not within {seconds} s: {words}; complaints: {self.complaints}"
            time.sleep(0.05)
        return value

    def settle(self) -> None:
        """Wait until what was asked for has been drawn: two frames."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def resize(self, width: int, height: int, phone: bool = False) -> None:
        """Give the window another size; ``phone`` also tells the page that it is on one, with a finger."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        self.command("Emulation.setTouchEmulationEnabled", enabled=phone)

    def prefer(self, **features: str) -> None:
        """Set what the user prefers, e.g. ``prefers_reduced_motion="reduce"``."""
        wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.command("Emulation.setEmulatedMedia", features=wanted)

    def key(self, key: str, times: int = 1, shift: bool = False) -> None:
        """Press and release a key: a letter, a digit, or one of `NAMED_KEYS`."""
        code = f"Key{key.upper()}" if key.isalpha() and len(key) == 1 else f"Digit{key}" if key.isdigit() else key
        virtual = NAMED_KEYS[key] if key in NAMED_KEYS else ord(key.upper())
        text = TEXT_OF.get(key, key if len(key) == 1 else "")
        both: dict[str, Any] = {"key": key, "code": code, "windowsVirtualKeyCode": virtual, "modifiers": 8 * shift}
        for _ in range(times):
            self.command("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **both)
            self.command("Input.dispatchKeyEvent", type="keyUp", **both)
        self.settle()

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """One mouse event: mousePressed, mouseReleased, mouseMoved or mouseWheel (deltaX, deltaY) at page pixels."""
        self.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float, button: str = "left") -> None:
        """Click at a place of the window, in pixels."""
        self.drag((x, y), (x, y), button)

    def drag(self, start: tuple[float, float], end: tuple[float, float], button: str = "left", steps: int = 4) -> None:
        """Press at one place, move to another in steps, and let go."""
        buttons = {"left": 1, "right": 2, "middle": 4}[button]
        self.mouse("mouseMoved", *start)
        self.mouse("mousePressed", *start, button=button, buttons=buttons, clickCount=1)
        for step in range(1, steps + 1) if start != end else ():
            x, y = (a + (b - a) * step / steps for a, b in zip(start, end, strict=True))
            self.mouse("mouseMoved", x, y, button=button, buttons=buttons)
        self.mouse("mouseReleased", *end, button=button, buttons=0, clickCount=1)
        self.settle()

    def tap(self, x: float, y: float) -> None:
        """Touch a place of the window with a finger."""
        self.command("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.command("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.settle()

    def before_pages(self, script: str) -> str:
        """Run a script in every page before its own; the answer goes to `no_more_before_pages`."""
        return str(self.command("Page.addScriptToEvaluateOnNewDocument", source=script)["identifier"])

    def no_more_before_pages(self, identifier: str) -> None:
        """Stop that."""
        self.command("Page.removeScriptToEvaluateOnNewDocument", identifier=identifier)

    def wheel(self, x: float, y: float, down: float = 100) -> None:
        """Turn the wheel over a place of the window."""
        self.mouse("mouseWheel", x, y, deltaX=0, deltaY=down)
        self.settle()

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of the first element that fits, in the window, after scrolling to it."""
        code = (
            f"(() => {{ const one = document.querySelector({json.dumps(selector)}); "
            "one.scrollIntoView({block: 'nearest'}); const r = one.getBoundingClientRect(); "
            "return [r.left, r.top, r.width, r.height]; })()"
        )
        left, top, width, height = self.evaluate(code)
        return left, top, width, height

    def click_on(self, selector: str) -> None:
        """Click in the middle of the first element that fits."""
        left, top, width, height = self.box(selector)
        self.click(left + width / 2, top + height / 2)

    def screenshot(self, selector: str | None = None) -> bytes:
        """A PNG of the window, or of the first element that fits."""
        self.settle()
        clip = {}
        if selector is not None:
            left, top, width, height = self.box(selector)
            clip = {"clip": {"x": left, "y": top, "width": width, "height": height, "scale": 1}}
        return base64.b64decode(self.command("Page.captureScreenshot", format="png", **clip)["data"])

    def outside_requests(self) -> list[str]:
        """The requests since `open` that left the page: all but the file itself, data: and blob:."""
        own = self.evaluate("location.href.split('#')[0]")
        return [url for url in self.requests if url.split("#")[0] != own and not url.startswith(("data:", "blob:"))]

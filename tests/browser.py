"""Headless Chromium, spoken to over two pipes: real pointers, keys and colours."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-extensions"
FLAGS += " --hide-scrollbars --remote-debugging-pipe"


class Browser:
    """A browser with one page; a context manager."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.buffer = b""

    def __enter__(self) -> Browser:
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        # Chromium reads commands from descriptor 3 and answers on 4.
        theirs_in, self.to = os.pipe()
        self.answers, theirs_out = os.pipe()
        command = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        profile = f"--user-data-dir={self.folder.name}"
        self.process = subprocess.Popen(
            ["bash", "-c", command, str(CHROMIUM), *FLAGS.split(), profile, "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        pages = self("Target.getTargets")["targetInfos"]
        page = next(p["targetId"] for p in pages if p["type"] == "page")
        self.session = self("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        self("Page.enable")
        return self

    def open(self, file: Path, width: int = 1024, *, dark: bool = False) -> Browser:
        """Show a file in a window of this width."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        # A window has a least width, which phones fall below.
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self("Emulation.setDeviceMetricsOverride", **size)
        self("Emulation.setTouchEmulationEnabled", enabled=False)
        self("Input.dispatchMouseEvent", type="mouseMoved", x=0, y=0)
        self("Page.navigate", url=file.as_uri())
        self.wait("Page.loadEventFired")
        return self

    session: str | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.to)
        os.close(self.answers)
        self.folder.cleanup()

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and return its result."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    def wait(self, event: str) -> None:
        while self._next().get("method") != event:
            pass

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            data = os.read(self.answers, 1 << 16)
            if not data:
                raise RuntimeError("Chromium has ended")
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return dict(json.loads(message))

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def centre(self, selector: str) -> tuple[float, float]:
        box = self.js(
            f"(b => [b.x + b.width / 2, b.y + b.height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        return float(box[0]), float(box[1])

    def point(self, selector: str, *, click: bool = False) -> None:
        """Move the pointer over an element, and click there."""
        x, y = self.centre(selector)
        for kind in ["mouseMoved", *(["mousePressed", "mouseReleased"] * click)]:
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def tap(self, selector: str) -> None:
        """Touch an element."""
        self("Emulation.setTouchEmulationEnabled", enabled=True)
        x, y = self.centre(selector)
        self("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str, code: int) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def shot(self, file: Path) -> None:
        import base64

        data = self("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(data))

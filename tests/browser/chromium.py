"""A headless Chromium driven over its debugging pipe, with the standard library alone.

Chromium reads commands on file descriptor 3 and writes answers on 4, each a JSON object with a NUL behind it.
"""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class PageError(AssertionError):
    """A script that failed in the page, or a command that Chromium refused."""


class Page:
    """One tab; `problems` are what its console said of errors and of what its policy blocked."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._next, self._rest, self._session = 0, b"", None
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give a command of the DevTools protocol and return its result."""
        self._next += 1
        message = {"id": self._next, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._next:
                if "error" in answer:
                    raise PageError(f"{method}: {answer['error']}")
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._from, 1 << 16)
            if not piece:
                raise PageError("chromium ended")
            self._rest += piece
        line, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(line)
        values = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(values["exceptionDetails"].get("exception", values)))
        elif message.get("method") == "Log.entryAdded":
            self.problems.append(values["entry"]["text"])
        elif message.get("method") == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        return message

    def open(self, path: Path | str, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Show a file or an address in a window of this size, as somebody who prefers `scheme` colours."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.problems.clear()
        self.requests.clear()
        self.send("Page.navigate", url=path if isinstance(path, str) else path.resolve().as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise PageError(answer["exceptionDetails"]["exception"].get("description", script))
        return answer["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key; `text` is what it types."""
        codes = {"Tab": 9, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        codes |= {"End": 35, "Home": 36, "Enter": 13, " ": 32}
        code = codes.get(key, ord(key[0]))
        down = {"type": "keyDown", "key": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", **(down | ({"text": text} if text else {})))
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        for letter in text:
            self.press(letter, letter)

    def move(self, x: float, y: float) -> None:
        """Move the pointer there."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Save a picture of the page, below the window too where `whole`."""
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A tab of a browser of its own, which ends with the block."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "there is no chromium here: apt-get install chromium"
    our_end_in, their_end_out = os.pipe()
    their_end_in, our_end_out = os.pipe()

    # In the child, descriptors 3 and 4 have to be these two, whatever numbers they have here.
    def place() -> None:
        high_in, high_out = os.dup2(their_end_in, 100), os.dup2(their_end_out, 101)
        os.dup2(high_in, 3)
        os.dup2(high_out, 4)

    command = [
        *(program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--disable-extensions", "--hide-scrollbars", "--remote-debugging-pipe"),
        f"--user-data-dir={profile}",
    ]
    process = subprocess.Popen(
        command, preexec_fn=place, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(their_end_in)
    os.close(their_end_out)
    try:
        yield Page(our_end_out, our_end_in)
    finally:
        process.terminate()
        process.wait(timeout=30)
        os.close(our_end_in)
        os.close(our_end_out)

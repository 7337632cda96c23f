"""Chromium without a window, told what to do over its debugging pipe: no package, no port."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_WAIT_S = 600.0


def chromium() -> str:
    """The browser's path; skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium here")
    return found


class Tab:
    """One page."""

    def __init__(self, to_browser: int, from_browser: int, session: int) -> None:
        self._of_system = session
        self._out, self._in = os.fdopen(to_browser, "wb", 0), os.fdopen(from_browser, "rb", 0)
        self._numbers, self._session, self._left = itertools.count(1), "", b""
        self.requests: list[str] = []
        """Every address that the page has asked for."""
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self._send(f"{domain}.enable")

    def _send(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        self._out.write(json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0")
        while True:
            said = self._read()
            if said.get("method") == "Network.requestWillBeSent":
                self.requests.append(said["params"]["request"]["url"])
            if said.get("id") == number:
                assert "error" not in said, said["error"]
                result: dict[str, Any] = said["result"]
                return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            part = self._in.read(1 << 16)
            assert part, "the browser has ended"
            self._left += part
        message, _, self._left = self._left.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, url: str, *, width: int = 1280, height: int = 900) -> None:
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._send("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression in the page; what it promises, if it is a promise."""
        said = self._send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def wait(self, script: str) -> Any:
        """The value of an expression, once it is true."""
        end = time.monotonic() + _WAIT_S
        while time.monotonic() < end:
            found = self.run(f"(() => {{ try {{ return {script}; }} catch {{ return null; }} }})()")
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError(f"never true: {script}; the page says: {self.run('document.body.innerText')[:2000]}")

    def click(self, selector: str) -> None:
        self.wait(f"document.querySelector({json.dumps(selector)}) !== null")
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def fill(self, selector: str, text: str) -> None:
        """Type into a field, or choose in a list."""
        self.wait(f"document.querySelector({json.dumps(selector)}) !== null")
        self.run(
            f"(() => {{ const box = document.querySelector({json.dumps(selector)}); box.value = {json.dumps(text)};"
            " box.dispatchEvent(new Event('input')); box.dispatchEvent(new Event('change')); })()"
        )

    def dark(self, is_dark: bool) -> None:
        value = "dark" if is_dark else "light"
        self._send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def opened(self, url: str) -> tuple[float, float]:
        """Open a page; seconds until it has said that it is ready, by the wall and of the processor.

        All processes of the browser count, so where two cores are free the first number is the smaller one.
        """
        self.open("about:blank")
        before = self._processor_s()
        self.open(url)
        self.wait("performance.getEntriesByName('ready').length > 0")
        spent = self._processor_s() - before
        return self.run("performance.getEntriesByName('ready')[0].startTime / 1000"), spent

    def _processor_s(self) -> float:
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                words = stat.read_text().rpartition(")")[2].split()
                ticks += sum(map(int, words[11:13])) if int(words[3]) == self._of_system else 0
        return ticks / os.sysconf("SC_CLK_TCK")

    def picture(self, path: Path) -> None:
        path.write_bytes(b64decode(self._send("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Tab]:
    """A browser that can reach this machine alone, until the block ends."""
    down, ours_out = os.pipe()
    ours_in, up = os.pipe()
    argv = [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
        f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]  # fmt: skip
    # the browser reads commands at descriptor 3 and writes answers at 4
    wrapped = ["bash", "-c", f'exec "$@" 3<&{down} 4>&{up}', "bash", *argv]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(wrapped, pass_fds=(down, up), stderr=quiet, stdout=quiet, start_new_session=True) as child:
        os.close(down)
        os.close(up)
        try:
            yield Tab(ours_out, ours_in, child.pid)
        finally:
            child.terminate()
            child.wait(30)

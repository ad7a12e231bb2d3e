"""Debian's Chromium, driven by the W3C WebDriver protocol; nothing but the standard library.

`python tests/helpers/browser.py PAGE PICTURE` photographs a page.

Source: https://www.w3.org/TR/webdriver2/, and ChromeDriver's own additions (`goog/cdp`, `se/log`).
"""

import argparse
import base64
import json
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars "
    "--autoplay-policy=no-user-gesture-required"
).split()


def missing_programs() -> list[str]:
    """The programs that are not here."""
    return [program for program in ("chromium", "chromedriver") if shutil.which(program) is None]


class Browser:
    """A page in a headless Chromium; a context manager."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> "Browser":
        self.driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            started = next(line for line in self.driver.stdout if "started successfully on port" in line)
            self.address = f"http://127.0.0.1:{started.split()[-1].rstrip('.')}/session"
            chromium = {"args": [*FLAGS, f"--user-data-dir={self.folder}"], "binary": shutil.which("chromium")}
            wanted = {"goog:chromeOptions": chromium, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
            session = self.ask("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self._stop()
            raise
        self.address += "/" + session["sessionId"]
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.ask("DELETE", "")
        finally:
            self._stop()

    def _stop(self) -> None:
        self.driver.terminate()
        self.driver.wait(timeout=10)
        self.driver.stdout.close()

    def ask(self, method: str, path: str, body: dict | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None

    def open(self, path: Path) -> None:
        self.ask("POST", "/url", {"url": path.resolve().as_uri()})

    def run(self, script: str) -> Any:
        """What a function body returns in the page; promises are awaited."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": []})

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def show_as(self, width: int, height: int, dark: bool) -> None:
        """The size of the window, in CSS pixels, and whether the reader likes it dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[feature])

    def picture(self) -> bytes:
        """What is seen, as a PNG."""
        return base64.b64decode(self.devtools("Page.captureScreenshot")["data"])

    def log(self, kind: str) -> list[dict]:
        """What the browser noted since the last call: `browser` the console, `performance` events of the network."""
        return self.ask("POST", "/se/log", {"type": kind})

    def requests(self) -> list[str]:
        """Addresses asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [parameters["request"]["url"] for parameters in sent]


def main() -> None:
    """Photograph a page."""
    parser = argparse.ArgumentParser(description="A picture of a page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("--width", type=int, default=1280, help="CSS pixels (default: %(default)s)")
    parser.add_argument("--height", type=int, help="default: the whole page's")
    parser.add_argument("--start", metavar="SELECTOR", help="the element at its top (default: the page's)")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Browser(Path(folder)) as browser:
        browser.show_as(options.width, 800, options.dark)
        browser.open(options.page)
        height = options.height or browser.run("return document.documentElement.scrollHeight")
        browser.show_as(options.width, height, options.dark)
        if options.start:
            browser.run(f"document.querySelector({json.dumps(options.start)}).scrollIntoView()")
        options.picture.write_bytes(browser.picture())


if __name__ == "__main__":
    main()

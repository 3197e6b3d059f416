"""A headless Chromium, for tests that look at pages as people see them. It is told what to do over a pipe, in the
DevTools protocol, so that a test waits for what a page shows and never for time to pass."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from processes import until
from services import absent

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-quic", "--disable-extensions"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing beyond this machine is asked for
)
BECOME = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
"""Chromium takes commands from descriptor 3 and answers through descriptor 4."""
ANSWER_SECONDS = 120.0
PICTURES = Path(os.environ.get("LORA_LAB_PICTURES", Path(__file__).parents[1] / "build" / "pictures"))
"""Where screenshots are kept."""


class Browser:
    """Chromium with a profile of its own in ``folder``."""

    def __init__(self, folder: Path) -> None:
        program = next(filter(None, map(shutil.which, PROGRAMS)), None)
        if program is None:
            absent("chromium", "Chromium is not installed (.ci/services chromium)")
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (*os.pipe(), *os.pipe())]
        commands, self._commands, self._answers, answers = ends
        words = [*OPTIONS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "chromium.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", BECOME, str(commands), str(answers), program, *words],
                stdout=log,
                stderr=log,
                pass_fds=(commands, answers),
                start_new_session=True,  # its many processes end with it
                env=os.environ | {"HOME": str(folder)},
            )
        os.close(commands)
        os.close(answers)
        self._asked = 0
        self._waiting = b""
        self.events: list[dict[str, Any]] = []

    def page(self, width: int = 1600, height: int = 1000, *, dark: bool = False) -> Page:
        """An empty page of that size, in points."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, width, height, dark)

    def ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """The answer to one command of the DevTools protocol."""
        self._asked += 1
        command = {"id": self._asked, "method": method, "params": params}
        if session is not None:
            command["sessionId"] = session
        data = json.dumps(command).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        found: list[dict[str, Any]] = []

        def answered() -> bool:
            message = self._message()
            if message is not None and message.get("id") == self._asked:
                found.append(message)
            elif message is not None and "method" in message:
                self.events.append(message)
            return bool(found)

        until(answered, f"Chromium to answer {method}; it said {self.log.read_text()[-2000:]}", ANSWER_SECONDS)
        assert "error" not in found[0], f"{method}: {found[0]['error']}"
        return dict(found[0]["result"])

    def _message(self) -> dict[str, Any] | None:
        """The next message, if there is one by now."""
        while b"\0" not in self._waiting:
            if not select.select([self._answers], [], [], 0)[0]:
                return None
            read = os.read(self._answers, 1 << 20)
            assert read, f"Chromium has ended: {self.log.read_text()[-2000:]}"
            self._waiting += read
        message, _, self._waiting = self._waiting.partition(b"\0")
        return dict(json.loads(message))

    def close(self) -> None:
        """End it, with all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)


class Page:
    """One tab: opened, asked in JavaScript, and photographed."""

    def __init__(self, browser: Browser, session: str, width: int, height: int, dark: bool) -> None:
        self._browser, self._session = browser, session
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._ask(f"{domain}.enable")
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.colours("dark" if dark else "light")

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.ask(method, self._session, **params)

    def colours(self, scheme: str) -> None:
        """What the system prefers: ``light`` or ``dark``."""
        self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, url: str) -> None:
        """Go to ``url``."""
        answer = self._ask("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives, as JSON can say it."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 60.0) -> Any:
        """Wait until the expression is true; what it gives then."""
        found: list[Any] = []

        def there() -> bool:
            found[:] = [self.value(expression)]
            return bool(found[0])

        try:
            until(there, expression, seconds)
        except AssertionError as error:
            shown = self.value("document.body ? document.body.innerText.slice(0, 3000) : ''")
            raise AssertionError(f"{error}; the page shows:\n{shown}\n{self.errors()}") from error
        return found[0]

    def press(self, key: str) -> None:
        """Press a key (``Tab``, ``Enter``) where the focus is."""
        code = {"Tab": 9, "Enter": 13}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        named = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self._ask("Input.dispatchKeyEvent", type="keyDown", **named, **text)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **named)

    def type(self, text: str) -> None:
        """Type ``text`` where the focus is."""
        self._ask("Input.insertText", text=text)

    def picture(self, name: str, *, whole: bool = False) -> None:
        """Keep what it looks like as ``name`` (PNG) among :data:`PICTURES`; ``whole``: beyond the window, too."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        answer = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        (PICTURES / name).write_bytes(base64.b64decode(answer["data"]))

    def _events(self, method: str, part: Callable[[dict[str, Any]], Any]) -> list[Any]:
        mine = (e for e in self._browser.events if e["method"] == method and e.get("sessionId") == self._session)
        return [part(event["params"]) for event in mine]

    def requests(self) -> list[str]:
        """Everything it has asked for."""
        return self._events("Network.requestWillBeSent", lambda params: params["request"]["url"])

    def errors(self) -> list[str]:
        """What its scripts threw, and what the console counts as an error."""
        thrown = self._events("Runtime.exceptionThrown", lambda p: json.dumps(p["exceptionDetails"])[:500])
        logged = self._events("Log.entryAdded", lambda p: p["entry"])
        return thrown + [f"{e['text']} {e.get('url', '')}" for e in logged if e["level"] == "error"]

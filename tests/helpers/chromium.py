"""A real Chromium for the tests of the page at /sparsight/."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1500,1000",
    "--remote-debugging-pipe", "about:blank",
]  # fmt: skip
LAUNCH = """
import fcntl, os, sys
down, up = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 20) for fd in sys.argv[1:3])
os.dup2(down, 3)
os.dup2(up, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """Chromium through its debugging pipe: JSON messages that end with NUL, in on descriptor 3, out on 4."""

    def __init__(self, program: str, profile: Path) -> None:
        down_read, down_write = os.pipe()
        up_read, up_write = os.pipe()
        command = [sys.executable, "-c", LAUNCH, str(down_read), str(up_write), program, *OPTIONS]
        command.append(f"--user-data-dir={profile}")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, pass_fds=(down_read, up_write), **quiet)
        os.close(down_read)
        os.close(up_write)
        self._down, self._up = os.fdopen(down_write, "wb", 0), os.fdopen(up_read, "rb")
        self._numbers = itertools.count(1)
        self.events: list[dict] = []
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._down.write(json.dumps(message).encode() + b"\0")
        while True:
            raw = bytearray()
            while (byte := self._up.read(1)) != b"\0":
                assert byte, "the browser ended"
                raw += byte
            reply = json.loads(raw)
            if reply.get("id") == number:
                assert "error" not in reply, reply
                return reply["result"]
            self.events.append(reply)

    def run(self, script: str):
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 60):
        deadline = time.monotonic() + seconds
        while not (value := self.run(condition)):
            assert time.monotonic() < deadline, (condition, self.run("document.body.innerText"))
            time.sleep(0.1)
        return value

    def mouse(self, kind: str, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def key(self, key: str, *, ctrl: bool = False) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, modifiers=2 if ctrl else 0)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self._down.close()
        self._up.close()


def asked(browser, server, study, *, blinded=False):
    """Ask about a study by hand, and wait for its picture."""
    browser.call("Page.navigate", url=f"{server.url}/sparsight/")
    browser.wait("document.querySelectorAll('#study option').length >= 3")
    browser.run(f"document.getElementById('study').value = '{study}'")
    browser.run("document.getElementById('question').value = 'Is there a nodule?'")
    if blinded:
        browser.run("document.getElementById('blinded').click()")
    browser.run("document.getElementById('ask').click()")
    browser.wait("!document.getElementById('feedback').hidden && document.getElementById('canvas').width > 200")
    browser.run("document.activeElement.blur()")

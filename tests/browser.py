"""A headless Chromium over the DevTools protocol, with what the page asked of the network and complained about."""
import base64
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--no-default-browser-check", "--disable-background-networking", "--disable-component-update",
         "--disable-dev-shm-usage", "--remote-debugging-port=0", "about:blank"]
CODES = {"ArrowDown": 40, "ArrowUp": 38, "Escape": 27, "Enter": 13, "Home": 36, "End": 35, "PageDown": 34, "Tab": 9}


class Browser:
    def __init__(self, folder: Path, width: int = 1280, height: int = 800):
        import websocket
        self.process = subprocess.Popen([CHROMIUM, f"--user-data-dir={folder}", *FLAGS], text=True,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for line in self.process.stderr:
            if found := re.search(r"listening on (ws://\S+)", line): break
        self.socket = websocket.create_connection(found[1], suppress_origin=True, timeout=30)
        self.number, self.session, self.requests, self.complaints = 0, None, [], []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"): self(f"{domain}.enable")
        self.size(width, height)

    def __call__(self, method: str, **parameters) -> dict:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters} |
                                    ({"sessionId": self.session} if self.session else {})))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]
            self._hear(message.get("method"), message.get("params", {}))

    def _hear(self, event: str, of: dict):
        bad, logged = ("error", "warning"), of.get("entry", {}).get("level")
        if event == "Network.requestWillBeSent": self.requests.append(of["request"]["url"])
        elif event in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening"): self.complaints.append(of)
        elif event == "Runtime.consoleAPICalled" and of["type"] in bad: self.complaints.append(of["args"])
        elif event == "Log.entryAdded" and logged in bad: self.complaints.append(of["entry"])

    def size(self, width: int, height: int):
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def scheme(self, name: str):
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def open(self, url: str):
        self.requests.clear(), self.complaints.clear()
        self("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def js(self, expression: str):
        got = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def until(self, expression: str, seconds: float = 20):
        end = time.monotonic() + seconds
        while not self.js(expression):
            assert time.monotonic() < end, f"not in {seconds} s: {expression}"
            time.sleep(0.02)

    def click(self, selector: str, modifiers: int = 0):
        x, y = self.js(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
                       "e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect(); "
                       "return [r.x + r.width / 2, r.y + r.height / 2]; })()")
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1, modifiers=modifiers)

    def key(self, name: str):
        key = {"key": name, "windowsVirtualKeyCode": CODES.get(name, ord(name.upper()[0]))}
        if name not in CODES: key["text"] = name
        if name == "Enter": key["text"] = "\r"
        self("Input.dispatchKeyEvent", type="keyDown", **key)
        self("Input.dispatchKeyEvent", type="keyUp", key=name)

    def type(self, text: str): self("Input.insertText", text=text)

    def shoot(self, path: Path):
        Path(path).write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png")["data"]))

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(10)
        self.process.stderr.close()

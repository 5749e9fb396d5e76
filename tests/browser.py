"""A headless Chromium over the DevTools protocol, with what the page asked of the network and complained about; texts
that attack a page; and what to ask a page about its legibility."""
import base64
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--no-default-browser-check", "--disable-background-networking", "--disable-component-update",
         "--disable-dev-shm-usage", "--remote-debugging-port=0", "about:blank"]
CODES = {"ArrowDown": 40, "ArrowUp": 38, "Escape": 27, "Enter": 13, "Home": 36, "End": 35, "PageDown": 34, "Tab": 9}

ATTACKS = ["<script>window.pwned=1</script>", "</script><script>window.pwned=1</script>", "<!-- <script>", "]]>",
           "<img src=x onerror=window.pwned=1>", "<svg/onload=window.pwned=1>", "javascript:window.pwned=1",
           "&lt;b&gt;", "\x1b]0;owned\x07", "\x1b[2J\x1b[31m", "\x9b31m", "[bold red]no[/] [link=x:y]x[/link]",
           ":smile:", "\u202edlrow", "\x00", "\ud800", "\u2028\u2029", "\u200b\ufeff", "${window.pwned=1}",
           "__proto__", "'\"`\\"]
HOSTILE = ("Wait, that is wrong. Let me check: " + " ".join(ATTACKS) +
           "\n\nHmm, wait. What if it holds?\r\nNow I see. نص 中文 🙂")
CONTRAST = """[...document.querySelectorAll(SELECTOR)].filter(e => e.textContent && e.getClientRects()[0]).map(e => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true}), chain = [];
  for (let n = e; n; n = n.parentElement) chain.unshift(n);
  let opacity = 1;
  canvas.fillStyle = getComputedStyle(document.documentElement).colorScheme === "normal" ? "white" : "Canvas";
  canvas.fillRect(0, 0, 1, 1);
  const pixel = () => [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  for (const n of chain) {
    const style = getComputedStyle(n);
    opacity *= style.opacity;
    canvas.fillStyle = style.backgroundColor;
    canvas.fillRect(0, 0, 1, 1);
  }
  const back = pixel();
  canvas.globalAlpha = opacity;
  canvas.fillStyle = getComputedStyle(e).color;
  canvas.fillRect(0, 0, 1, 1);
  const light = rgb => rgb.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const [a, b] = [light(back), light(pixel())].sort((x, y) => y - x);
  return [(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 120)];
}).sort((x, y) => x[0] - y[0])"""
NAMELESS = """[...document.querySelectorAll("button, input, select, summary, a, [role], [tabindex]")]
  .filter(e => e.role !== "presentation" && e.getClientRects().length)
  .filter(e => !(e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim()))
  .map(e => e.outerHTML)"""


def squeezed(text: str) -> str: return re.sub(r"\s+", "", text)


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

    def until(self, expression: str, seconds: float = 60):
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

"""Make the README's pictures of the live meter and of the page, from one real run.

Run it: python examples/pictures/make.py    (echopair installed, Chromium on the path)

It serves on a free port, sends 5,000 messages a second for ten seconds and, to show what honest latency looks like,
stops the server for half a second in the middle. What the client drew on its terminal after eight, and the page that it
wrote, become examples/pictures/meter.png and examples/pictures/report.png.
"""

import argparse
import fcntl
import html
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

HERE = Path(__file__).parent
COLUMNS = 100
LOAD = ["-c", "50", "-d", "10s", "-r", "5k"]
STOPPED = 0.5  # seconds
COLOURS = {"1": "font-weight:bold", "2": "opacity:.5", "31": "color:#ff8a7d"}
CHROMIUM = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking"]


def chromium() -> str:
    """Return the browser's path, or end with a word on what is missing."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    sys.exit("there is no Chromium on the path: install it (Debian: apt-get install chromium)")


def photograph(browser: str, page: Path, picture: Path, width: int, height: int) -> None:
    """Write what the browser shows of `page`, in a window of that size, to `picture`."""
    with tempfile.TemporaryDirectory() as profile:
        options = [f"--user-data-dir={profile}", f"--window-size={width},{height}", f"--screenshot={picture}"]
        subprocess.run([browser, *CHROMIUM, *options, page.as_uri()], check=True, stderr=subprocess.DEVNULL)


def run(directory: Path) -> list[str]:
    """Run the pair, and return what the client's terminal showed, a string for each time the meter was drawn."""
    commands = Path(sys.executable).parent
    server = subprocess.Popen(
        [commands / "echo-server", "-4", "-p", "0", "-q"], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    target = server.stdout.readline().split()[-1]
    terminal, ours = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    files = ["--report", directory / "report.html", "-o", directory / "run.json"]
    client = subprocess.Popen([commands / "echo-client", target, *LOAD, *files], stdout=subprocess.PIPE, stderr=ours)
    os.close(ours)
    started, stopped, drawn = time.monotonic(), False, b""
    while client.poll() is None:
        if not stopped and time.monotonic() - started > 5:
            stopped = True
            server.send_signal(signal.SIGSTOP)
            time.sleep(STOPPED)
            server.send_signal(signal.SIGCONT)
        try:
            drawn += os.read(terminal, 4096)
        except OSError:  # EIO: the client has ended
            break
    client.communicate()
    os.close(terminal)
    server.terminate()
    server.wait()
    if client.returncode:
        sys.exit(f"the run failed with status {client.returncode}")
    return [frame for frame in drawn.decode().split("\r\x1b[K") if frame]


def as_page(command: str, frame: str) -> str:
    """Return a page that looks like a terminal in which `command` has drawn `frame` (ECMA-48 8.3.117, SGR)."""
    text = html.escape(frame)
    text = re.sub(r"\x1b\[(\d+)m", lambda code: f'<span style="{COLOURS[code[1]]}">', text)
    text = text.replace("\x1b[m", "</span>")
    style = "margin:0;padding:16px 20px;background:#12171d;color:#e6eaef;font:15px/1.6 'DejaVu Sans Mono',monospace"
    prompt = '<span style="opacity:.6">$</span>'
    return f'<meta charset="utf-8"><body style="{style}"><pre style="margin:0">{prompt} {html.escape(command)}\n{text}'


def main() -> None:
    """Make both pictures."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    browser = chromium()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        frames = run(directory)
        (directory / "meter.html").write_text(
            as_page(f"echo-client {' '.join(LOAD)} --report report.html", frames[len(frames) * 8 // 10]), "utf-8"
        )
        photograph(browser, directory / "meter.html", HERE / "meter.png", 1000, 82)
        photograph(browser, directory / "report.html", HERE / "report.png", 1280, 1545)
        document = json.loads((directory / "run.json").read_text("utf-8"))
    for kind in ("response", "service"):
        figures = document["latency_us"][kind]["percentiles"]
        print(f"{kind:8}", *(f"p{percent} {us / 1000:.2f} ms" for percent, us in figures.items()), sep="  ")


if __name__ == "__main__":
    main()

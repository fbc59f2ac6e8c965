"""CPU a message of echo-server beside its peers, measured in one run, interleaved; a table and a picture of it.

Run it: python examples/bench/bench.py [ROUNDS]    (echopair installed; cc and a second processor at hand)

A load generator in C, which neither verifies nor times, keeps one message in flight on each connection. Server and
generator have a processor each. Each round runs every peer at every size once, one after the other, so that a machine
that slows down slows all of them; what is shown is the median of the rounds, and the least and the most. CPU time is
the server's, user and system, as the scheduler counts it (/proc/PID/schedstat). A peer that cannot be had is named.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results.md"
PICTURE = HERE / "results.svg"
SECONDS = 1.0  # of each run
LOADS = [(64, 50), (1024, 50), (4096, 50), (16384, 50), (65536, 10), (262144, 4)]  # bytes a message, connections
OURS = "echopair"
COMMANDS = Path(sys.executable).parent
PEERS = {
    "C, epoll": ["{directory}/echo", "0"],
    OURS: [f"{COMMANDS}/echo-server", "-4", "-q", "-p", "0"],
    "echopair, copying": [f"{COMMANDS}/echo-server", "-4", "-q", "-p", "0", "--no-zero-copy"],
    "uvloop Protocol": ["{directory}/uvloop/bin/python", f"{HERE}/peers.py", "uvloop", "0"],
    "uvloop BufferedProtocol": ["{directory}/uvloop/bin/python", f"{HERE}/peers.py", "uvloop-buffered", "0"],
    "asyncio Protocol": [sys.executable, f"{HERE}/peers.py", "asyncio", "0"],
    "asyncio streams": [sys.executable, f"{HERE}/peers.py", "asyncio-streams", "0"],
}
COLOURS = ["#7b8794", "#0b62a8", "#6db5f5", "#b85000", "#f0a050", "#3b7d3b", "#9b59b6"]


def build(directory: Path) -> dict[str, str]:
    """Compile and install what the peers need; return why what is missing is missing."""
    missing = {}
    for program in ("echo", "load"):
        subprocess.run(["cc", "-O2", "-o", directory / program, HERE / f"{program}.c"], check=True)
    environment = directory / "uvloop"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    done = subprocess.run([environment / "bin/pip", "install", "--quiet", "uvloop"], capture_output=True, check=False)
    if done.returncode:
        missing |= {name: "pip cannot install uvloop" for name in PEERS if name.startswith("uvloop")}
    return missing


def cpu_ns(pid: int) -> int:
    """Return for how many nanoseconds a process has had a processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


class Server:
    """A peer, serving on a processor of its own until it is closed."""

    def __init__(self, command: list[str], directory: Path) -> None:
        words = [word.format(directory=directory) for word in command]
        command = ["taskset", "-c", "0", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.port = self.process.stdout.readline().rpartition(":")[2].strip()

    def measure(self, directory: Path, size: int, connections: int) -> float:
        """Return the server's CPU microseconds a message under load."""
        load = [directory / "load", self.port, str(connections), str(size), str(SECONDS)]
        before = cpu_ns(self.process.pid)
        done = subprocess.run(["taskset", "-c", "1", *load], capture_output=True, text=True, check=True)
        used = cpu_ns(self.process.pid) - before
        return used / int(done.stdout.split()[0]) / 1000

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def run(directory: Path, peers: dict[str, list[str]], rounds: int) -> dict[tuple[str, int], list[float]]:
    """Return the CPU microseconds a message of every peer at every size, a figure a round."""
    figures: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds):
        for name, command in peers.items():
            server = Server(command, directory)
            server.measure(directory, 1024, 50)  # not counted: malloc, caches and the like find their way
            for size, connections in LOADS:
                figures.setdefault((name, size), []).append(server.measure(directory, size, connections))
            server.close()
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return figures


def size_name(size: int) -> str:
    """Return a size as people write it."""
    return f"{size // 1024} KiB" if size >= 1024 else f"{size} B"


def table(figures: dict[tuple[str, int], list[float]], names: list[str]) -> str:
    """Return the medians, the spread and the ratio to C as a table."""
    lines = ["| CPU us a message | " + " | ".join(size_name(size) for size, _ in LOADS) + " |"]
    lines.append("| --- |" + " ---: |" * len(LOADS))
    base = {size: statistics.median(figures["C, epoll", size]) for size, _ in LOADS}
    for name in names:
        cells = []
        for size, _ in LOADS:
            values = figures[name, size]
            middle = statistics.median(values)
            cells.append(f"{middle:.2f} ({min(values):.2f} to {max(values):.2f}), {middle / base[size]:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(figures: dict[tuple[str, int], list[float]], names: list[str], title: str) -> str:
    """Return a chart of the ratios to C, a group of bars a size."""
    width, height, left, top, group = 1000, 430, 60, 60, 150
    most = 4.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="24" font-size="17" font-weight="bold" fill="#1b2430">{title}</text>',
    ]
    scale = (height - top - 90) / most
    bottom = height - 90
    for tick in range(int(most) + 1):
        y = bottom - tick * scale
        parts.append(f'<line x1="{left}" x2="{width - 20}" y1="{y}" y2="{y}" stroke="#dde2e8"/>')
        parts.append(f'<text x="{left - 10}" y="{y + 4}" font-size="12" text-anchor="end" fill="#586474">{tick}</text>')
    bar = (group - 30) / len(names)
    labels = []
    for place, (size, _) in enumerate(LOADS):
        base = statistics.median(figures["C, epoll", size])
        start = left + 10 + place * group
        for number, name in enumerate(names):
            ratio = statistics.median(figures[name, size]) / base
            tall, x = min(ratio, most) * scale, start + number * bar
            colour = COLOURS[list(PEERS).index(name)]
            parts.append(
                f'<rect x="{x:.1f}" y="{bottom - tall:.1f}" width="{bar - 1.5:.1f}" height="{tall:.1f}" '
                f'fill="{colour}">'
                f"<title>{name}, {size_name(size)}: {ratio:.2f}</title></rect>"
            )
            if name == OURS or ratio > most:
                labels.append(
                    f'<text x="{x + bar / 2:.1f}" y="{bottom - tall - 5:.1f}" font-size="11" text-anchor="middle" '
                    f'fill="#1b2430" stroke="#fff" stroke-width="3" paint-order="stroke">{ratio:.2f}</text>'
                )
        middle = start + (group - 30) / 2
        parts.append(
            f'<text x="{middle}" y="{bottom + 18}" font-size="13" text-anchor="middle" fill="#1b2430">'
            f"{size_name(size)}</text>"
        )
    for number, name in enumerate(names):
        x, y = left + (number % 4) * 235, bottom + 45 + (number // 4) * 22
        colour = COLOURS[list(PEERS).index(name)]
        parts.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="{y}" font-size="13" fill="#1b2430">{name}</text>')
    return "\n".join([*parts, *labels, "</svg>", ""])


def machine(directory: Path) -> str:
    """Return what it was measured on and with."""
    processors = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in processors if line.startswith("model name")), "?")
    versions = [f"Linux {platform.release().partition('-')[0]}", f"Python {platform.python_version()}"]
    script = "import uvloop; print('uvloop', uvloop.__version__)"
    done = subprocess.run([directory / "uvloop/bin/python", "-c", script], capture_output=True, text=True, check=False)
    versions += done.stdout.split("\n")[:1] if done.returncode == 0 else []
    return f"{model}, {os.cpu_count()} processors; {', '.join(versions)}; {datetime.now(UTC):%Y-%m-%d}"


def times_to_run(about: str, name: str, default: int) -> int:
    """Return the number that the command line gives; `about` is what --help says."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(name, nargs="?", type=int, default=default, help=f"how often, at least 1 (default: {default})")
    number = getattr(parser.parse_args(), name)
    if number < 1:
        parser.error(f"{name} is {number}: give at least 1")
    return number


def main() -> None:
    """Run the bench and write the table and the picture."""
    rounds = times_to_run(__doc__, "ROUNDS", 5)
    if (os.cpu_count() or 1) < 2 or not shutil.which("taskset"):
        sys.exit("server and load generator need a processor each, and taskset to get it")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        missing = build(directory)
        peers = {name: command for name, command in PEERS.items() if name not in missing}
        figures = run(directory, peers, rounds)
        where = machine(directory)
    text = "\n".join(
        [
            "Each cell: the median, (the least to the most) of the rounds, and the ratio of the median to that of C.",
            "",
            table(figures, list(peers)),
            "",
            *(f"Missing: {name}, for {why}.\n" for name, why in missing.items()),
            f"{rounds} rounds of {SECONDS:g} s; {where}.",
            "",
        ]
    )
    RESULTS.write_text(text, "utf-8")
    title = "Server CPU a message, as a multiple of a C echo that copies (less is better)"
    PICTURE.write_text(picture(figures, list(peers), title), "utf-8")
    print(text)


if __name__ == "__main__":
    main()

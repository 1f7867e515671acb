"""Many clients ask the demo at the same time. Is every answer the one given alone? How long do they wait? How many
answers come in a second, compared with one client at a time? Does memory grow?

    python -m benchmarks.serving_load --clients 32 --seconds 60
    python -m benchmarks.serving_load --memory          # held after 100 and after 2,000 requests

Both run a worker process through pg_mlx.client, so the figures include pipes and JSON. The ways of asking take turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from pg_mlx.client import Client, ServingError
from pg_mlx.demo import PICTURES

PROMPTS = (
    "detect red circle ; blue circle",
    "segment red circle",
    "caption en",
    "ocr",
    "detect star",
    "segment square",
)
ROUNDS = 3
"""In turn at once and one at a time, so that what else the machine does falls on both."""


def questions(folder: Path, pictures: int) -> list[tuple[str, Path, dict[str, Any]]]:
    """Every prompt about every picture, some of them sampled."""
    paths = list(PICTURES)
    for number in range(pictures):
        image = Image.new("RGB", (300 + 20 * number, 260), "white")
        draw = ImageDraw.Draw(image)
        for shape in range(3):
            x, y = 30 + 70 * shape, 20 + 13 * (number + shape) % 150
            draw.ellipse((x, y, x + 60, y + 60), fill=("red", "blue", "green", "orange")[(number + shape) % 4])
        paths.append(folder / f"{number}.png")
        image.save(paths[-1])
    sampled = dict(temperature=1.0, top_k=50, seed=1)
    pairs = [(prompt, path) for path in paths for prompt in PROMPTS]
    return [(prompt, path, sampled if number % 3 == 2 else {}) for number, (prompt, path) in enumerate(pairs)]


class Load:
    """Clients that ask one question after the other for some seconds."""

    def __init__(self, client: Client, asked: list[tuple[str, Path, dict[str, Any]]], expected: list[str]):
        self._client, self._asked, self._expected = client, asked, expected
        self.took: list[float] = []
        self.outcomes: Counter[str] = Counter()

    def run(self, clients: int, seconds: float) -> float:
        """Seconds that it took, the last answers included."""
        start = time.perf_counter()
        threads = [
            threading.Thread(target=self._ask, args=(number, clients, start + seconds)) for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start

    def _ask(self, number: int, stride: int, until: float) -> None:
        while time.perf_counter() < until:
            index = number % len(self._asked)
            prompt, path, options = self._asked[index]
            began = time.perf_counter()
            try:
                right = self._client.generate(prompt, path, max_tokens=64, **options).text == self._expected[index]
                self.outcomes["equal" if right else "DIFFERENT"] += 1
                self.took.append(time.perf_counter() - began)
            except ServingError as error:
                self.outcomes[error.code] += 1
            number += stride


def compare(client: Client, asked: list[Any], expected: list[str], clients: int, seconds: float) -> bool:
    together, single = Load(client, asked, expected), Load(client, asked, expected)
    spent = {1: 0.0, clients: 0.0}
    for _ in range(ROUNDS):
        spent[clients] += together.run(clients, seconds / ROUNDS)
        spent[1] += single.run(1, seconds / ROUNDS)
    rates = []
    for load, count in ((single, 1), (together, clients)):
        rates.append(len(load.took) / spent[count])
        p50, p95 = statistics.median(load.took), statistics.quantiles(load.took, n=20)[-1]
        print(f"{count} at a time: {rates[-1]:.2f} pictures/s, p50 {p50:.2f} s, p95 {p95:.2f} s, {dict(load.outcomes)}")
    print(f"together: {rates[1] / rates[0]:.2f} times as many pictures a second")
    return set(together.outcomes + single.outcomes) <= {"equal", "busy"}


def memory(client: Client, asked: list[Any], first: int, last: int) -> bool:
    """Held after some requests and after many, by MLX and by the whole process."""
    held = []
    for count, total in ((first, first), (last - first, last)):
        for number in range(count):
            prompt, path, options = asked[number % len(asked)]
            client.generate(prompt, path, max_tokens=8, **options)
        resident = _resident(client.pid)
        held.append(resident)
        active = client.stats()["active_bytes"]
        print(f"after {total} requests: {active / 1e6:.1f} MB in MLX, {resident / 1e6:.1f} MB resident")
    print(f"grown by {100 * (held[1] / held[0] - 1):.1f} %")
    return held[1] <= 1.05 * held[0]


def _resident(pid: int | None) -> int:
    """Resident bytes of a process, as ps reports them on Linux and macOS."""
    return 1024 * int(subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=True).stdout)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--clients", type=int, default=32)
    p.add_argument("--seconds", type=float, default=60, help="of each way of asking")
    p.add_argument("--pictures", type=int, default=5, help="beside the demo's own")
    p.add_argument("--memory", action="store_true")
    p.add_argument("--requests", type=int, nargs=2, default=(100, 2000), help="after which memory is looked at")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder, Client() as client:
        asked = questions(Path(folder), args.pictures)
        if args.memory:
            return 0 if memory(client, asked, *args.requests) else 1
        expected = [client.generate(prompt, path, max_tokens=64, **options).text for prompt, path, options in asked]
        return 0 if compare(client, asked, expected, args.clients, args.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
